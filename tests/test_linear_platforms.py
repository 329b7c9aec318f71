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
ROWS, WIDTH, SIZE = 24, 4, 2**18
"""Logits of 24 MiB: two chunks of 12 rows on CPU, one of all elsewhere."""
ACCELERATORS = ["cuda", "rocm", "tpu"]


def close(got, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, expected)


def lowered(function, *arguments, platforms):
    """The text of a program for each platform, of one trace."""
    traced = jax.jit(function).trace(*arguments)
    return {name: traced.lower(lowering_platforms=(name,)).as_text() for name in platforms}


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
    for function in (jax.grad(loss, (0, 1)), by_row):
        for text in lowered(function, *shapes, platforms=["cpu"] if platform == "cpu" else ACCELERATORS).values():
            assert f"tensor<{chunk}x{size}xf32>" in text
            assert f"tensor<{rows}x{size}xf32>" not in text
            assert text.count("stablehlo.while") == 1


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(20261127)
    hidden, kernel = (rng.normal(size=size).astype(np.float32) for size in ((ROWS, WIDTH), (WIDTH, SIZE)))
    return (jnp.asarray(hidden), jnp.asarray(kernel)), jnp.asarray(rng.integers(0, SIZE, ROWS))


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


@pytest.fixture(scope="module")
def expected(problem):
    """What every transformation finds from all logits at once, in one program."""
    x, ids = problem

    def whole(h, k):
        return jnp.mean(CE(h @ k, ids))

    return jax.jit(lambda x: {name: transform(whole, x) for name, transform in TRANSFORMS.items()})(x)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transformation_with_a_chunk_for_each_platform(name, problem, expected):
    x, ids = problem
    program = jax.jit(partial(TRANSFORMS[name], lambda h, k: jaxloss.linear_loss(CE, h, k, ids).mean()))
    close(program(x), expected[name])
    texts = lowered(program, x, platforms=["cpu", "tpu"])
    assert texts["cpu"].count("stablehlo.while") in (1, 2)
    assert "stablehlo.while" not in texts["tpu"]


def test_results_by_row_with_a_chunk_for_each_platform(problem):
    x, ids = problem

    def run(function):
        """Value and gradient, and the derivative of each."""
        return jax.jit(lambda x: jax.jvp(jax.value_and_grad(lambda h, k: jnp.sum(function(h, k) ** 2), BOTH), x, x))(x)

    got, whole = run(lambda h, k: jaxloss.map_linear_logits(CE, h, k, ids)), run(lambda h, k: CE(h @ k, ids))
    close(got, whole, rtol=1e-4, atol=1e-4)


def test_a_program_for_every_platform_has_the_chunks_of_each(problem, expected):
    x, ids = problem

    def step(h, k, ids):
        return jax.value_and_grad(lambda h, k: jaxloss.linear_loss(CE, h, k, ids).mean(), BOTH)(h, k)

    program = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(*x, ids)
    text = program.mlir_module()
    assert f"tensor<12x{SIZE}xf32>" in text
    assert f"tensor<24x{SIZE}xf32>" in text
    close(program.call(*x, ids), expected["value and gradient"])


def test_checks_reach_the_caller_through_the_chosen_chunk(problem):
    x, ids = problem
    checked = jax.jit(checkify.checkify(lambda ids: jaxloss.linear_loss(CE, *x, ids).mean(), checkify.user_checks))
    assert checked(ids)[0].get() is None
    assert "got -7" in checked(ids.at[20].set(-7))[0].get()


def derivatives(losses, total, hidden):
    """Value and gradient, the gradient's derivative, and the losses, by hidden rows."""
    return jax.value_and_grad(total)(hidden), jax.jvp(jax.grad(total), (hidden,), (hidden,))[1], losses(hidden)


@jax.jit
def from_all_logits(kernel, hidden, ids):
    def losses(h):
        return CE(h @ kernel, ids)

    def total(h):
        return jaxloss.LossSum.of(CE(h @ kernel, jnp.maximum(ids, 0)), ids >= 0).mean()

    return derivatives(losses, total, hidden)


@pytest.mark.parametrize(("chunk", "sizes"), [(8, (1, 9, 21)), (None, (1, 21))])
def test_a_symbolic_number_of_rows(chunk, sizes, rng):
    rows, kernel = export.symbolic_shape("rows")[0], rng.normal(size=(4, 11)).astype(np.float32)
    places = [jax.ShapeDtypeStruct((rows, 4), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32)]

    def step(hidden, ids):
        def total(h):
            return jaxloss.linear_loss(CE, h, kernel, ids, where=ids >= 0, chunk_rows=chunk).mean()

        return derivatives(lambda h: jaxloss.map_linear_logits(CE, h, kernel, ids, chunk_rows=chunk), total, hidden)

    program = export.export(jax.jit(step), platforms=("cpu", "tpu"))(*places)
    for n in sizes:
        # Rows left out fill up those of the one program from all logits.
        hidden, ids = np.zeros((21, 4), np.float32), np.full(21, -1, np.int32)
        hidden[:n], ids[:n] = rng.normal(size=(n, 4)), rng.integers(-1, 11, n)
        ids[:2] = 3, -1
        (value, gradient), moved, losses = from_all_logits(kernel, hidden, ids)
        close(program.call(hidden[:n], ids[:n]), ((value, gradient[:n]), moved[:n], losses[:n]))
