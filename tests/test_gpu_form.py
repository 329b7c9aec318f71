"""The form for GPU, whose threads join several classes of a row before they are reduced, run here on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss._core import classes
from tests import jaxprs

SIZE = 1000
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch):
    jax.clear_caches()
    jaxprs.choose(monkeypatch, "cuda")
    yield
    jax.clear_caches()


def test_classes_are_cut_where_each_of_several_devices_has_whole_parts():
    parts = {size: classes._parts(size, own=False) for size in (511, 512, 1000, 1001, 1002, 4096, 32000, 50257, 151936)}
    assert parts == {511: 1, 512: 8, 1000: 8, 1001: 1, 1002: 2, 4096: 8, 32000: 4, 50257: 1, 151936: 2}
    assert classes._parts(151936, own=True) == 8


def test_the_form_is_taken():
    program = str(jax.make_jaxpr(jaxloss.softmax_cross_entropy)(jnp.zeros((6, SIZE)), jnp.zeros(6, int)))
    assert "f32[6,125]" in program


def rows(rng):
    """Ordinary rows, a confident one, one that is tied, one of impossible classes and one labeled so."""
    z = (rng.normal(size=(6, SIZE)) * 3).astype(np.float32)
    ids = rng.integers(SIZE, size=6)
    z[1, ids[1]] = 60
    z[2] = 1.5
    z[3] = -np.inf
    z[3, [5, 77, 993, ids[3]]] = 1, 2, 3, 4
    z[4, ids[4]] = -np.inf
    ids[5] = SIZE  # outside
    return z, ids


def exact(z, ids):
    """Log-odds against the other classes, and the softmax over these, in float64."""
    one_hot = np.arange(SIZE) == ids[:, None]
    others = np.where(one_hot, -np.inf, z.astype(float))
    best = others.max(-1, keepdims=True)
    weights = np.exp(others - best)
    total = weights.sum(-1, keepdims=True)
    return z[np.arange(len(z)), ids] - (best + np.log(total))[:, 0], weights / total, others


@pytest.mark.parametrize("axis", [-1, 0])
def test_cross_entropy_of_many_classes(axis, rng):
    z, ids = rows(rng)
    given = np.moveaxis(z, -1, axis)
    value, pullback = jax.vjp(lambda z: jaxloss.softmax_cross_entropy(z, ids, axis=axis), given)
    [gradient] = pullback(jnp.ones(6))
    gradient = np.moveaxis(np.asarray(gradient), axis, -1)
    assert np.isnan(value[5])
    assert np.isnan(gradient[5]).all()
    log_odds, share, _ = exact(z[:5], ids[:5])
    loss = np.logaddexp(0, -log_odds)
    miss = np.exp(-np.logaddexp(0, log_odds))[:, None]
    slope = np.where(np.arange(SIZE) == ids[:5, None], -miss, miss * share)
    spread = [row[np.isfinite(row)].max() - row[np.isfinite(row)].min() for row in z[:5]]
    for row, promised in enumerate(4 + np.array(spread)):
        np.testing.assert_allclose(value[row], loss[row], rtol=promised * EPS)
        np.testing.assert_allclose(gradient[row], slope[row], rtol=promised * EPS)


def test_multiclass_hinge_of_many_classes(rng):
    z, ids = rows(rng)
    value, gradient = jax.jit(jaxloss.per_example_value_and_grad(jaxloss.multiclass_hinge_loss))(z, ids)
    _, _, others = exact(z[:4], ids[:4])
    label = z[np.arange(4), ids[:4]].astype(float)
    best = others.max(-1)
    np.testing.assert_allclose(value[:4], np.maximum(0, 1 + best - label), rtol=4 * EPS)
    tops = others == best[:, None]
    slope = np.where(tops, 1 / tops.sum(-1, keepdims=True), 0.0)
    slope[np.arange(4), ids[:4]] = -1
    slope[value[:4] == 0] = 0
    np.testing.assert_allclose(gradient[:4], slope, rtol=4 * EPS)


def test_classes_of_a_mesh(rng):
    z, ids = rng.normal(size=(4, SIZE)).astype(np.float32), rng.integers(SIZE, size=4)
    expected = jaxloss.softmax_cross_entropy(z, ids)
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        explicit = jaxloss.softmax_cross_entropy(jax.device_put(jnp.asarray(z), P(None, "model")), jnp.asarray(ids))
        np.testing.assert_allclose(explicit, expected, rtol=4 * EPS)
    # Of each device's own classes, in parts; the label of a row is on one of them.
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))
    z, ids = rng.normal(size=(4, 2 * SIZE)).astype(np.float32), np.array([3, 999, 1000, 1999])
    expected = jaxloss.softmax_cross_entropy(z, ids)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(P(None, "model"), P()), out_specs=P())
    def sharded(z, ids):
        return jaxloss.softmax_cross_entropy(z, ids, axis_name="model")

    np.testing.assert_allclose(sharded(z, ids), expected, rtol=4 * EPS)
