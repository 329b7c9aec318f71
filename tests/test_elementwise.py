"""Losses of probabilities, margins and multi-label logits: what the registry's properties do not say."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests import cases, oracle


def test_probabilities_agree_with_logits(rng):
    logits, weights = cases.logits_for(None, rng), rng.uniform(0.5, 2, 5).astype(np.float32)

    @jax.jit
    def both(z, labels, options):
        direct = jaxloss.per_example_value_and_grad(jaxloss.softmax_cross_entropy)(z, labels, **options)
        chained = jaxloss.per_example_value_and_grad(
            lambda z: jaxloss.cross_entropy(jax.nn.softmax(z), labels, **options)
        )
        logarithms = jaxloss.negative_log_likelihood(jnp.log(jax.nn.softmax(z)), labels, **options)
        return direct, chained(z), logarithms

    for kind in ("ids", "onehot", "soft"):
        labels = cases.labels_for(None, rng, kind)
        for smoothing, given in ((0, np.ones(5)), (0, weights), (0.2, weights)):
            options = {"label_smoothing": np.float32(smoothing), "class_weights": np.float32(given)}
            (expected, slopes), (value, gradient), of_logarithms = both(logits, labels, options)
            np.testing.assert_allclose(value, expected, rtol=1e-5)
            np.testing.assert_allclose(of_logarithms, expected, rtol=1e-5)
            np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=2e-6)
    multi = cases.labels_for(None, rng, "soft")
    binary = jaxloss.binary_cross_entropy(jax.nn.sigmoid(logits), multi, pos_weight=weights, label_smoothing=0.1)
    expected = jaxloss.sigmoid_binary_cross_entropy(logits, multi, pos_weight=weights, label_smoothing=0.1)
    np.testing.assert_allclose(binary, expected, rtol=1e-4)


def test_probability_zero_is_not_clipped():
    probs = jnp.array([[0.0, 1.0], [0.5, 0.5]])
    with jax.debug_nans(True):
        for labels in (jnp.array([0, 1]), jnp.array([[1.0, 0.0], [0.0, 1.0]])):
            value, gradient = jaxloss.per_example_value_and_grad(jaxloss.cross_entropy)(probs, labels)
            np.testing.assert_allclose(value, [np.inf, np.log(2)], rtol=1e-6)
            assert gradient[0, 0] < -1e37
            np.testing.assert_array_equal(gradient[:, 1], [0, -2])
            forward = jax.jvp(lambda p, t=labels: jaxloss.cross_entropy(p, t), (probs,), (jnp.zeros((2, 2)),))[1]
            np.testing.assert_array_equal(forward, np.zeros(2))
        right = jaxloss.per_example_value_and_grad(jaxloss.cross_entropy)(probs, jnp.array([[0.0, 1.0], [0.0, 0.0]]))
        np.testing.assert_array_equal(right[0], np.zeros(2))
        np.testing.assert_array_equal(right[1], [[0, -1], [0, 0]])
        binary = jaxloss.per_example_value_and_grad(jaxloss.binary_cross_entropy)
        value, gradient = binary(jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([0, 1, 0, 1]))
    np.testing.assert_array_equal(value, [0, np.inf, np.inf, 0])
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[::3], [1, -1])


def test_log_probability_of_minus_infinity():
    log_probs = jnp.array([[-jnp.inf, 0.0], [-1.0, -2.0]])
    with jax.debug_nans(True):
        value, gradient = jaxloss.per_example_value_and_grad(jaxloss.negative_log_likelihood)(
            log_probs, jnp.array([[0.0, 1.0], [0.5, 0.5]])
        )
    np.testing.assert_array_equal(value, [0, 1.5])
    np.testing.assert_array_equal(gradient, [[0, -1], [-0.5, -0.5]])
    assert jaxloss.negative_log_likelihood(log_probs, jnp.array([0, 1]))[0] == np.inf


@pytest.mark.parametrize("loss", [jaxloss.cross_entropy, jaxloss.negative_log_likelihood])
def test_probabilities_of_classes_that_do_not_exist(loss, rng):
    values = jnp.asarray(rng.uniform(0.1, 0.9, (4, 3)), jnp.float32)
    values = jnp.log(values) if loss is jaxloss.negative_log_likelihood else values
    classes = jnp.broadcast_to(jnp.array([True, True, False]), (4, 3))
    assert loss(values, jnp.array([0, 1, 2, 0]), where=classes)[2] == 0
    smooth = loss(values, jnp.array([0, 1, 0, 0]), where=classes, label_smoothing=0.2)
    nll = -values if loss is jaxloss.negative_log_likelihood else -jnp.log(values)
    np.testing.assert_allclose(smooth[0], 0.8 * nll[0, 0] + 0.1 * (nll[0, 0] + nll[0, 1]), rtol=1e-6)


@pytest.mark.parametrize("gamma_negative", [0, 0.5, 1, 4])
@pytest.mark.parametrize("traced", [False, True])
def test_asymmetric_loss_against_the_oracle(gamma_negative, traced, rng):
    logits = np.concatenate([rng.normal(size=60) * 4, [-40, -20, 20, 40, -2.8]]).astype(np.float32)
    options = {"gamma_positive": 0.5, "gamma_negative": gamma_negative, "clip": 0.05}
    given = {key: jnp.float32(value) if traced else value for key, value in options.items()}
    options["clip"] = float(np.float32(0.05))
    run = jaxloss.per_example_value_grad_hess(partial(jaxloss.asymmetric_loss, **given))
    labels = np.repeat(np.array([[0], [1], [0.25]], np.float32), 65, 1)
    with jax.debug_nans(True):
        values, gradients, hessians = run(np.tile(logits, (3, 1)), labels)
    for t, value, gradient in zip((0.0, 1.0, 0.25), values, gradients, strict=True):
        exact = [oracle.asymmetric_element(z, t, **options) for z in logits]
        # p - clip is as exact as p itself, not as the difference.
        np.testing.assert_allclose(value, [float(e[0]) for e in exact], rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(gradient, [float(e[1]) for e in exact], rtol=2e-3, atol=1e-7)
    assert np.isfinite(hessians).all()


def test_asymmetric_loss_keeps_the_gradient_of_missed_positives():
    """Published code takes log(max(p, 1e-8)) and returns about -4e-8 at a logit of -20."""
    gradient = jax.grad(jaxloss.asymmetric_loss)(jnp.float32(-20), jnp.float32(1))
    np.testing.assert_allclose(gradient, -1 / (1 + np.exp(-20)), rtol=1e-6)
    off = {"gamma_positive": 0, "gamma_negative": 0, "clip": 0}
    z = jnp.linspace(-30, 30, 61)
    for t in (0, 1):
        labels = jnp.full(61, t)
        expected = jaxloss.per_example_value_and_grad(jaxloss.sigmoid_binary_cross_entropy)(z, labels)
        got = jaxloss.per_example_value_and_grad(jaxloss.asymmetric_loss)(z, labels, **off)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_modified_huber_is_squared_hinge_up_to_its_knee():
    z = jnp.linspace(-1, 4, 101)
    labels = jnp.ones(101)
    modified = jaxloss.per_example_value_and_grad(jaxloss.modified_huber_loss)(z, labels)
    hinge = jaxloss.per_example_value_and_grad(jaxloss.squared_hinge_loss)(z, labels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), modified, hinge)
    slopes = jax.vmap(jax.grad(jaxloss.modified_huber_loss))(jnp.array([-1.0, 1.0, -1e30]), jnp.ones(3))
    np.testing.assert_array_equal(slopes, [-4, 0, -4])


def test_huber_of_large_differences_and_at_the_knee():
    predictions = jnp.array([1e30, -1e30, 1.0, -1.0, 0.0, jnp.nan])
    where = jnp.arange(6) < 5
    value, gradient = jaxloss.per_example_value_and_grad(jaxloss.huber_loss)(predictions, where=where)
    np.testing.assert_allclose(value, [1e30, 1e30, 0.5, 0.5, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(gradient, [1, -1, 1, -1, 0, 0])
    by_delta = jax.grad(lambda d: jaxloss.huber_loss(jnp.float32(3), jnp.float32(0), d))(2.0)
    np.testing.assert_allclose(by_delta, 1.0)
    assert jaxloss.huber_loss(jnp.bfloat16(3)).dtype == jnp.float32


ELEMENTWISE = [*cases.SIGMOID, *(case for case in cases.PROBABILITIES if case.multilabel)]
PER_ELEMENT = ("alpha", "gamma", "gamma_positive", "gamma_negative", "clip", "pos_weight", "class_weights")


@cases.parametrize(ELEMENTWISE)
def test_options_of_each_element(case, rng):
    """One program with an option for each element is every element's loss with its own number."""
    logits = case.link(cases.logits_for(case, rng, rows=2))
    labels = cases.labels_for(case, rng, "multihot", rows=2)
    taken = [key for key in PER_ELEMENT if key in inspect.signature(case.loss).parameters]
    assert "class_weights" in taken
    options = {key: rng.uniform(0.1, 0.9, logits.shape).astype(np.float32) for key in taken}

    def run(z, t, options, where=None):
        value, gradient = jaxloss.per_example_value_and_grad(case.loss)(z, t, where=where, **options)
        by_option = jax.grad(lambda options: jnp.sum(case.loss(z, t, where=where, **options)))(options)
        return value, gradient, by_option

    masked = jax.jit(lambda options, where: run(logits, labels, options, where))
    found = masked(options, np.ones(logits.shape, bool))
    each = jax.jit(jax.vmap(jax.vmap(run)))(logits, labels, options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, each)

    # What is left out may hold anything.
    where = rng.integers(0, 2, logits.shape) > 0
    holes = {key: np.where(where, x, np.float32(np.nan)) for key, x in options.items()}
    jax.tree.map(np.testing.assert_array_equal, masked(holes, where), masked(options, where))


def test_options_of_each_row_of_a_softmax_loss_are_refused_with_what_does_it():
    with pytest.raises(
        ValueError, match=r"`gamma` must be a scalar or have one entry.*; for one of each row use jax\.vmap"
    ):
        jaxloss.softmax_focal_loss(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), gamma=jnp.ones(4))
