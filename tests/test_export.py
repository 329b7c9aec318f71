"""Programs that leave this process: exported for several platforms, lowered for another, of sizes not yet known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxloss
from tests import cases

PLATFORMS = ("cpu", "cuda", "tpu")
kinds = pytest.mark.parametrize("kind", ["ids", "soft"])


@pytest.mark.thin
@cases.parametrize(cases.distinct(cases.ALL))
@kinds
def test_one_program_for_every_platform(case, kind, rng):
    z, t = map(np.asarray, (cases.logits_for(case, rng), cases.labels_for(case, rng, kind)))
    exported = export.export(case.run, platforms=PLATFORMS)(z, t)
    assert exported.platforms == PLATFORMS
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-7), exported.call(z, t), case.run(z, t))


@cases.parametrize(cases.distinct(cases.ALL))
@kinds
def test_sizes_known_when_called(case, kind, rng):
    """Of one program for every platform."""
    z, t = map(np.asarray, (cases.logits_for(case, rng), cases.labels_for(case, rng, kind)))
    shape = export.symbolic_shape("rows, classes")
    exported = export.export(case.run, platforms=PLATFORMS)(
        *(jax.ShapeDtypeStruct(shape[: x.ndim], x.dtype) for x in (z, t))
    )
    expected = case.run(z, t)
    for n in (1, 6):
        for found, rows in zip(exported.call(z[:n], t[:n]), expected, strict=True):
            np.testing.assert_allclose(found, rows[:n], rtol=2e-6, atol=1e-7)


def linear_sum(hidden, kernel, ids):
    return jaxloss.linear_loss(jaxloss.softmax_cross_entropy, hidden, kernel, ids).total


def mapped_sum(hidden, kernel, ids):
    found = jaxloss.map_linear_logits(jaxloss.softmax_cross_entropy, hidden, kernel, ids)
    return jnp.sum(found)


@pytest.mark.parametrize("function", [linear_sum, mapped_sum])
def test_layers_of_sizes_known_when_called(function, rng):
    rows, classes = export.symbolic_shape("rows, classes")
    step = jax.jit(jax.value_and_grad(function, (0, 1)))
    types = ((rows, 3), jnp.float32), ((3, classes), jnp.float32), ((rows,), jnp.int32)
    exported = export.export(step, platforms=PLATFORMS)(*(jax.ShapeDtypeStruct(*t) for t in types))
    for n, size in ((1, 2), (13, 7)):
        x = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(3, size)).astype(np.float32)
        ids = rng.integers(0, size, n).astype(np.int32)
        got, expected = exported.call(*x, ids), step(*x, ids)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


@kinds
def test_the_form_follows_the_platform_that_a_program_is_lowered_for(kind, rng):
    """On a CPU host, too: one reduction with several results for TPU and GPU, none for wide rows on CPU."""
    case, size = cases.SOFTMAX[0], 16384
    z = jax.ShapeDtypeStruct((4, size), jnp.float32)
    t = jax.ShapeDtypeStruct((4,), jnp.int32) if kind == "ids" else z
    traced = case.run.trace(z, t)
    for platform, folds in (("cpu", 0), ("cuda", 1), ("tpu", 1)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        found = [line for line in text.splitlines() if "stablehlo.reduce(" in line and line.count("init:") > 1]
        assert len(found) == folds, (platform, found)
