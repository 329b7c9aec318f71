"""Promises 3 to 6: dtypes, -inf, labels outside, rows left out, nothing at all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests import cases, jaxprs, oracle

pytestmark = pytest.mark.usefixtures("form")

INF_ROW = np.array([-np.inf, 0, 1, 2], np.float32)


@cases.softmax_cases
@pytest.mark.parametrize("labels", ["ids", "onehot"])
def test_infinite_logit_in_every_mode(case, labels):
    label = jnp.asarray(2 if labels == "ids" else np.eye(4)[2], jnp.int32 if labels == "ids" else jnp.float32)
    loss, gradient, hessian = oracle.softmax_row(INF_ROW, oracle.shares(2, 4), case.phi, case.value, order=2)
    z = jnp.asarray(INF_ROW)
    exact = np.array(gradient, float)
    tangent = jnp.array([5.0, 1.0, -2.0, 0.5])

    @jax.jit
    def derivatives(z):
        loss = partial(case.call, labels=label)
        first = [derivative(loss)(z) for derivative in (jax.grad, jax.jacfwd, jax.jacrev)]
        forward = jax.jvp(loss, (z,), (tangent,))[1]
        return (
            loss(z),
            first,
            forward,
            jax.hessian(loss)(z),
            jaxloss.per_example_value_grad_hess(case.call)(z, label)[2],
        )

    with jax.debug_nans(True):
        value, first, forward, full, by_class = derivatives(z)
    np.testing.assert_allclose(value, float(loss), rtol=1e-6)
    for found in first:
        np.testing.assert_allclose(found, exact, rtol=1e-5)
    np.testing.assert_allclose(forward, exact @ tangent, rtol=1e-5)
    np.testing.assert_allclose(np.diag(full), np.array(hessian, float), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(full, full.T, atol=1e-6)
    np.testing.assert_allclose(full.sum(0), np.zeros(4), atol=2e-6)
    np.testing.assert_allclose(by_class, np.array(hessian, float), rtol=1e-5, atol=1e-6)


@cases.softmax_cases
@pytest.mark.parametrize("labels", ["ids", "onehot"])
def test_truth_on_an_excluded_class(case, labels):
    label = jnp.asarray(0 if labels == "ids" else np.eye(4)[0], jnp.int32 if labels == "ids" else jnp.float32)
    with jax.debug_nans(True):
        value, gradient = jaxloss.per_example_value_and_grad(case.call)(jnp.asarray(INF_ROW), label)
        forward = jax.jacfwd(case.call)(jnp.asarray(INF_ROW), label)
    expected = 1 / 0.7 if case.parameter == "q" else np.inf
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    p = np.exp(INF_ROW) / np.exp(INF_ROW).sum()
    limit = np.zeros(4) if case.parameter == "q" else p - np.eye(4)[0]
    np.testing.assert_allclose(gradient, limit, rtol=1e-5)
    np.testing.assert_allclose(forward, limit, rtol=1e-5)


def test_labels_of_several_classes_of_which_none_is_the_excluded_one():
    """In both forms of cross-entropy: its sums over a label's classes meet 0 times infinity."""
    labels = np.array([[0, 0, 1, 0], [0, 0.5, 0.25, 0.25]], np.float32)
    value, gradient = cases.SOFTMAX[0].run(np.stack([INF_ROW] * 2), labels)
    p = np.exp(INF_ROW.astype(float)) / np.exp(INF_ROW.astype(float)).sum()
    np.testing.assert_allclose(value, -labels[:, 1:] @ np.log(p[1:]), rtol=1e-6)
    np.testing.assert_allclose(gradient, p - labels, rtol=1e-5)


