"""What does a loss on logits cost inside a train step, against optax and against no loss at all?

One jitted step computes logits = x @ w ([R, 8] @ [8, C]), the loss with its gradient by the logits, and contracts that
gradient back to [8, C], so that nothing of the size of the logits enters or leaves the program and no page fault of a
fresh output is timed. The floor is the same step with exp in place of the loss. Providers must agree before any is
timed.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss
from bench.measure import interleaved, result_rows

SHAPES = [
    (65536, 10, "float32"),
    (4096, 1000, "float32"),
    (1024, 32768, "float32"),
    (256, 131072, "float32"),
    (65536, 10, "bfloat16"),
    (4096, 1000, "bfloat16"),
    (1024, 32768, "bfloat16"),
]
FLOOR = "exp (floor)"


def _ids(loss: Callable) -> Callable:
    return lambda z, ids: loss(z, ids)


def _one_hot(loss: Callable) -> Callable:
    return lambda z, ids: loss(z, jax.nn.one_hot(ids, z.shape[1], dtype=z.dtype))


PROVIDERS = {
    "jaxloss": _ids(jaxloss.softmax_cross_entropy),
    "optax": _ids(optax.losses.softmax_cross_entropy_with_integer_labels),
    "jaxloss, one-hot": _one_hot(jaxloss.softmax_cross_entropy),
    "optax, one-hot": _one_hot(optax.losses.softmax_cross_entropy),
    "jaxloss, focal": _ids(jaxloss.softmax_focal_loss),
}


def _step(loss: Callable | None) -> Callable:
    def step(x, w, ids):
        z = x @ w
        if loss is None:
            e = jnp.exp(z)
            return jnp.sum(e[:, 0].astype(jnp.float32)), x.T @ e
        value, pullback = jax.vjp(lambda z: jnp.sum(loss(z, ids).astype(jnp.float32)), z)
        return value, x.T @ pullback(jnp.float32(1))[0]

    return step


def run(quick: bool) -> Iterator[dict]:
    for rows, size, dtype in SHAPES:
        rng = np.random.default_rng(0)
        x, w = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((rows, 8), (8, size)))
        ids = jnp.asarray(rng.integers(0, size, rows), jnp.int32)
        steps = {FLOOR: None, **PROVIDERS}
        compiled = {name: jax.jit(_step(loss)).lower(x, w, ids).compile() for name, loss in steps.items()}
        expected = float(compiled["optax"](x, w, ids)[0])
        for name, program in compiled.items():
            if name != FLOOR and "focal" not in name:
                np.testing.assert_allclose(program(x, w, ids)[0], expected, rtol=2e-2 if dtype == "bfloat16" else 1e-5)
        programs = {name: partial(program, x, w, ids) for name, program in compiled.items()}
        samples = interleaved(programs, seconds=2 if quick else 15)
        yield from result_rows("dense", f"[{rows}, {size}]", dtype, samples, compiled, FLOOR, _peer)


def _peer(name: str) -> str:
    return "optax, one-hot" if "one-hot" in name else "optax"
