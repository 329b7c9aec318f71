"""Chunks of a linear layer follow the platform that a program is lowered for, not the host that traces it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify

import jaxloss

CE = jaxloss.softmax_cross_entropy
ROWS, WIDTH, SIZE = 24, 4, 2**19
"""Logits of 48 MiB: two chunks of 12 rows on CPU, one of all elsewhere."""
ACCELERATORS = ["cuda", "rocm", "tpu"]


def close(got, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, expected)


def lowered(function, *arguments, platforms):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=tuple(platforms)).as_text()


@pytest.mark.parametrize(
    ("platform", "rows", "width", "size", "chunk"),
    [
        # On CPU 16 MiB of float32 are 131 rows: 32 chunks of 128. 112 MiB are 917: 5 chunks of 820.
        ("cpu", 4096, 8, 32000, 128),
        ("cpu", 4096, 64, 32000, 256),
        ("cpu", 4096, 512, 32000, 820),
        # Elsewhere 1 GiB are 8388 rows of 32000 classes, and 4 GiB 4096 of 262144; between the two 8192 rows.
        ("other", 16384, 64, 32000, 8192),
        ("other", 32768, 512, 128256, 8192),
        ("other", 32768, 512, 262144, 4096),
    ],
)
def test_the_default_chunk_is_that_of_the_docs(platform, rows, width, size, chunk):
    def loss(h, k):
        return jaxloss.linear_loss(CE, h, k, jnp.zeros(rows, jnp.int32)).mean()

    def by_row(h, k):
        return jaxloss.map_linear_logits(CE, h, k, jnp.zeros(rows, jnp.int32))

    shapes = jax.ShapeDtypeStruct((rows, width), jnp.float32), jax.ShapeDtypeStruct((width, size), jnp.float32)
    for name in ["cpu"] if platform == "cpu" else ACCELERATORS:
        for function in (jax.grad(loss, (0, 1)), by_row):
            text = lowered(function, *shapes, platforms=[name])
            assert f"tensor<{chunk}x{size}xf32>" in text
            assert f"tensor<{rows}x{size}xf32>" not in text
            assert text.count("stablehlo.while") == 1


@pytest.fixture
def problem(rng):
    hidden, kernel = rng.normal(size=(ROWS, WIDTH)), rng.normal(size=(WIDTH, SIZE))
    return (jnp.asarray(hidden, jnp.float32), jnp.asarray(kernel, jnp.float32)), jnp.asarray(
        rng.integers(0, SIZE, ROWS)
    )


BOTH = (0, 1)
TRANSFORMS = {
    "value and gradient": lambda f, x: jax.value_and_grad(f, BOTH)(*x),
    "one side": lambda f, x: jax.grad(f, 1)(*x),
    "jvp": lambda f, x: jax.jvp(f, x, x),
    "forward over reverse": lambda f, x: jax.jvp(jax.grad(f, BOTH), x, x)[1],
    "reverse over forward": lambda f, x: jax.grad(lambda x: jax.jvp(f, x, x)[1])(x),
    "reverse over reverse": lambda f, x: jax.grad(lambda k: jnp.vdot(jax.grad(f, 1)(x[0], k), x[1]))(x[1]),
    "vmap": lambda f, x: jax.vmap(jax.grad(f), (0, None))(jnp.stack([x[0], 2 * x[0]]), x[1]),
    "checkpoint": lambda f, x: jax.grad(jax.checkpoint(f), BOTH)(*x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transformation_with_a_chunk_for_each_platform(name, problem):
    x, ids = problem
    chunked = partial(TRANSFORMS[name], lambda h, k: jaxloss.linear_loss(CE, h, k, ids).mean())
    whole = partial(TRANSFORMS[name], lambda h, k: jnp.mean(CE(h @ k, ids)))
    close(jax.jit(chunked)(x), jax.jit(whole)(x))
    loops = {name: lowered(chunked, x, platforms=[name]).count("stablehlo.while") for name in ("cpu", *ACCELERATORS)}
    assert loops.pop("cpu") in (1, 2)
    assert set(loops.values()) == {0}


@pytest.mark.parametrize("name", ["value and gradient", "forward over reverse"])
def test_results_by_row_with_a_chunk_for_each_platform(name, problem):
    x, ids = problem
    chunked = partial(TRANSFORMS[name], lambda h, k: jnp.sum(jaxloss.map_linear_logits(CE, h, k, ids) ** 2))
    whole = partial(TRANSFORMS[name], lambda h, k: jnp.sum(CE(h @ k, ids) ** 2))
    close(jax.jit(chunked)(x), jax.jit(whole)(x), rtol=1e-4, atol=1e-4)


def test_a_program_for_every_platform_has_the_chunks_of_each(problem):
    x, ids = problem

    def step(h, k, ids):
        return jax.value_and_grad(lambda h, k: jaxloss.linear_loss(CE, h, k, ids).mean(), BOTH)(h, k)

    program = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(*x, ids)
    text = program.mlir_module()
    assert f"tensor<12x{SIZE}xf32>" in text
    assert f"tensor<24x{SIZE}xf32>" in text
    close(program.call(*x, ids), step(*x, ids))


def test_checks_reach_the_caller_through_the_chosen_chunk(problem):
    x, ids = problem
    checked = jax.jit(checkify.checkify(lambda ids: jaxloss.linear_loss(CE, *x, ids).mean(), checkify.user_checks))
    assert checked(ids)[0].get() is None
    assert "got -7" in checked(ids.at[20].set(-7))[0].get()


@pytest.mark.parametrize("chunk", [8, None])
def test_a_symbolic_number_of_rows(chunk, rng):
    rows, kernel = export.symbolic_shape("rows")[0], jnp.asarray(rng.normal(size=(4, 11)), jnp.float32)
    places = [jax.ShapeDtypeStruct((rows, 4), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32)]

    def step(hidden, ids):
        def loss(h):
            return jaxloss.linear_loss(CE, h, kernel, ids, where=ids >= 0, chunk_rows=chunk).mean()

        losses = jaxloss.map_linear_logits(CE, hidden, kernel, ids, chunk_rows=chunk)
        return jax.value_and_grad(loss)(hidden), jax.jvp(jax.grad(loss), (hidden,), (hidden,))[1], losses

    program = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(*places)
    for n in (1, 7, 8, 9, 21):
        x = jnp.asarray(rng.normal(size=(n, 4)), jnp.float32), jnp.asarray(rng.integers(-1, 11, n), jnp.int32)
        close(program.call(*x), step(*x))
