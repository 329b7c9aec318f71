"""Ranking losses: what the registry's properties do not say. Pairs at the edges, many labels, identities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import metrics
from jaxloss._core import surrogates
from jaxloss.ranking import log_sum_exp_pairwise_loss, pairwise_ranking_loss, soft_hamming_loss, zlpr_loss
from tests import jaxprs, oracle

hinge = partial(pairwise_ranking_loss, surrogate="hinge")
LOSSES = {
    "logistic": pairwise_ranking_loss,
    "hinge": hinge,
    "lsep": log_sum_exp_pairwise_loss,
    "zlpr": zlpr_loss,
    "hamming": soft_hamming_loss,
}
PAIRWISE = ("logistic", "hinge", "lsep")
EPS = 2.0**-23
INF = np.inf
every = pytest.mark.parametrize("name", LOSSES)


# Compiled once for each loss and kind of arguments; most tests use arrays [48, 8] for that reason.
STEP = {k: jax.jit(jaxloss.per_example_value_and_grad(f), static_argnames="axis") for k, f in LOSSES.items()}
FORWARD = {k: jax.jit(f, static_argnames="axis") for k, f in LOSSES.items()}
ALONG = {k: jax.jit(lambda z, t, v, f=f: jax.jvp(lambda z: f(z, t), (z,), (v,))[1]) for k, f in LOSSES.items()}
HESSIAN = {k: jax.jit(jax.hessian(f)) for k, f in LOSSES.items()}
ROWS, SIZE = 48, 8


def run(name, z, t, **options):
    return tuple(map(np.asarray, STEP[name](jnp.asarray(z), jnp.asarray(t), **options)))


def batch(rng, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and multi-hot labels [48, 8], in float32."""
    z = rng.normal(size=(ROWS, SIZE)) * scale
    return z.astype(np.float32), rng.integers(0, 2, (ROWS, SIZE)).astype(np.float32)


@pytest.mark.parametrize("name", ["logistic", "hinge"])
def test_wide_rows_go_through_many_blocks(name, rng):
    """C = 1100: several blocks, sets of either kind the smaller, blocks skipped; value, gradient, Hessian products."""
    loss, wide = LOSSES[name], (2, 1100)

    @jax.jit
    def results(z, t, v):
        def gradient(z):
            return jax.grad(lambda z: jnp.sum(loss(z, t)))(z)

        products = jax.jvp(gradient, (z,), (v,))[1], jax.vjp(gradient, z)[1](v)[0]
        diagonal = jaxloss.per_example_value_grad_hess(loss)(z, t)[2]
        each = jaxloss.per_example_value_and_grad(loss)(z, t), jax.vmap(jax.value_and_grad(loss))(z, t)
        return each, diagonal, products

    for shares in ([0.01, 0.5], [0.4, 0.9], [0.01, 0.02]):
        z, v = (rng.normal(size=wide).astype(np.float32) * 3 for _ in range(2))
        t = (rng.random(wide) < np.array(shares)[:, None]).astype(np.float32)
        d = z[:, None, :].astype(np.float64) - z[:, :, None]
        mask = (t[:, :, None] == 1) & (t[:, None, :] == 0)
        n = mask.sum((1, 2))
        losses = np.logaddexp(0, d) if name == "logistic" else np.maximum(0, 1 + d)
        slopes = mask * (1 / (1 + np.exp(-d)) if name == "logistic" else d > -1) / n[:, None, None]
        ((value, gradient), batched), diagonal, products = results(z, t, v)
        np.testing.assert_allclose(value, (losses * mask).sum((1, 2)) / n, rtol=8 * EPS)
        np.testing.assert_allclose(gradient, slopes.sum(1) - slopes.sum(2), rtol=(4 + np.ptp(z)) * EPS)
        bends = slopes / (1 + np.exp(d)) if name == "logistic" else np.zeros_like(d)
        np.testing.assert_allclose(diagonal, bends.sum(1) + bends.sum(2), rtol=(4 + np.ptp(z)) * EPS)
        along = bends * (v[:, None, :] - v[:, :, None])
        for product in products:
            np.testing.assert_allclose(product, along.sum(1) - along.sum(2), rtol=1e-4, atol=1e-6 * np.abs(along).sum())
        np.testing.assert_allclose(batched[0], value, rtol=8 * EPS)
        np.testing.assert_allclose(batched[1], gradient, rtol=16 * EPS, atol=1e-12)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_blocks_for_accelerators(platform, monkeypatch, rng):
    """32 labels at once where a batch is large, with rows of few relevant, few irrelevant and no labels."""
    shares = rng.choice([0, 0.02, 0.5, 0.98], (200, 1))
    z, t = rng.normal(size=(200, 75)).astype(np.float32) * 3, (rng.random((200, 75)) < shares).astype(np.float32)
    run = jaxloss.per_example_value_grad_hess(pairwise_ranking_loss)
    expected = run(z, t)
    jaxprs.choose(monkeypatch, platform)
    monkeypatch.setattr(surrogates, "BLOCK_ELEMENTS", 2**10)
    first = {"cuda": 1, "tpu": 2}[platform]  # a shape of its own, for the other programs are cached
    for got, wanted in zip(run(z[first:], t[first:]), expected, strict=True):
        np.testing.assert_allclose(got, wanted[first:], rtol=(4 + np.ptp(z)) * EPS)