@cases.softmax_cases
@pytest.mark.parametrize("labels", ["ids", "onehot"])
def test_one_class_and_only_one_that_exists(case, labels):
    for row in ([3.0], [-np.inf, 3.0, -np.inf]):
        label = len(row) // 2
        given = jnp.asarray(
            label if labels == "ids" else np.eye(len(row))[label], jnp.int32 if labels == "ids" else None
        )
        with jax.debug_nans(True):
            z = jnp.asarray(row)
            value, gradient, hessian = jaxloss.per_example_value_grad_hess(case.call)(z, given)
            second = jax.jit(jax.hessian(case.call))(z, given)
        assert value == 0
        np.testing.assert_array_equal(gradient, np.zeros(len(row)))
        np.testing.assert_array_equal(hessian, np.zeros(len(row)))
        np.testing.assert_array_equal(second, np.zeros((len(row), len(row))))


@cases.parametrize(cases.CLASSES)
def test_a_logit_of_plus_infinity_takes_all_of_the_probability(case, rng):
    """At the label loss and derivatives are 0; elsewhere the loss is that of a label of probability 0."""
    size = 5
    logits = rng.normal(size=(size + 1, size)).astype(np.float32)
    logits[:size][np.eye(size, dtype=bool)] = np.inf
    logits[2, 3] = -np.inf
    logits[size, :2] = np.inf  # several take an unknown share each
    ids = np.arange(size + 1) % size
    one_hot = np.eye(size, dtype=np.float32)
    elsewhere = np.array([case.lost(y) for y in (ids[:size] + 1) % size])
    bounded = np.isfinite(elsewhere).all()
    gradient = np.zeros((size, size)) if bounded else one_hot - one_hot[[1, 2, 3, 4, 0]]
    soft = (one_hot[ids] + one_hot[(ids + 1) % size]) / 2
    share = 0.5 if bounded else 1
    for label, expected, slopes in (
        (ids, 0, np.zeros((size, size))),
        (one_hot[ids], 0, np.zeros((size, size))),
        ((ids + 1) % size, elsewhere, gradient),
        (one_hot[(ids + 1) % size], elsewhere, gradient),
        (soft, elsewhere * share, gradient / 2),
    ):
        value, got, hessian = map(np.asarray, case.run_twice(logits, label))
        assert np.isnan(value[size])
        np.testing.assert_allclose(value[:size], np.full(size, expected), rtol=1e-6)
        np.testing.assert_array_equal(got[:size], slopes)
        np.testing.assert_array_equal(hessian[:size], np.zeros((size, size)))
        assert np.isnan(got[size]).any()


def test_plus_infinity_among_many_classes_and_in_other_functions(rng):
    logits = rng.normal(size=(2, 16384)).astype(np.float32)
    logits[:, 77] = np.inf
    few, other = logits[:, 75:80], rng.normal(size=(2, 5)).astype(np.float32)
    cross_entropy, divergence = jaxloss.softmax_cross_entropy, jaxloss.softmax_kl_divergence
    projections = jaxloss.sparsemax, jaxloss.entmax15, partial(jaxloss.entmax, alpha=1.25)

    @jax.jit
    def among_many(z, ids):
        return cross_entropy(z, ids), *jaxloss.per_example_value_and_grad(cross_entropy)(z, ids)

    @jax.jit
    def of_few(few, other):
        slopes = jax.grad(lambda z, t: jnp.sum(divergence(z, z, temperature=t)), (0, 1))(few, 2.0)
        one_sided = divergence(few, other), divergence(other, few), cross_entropy(other, np.array([2, 2]))
        projected = [(project(few), jax.jacrev(project)(few[0])) for project in projections]
        return divergence(few, few, temperature=2.0), slopes, one_sided, projected

    with jax.debug_nans(True):
        alone, value, gradient = among_many(logits, np.array([77, 78]))
        same, slopes, (from_few, to_few, expected), projected = of_few(few, other)
    for got in (alone, value):
        np.testing.assert_array_equal(got, [0, np.inf])
    row = (np.arange(16384) == 77).astype(np.float32)
    np.testing.assert_array_equal(gradient, [0 * row, row - np.roll(row, 1)])
    for zero in (same, *slopes):
        np.testing.assert_array_equal(zero, np.zeros_like(zero))
    np.testing.assert_array_equal(from_few, [np.inf, np.inf])
    np.testing.assert_allclose(to_few, expected, rtol=1e-6)
    for probabilities, jacobian in projected:
        np.testing.assert_array_equal(probabilities, np.isinf(few))
        np.testing.assert_array_equal(jacobian, np.zeros((5, 5)))


