"""Compiles losses for a described device and prints what each moves: `python -m tests.compiled TARGET`, JSON lines.

The variables of `bench.targets.environment()` have to be set, so `test_targets.py` runs it as a process of its own.
"""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from bench.targets import TARGETS, compile_for, measure
from tests import cases

WIDE, NARROW, ELEMENTS, SOME = (8192, 16384), (131072, 1000), (1000000, 80), (65536, 1000)
BOTH, GRADIENT = ("value", "gradient"), ("gradient",)
OPTIONS = {
    "z-loss": {"z_loss": 1e-4},
    "class weights, margins": {"class_weights": True, "label_margins": True},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing, class weights, z-loss": {"label_smoothing": 0.1, "class_weights": True, "z_loss": 1e-4},
}


def programs(platform: str) -> Iterator[tuple[str, str, str, str, Callable, tuple]]:
    """Family, name, labels, mode, function of logits and labels, and arrays like the arguments.

    Losses with loops take the compiler for TPU minutes, and have bounds for GPU alone.
    """
    loops = (
        []
        if platform == "tpu"
        else [("sparse", cases.SPARSE, SOME, GRADIENT), ("ranking", cases.RANKING, SOME, GRADIENT)]
    )
    every = [("softmax", cases.SOFTMAX, WIDE, BOTH), ("sigmoid", cases.SIGMOID, ELEMENTS, BOTH), *loops]
    for family, some, shape, wanted in every:
        for case in some:
            for kind in ("ids", "soft"):
                yield from modes(wanted, family, case.name, kind, case.call, shape)
    for kind in ("ids", "soft"):
        yield from modes(BOTH, "hinge", "multiclass_hinge", kind, jaxloss.multiclass_hinge_loss, WIDE)
        if platform != "tpu":  # which stores what it looks up in a table
            costs = np.abs(np.subtract.outer(*[np.arange(SOME[1], dtype=np.float32)] * 2))
            loss = partial(jaxloss.expected_cost_loss, costs=costs)
            yield from modes(BOTH, "costs", f"costs, {kind}", kind, loss, SOME)
    yield from modes(BOTH, "softmax", "kl", "soft", jaxloss.softmax_kl_divergence, WIDE)
    yield from modes(BOTH, "softmax", "js", "soft", jaxloss.softmax_js_divergence, WIDE)
    for shape, dtype in ((WIDE, jnp.float32), (NARROW, jnp.bfloat16)):
        for case in (cases.SOFTMAX[0], cases.SOFTMAX[3]):
            name = f"{case.name}, {dtype.__name__} {list(shape)}"
            for kind in ("ids", "soft"):
                yield from modes(GRADIENT, "softmax", name, kind, case.call, shape, dtype)
    for name, given in OPTIONS.items():
        for case in (cases.SOFTMAX[0], cases.SOFTMAX[3]):
            weights = jnp.ones(WIDE[1], jnp.float32)
            options = {key: weights if value is True else value for key, value in given.items()}

            def loss(z, y, case=case, options=options):
                return case.call(z, y, where=y >= 0, **options)

            yield from modes(GRADIENT, "softmax", f"{case.name}, {name}, mask", "ids", loss, WIDE)


def modes(wanted, family, name, kind, loss, shape, dtype=jnp.bfloat16):
    like = jax.ShapeDtypeStruct
    arguments = (like(shape, dtype), like(shape[:1], jnp.int32) if kind == "ids" else like(shape, dtype))
    for mode in wanted:
        function = partial(value if mode == "value" else gradient, loss)
        yield family, name, kind, mode, function, arguments


def value(loss, z, labels):
    return jnp.sum(loss(z, labels))


def gradient(loss, z, labels):
    return jax.value_and_grad(lambda z: jnp.sum(loss(z, labels)))(z)


def main(target: str) -> None:
    device = TARGETS[target].devices()[0]

    def compiled(program):
        *names, function, arguments = program
        found = measure(compile_for(device, function, *arguments))
        size = arguments[0].size * arguments[0].dtype.itemsize
        return [*names, found["bytes"] / size, found["temporary"] / size]

    with ThreadPoolExecutor(2) as pool:  # the compilers take one core each
        for row in pool.map(compiled, programs(TARGETS[target].platform)):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