WRONG = {  # rows with the loss +inf
    "relevant at -inf": ([-INF, 0.5, 1, -1], [1, 0, 0, 1]),
    "irrelevant at inf": ([0.5, INF, 1, -1], [1, 0, 0, 1]),
    "both at wrong ends": ([-INF, INF, 1, -1], [1, 0, 0, 1]),
    "two at the wrong end": ([0.5, INF, INF, -1], [1, 0, 0, 1]),
}
RIGHT = {
    "relevant at inf": ([INF, 0.5, 1, -1], [1, 0, 0, 1]),
    "irrelevant at -inf": ([0.5, -INF, 1, -1], [1, 0, 0, 1]),
    "both at right ends": ([INF, -INF, 1, -1], [1, 0, 0, 1]),
}
NOTHING = {  # rows that are right, or have no pair, whatever stands at the ends
    "all at -inf": ([-INF, -INF], [1, 0]),
    "all at inf": ([INF, INF], [1, 0]),
    "all at right ends": ([INF, -INF], [1, 0]),
    "none relevant": ([1, 2], [0, 0]),
    "none relevant, at -inf": ([-INF, -INF], [0, 0]),
    "none irrelevant": ([1, 2], [1, 1]),
    "none irrelevant, at -inf": ([-INF, 1], [1, 1]),
    "none relevant, at inf": ([INF, 1], [0, 0]),
}


@every
def test_infinite_logits_are_limits_of_large_ones(name, rng):
    z, t = batch(rng)
    cases = {**WRONG, **RIGHT}
    for i, (row, labels) in enumerate(cases.values()):
        z[i, :4], t[i, :4] = row, labels
    with jax.debug_nans(True):
        value, gradient = run(name, z, t)
        forward = ALONG[name](jnp.asarray(z), t, jnp.ones_like(z))
        for i in range(len(cases)):
            assert np.isfinite(HESSIAN[name](jnp.asarray(z[i]), t[i])).all()
    for i, end in enumerate(cases):
        loss, slopes = oracle.ranking_row(name, np.clip(z[i], -1e4, 1e4), t[i])
        np.testing.assert_allclose(value[i], INF if end in WRONG and name != "hamming" else float(loss), rtol=2e-6)
        np.testing.assert_allclose(gradient[i], np.array(slopes, float), rtol=4e-6, atol=1e-30)
    np.testing.assert_allclose(forward, gradient.sum(1), rtol=1e-5, atol=1e-6)


@every
def test_rows_that_nothing_can_improve(name, rng):
    """0 with gradient 0 and Hessian 0, where there is no pair or each is right whatever its other label does."""
    z, t = batch(rng)
    known = np.ones(z.shape, bool)
    known[: len(NOTHING), 2:] = False
    for i, (row, labels) in enumerate(NOTHING.values()):
        z[i, :2], t[i, :2] = row, labels
    with jax.debug_nans(True):
        value, gradient = run(name, z, t, where=known)
    if name in PAIRWISE:
        np.testing.assert_array_equal(value[: len(NOTHING)], 0)
        np.testing.assert_array_equal(gradient[: len(NOTHING)], 0)
        for row, label in ((z[-1], 0), (z[-1], 1), (np.full(SIZE, -INF, np.float32), 0)):
            second = HESSIAN[name](jnp.asarray(row), np.full(SIZE, label, np.float32))
            np.testing.assert_array_equal(second, np.zeros((SIZE, SIZE)))
        return
    for i, (row, labels) in enumerate(NOTHING.values()):
        if np.isfinite(row).all():
            loss, slopes = oracle.ranking_row(name, row, labels)
            np.testing.assert_allclose(value[i], float(loss), rtol=1e-6)
            np.testing.assert_allclose(gradient[i, :2], np.array(slopes, float), rtol=1e-6)
        np.testing.assert_array_equal(gradient[i, 2:], 0)


@every
def test_unknown_labels_are_absent(name, rng):
    z, t = batch(rng)
    known = rng.random(z.shape) < 0.6
    known[0] = False
    value, gradient = run(name, z, t, where=known)
    np.testing.assert_array_equal(value[0], 0)
    for i in range(1, ROWS):
        loss, slopes = oracle.ranking_row(name, z[i][known[i]], t[i][known[i]])
        np.testing.assert_allclose(value[i], float(loss), rtol=2e-6)
        np.testing.assert_allclose(gradient[i][known[i]], np.array(slopes, float), rtol=2e-6)


@every
def test_a_logit_of_nan_poisons_its_row_alone(name, rng):
    z, t = batch(rng)
    good = run(name, z, t)
    z[0, 2] = np.nan
    value, gradient = run(name, z, t)
    assert np.isnan(value[0])
    assert np.isnan(gradient[0, 2])
    np.testing.assert_array_equal(value[1:], good[0][1:])
    np.testing.assert_array_equal(gradient[1:], good[1][1:])