@pytest.mark.parametrize("case", cases.SIGMOID, ids=lambda case: case.name)
def test_labels_outside_poison_infinite_logits(case):
    """Found by fuzzing, in sparsemax_loss."""
    for entry in jax.jit(jaxloss.per_example_value_and_grad(case.call))(
        jnp.array([[-jnp.inf, jnp.inf, 0.5]]), jnp.array([7])
    ):
        assert np.isnan(entry).all()


SIZES = [*((case, 5) for case in cases.ALL), *((case, 50257) for case in cases.SOFTMAX)]


def labels_outside(case, rng, size=5):
    """Logits, ids of which the first four are outside, and the same with ids inside for those."""
    ids = np.array([-1, -100, size, size + 7, *rng.integers(0, size, 2)], np.int32)
    return cases.logits_for(case, rng, 6, size, scale=1), ids, np.where(np.arange(6) < 4, 0, ids)


@cases.all_cases
def test_labels_outside_poison_their_row_alone(case, rng):
    logits, ids, good = labels_outside(case, rng)
    for got, expected in zip(case.run(logits, ids), case.run(logits, good), strict=True):
        assert np.isnan(got[:4]).all()
        np.testing.assert_array_equal(got[4:], expected[4:])


@pytest.mark.thin
@pytest.mark.parametrize(("case", "size"), SIZES, ids=lambda x: x if isinstance(x, int) else x.name)
def test_labels_outside_that_are_left_out(case, size, rng):
    logits, ids, good = labels_outside(case, rng, size)
    where = np.arange(6) >= 4
    kept, same = (case.run(logits, labels, where=where) for labels in (ids, good))
    for got, expected, alone in zip(kept, same, case.run(logits, ids), strict=True):
        np.testing.assert_array_equal(got[:4], np.zeros_like(got[:4]))
        np.testing.assert_array_equal(got, expected)
        assert np.isnan(alone[:4]).all()
        # Another program than the one without a mask: XLA may round a product and a sum at once in one of them.
        np.testing.assert_array_max_ulp(np.asarray(got[4:]), np.asarray(alone[4:]), maxulp=2)
        if case.phi is oracle.cross_entropy:
            np.testing.assert_array_equal(got[4:], alone[4:])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int32])
def test_label_dtypes_neither_wrap_nor_overflow(dtype):
    logits = np.zeros((3, 1000), np.float32)
    ids = np.array([0, 5, np.iinfo(dtype).max], dtype)
    losses = np.asarray(jaxloss.softmax_cross_entropy(logits, ids))
    np.testing.assert_allclose(losses[:2], np.log(1000), rtol=1e-6)
    assert np.isnan(losses[2]) == (ids[2] >= 1000)


def test_64_bit_labels_do_not_wrap(x64):
    losses = jaxloss.softmax_cross_entropy(jnp.zeros((2, 3), jnp.float32), jnp.array([2**32 + 1, 1], jnp.int64))
    np.testing.assert_array_equal(np.isnan(losses), [True, False])
    assert losses.dtype == jnp.float32


@cases.all_cases
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_rows_left_out_may_hold_anything(case, kind, rng):
    logits, labels = np.array(cases.logits_for(case, rng)), np.array(cases.labels_for(case, rng, kind))
    where = np.array([True, False, True, True, False, True])

    @jax.jit
    def run(z, t):
        forward = jax.jvp(lambda z: case.call(z, t, where=where), (z,), (jnp.ones_like(z),))[1]
        return *jaxloss.per_example_value_and_grad(case.call)(z, t, where=where), forward

    clean = run(logits, labels)
    for rubbish in (np.nan, np.inf, -np.inf):
        dirty_logits, dirty_labels = logits.copy(), labels.copy()
        dirty_logits[~where] = rubbish
        dirty_labels[~where] = rubbish if kind == "soft" else -100
        for got, expected in zip(run(dirty_logits, dirty_labels), clean, strict=True):
            np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(got[~where], np.zeros_like(got[~where]))


