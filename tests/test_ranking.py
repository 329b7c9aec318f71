"""Ranking losses: against mpmath and naive formulas over all pairs, at the edges, under every transformation."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from jaxloss import metrics
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


def exact(name: str, z, t) -> tuple:
    """Loss and gradient of one row, over all pairs, in mpmath."""
    z, t = ([x if isinstance(x, mp.mpf) else mp.mpf(float(x)) for x in row] for row in (z, t))
    if name == "hamming":
        p = [1 / (1 + mp.exp(-x)) for x in z]
        q = [1 / (1 + mp.exp(x)) for x in z]
        loss = mp.fsum(c * b + (1 - c) * a for a, b, c in zip(p, q, t, strict=True)) / len(z)
        return loss, [(1 - 2 * c) * a * b / len(z) for a, b, c in zip(p, q, t, strict=True)]
    gradient = [mp.mpf(0)] * len(z)
    relevant = [c for c in range(len(z)) if t[c] != 0]
    irrelevant = [c for c in range(len(z)) if t[c] == 0]
    if name == "zlpr":
        below, above = mp.fsum(mp.exp(-z[i]) for i in relevant), mp.fsum(mp.exp(z[j]) for j in irrelevant)
        for c in range(len(z)):
            gradient[c] = -mp.exp(-z[c]) / (1 + below) if t[c] else mp.exp(z[c]) / (1 + above)
        return mp.log(1 + below) + mp.log(1 + above), gradient
    pairs = [(i, j, z[j] - z[i]) for i in relevant for j in irrelevant]
    total = 1 + mp.fsum(mp.exp(d) for _, _, d in pairs)
    losses = []
    for i, j, d in pairs:
        if name == "hinge":
            losses.append(max(mp.mpf(0), 1 + d))
            slope = mp.mpf(int(d > -1))
        else:
            losses.append(mp.log(1 + mp.exp(d)))
            slope = mp.exp(d) / total if name == "lsep" else 1 / (1 + mp.exp(-d))
        gradient[j] += slope
        gradient[i] -= slope
    count = 1 if name == "lsep" else max(1, len(pairs))
    loss = mp.log(total) if name == "lsep" else mp.fsum(losses) / count
    return loss, [g / count for g in gradient]


def naive(name, z, t):
    """Losses of rows as arrays of pairs, without care for digits, as a reference for derivatives in float64."""
    relevant = t != 0
    if name == "hamming":
        return jnp.mean(jnp.where(relevant, jax.nn.sigmoid(-z), jax.nn.sigmoid(z)), -1)
    if name == "zlpr":
        below, above = jnp.where(relevant, jnp.exp(-z), 0), jnp.where(relevant, 0, jnp.exp(z))
        return jnp.log1p(jnp.sum(below, -1)) + jnp.log1p(jnp.sum(above, -1))
    mask = relevant[..., :, None] & ~relevant[..., None, :]
    d = z[..., None, :] - z[..., :, None]
    if name == "lsep":
        return jnp.log1p(jnp.sum(jnp.where(mask, jnp.exp(d), 0), (-2, -1)))
    losses = jax.nn.relu(1 + d) if name == "hinge" else jax.nn.softplus(d)
    count = jnp.maximum(jnp.sum(mask.astype(z.dtype), (-2, -1)), 1)
    return jnp.sum(jnp.where(mask, losses, 0), (-2, -1)) / count


def regimes(rng, rows: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and multi-hot labels that training meets, or that break formulas."""
    normal = rng.normal(size=(rows, SIZE))
    labels = rng.integers(0, 2, (rows, SIZE))
    labels[:, :2] = [0, 1]
    huge = normal.copy()
    huge[:, 3] = 1e5
    one = np.eye(SIZE, dtype=int)[:rows]
    return {
        "unit": (normal, labels),
        "spread 20": (normal * 20, labels),
        "right": (normal + np.where(labels == 1, 12, -12), labels),
        "right, spread 20": (normal * 20 + np.where(labels == 1, 30, -30), labels),
        "wrong": (normal + np.where(labels == 1, -30, 30), labels),
        "offset 1e4": (np.round(normal * 64) / 64 + 1e4, labels),
        "all tied": (np.full_like(normal, 0.75), labels),
        "tied at 1e8": (np.full_like(normal, 1e8), labels),
        "at the hinge": (np.where(labels == 1, 1, 0) + normal * 1e-6, labels),
        "one huge": (huge, labels),
        "one relevant": (normal * 5, one),
        "one irrelevant": (normal * 5, 1 - one),
        "one relevant, right": (normal * 5 + 40 * one, one),
        "none relevant": (normal, np.zeros_like(labels)),
        "all relevant": (normal, np.ones_like(labels)),
        "spread 60": (normal * 60, labels),
    }


