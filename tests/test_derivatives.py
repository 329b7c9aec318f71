"""Derivatives of every order and by every option, against the oracle."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import jaxloss
from tests import cases, oracle

pytestmark = pytest.mark.usefixtures("form")


def exact_row(case, logits, label, order=1, **options):
    u = oracle.shares(label, len(logits), weights=options.get("weights"), smoothing=options.get("smoothing", 0))
    return oracle.softmax_row(logits, u, case.phi, options.get("value", case.value), options.get("z_loss", 0), order)


@pytest.mark.every("case", "kind")
@cases.logits_cases
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_hessian_diagonal_in_closed_form(case, kind, rng):
    logits, labels = cases.logits_for(case, rng, rows=4), cases.labels_for(case, rng, kind, rows=4)
    value, gradient, hessian = case.run_twice(logits, labels)
    for z, t, *got in zip(*map(np.asarray, (logits, labels, value, gradient, hessian)), strict=True):
        exact = (*case.row(z, t), oracle.hessian_diagonal(case.row, z, t))
        for a, b, tolerance in zip(got, exact, (1e-6, 2e-5, 2e-5), strict=True):
            np.testing.assert_allclose(a, np.array(b, float), rtol=tolerance, atol=1e-6)


@cases.softmax_cases
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_hessian_diagonal_with_smoothing_and_z_loss(case, kind, rng):
    logits, labels = np.asarray(cases.logits_for(case, rng)), np.asarray(cases.labels_for(case, rng, kind))
    loss = functools.partial(case.call, label_smoothing=0.2, z_loss=0.1)
    value, gradient, hessian = map(np.asarray, jax.jit(jaxloss.per_example_value_grad_hess(loss))(logits, labels))
    smoothing, z_loss = (float(np.float32(x)) for x in (0.2, 0.1))
    for i in range(len(logits)):
        exact = exact_row(case, logits[i], labels[i], 2, smoothing=smoothing, z_loss=z_loss)
        np.testing.assert_allclose(value[i], float(exact[0]), rtol=1e-6)
        np.testing.assert_allclose(gradient[i], np.array(exact[1], float), rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(hessian[i], np.array(exact[2], float), rtol=2e-5, atol=2e-6)


@pytest.mark.thin
@cases.logits_cases
def test_any_rank_and_axis(case, rng):
    """Values, gradients and Hessians along another axis, several axes, and with rows left out."""
    logits = rng.normal(size=(2, 5, 3)).astype(np.float32)
    ids = rng.integers(0, 5, (2, 3))
    where = np.array([[True, False, True], [True, True, True]])
    full = case.run_twice

    def same(got, flat, back):
        """Equal but for what sums in another order round."""
        for a, b in zip(got, flat, strict=True):
            b = back(b) if b.ndim == 2 else b.reshape(a.shape)
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=2.0**-22 if case.sparse else 0)

    rows = logits.transpose(0, 2, 1).reshape(6, 5)
    flat = [np.array(x) for x in full(rows, ids.reshape(6))]
    for x in flat:
        x[~where.reshape(6)] = 0
    same(full(logits, ids, 1, where), flat, lambda x: x.reshape(2, 3, 5).transpose(0, 2, 1))
    if case in cases.CLASSES:
        pairs = rng.integers(0, 6, (5,))
        exist = rng.integers(0, 4, logits.shape) > 0
        flat_logits, flat_exist = (x.transpose(1, 2, 0).reshape(5, 6) for x in (logits, exist))
        flat = map(np.asarray, full(flat_logits, pairs, -1, flat_exist))
        same(full(logits, pairs, (2, 0), exist), flat, lambda x: x.reshape(5, 3, 2).transpose(2, 0, 1))


@cases.logits_cases
def test_shapes_and_dtypes_along_any_axis(case):
    """Only one axis fits the labels, so that a loss that looks along another would not take them."""
    logits, of_one = jax.ShapeDtypeStruct((2, 5, 3), jnp.bfloat16), case in cases.CLASSES
    axis, ids = ((2, 0), np.zeros(5, np.int32)) if of_one else (1, np.zeros((2, 3), np.int32))
    run = functools.partial(jaxloss.per_example_value_grad_hess(case.call), axis=axis)
    value, gradient, hessian = jax.eval_shape(run, logits, ids)
    assert (value.shape, value.dtype) == (logits.shape if case.element else ids.shape, jnp.float32)
    assert (gradient.shape, gradient.dtype) == (hessian.shape, hessian.dtype) == (logits.shape, logits.dtype)
    if of_one:
        assert jax.eval_shape(functools.partial(case.call, axis=None), logits, np.int32(7)).shape == ()


def test_hessian_of_a_function_that_is_not_ours():
    with pytest.raises(TypeError, match="must be a loss of jaxloss"):
        jaxloss.per_example_value_grad_hess(lambda z, y: z)

    @functools.wraps(jaxloss.softmax_focal_loss)
    def scaled(z, y):
        return 5 * jaxloss.softmax_focal_loss(z, y)

    for function in (scaled, jax.vmap(jaxloss.softmax_focal_loss)):
        with pytest.raises(TypeError, match="must be a loss of jaxloss"):
            jaxloss.per_example_value_grad_hess(function)


@cases.logits_cases
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_second_order_agrees_with_float64_differences(case, kind, x64, rng):
    """jvp of grad, the Hessian and its diagonal, in float64 against central differences of the oracle's gradient."""
    logits = np.asarray(cases.logits_for(case, rng, rows=1), np.float64)[0]
    label = np.asarray(cases.labels_for(case, rng, kind, rows=1))[0]
    tangent = rng.normal(size=5)

    def total(z):
        return jnp.sum(case.call(z, label))

    def along(z, v):
        return jax.jvp(jax.grad(total), (z,), (v,))[1]

    @jax.jit
    def derivatives(z):
        products = jax.vmap(along, (None, 0))(z, np.stack([tangent, *np.eye(5)]))
        third = jax.jvp(lambda z: along(z, tangent), (z,), (tangent,))[1]
        return products, third, jaxloss.per_example_value_grad_hess(case.call)(z, label)[2]

    step = 1e-5
    (below, *_), ((product, *hessian), third, diagonal), (above, *_) = (
        map(np.asarray, derivatives(logits + s * step * tangent)) for s in (-1, 0, 1)
    )
    ends = [np.array(case.row(logits + s * step * tangent, np.asarray(label))[1], object) for s in (1, -1)]
    difference = np.array([float(d / (2 * step)) for d in ends[0] - ends[1]])
    np.testing.assert_allclose(product, difference, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(np.array(hessian) @ tangent, product, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.diag(hessian), diagonal, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(third, (above[0] - below[0]) / (2 * step), rtol=1e-6, atol=1e-8)


@cases.softmax_cases
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_gradients_by_options(case, kind, rng):
    """By gamma, epsilon, q or a margin, by the smoothing, by the z-loss coefficient and by the class weights."""
    logits, labels = cases.logits_for(case, rng), cases.labels_for(case, rng, kind)
    weights = rng.uniform(0.5, 2, 5).astype(np.float32)
    options = {"class_weights": jnp.asarray(weights), "label_smoothing": jnp.float32(0.2), "z_loss": jnp.float32(0.3)}
    if case.parameter:
        options[case.parameter] = jnp.float32(case.value)
    gradients = jax.jit(jax.grad(lambda options: jnp.sum(case.call(logits, labels, **options))))(options)

    def total(name, value, entry=None):
        arguments = {"weights": [mp.mpf(float(w)) for w in weights], "smoothing": float(np.float32(0.2))}
        arguments |= {"z_loss": float(np.float32(0.3)), "value": case.value}
        if entry is not None:
            arguments[name][entry] = value
        else:
            arguments[name] = value
        rows = zip(np.asarray(logits), np.asarray(labels), strict=True)
        return mp.fsum(_loss(case, row, label, **arguments) for row, label in rows)

    def slope(name, value, entry=None):
        step = mp.mpf("1e-30")
        return float((total(name, value + step, entry) - total(name, value - step, entry)) / (2 * step))

    tolerance = {"rtol": 3e-5}
    np.testing.assert_allclose(
        gradients["label_smoothing"], slope("smoothing", mp.mpf(float(np.float32(0.2)))), **tolerance
    )
    np.testing.assert_allclose(gradients["z_loss"], slope("z_loss", mp.mpf(float(np.float32(0.3)))), **tolerance)
    each = [slope("weights", mp.mpf(float(w)), c) for c, w in enumerate(weights)]
    np.testing.assert_allclose(gradients["class_weights"], each, **tolerance)
    if case.parameter:
        value = mp.mpf(float(np.float32(case.value)))
        np.testing.assert_allclose(gradients[case.parameter], slope("value", value), **tolerance)


def _loss(case, row, label, weights, smoothing, z_loss, value):
    """The oracle's loss with mpmath options, so that differences of 1e-30 are seen."""
    size = len(row)
    t = [mp.mpf(float(x)) for x in (np.eye(size)[label] if np.ndim(label) == 0 else label)]
    e = [mp.exp(mp.mpf(float(z))) for z in row]
    p = [x / mp.fsum(e) for x in e]
    u = [((1 - mp.mpf(smoothing)) * x + mp.mpf(smoothing) / size) * w for x, w in zip(t, weights, strict=True)]
    value = None if value is None else mp.mpf(value)
    return (
        mp.fsum(a * case.phi(b, 1 - b, value)[0] for a, b in zip(u, p, strict=True)) + z_loss * mp.log(mp.fsum(e)) ** 2
    )


def test_gradient_by_q_near_cross_entropy():
    """(1 - p^q) / q cancels for small q (-log p); its derivative by q, -s^2 / 2 at 0, must not."""
    by_q = jax.jit(jax.grad(lambda q, z: jaxloss.generalized_cross_entropy(z, jnp.array(0), q=q)))
    for logit in (8.0, 2.0, -3.0):
        for q in (1e-3, 0.05, 0.7, 1.0):
            got = by_q(q, jnp.array([logit, 0.0]))
            s = mp.log1p(mp.exp(-mp.mpf(logit)))
            exact = mp.diff(lambda k, s=s: (1 - mp.exp(-k * s)) / k, mp.mpf(float(np.float32(q))))
            np.testing.assert_allclose(got, float(exact), rtol=1e-5)


def test_sweep_of_gamma_by_vmap(rng):
    logits, ids = cases.logits_for(None, rng), cases.labels_for(None, rng)
    gammas = np.array([0.0, 0.5, 1.0, 2.0, 5.0], np.float32)

    def run(gamma):
        return jax.value_and_grad(lambda z: jnp.sum(jaxloss.softmax_focal_loss(z, ids, gamma=gamma)))(logits)

    values, gradients = map(np.asarray, jax.jit(jax.vmap(run))(gammas))
    for i, gamma in enumerate(gammas):
        exact = [
            exact_row(cases.SOFTMAX[3], np.asarray(z), int(y), value=float(gamma))
            for z, y in zip(np.asarray(logits), np.asarray(ids), strict=True)
        ]
        np.testing.assert_allclose(values[i], float(sum(e[0] for e in exact)), rtol=1e-5)
        np.testing.assert_allclose(gradients[i], np.array([e[1] for e in exact], float), rtol=3e-5, atol=1e-7)


@cases.softmax_cases
def test_gradient_by_soft_labels(case, rng):
    logits, labels = np.asarray(cases.logits_for(case, rng)), np.asarray(cases.labels_for(case, rng, "soft"))
    gradient = np.asarray(jax.jit(jax.grad(lambda t: jnp.sum(case.call(logits, t))))(labels))
    for i in range(len(logits)):
        each = [float(exact_row(case, logits[i], c)[0]) for c in range(5)]
        np.testing.assert_allclose(gradient[i], each, rtol=1e-5)


@cases.sigmoid_cases
def test_gradient_by_labels_is_finite_at_hard_ones(case, rng):
    """optax HEAD returns NaN there."""
    logits = (rng.normal(size=20) * 5).astype(np.float32)
    run = jax.jit(jax.grad(lambda t: jnp.sum(case.call(logits, t))))
    for t in (0.0, 1.0, 0.3):
        gradient = run(np.full(20, t, np.float32))
        step = mp.mpf("1e-30")
        for z, got in zip(np.asarray(logits), np.asarray(gradient), strict=True):
            high, low = (case.element(z, mp.mpf(t) + s * step)[0] for s in (1, -1))
            np.testing.assert_allclose(got, float((high - low) / (2 * step)), rtol=3e-5)


def test_statistics_build_the_losses(rng):
    logits, ids = np.asarray(cases.logits_for(None, rng)), np.asarray(cases.labels_for(None, rng))

    def focal(z):
        row = jaxloss.softmax_statistics(z, ids)
        return jnp.sum(jnp.exp(-2 * row.negative_log_complement) * row.negative_log_probability)

    def total(field, z):
        return jnp.sum(getattr(jaxloss.softmax_statistics(z, ids), field))

    @jax.jit
    def everything(z):
        built = jax.value_and_grad(focal)(z)
        ready = jax.value_and_grad(lambda z: jnp.sum(jaxloss.softmax_focal_loss(z, ids)))(z)
        rows = [jaxloss.softmax_statistics(z, labels) for labels in (ids, jax.nn.one_hot(ids, 5))]
        return built, ready, rows, [jax.grad(functools.partial(total, x))(z) for x in ("entropy", "logsumexp")]

    built, ready, rows, (entropy_gradient, lse_gradient) = everything(logits)
    for got, wanted in zip(built, ready, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    z = np.asarray(logits, np.float64)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    py = p[np.arange(6), ids]
    expected = (np.log(py / (1 - py)), -np.log(py), -np.log1p(-py), py, 1 - py, np.log(np.exp(z).sum(1)))
    right = z.argmax(1) == ids
    for row in rows:
        for got, wanted in zip(row, (*expected, -(p * np.log(p)).sum(1), right), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6)
    entropy = -(p * np.log(p)).sum(1, keepdims=True)
    np.testing.assert_allclose(entropy_gradient, -p * (np.log(p) + entropy), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(lse_gradient, p, rtol=1e-5)


def test_accuracy_of_tied_classes_and_of_labels_outside():
    rows = np.array([[1.0, 1.0, 0.0]] * 4, np.float32)
    tied = jax.jit(jaxloss.softmax_statistics)(rows, np.array([0, 1, 2, 3]), where=np.ones(4, bool))
    assert isinstance(tied, jaxloss.SoftmaxStatistics)
    np.testing.assert_array_equal(tied.accuracy, [1, 1, 0, np.nan])
    soft = jax.jit(jaxloss.softmax_statistics)(rows[0], np.array([0.5, 0.25, 0.25], np.float32))
    assert soft.accuracy == 0.75