@pytest.mark.thin
@cases.all_cases
@pytest.mark.parametrize("rubbish", [np.inf, -np.inf])
def test_infinite_rows_left_out_are_clean_under_debug_nans(case, rubbish, rng):
    """No step of an eager call forms a NaN; NaN as an input is refused before any loss sees it."""
    logits, labels = np.array(cases.logits_for(case, rng)), np.array(cases.labels_for(case, rng))
    where = np.array([True, False, True, True, False, True])
    logits[~where], labels[~where] = rubbish, -100
    with jax.debug_nans(True):
        jaxloss.per_example_value_and_grad(case.call)(logits, labels, where=where)
        jax.jvp(lambda z: case.call(z, labels, where=where), (jnp.asarray(logits),), (np.ones_like(logits),))


@cases.all_cases
def test_hidden_elements_may_hold_anything(case, rng):
    """Labels that are not known; for a loss of one class among C, classes that do not exist, with no label on them."""
    logits, labels = np.array(cases.logits_for(case, rng)), np.array(cases.labels_for(case, rng, "soft"))
    where = rng.integers(0, 2, logits.shape).astype(bool)
    where[:, 0], where[0] = True, not case.multilabel
    labels = labels if case.multilabel else labels * where
    run = case.run_twice if case in cases.LOGITS else case.run
    clean = run(logits, labels, where=where)
    for got in map(np.asarray, clean[1:]):
        np.testing.assert_array_equal(got[~where], np.zeros_like(got[~where]))
    for rubbish, label in ((np.nan, np.nan), (np.inf, -1), (-np.inf, 255)):
        dirty = np.where(where, labels, np.float32(label)) if case.multilabel else labels
        for got, expected in zip(run(np.where(where, logits, rubbish), dirty, where=where), clean, strict=True):
            np.testing.assert_array_equal(got, expected)


@cases.sigmoid_cases
def test_infinite_logits_elementwise(case):
    logits = jnp.array([np.inf, -np.inf, np.inf, -np.inf])
    labels = jnp.array([1, 0, 0, 1])
    with jax.debug_nans(True):
        value, gradient, hessian = jaxloss.per_example_value_grad_hess(case.call)(logits, labels)
    np.testing.assert_array_equal(value, [0, 0, np.inf, np.inf])
    np.testing.assert_array_equal(gradient[:2], [0, 0])
    assert np.isfinite(gradient).all()
    assert gradient[2] > 0 > gradient[3]
    assert np.isfinite(hessian).all()


@cases.logits_cases
def test_gradients_of_saturated_logits_are_right(case):
    """(1 - p)^gamma at p = 1: peers return NaN for gamma < 1, and NaN Hessians for gamma < 2."""
    tolerance = {"rtol": (16 + 3 * 50) * 2.0**-23, "atol": 2e-37}
    logits = np.array([[magnitude, 0] for magnitude in (50, 200, 1e4, 1e30) for _ in range(2)], np.float32)
    labels = np.array([0, 1] * 4)
    values, gradients, hessians = case.run_twice(logits, labels)
    for z, label, value, gradient in zip(logits, labels, values, gradients, strict=True):
        exact, exact_gradient = case.row(z, label)
        losses = np.array(exact, float)
        expected = np.where(losses > np.finfo(np.float32).max, np.inf, losses)
        np.testing.assert_allclose(value, expected, **tolerance)
        np.testing.assert_allclose(gradient, np.array(exact_gradient, float), **tolerance)
    assert np.isfinite(hessians).all()