@every
def test_gradients_of_the_oracle_itself(name, rng):
    z, t = [mp.mpf(x) for x in rng.normal(size=5)], [0, 1, 1, 0, 1]
    with mp.workdps(60):
        loss, gradient = exact(name, z, t)
        for c in range(5):
            moved = mp.diff(lambda x, c=c: exact(name, [*z[:c], x, *z[c + 1 :]], t)[0], z[c])
            assert abs(moved - gradient[c]) < 1e-15
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            naive(name, jnp.array([float(x) for x in z]), jnp.asarray(t)), float(loss), rtol=1e-14
        )


@every
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_errors_keep_the_promise(name, dtype, rng):
    """4 + d units of the last place, d the spread of the row, or its distance from 0 where the loss is not shifted."""
    cases = regimes(rng)
    with jax.enable_x64(dtype == "float64"):
        z = jnp.asarray(np.concatenate([case[0] for case in cases.values()]), jnp.dtype(dtype))
        labels = jnp.asarray(np.concatenate([case[1] for case in cases.values()]), jnp.float32)
        assert z.shape == (ROWS, SIZE)
        value, gradient = run(name, z, labels)
    out = np.float64 if dtype == "float64" else np.float32
    assert value.dtype == out
    assert gradient.dtype == z.dtype
    for i, row in enumerate(np.asarray(z, np.float64)):
        loss, slopes = exact(name, row, labels[i])
        d = np.ptp(row) if name in PAIRWISE else np.abs(row).max()
        assert oracle.ulp_error(value[i], loss, out).max() <= 4 + d, list(cases)[i // 3]
        assert oracle.ulp_error(gradient[i], slopes, z.dtype).max() <= 4 + d, list(cases)[i // 3]


@pytest.mark.parametrize("name", ["logistic", "hinge"])
def test_wide_rows_go_through_many_blocks(name, rng):
    """C = 1100: several blocks, sets of either kind the smaller, blocks skipped; value, gradient, Hessian products."""
    loss, wide = LOSSES[name], (2, 1100)

    @jax.jit
    def products(z, t, v):
        def gradient(z):
            return jax.grad(lambda z: jnp.sum(loss(z, t)))(z)

        return jax.jvp(gradient, (z,), (v,))[1], jax.vjp(gradient, z)[1](v)[0]

    batched = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    for shares in ([0.01, 0.5], [0.4, 0.9], [0.01, 0.02]):
        z, v = (rng.normal(size=wide).astype(np.float32) * 3 for _ in range(2))
        t = (rng.random(wide) < np.array(shares)[:, None]).astype(np.float32)
        d = z[:, None, :].astype(np.float64) - z[:, :, None]
        mask = (t[:, :, None] == 1) & (t[:, None, :] == 0)
        n = mask.sum((1, 2))
        losses = np.logaddexp(0, d) if name == "logistic" else np.maximum(0, 1 + d)
        slopes = mask * (1 / (1 + np.exp(-d)) if name == "logistic" else d > -1) / n[:, None, None]
        value, gradient = run(name, z, t)
        np.testing.assert_allclose(value, (losses * mask).sum((1, 2)) / n, rtol=8 * EPS)
        np.testing.assert_allclose(gradient, slopes.sum(1) - slopes.sum(2), rtol=(4 + np.ptp(z)) * EPS)
        bends = slopes / (1 + np.exp(d)) if name == "logistic" else np.zeros_like(d)
        along = bends * (v[:, None, :] - v[:, :, None])
        for product in products(z, t, v):
            np.testing.assert_allclose(product, along.sum(1) - along.sum(2), rtol=1e-4, atol=1e-6 * np.abs(along).sum())
        batched_value, batched_gradient = batched(z, t)
        np.testing.assert_allclose(batched_value, value, rtol=8 * EPS)
        np.testing.assert_allclose(batched_gradient, gradient, rtol=16 * EPS, atol=1e-12)


@every
def test_second_and_third_derivatives_against_naive_formulas_in_float64(name, rng):
    z, v = (rng.normal(size=SIZE) * 2 for _ in range(2))
    loss, plain = LOSSES[name], partial(naive, name)

    def third(function, z, t, v):
        return jax.jvp(lambda z: jax.jvp(jax.grad(lambda z: function(z, t)), (z,), (v,))[1], (z,), (v,))[1]

    @jax.jit
    def derivatives(z, t):
        backward_twice = jax.vjp(jax.grad(lambda z: loss(z, t)), z)[1](jnp.asarray(v, jnp.float32))[0]
        return backward_twice, third(loss, z, t, jnp.asarray(v, jnp.float32))

    with jax.enable_x64(True):
        reference = jax.jit(lambda z, t: (jax.hessian(plain)(z, t), third(plain, z, t, jnp.asarray(v))))
    for t in ([1, 0, 0, 1, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 1, 1]):
        t = np.array(t, np.float32)
        with jax.enable_x64(True):
            hessian, curve = map(np.asarray, reference(jnp.asarray(z), t))
        row = jnp.asarray(z, jnp.float32)
        np.testing.assert_allclose(HESSIAN[name](row, t), hessian, rtol=1e-5, atol=1e-6)
        backward_twice, by_third = derivatives(row, t)
        np.testing.assert_allclose(backward_twice, hessian @ v, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(by_third, curve, rtol=1e-4, atol=1e-5)
        if name in ("logistic", "hinge"):
            continue
        diagonal = jaxloss.per_example_value_grad_hess(loss)(row, t)[2]
        np.testing.assert_allclose(diagonal, np.diag(hessian), rtol=1e-5, atol=1e-7)


@every
def test_hessians_of_batches(name, rng):
    loss = LOSSES[name]
    if name in ("logistic", "hinge"):
        with pytest.raises(TypeError, match=r"jax\.hessian"):
            jaxloss.per_example_value_grad_hess(loss)
        return
    z, t = batch(rng)
    z[0, 0] = np.nan
    z[1], t[2] = -INF, 0
    known = rng.random(z.shape) < 0.8
    known[0, 0], known[1:6] = True, True
    diagonals = np.asarray(jaxloss.per_example_value_grad_hess(loss)(z.T, t.T, axis=0, where=known.T)[2]).T
    assert np.isnan(diagonals[0, 0])
    assert name == "hamming" or np.isnan(diagonals[0]).all()
    np.testing.assert_array_equal(diagonals[1:][~known[1:]], 0)
    for i in range(1, 6):
        np.testing.assert_allclose(diagonals[i], np.diag(HESSIAN[name](z[i], t[i])), rtol=1e-5, atol=1e-7)


@every
def test_no_negative_loss_in_200_000_rows(name, rng):
    scale = np.repeat([0.1, 1, 10, 100], 50_000)[:, None]
    z = (rng.normal(size=(200_000, 6)) * scale).astype(np.float32)
    t = rng.integers(0, 2, z.shape)
    value, gradient = run(name, z, t)
    assert not np.signbit(value).any()
    assert np.isfinite(value).all()
    assert (gradient * np.where(t == 1, -1, 1) >= 0).all()
    if name in PAIRWISE:
        sums = np.abs(gradient.astype(np.float64).sum(1))
        np.testing.assert_array_less(sums, 4 * EPS * np.abs(gradient).sum(1) + 1e-37)


@pytest.mark.parametrize("name", PAIRWISE)
def test_adding_an_exact_constant_changes_no_bit(name, rng):
    z, t = batch(rng)
    z = np.round(z * 64) / 64
    for constant in (64.0, 8192.0, -4096.0):
        for got, expected in zip(run(name, z + np.float32(constant), t), run(name, z, t), strict=True):
            np.testing.assert_array_equal(got, expected)


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
        loss, slopes = exact(name, np.clip(z[i], -1e4, 1e4), t[i])
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
            loss, slopes = exact(name, row, labels)
            np.testing.assert_allclose(value[i], float(loss), rtol=1e-6)
            np.testing.assert_allclose(gradient[i, :2], np.array(slopes, float), rtol=1e-6)
        np.testing.assert_array_equal(gradient[i, 2:], 0)


@every
def test_unknown_labels_are_absent(name, rng):
    """NaN or anything else in hidden logits and labels changes no bit; the rest is the loss of the known labels."""
    z, t = batch(rng)
    known = rng.random(z.shape) < 0.6
    known[0] = False
    clean = run(name, z, t, where=known)
    for rubbish, label in ((np.nan, np.nan), (INF, -1), (-INF, 255)):
        dirty_z, dirty_t = np.where(known, z, np.float32(rubbish)), np.where(known, t, np.float32(label))
        for got, expected in zip(run(name, dirty_z, dirty_t, where=known), clean, strict=True):
            np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(clean[0][0], 0)
    np.testing.assert_array_equal(clean[1][~known], 0)
    for i in range(1, ROWS):
        loss, slopes = exact(name, z[i][known[i]], t[i][known[i]])
        np.testing.assert_allclose(clean[0][i], float(loss), rtol=2e-6)
        np.testing.assert_allclose(clean[1][i][known[i]], np.array(slopes, float), rtol=2e-6)
    # Equal but for the last place: XLA fuses the program without a mask in another way.
    for got, expected in zip(run(name, z, t, where=np.ones_like(known)), run(name, z, t), strict=True):
        np.testing.assert_allclose(got, expected, rtol=4 * EPS, atol=1e-9)


@every
@pytest.mark.parametrize("kind", ["ids", "multihot"])
def test_rows_left_out_may_hold_anything(name, kind, rng):
    z, t = batch(rng)
    t = rng.integers(0, SIZE, ROWS).astype(np.int32) if kind == "ids" else t
    where = rng.random(ROWS) < 0.5
    dirty_z, dirty_t = z.copy(), t.copy()
    dirty_z[~where] = INF if kind == "ids" else np.nan
    dirty_t[~where] = -100 if kind == "ids" else np.nan
    # jax_debug_nans refuses NaN as an input, before any loss sees it.
    with jax.debug_nans(kind == "ids"):
        dirty = run(name, dirty_z, dirty_t, where=where)
    for got, clean, every_row in zip(dirty, run(name, z, t, where=where), run(name, z, t), strict=True):
        np.testing.assert_array_equal(got, clean)
        np.testing.assert_array_equal(got[~where], np.zeros_like(got[~where]))
        np.testing.assert_allclose(got[where], every_row[where], rtol=4 * EPS, atol=1e-9)


@every
def test_ids_are_one_relevant_label(name, rng):
    z, ids = batch(rng)[0], rng.integers(0, SIZE, ROWS).astype(np.int32)
    one_hot = run(name, z, np.eye(SIZE, dtype=np.float32)[ids])
    for got, expected in zip(run(name, z, ids), one_hot, strict=True):
        np.testing.assert_allclose(got, expected, rtol=4 * EPS, atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.int8, jnp.uint8, jnp.int32, jnp.float16, jnp.bfloat16])
def test_label_dtypes(dtype, rng):
    z, t = batch(rng)
    np.testing.assert_array_equal(FORWARD["lsep"](z, jnp.asarray(t).astype(dtype)), FORWARD["lsep"](z, t))


@every
def test_what_is_undefined_poisons_its_row_alone(name, rng):
    z, ids = batch(rng)[0], rng.integers(0, SIZE, ROWS).astype(np.int32)
    good = run(name, z, ids)
    bad, broken = ids.copy(), z.copy()
    bad[:3] = [-1, SIZE, 1000]
    broken[0, 2] = np.nan
    value, gradient = run(name, z, bad)
    assert np.isnan(value[:3]).all()
    assert np.isnan(gradient[:3]).all()
    np.testing.assert_array_equal(value[3:], good[0][3:])
    np.testing.assert_array_equal(gradient[3:], good[1][3:])
    value, gradient = run(name, broken, ids)
    assert np.isnan(value[0])
    assert np.isnan(gradient[0, 2])
    np.testing.assert_array_equal(value[1:], good[0][1:])
    np.testing.assert_array_equal(gradient[1:], good[1][1:])


@every
def test_axes_and_batches(name, rng):
    z, t = batch(rng)
    value, gradient = run(name, z, t)

    def turned(x):
        return x.reshape(6, 8, SIZE).transpose(0, 2, 1)

    turned_value, turned_gradient = run(name, turned(z), turned(t), axis=1)
    np.testing.assert_allclose(turned_value.reshape(ROWS), value, rtol=4 * EPS)
    np.testing.assert_allclose(turned_gradient, turned(gradient), rtol=8 * EPS, atol=1e-9)
    ids, where = rng.integers(0, SIZE, (6, 8)), rng.random((6, 8)) < 0.5
    kept = FORWARD[name](turned(z), ids, axis=1, where=where)
    expected = run(name, z, ids.reshape(ROWS).astype(np.int32))[0].reshape(6, 8)
    np.testing.assert_allclose(kept, np.where(where, expected, 0), rtol=4 * EPS)


@every
def test_empty_batches(name):
    value, gradient = run(name, np.zeros((0, 5), np.float32), np.zeros((0, 5)))
    assert value.shape == (0,)
    assert gradient.shape == (0, 5)
    assert jaxloss.mean(value) == 0


@every
def test_half_precision_is_computed_in_float32(name, rng):
    t = batch(rng)[1]
    for half in (jnp.bfloat16, *([jnp.float16] if name == "lsep" else [])):
        z = jnp.asarray(batch(rng)[0], half)
        value, gradient = run(name, z, t)
        wide_value, wide_gradient = run(name, z.astype(jnp.float32), t)
        assert value.dtype == np.float32
        assert gradient.dtype == half
        np.testing.assert_array_equal(value, wide_value)
        np.testing.assert_array_equal(gradient, wide_gradient.astype(half))


def gradient_program(name, z, t, **options):
    def total(z):
        return jnp.sum(LOSSES[name](z, t, **options))

    product = jax.make_jaxpr(lambda z: jax.jvp(jax.grad(total), (z,), (z,))[1])(z)
    backward = jax.make_jaxpr(jax.grad(lambda z: jnp.sum(jnp.square(jax.grad(total)(z)))))(z)
    return [e for p in (jax.make_jaxpr(jax.value_and_grad(total))(z), product, backward) for e in jaxprs.equations(p)]


@every
def test_no_float64_for_float32_inputs(name, x64, rng):
    z, t = map(jnp.asarray, batch(rng))
    for labels in (t.astype(jnp.int64), jnp.arange(ROWS) % SIZE, t):
        wide = [
            e
            for e in gradient_program(name, z, labels)
            for x in e.outvars
            if x.aval.dtype == jnp.float64 and x.aval.ndim
        ]
        assert not wide, wide
        assert jax.eval_shape(LOSSES[name], z, labels).dtype == jnp.float32
        assert jax.eval_shape(LOSSES[name], z.astype(jnp.float64), labels).dtype == jnp.float64


@every
def test_derivatives_need_no_scatter_gather_or_callback(name, rng):
    z, t = jnp.asarray(rng.normal(size=(2, 1100)), jnp.float32), rng.integers(0, 2, (2, 1100))
    used = {e.primitive.name for e in gradient_program(name, z, t, where=jnp.ones(2, bool))}
    assert not [p for p in used if "scatter" in p or "gather" in p or "callback" in p], used


@every
def test_transformations_give_the_same_numbers(name, rng):
    z, t = map(jnp.asarray, batch(rng))
    loss = LOSSES[name]
    value, gradient = run(name, z, t)

    @jax.checkpoint
    def scanned(z):
        return jnp.sum(jax.lax.scan(lambda c, x: (c, loss(*x)), 0, (z, t))[1])

    mapped_value, mapped_gradient = jax.jit(jax.vmap(jax.value_and_grad(loss)))(z, t)
    np.testing.assert_allclose(mapped_value, value, rtol=4 * EPS)
    for got in (mapped_gradient, jax.jit(jax.grad(scanned))(z)):
        np.testing.assert_allclose(got, gradient, rtol=8 * EPS, atol=1e-8)
    np.testing.assert_allclose(ALONG[name](z, t, z), (np.asarray(z) * gradient).sum(1), rtol=1e-5, atol=1e-6)
    sizes = [program._cache_size() for program in (FORWARD[name], FORWARD[name]) if program(z, t) is not None]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(k, jax.sharding.AxisType.Explicit) for k in LOSSES] + [(k, jax.sharding.AxisType.Auto) for k in PAIRWISE],
)
def test_meshes(name, kind, rng):
    z, t = map(jnp.asarray, batch(rng))
    value, gradient = run(name, z, t)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    spec = jax.sharding.PartitionSpec("data")
    explicit = kind == jax.sharding.AxisType.Explicit
    loss = LOSSES[name]
    with jax.set_mesh(mesh):
        parts = [jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)) for x in (z, t)]
        step = jaxloss.per_example_value_and_grad(loss)
        # On the automatic mesh each device runs the program on its own rows.
        step = step if explicit else jax.shard_map(step, in_specs=spec, out_specs=spec)
        step = jax.jit(step).lower(*parts).compile()
        sharded = step(*parts)
        for moved in ("all-gather", "all-to-all", "collective-permute", " gather(", " scatter("):
            assert moved not in step.as_text()
        if explicit:
            ids = jax.device_put(jnp.arange(ROWS) % SIZE, jax.sharding.NamedSharding(mesh, spec))
            jax.eval_shape(lambda z, i: jax.vjp(jax.grad(lambda z: jnp.sum(loss(z, i))), z)[1](z), parts[0], ids)
            assert jax.typeof(jax.jit(loss)(*parts)).sharding.spec == spec
        else:
            np.testing.assert_allclose(jax.jit(loss)(*parts), value, rtol=4 * EPS)
    for got, expected in zip(sharded, (value, gradient), strict=True):
        assert got.sharding.spec[0] == "data"
        np.testing.assert_allclose(got, expected, rtol=8 * EPS, atol=1e-8)


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
        loss, slopes = exact("hamming", z[i], t[i])
        np.testing.assert_allclose(value[i], float(loss), rtol=8 * EPS)
        np.testing.assert_allclose(gradient[i], np.array(slopes, float), rtol=16 * EPS)
    by_label = jax.grad(lambda t: jnp.sum(soft_hamming_loss(z, t)))(jnp.asarray(t))
    np.testing.assert_allclose(by_label, -np.tanh(z.astype(np.float64) / 2) / 5, rtol=1e-5, atol=1e-7)