def gradient_program(name, z, t, **options):
    def total(z):
        return jnp.sum(LOSSES[name](z, t, **options))

    product = jax.make_jaxpr(lambda z: jax.jvp(jax.grad(total), (z,), (z,))[1])(z)
    backward = jax.make_jaxpr(jax.grad(lambda z: jnp.sum(jnp.square(jax.grad(total)(z)))))(z)
    return [e for p in (jax.make_jaxpr(jax.value_and_grad(total))(z), product, backward) for e in jaxprs.equations(p)]


@every
def test_derivatives_need_no_scatter_gather_or_callback(name, rng):
    z, t = jnp.asarray(rng.normal(size=(2, 1100)), jnp.float32), rng.integers(0, 2, (2, 1100))
    used = {e.primitive.name for e in gradient_program(name, z, t, where=jnp.ones(2, bool))}
    assert not [p for p in used if "scatter" in p or "gather" in p or "callback" in p], used


def test_identities(rng):
    z, t = rng.normal(size=(50, 2)).astype(np.float32) * 5, np.tile([1, 0], (50, 1))
    binary = jaxloss.sigmoid_binary_cross_entropy
    difference = z[:, 0] - z[:, 1]
    np.testing.assert_allclose(pairwise_ranking_loss(z, t), binary(difference, np.ones(50)), rtol=4 * EPS)
    z, ids, labels = z[:, :1], np.tile(3, 50), rng.integers(0, 2, (50, 1))
    np.testing.assert_allclose(zlpr_loss(z, labels), binary(z, labels)[:, 0], rtol=8 * EPS)
    two = np.concatenate([np.zeros_like(z), z], 1)
    one_minus_p = jaxloss.generalized_cross_entropy(two, labels[:, 0], q=1.0)
    np.testing.assert_allclose(soft_hamming_loss(z, labels), one_minus_p, rtol=32 * EPS)
    z, labels = rng.normal(size=(50, 6)).astype(np.float32) * 3, rng.integers(0, 2, (50, 6))
    cross_entropy = jaxloss.softmax_cross_entropy(z, ids)
    np.testing.assert_allclose(log_sum_exp_pairwise_loss(z, ids), cross_entropy, rtol=(4 + np.ptp(z)) * EPS)
    zeros = np.zeros((50, 1), np.float32)
    sides = [np.concatenate([zeros, np.where(m, s, -INF)], 1) for m, s in ((labels == 0, z), (labels == 1, -z))]
    both = sum(jaxloss.softmax_cross_entropy(side, np.zeros(50, int)) for side in sides)
    np.testing.assert_allclose(zlpr_loss(z, labels), both, rtol=8 * EPS)
    z = np.round(z)  # ties
    rank = np.asarray(metrics.label_ranking_loss(z, labels))
    assert (np.asarray(hinge(z, labels)) >= rank * (1 - 4 * EPS)).all()
    assert (np.asarray(pairwise_ranking_loss(z, labels)) >= np.log(2) * rank * (1 - 4 * EPS)).all()


def test_soft_hamming_loss_is_the_metric_as_logits_saturate(rng):
    signs, labels = rng.choice([-1, 1], (60, 7)), rng.integers(0, 2, (60, 7))
    known = rng.random(labels.shape) < 0.7
    for size in (INF, 200.0):
        z = (signs * size).astype(np.float32)
        wrong = metrics.hamming_loss(z > 0, labels, where=known)
        share = np.asarray(wrong).sum(1) / np.maximum(known.sum(1), 1)
        np.testing.assert_allclose(soft_hamming_loss(z, labels, where=known), share, rtol=2 * EPS)


def test_soft_hamming_loss_of_soft_labels(rng):
    z, t = rng.normal(size=(20, 5)).astype(np.float32) * 9, rng.uniform(size=(20, 5)).astype(np.float32)
    t[:, 0] = 0.5 + np.float32(1e-6)
    value, gradient = run("hamming", z, t)
    for i in range(20):
        loss, slopes = oracle.ranking_row("hamming", z[i], t[i])
        np.testing.assert_allclose(value[i], float(loss), rtol=8 * EPS)
        np.testing.assert_allclose(gradient[i], np.array(slopes, float), rtol=16 * EPS)
    by_label = jax.grad(lambda t: jnp.sum(soft_hamming_loss(z, t)))(jnp.asarray(t))
    np.testing.assert_allclose(by_label, -np.tanh(z.astype(np.float64) / 2) / 5, rtol=1e-5, atol=1e-7)


@pytest.mark.optimized
def test_memory_of_ten_thousand_labels():
    """Batch 64: a few arrays [64, 10000], where all pairs would take 10000 of them."""
    z, t = jax.ShapeDtypeStruct((64, 10_000), jnp.float32), jax.ShapeDtypeStruct((64, 10_000), jnp.int8)

    def arrays(function):
        return jax.jit(function).lower(z, t).compile().memory_analysis().temp_size_in_bytes / (64 * 10_000 * 4)

    for loss in (pairwise_ranking_loss, hinge):
        assert arrays(jaxloss.per_example_value_and_grad(loss)) < 12