@cases.all_cases
def test_empty_batches(case):
    value, gradient = case.run(np.zeros((0, 5), np.float32), np.zeros(0, np.int32))
    assert value.shape == ((0, 5) if case.element else (0,))
    assert gradient.shape == (0, 5)
    assert jaxloss.mean(value) == 0


@pytest.mark.thin
@cases.all_cases
@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(case, half, rng):
    logits = np.asarray(cases.logits_for(case, rng)).astype(half)
    labels = cases.labels_for(case, rng)
    value, gradient = case.run(logits, labels)
    wide_value, wide_gradient = case.run(logits.astype(np.float32), labels)
    assert value.dtype == jnp.float32
    assert gradient.dtype == half
    np.testing.assert_array_equal(value, wide_value)
    np.testing.assert_array_equal(gradient, np.asarray(wide_gradient).astype(half))


@cases.all_cases
def test_no_float64_for_float32_inputs(case, x64, rng):
    logits, ids = cases.logits_for(case, rng), np.asarray(cases.labels_for(case, rng), np.int64)
    options = case.takes(label_smoothing=0.1, class_weights=np.ones(5, np.float32), z_loss=0.1)
    for labels in (ids, np.ones((6, 5), np.float32)):

        def total(z, labels=labels):
            losses = case.call(z, labels, **options)
            return jnp.sum(losses), losses

        program = jax.make_jaxpr(jax.value_and_grad(total, has_aux=True))(logits)
        wide = [e for e in jaxprs.equations(program) for v in e.outvars if v.aval.dtype == jnp.float64 and v.aval.ndim]
        assert not wide, wide
        assert {x.dtype for x in program.out_avals} == {jnp.dtype(jnp.float32)}
    wide = jax.eval_shape(case.call, jax.ShapeDtypeStruct(logits.shape, jnp.float64), ids)
    assert wide.dtype == jnp.float64


def test_float64_labels_keep_float32_logits_float32(x64):
    losses = jaxloss.softmax_cross_entropy(jnp.zeros((2, 3), jnp.float32), jnp.full((2, 3), 1 / 3, jnp.float64))
    assert losses.dtype == jnp.float32


def test_divergence_at_the_edges():
    loss = jaxloss.softmax_kl_divergence
    z, u, full = (np.array(x, np.float32) for x in ([-np.inf, 0, 1], [-np.inf, 1, 0], [0, 1, 0]))

    @jax.jit
    def derivatives(z, u, temperature):
        found = jax.value_and_grad(lambda z, u, t: loss(z, u, temperature=t), (0, 1, 2))(z, u, temperature)
        return *found, jax.jacfwd(loss)(z, u)

    with jax.debug_nans(True):
        value, (found_z, found_u, by_temperature), _ = derivatives(z, u, np.float32(2))
    exact, by_z, by_u = oracle.kl_row(z, u, 2)
    np.testing.assert_allclose(value, float(exact), rtol=1e-5)
    np.testing.assert_allclose(found_z, np.array(by_z, float), rtol=1e-5)
    np.testing.assert_allclose(found_u, np.array(by_u, float), rtol=1e-4, atol=1e-7)
    step = (float(oracle.kl_row(z, u, "2.001")[0]) - float(oracle.kl_row(z, u, "1.999")[0])) / 0.002
    np.testing.assert_allclose(by_temperature, step, rtol=1e-4)
    run = jax.jit(jaxloss.per_example_value_grad_hess(loss))
    values, _, hessian = run(np.stack([z, z, full]), np.stack([full, z, z]))
    np.testing.assert_array_equal(values[:2], [np.inf, 0])
    np.testing.assert_allclose(values[2], float(oracle.kl_row(full, z)[0]), rtol=1e-5)
    p = np.exp(full) / np.exp(full).sum()
    np.testing.assert_allclose(hessian[2], p * (1 - p), rtol=1e-5)


