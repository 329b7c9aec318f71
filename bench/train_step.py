"""What is the share of the loss in a whole train step: a small classifier, optax.adam, donated parameters?

The floor is the step with the sum of exp of the logits as loss. What is compared as gradient is Adam's first moment
after one step, which is a tenth of it.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bench.measure import FLOOR, Case, Program
from bench.peers import offers

ROWS, INPUTS, WIDTH, CLASSES = 4096, 64, 128, 1000
PROVIDERS = ("jaxloss", "optax", "plain JAX")
LOSS = "cross-entropy"
OPTIMIZER = optax.adam(1e-3)


def start(rows: int, classes: int) -> tuple:
    """Parameters, state of the optimizer, inputs and ids."""
    rng = np.random.default_rng(0)
    sizes = [(INPUTS, WIDTH), (WIDTH, classes)]
    parameters = [jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32) for s in sizes]
    inputs = jnp.asarray(rng.normal(size=(rows, INPUTS)), jnp.float32)
    return parameters, OPTIMIZER.init(parameters), inputs, jnp.asarray(rng.integers(0, classes, rows), jnp.int32)


def step_of(loss: Callable) -> Callable:
    def mean_loss(parameters, inputs, ids):
        first, last = parameters
        return jnp.mean(loss(jax.nn.relu(inputs @ first) @ last, ids))

    def step(parameters, state, inputs, ids):
        value, gradient = jax.value_and_grad(mean_loss)(parameters, inputs, ids)
        updates, state = OPTIMIZER.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    return step


def losses(scale: str) -> list[tuple[str, str, Callable]]:
    """Name, provider and function of each loss, the floor first."""
    floor = (FLOOR, "exp", lambda z, _: jnp.sum(jnp.exp(z), axis=-1))
    return [floor, *((loss, name, offer.losses[loss]) for loss, name, offer in offers([LOSS], scale, PROVIDERS))]


def _program(name: str, provider: str, loss: Callable, rows: int, classes: int) -> Program:
    *kept, inputs, ids = start(rows, classes)
    compiled = jax.jit(step_of(loss), donate_argnums=(0, 1)).lower(*kept, inputs, ids).compile()

    def call():
        *kept[:], value = compiled(*kept, inputs, ids)
        return value, kept[1][0].mu[-1]

    return Program(name, provider, call, compiled)


def _build(scale: str, rows: int, classes: int) -> list[Program]:
    return [_program(*entry, rows, classes) for entry in losses(scale)]


def cases(scale: str) -> Iterator[Case]:
    flops = 2 * ROWS * WIDTH * (2 * INPUTS + 3 * CLASSES)
    yield Case(
        "train_step",
        f"[{ROWS}, {INPUTS}] {WIDTH} [{ROWS}, {CLASSES}]",
        ROWS,
        CLASSES,
        "float32",
        "train step",
        partial(_build, scale, ROWS, CLASSES),
        4 * 4 * ROWS * CLASSES,
        flops,
        seconds=10 if scale == "full" else 3,
    )
