"""What does a loss cost before and around the program: compiling a train step, an eager call, the import?

compile: trace, compile and run the train step of `bench.train_step` for the first time, all caches of JAX cleared in
every round. eager: a call outside `jax.jit` on an [8, 10] array. import: a fresh Python that imports JAX and the
library; the floor is JAX alone.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bench import train_step
from bench.measure import FLOOR, Case, Program

ROWS, CLASSES = 128, 1000


def _first_step(loss: Callable) -> Callable:
    def call():
        jax.clear_caches()
        _, state, value = jax.jit(train_step.step_of(loss))(*train_step.start(ROWS, CLASSES))
        return value, state[0].mu[-1]

    return call


def _compile(scale: str) -> list[Program]:
    return [Program(name, provider, _first_step(loss)) for name, provider, loss in train_step.losses(scale)]


def _eager(scale: str) -> list[Program]:
    rng = np.random.default_rng(0)
    z, ids = jnp.asarray(rng.normal(size=(8, 10)), jnp.float32), jnp.arange(8)
    given = {provider: loss for _, provider, loss in train_step.losses(scale)[1:]}
    given["optax under jit"] = jax.jit(given["optax"])
    return [Program(train_step.LOSS, name, partial(loss, z, ids)) for name, loss in given.items()]


def _imports() -> list[Program]:
    def program(loss: str, provider: str, modules: str) -> Program:
        command = [sys.executable, "-c", f"import {modules}"]
        return Program(loss, provider, lambda: subprocess.run(command, check=True).returncode)

    return [
        program(FLOOR, "jax alone", "jax"),
        program("import", "jaxloss", "jax, jaxloss"),
        program("import", "optax", "jax, optax"),
    ]


def cases(scale: str) -> Iterator[Case]:
    seconds, rounds = (12, 10) if scale == "full" else (0, 3)
    common = {"seconds": seconds, "rounds": rounds}
    size = (ROWS, CLASSES, "float32")
    yield Case("compile_time", f"[{ROWS}, {CLASSES}]", *size, "compile", partial(_compile, scale), **common)
    yield Case("compile_time", "[8, 10]", 8, 10, "float32", "eager", partial(_eager, scale), seconds=1)
    yield Case("compile_time", "", 0, 0, "float32", "import", _imports, **common)