def test_reverse_and_mixed_divergences_at_the_edges():
    """Probabilities of 0 in one, the other or both; distributions that share no class."""
    rows = [[-np.inf, 0, 1], [0, 1, 0], [-np.inf, 1, 0], [0, -np.inf, -np.inf], [-np.inf, -np.inf, 5], [np.inf, 0, 1]]
    z, u = (np.array([rows[i] for i in some], np.float32) for some in ((0, 1, 0, 3, 3, 1, 5), (2, 2, 1, 4, 3, 3, 5)))
    reverse = partial(jaxloss.softmax_kl_divergence, direction="reverse")
    mixed = partial(jaxloss.softmax_js_divergence, weight=0.25)
    for loss, row in ((reverse, oracle.reverse_kl_row), (mixed, partial(oracle.js_row, weight=0.25))):

        @jax.jit
        def everything(z, u, temperature, loss=loss):
            values, pull = jax.vjp(lambda *x: loss(x[0], x[1], temperature=x[2]), z, u, temperature)
            twice = jaxloss.per_example_value_grad_hess(loss)(z, u, temperature=temperature)[2]
            return values, *pull(jnp.ones_like(values)), twice

        with jax.debug_nans(True):
            values, by_z, by_u, by_temperature, hessian = map(np.asarray, everything(z, u, np.float32(2)))
        for i in range(6):
            value, *slopes = row(z[i], u[i], 2)[:3]
            np.testing.assert_allclose(values[i], float(value), rtol=1e-6)
            if np.isfinite(values[i]):
                for got, expected in zip((by_z[i], by_u[i]), slopes, strict=True):
                    np.testing.assert_allclose(got, np.array(expected, float), rtol=1e-5, atol=1e-7)
        assert values[6] == 0  # both certain, by logits of +inf
        assert np.isinf(values[[1, 3]]).all() == (loss is reverse)
        for found in (by_z, by_u, by_temperature, hessian):
            assert np.isfinite(found).all()
        for found in (by_z, hessian):
            np.testing.assert_array_equal(np.where(z == -np.inf, found, 0), np.zeros_like(z))
    apart = everything(z, u, np.float32(1))[0][3]
    np.testing.assert_allclose(apart, -0.25 * np.log(0.25) - 0.75 * np.log(0.75), rtol=1e-6)


def test_the_weight_between_two_divergences(rng):
    """Its limits are the two directions of the Kullback-Leibler divergence, its derivative their difference."""
    z, u = (rng.normal(size=4).astype(np.float32) * 2 for _ in range(2))
    loss, divergence = jaxloss.softmax_js_divergence, jaxloss.softmax_kl_divergence

    def of_all(z, u, weight):
        return loss(z, u, weight=weight)

    run = jax.jit(jax.vmap(jax.value_and_grad(of_all, (0, 1, 2)), (None, None, 0)))
    weights = np.array([1e-6, 0.3, 1 - 2.0**-20, 0.25], np.float32)
    values, (*_, slopes) = run(z, u, weights)
    for w, value, slope in zip(weights, values, slopes, strict=True):
        exact = oracle.js_row(z, u, 1, float(w))
        np.testing.assert_allclose((value, slope), (float(exact[0]), float(exact[3])), rtol=1e-5)
    np.testing.assert_allclose(values[3], run(u, z, np.full(4, 0.75, np.float32))[0][3], rtol=1e-6)

    @jax.jit
    def limits(z, u):
        return divergence(z, u, direction="forward"), divergence(z, u, direction="reverse"), divergence(u, z)

    forward, reverse, swapped = limits(z, u)
    np.testing.assert_allclose((values[0] / 1e-6, values[2] * 2.0**20), (forward, reverse), rtol=1e-3)
    np.testing.assert_array_equal(reverse, swapped)
    far, flat = np.array([0, -60], np.float32), np.zeros(2, np.float32)
    for pair in ((far, flat), (flat, far)):
        by_z, by_u, _ = run(*pair, np.full(4, 0.5, np.float32))[1]
        np.testing.assert_allclose((by_z[0], by_u[0]), np.array(oracle.js_row(*pair)[1:3], float), rtol=1e-5)
