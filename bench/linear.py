"""What does the last layer of a language model cost, with its logits and without, against its matrix products alone?

Value and gradients by hidden states and kernel, rows 4096, H 512, C 32000. The floor is the three products of the same
sizes. Outputs are the gradients, which every provider writes. torch, where it is installed, runs eagerly on as many
threads as there are cores.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss
from bench.measure import interleaved, result_rows

ROWS, WIDTH = 4096, 512
SHAPES = [(32000, "float32"), (32000, "bfloat16")]
FLOOR = "three products (floor)"


def _whole(loss: Callable) -> Callable:
    def mean_loss(h, w, ids):
        return jnp.mean(loss(jnp.dot(h, w, preferred_element_type=jnp.float32), ids))

    return jax.value_and_grad(mean_loss, (0, 1))


def _chunked(h, w, ids):
    return jaxloss.linear_loss(jaxloss.softmax_cross_entropy, h, w, ids).mean()


def _products(h, w, _):
    z = jnp.dot(h, w, preferred_element_type=jnp.float32).astype(h.dtype)
    by_hidden = jnp.dot(z, w.T, preferred_element_type=jnp.float32)
    return by_hidden, jnp.dot(h.T, z, preferred_element_type=jnp.float32)


PROVIDERS = {
    FLOOR: _products,
    "linear_loss": jax.value_and_grad(_chunked, (0, 1)),
    "jaxloss, all logits": _whole(jaxloss.softmax_cross_entropy),
    "optax, all logits": _whole(optax.losses.softmax_cross_entropy_with_integer_labels),
}


def _torch(h: jax.Array, w: jax.Array, ids: jax.Array) -> Callable | None:
    """Loss and gradients by torch; None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count() or 1)
    kind = torch.bfloat16 if h.dtype == jnp.bfloat16 else torch.float32
    x, k = (torch.tensor(np.asarray(a, np.float32)).to(kind).requires_grad_() for a in (h, w))
    y = torch.tensor(np.asarray(ids), dtype=torch.int64)

    def step():
        x.grad = k.grad = None
        loss = torch.nn.functional.cross_entropy(x @ k, y)
        loss.backward()
        return loss.item(), x.grad, k.grad

    return step


def run(quick: bool) -> Iterator[dict]:
    for size, dtype in SHAPES:
        rng = np.random.default_rng(0)
        h = jnp.asarray(rng.normal(size=(ROWS, WIDTH)), dtype)
        w = jnp.asarray(rng.normal(size=(WIDTH, size)) / WIDTH**0.5, dtype)
        ids = jnp.asarray(rng.integers(0, size, ROWS), jnp.int32)
        compiled = {name: jax.jit(f).lower(h, w, ids).compile() for name, f in PROVIDERS.items()}
        programs = {name: partial(program, h, w, ids) for name, program in compiled.items()}
        eager = _torch(h, w, ids)
        if eager is not None:
            programs["torch eager"] = eager
        expected = float(programs["optax, all logits"]()[0])
        for name, program in programs.items():
            if name != FLOOR:
                np.testing.assert_allclose(program()[0], expected, rtol=2e-2 if dtype == "bfloat16" else 1e-5)
        samples = interleaved(programs, seconds=30 if quick else 120, warm_up=1)
        shape = f"[{ROWS}, {WIDTH}] @ [{WIDTH}, {size}]"
        yield from result_rows("linear", shape, dtype, samples, compiled, FLOOR, lambda _: "optax, all logits")