def test_memory_of_ten_thousand_labels():
    """Batch 64: a few arrays [64, 10000], where all pairs would take 10000 of them."""
    z, t = jax.ShapeDtypeStruct((64, 10_000), jnp.float32), jax.ShapeDtypeStruct((64, 10_000), jnp.int8)

    def arrays(function):
        return jax.jit(function).lower(z, t).compile().memory_analysis().temp_size_in_bytes / (64 * 10_000 * 4)

    for loss in (pairwise_ranking_loss, hinge):
        assert arrays(jaxloss.per_example_value_and_grad(loss)) < 12


Z, T = jnp.zeros((8, 10)), jnp.zeros((8, 10), jnp.int32)
BAD = {
    "surrogate": (lambda: pairwise_ranking_loss(Z, T, surrogate="exp"), ValueError, r"`surrogate`.*'hinge'; got 'exp'"),
    "integers": (lambda: zlpr_loss(T, Z), TypeError, r"zlpr_loss: `logits` must be floating point; got int32\[8,10\]"),
    "labels": (lambda: zlpr_loss(Z, T[:, :9]), ValueError, r"zlpr_loss: `labels`.*\(8, 10\).*got int32\[8,9\]"),
    "where": (lambda: hinge(Z, T, where=Z), TypeError, r"pairwise_ranking_loss: `where` must be boolean"),
    "where shape": (lambda: hinge(Z, T, where=T[0] > 0), ValueError, r"`where`.*rows to keep"),
    "axis": (lambda: log_sum_exp_pairwise_loss(Z, T, axis=2), ValueError, r"`axis` 2 is out of range"),
    "axes": (lambda: soft_hamming_loss(Z, T, axis=(0, 1)), TypeError, r"`axis` must be an int"),
    "no axis": (lambda: log_sum_exp_pairwise_loss(Z, T, axis=None), ValueError, r"at least one class.*axis=None"),
    "scalar": (lambda: zlpr_loss(Z[0, 0], T[0, 0]), ValueError, r"at least one class; got float32\[\]"),
    "no class": (lambda: soft_hamming_loss(Z[:, :0], T[:, :0]), ValueError, r"at least one class; got float32\[8,0\]"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad):
    call, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()


@every
def test_debug_checks(name):
    def user_error(t):
        return checkify.checkify(jax.jit(LOSSES[name]), errors=checkify.user_checks)(Z, t)[0].get()

    for message in (user_error(jnp.arange(8).at[3].set(12)), user_error(jnp.arange(8))):
        assert message is None or ("[0, 10)" in message and "got 12" in message), message
    assert message is None
    assert "[0, 1]; got -1" in (user_error(Z.at[1, 1].set(-1)) or "")
    assert user_error(Z) is None
    soft = user_error(Z.at[1, 1].set(0.25))
    assert (soft is None) == (name == "hamming")
    assert soft is None or "leave unknown labels out with `where`); got 0.25" in soft
