"""Promise 1: value and gradient within (1 + k) (4 + d) units of the last place, nothing lost, shifts without effect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests import accuracy, cases, oracle

dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])


@cases.softmax_cases
@pytest.mark.parametrize("labels", ["ids", "onehot"])
@dtypes
def test_softmax_errors_keep_the_promise(case, labels, dtype):
    with jax.enable_x64(dtype == "float64"):
        for error in accuracy.softmax_errors(case, jnp.dtype(dtype), labels == "onehot"):
            assert error.ratio <= 1, error


@cases.sigmoid_cases
@dtypes
def test_sigmoid_errors_keep_the_promise(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        for error in accuracy.sigmoid_errors(case, jnp.dtype(dtype)):
            assert error.ratio <= 1, error


@pytest.mark.parametrize("size", [1000, 50257])
def test_wide_rows_keep_the_promise(size, rng):
    for scale in (1, 20):
        logits = (rng.normal(size=size) * scale).astype(np.float32)
        label = int(logits.argmax())
        value, gradient = jaxloss.per_example_value_and_grad(jaxloss.softmax_cross_entropy)(logits, np.int32(label))
        exact = logits.astype(np.longdouble)
        e = np.exp(exact - exact.max())
        rest = e.sum() - e[label] if scale == 1 else np.delete(e, label).sum()
        p = e / (1 + rest)
        p[label] = -rest / (1 + rest)
        bound = (4 + np.ptp(logits)) * 2.0**-23
        np.testing.assert_allclose(value, np.float64(np.log1p(rest)), rtol=bound)
        np.testing.assert_allclose(gradient, p.astype(np.float64), rtol=bound, atol=2e-37)


def test_confident_rows_lose_nothing(rng):
    """1000 rows of N(0, 20), label at the maximum: optax returns a label gradient of 0 in 12 % of such rows."""
    logits = (rng.normal(size=(1000, 50)) * 20).astype(np.float32)
    ids = logits.argmax(1)
    values, gradients = jaxloss.per_example_value_and_grad(jaxloss.softmax_cross_entropy)(logits, ids)
    exact = logits.astype(np.longdouble) - logits.max(1, keepdims=True)
    odds = np.exp(exact)
    odds[np.arange(1000), ids] = 0
    expected = np.log1p(odds.sum(1)).astype(np.float64)
    assert expected.min() > 1e-37
    np.testing.assert_allclose(values, expected, rtol=(4 + np.ptp(logits, axis=1).max()) * 2.0**-23)
    assert np.all(np.asarray(gradients)[np.arange(1000), ids] < 0)


@cases.softmax_cases
@pytest.mark.parametrize("labels", ["ids", "soft"])
def test_adding_an_exact_constant_changes_no_bit(case, labels, rng):
    logits = np.round(rng.normal(size=(64, 7)) * 64).astype(np.float32) / 64
    labels = cases.labels_for(case, rng, labels, 64, 7)
    run = jaxloss.per_example_value_and_grad(case.call)
    value, gradient = run(logits, labels)
    for constant in (64.0, 8192.0, -4096.0):
        shifted_value, shifted_gradient = run(logits + np.float32(constant), labels)
        np.testing.assert_array_equal(value, shifted_value)
        np.testing.assert_array_equal(gradient, shifted_gradient)


@pytest.mark.parametrize("loss", [jaxloss.sigmoid_binary_cross_entropy, jaxloss.sigmoid_focal_loss])
def test_every_bfloat16_logit(loss):
    """All 65280 finite bfloat16 numbers: the loss is that of float32 logits, the gradient rounded once."""
    bits = np.arange(2**16, dtype=np.uint16)
    logits = jnp.asarray(bits.view(jnp.bfloat16))
    logits = logits[np.isfinite(np.asarray(logits, np.float32))]
    run = jaxloss.per_example_value_and_grad(loss)
    labels = jnp.ones(logits.shape)
    value, gradient = run(logits, labels)
    wide_value, wide_gradient = run(logits.astype(jnp.float32), labels)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, wide_value)
    np.testing.assert_array_equal(gradient, wide_gradient.astype(jnp.bfloat16))


@cases.softmax_cases
def test_signs_and_sums(case, rng):
    """Promise 2: loss >= +0, label gradient <= 0 <= the others, hard-label gradients sum to 0 within 4 eps."""
    logits = (rng.normal(size=(4000, 6)) * np.repeat([1, 5, 20, 60], 1000)[:, None]).astype(np.float32)
    ids = rng.integers(0, 6, 4000)
    values, gradients = map(np.asarray, jaxloss.per_example_value_and_grad(case.call)(logits, ids))
    assert not np.signbit(values).any()
    label = gradients[np.arange(4000), ids]
    assert np.all(label <= 0)
    others = gradients.copy()
    others[np.arange(4000), ids] = 0
    assert np.all(others >= 0)
    np.testing.assert_array_less(
        np.abs(gradients.astype(np.float64).sum(1)), 4 * 2.0**-23 * np.abs(gradients).sum(1) + 1e-37
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_against_the_oracle(temperature, rng):
    logits = (rng.normal(size=(12, 6)) * 3).astype(np.float32)
    targets = logits + (rng.normal(size=(12, 6)) * np.logspace(-3, 1, 12)[:, None]).astype(np.float32)

    def loss(z, u):
        return jnp.sum(jaxloss.softmax_kl_divergence(z, u, temperature=temperature))

    values = jaxloss.softmax_kl_divergence(logits, targets, temperature=temperature)
    by_logits, by_targets = jax.grad(loss, (0, 1))(jnp.asarray(logits), jnp.asarray(targets))
    for i in range(12):
        value, by_z, by_u = oracle.kl_row(logits[i], targets[i], temperature)
        # log p_c - log t_c carries the rounding of its own terms, about |z|: absolute in the logarithm.
        rounding = 16 * 2.0**-23
        np.testing.assert_allclose(values[i], float(value), rtol=rounding / np.sqrt(float(value)) + rounding)
        np.testing.assert_allclose(by_logits[i], np.array(by_z, float), atol=rounding, rtol=rounding)
        np.testing.assert_allclose(by_targets[i], np.array(by_u, float), atol=rounding, rtol=rounding * 8)
    assert np.all(np.asarray(values) > 0)
