"""Promise 1: value and gradient within (1 + k) (4 + d) units of the last place, nothing lost, shifts without effect."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import jaxloss
from tests import accuracy, cases, oracle

pytestmark = pytest.mark.usefixtures("form")


kinds = pytest.mark.parametrize(("case", "kind"), accuracy.KINDS, ids=lambda x: x if isinstance(x, str) else x.name)


@pytest.mark.every("case", "kind")
@kinds
def test_errors_keep_the_promise(case, kind):
    keeps_the_promise(case, kind, "float32")


@kinds
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_errors_of_other_dtypes_keep_the_promise(case, kind, dtype):
    with jax.enable_x64(dtype == "float64"):
        keeps_the_promise(case, kind, dtype)


def keeps_the_promise(case, kind, dtype):
    errors = accuracy.element_errors(case, dtype) if kind == "binary" else accuracy.row_errors(case, dtype, kind)
    for error in errors:
        assert error.ratio <= 1, error


@cases.all_cases
def test_gradients_of_the_oracle_itself(case, rng):
    values = [mp.mpf(float(x)) for x in cases.logits_for(case, rng, rows=1)[0]]
    label, step = np.asarray(cases.labels_for(case, rng, "soft", rows=1)[0]), mp.mpf(10) ** -15
    gradient = case.row(values, label)[1]
    for c, z in enumerate(values):
        ends = (case.row([*values[:c], z + s, *values[c + 1 :]], label)[0] for s in (step, -step))
        above, below = (mp.fsum(x) if case.element else x for x in ends)
        assert abs((above - below) / (2 * step) - gradient[c]) < 1e-12, c


@cases.probability_cases
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_of_probabilities(case, dtype, x64, rng):
    """4 units: log(1 - p) of float64 is not XLA's log1p, which loses 7 bits for some p."""
    values = case.link(jnp.asarray(rng.normal(size=(80, 5)) * np.repeat([0.5, 4], 40)[:, None], dtype))
    labels = cases.labels_for(case, rng, "onehot", 80)
    got, gradients = jaxloss.per_example_value_and_grad(case.call)(values, labels)
    for row in zip(np.asarray(values), np.asarray(labels), got, gradients, strict=True):
        exact = case.row(*row[:2])
        for a, b in zip(row[2:], exact, strict=True):
            assert oracle.ulp_error(a, b, got.dtype).max() <= 4


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


@cases.parametrize([case for case in cases.LOGITS if case.shift_invariant])
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


@cases.all_cases
@pytest.mark.parametrize("kind", ["ids", "multihot"])
def test_signs_and_sums_in_200_000_rows(case, kind, rng):
    """Promise 2: loss >= +0, label gradient <= 0 <= the others, gradients of shift-invariant losses sum to 0."""
    rows = 200_000
    logits = case.link(cases.logits_for(None, rng, rows, 6, scale=np.repeat([0.1, 1, 10, 60], rows // 4)[:, None]))
    labels = cases.labels_for(case, rng, kind, rows, 6)
    values, gradients = map(np.asarray, jaxloss.per_example_value_and_grad(case.call)(logits, labels))
    assert not np.signbit(values).any()
    assert not np.isnan(values).any()
    onehot = np.eye(6)[labels] if kind == "ids" else np.asarray(labels)
    if kind == "ids" or case not in cases.CLASSES:
        assert np.all(gradients * (1 - 2 * onehot) >= 0)
    if kind == "ids" and case.shift_invariant and case in cases.LOGITS:
        largest = 1 if case.sparse else np.abs(gradients).sum(1)
        np.testing.assert_array_less(np.abs(gradients.sum(1, dtype=np.float64)), 4 * 2.0**-23 * largest + 1e-37)


DIVERGENCES = {
    "forward": (jaxloss.softmax_kl_divergence, oracle.kl_row),
    "reverse": (partial(jaxloss.softmax_kl_divergence, direction="reverse"), oracle.reverse_kl_row),
    "jensen-shannon": (partial(jaxloss.softmax_js_divergence, weight=0.25), partial(oracle.js_row, weight=0.25)),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence_against_the_oracle(name, rng):
    """Nothing is lost where model and target agree to many digits, nor of the class that holds nearly all."""
    loss, row = DIVERGENCES[name]

    def everything(z, u, temperature):
        given = partial(loss, temperature=temperature)
        values, pull = jax.vjp(given, z, u)
        return values, *pull(jnp.ones_like(values)), jaxloss.per_example_value_grad_hess(given)(z, u)[2]

    def bend(z, u, temperature, c):
        step = mp.mpf(10) ** -20
        moved = ([*map(mp.mpf, map(float, z))] for _ in range(2))
        ends = []
        for given, sign in zip(moved, (1, -1), strict=True):
            given[c] += sign * step
            ends.append(row(given, u, temperature)[1][c])
        return float((ends[0] - ends[1]) / (2 * step))

    run = jax.jit(everything)
    for scale, temperature in ((3, 1.0), (20, 1.0), (20, 3.0)):
        logits = (rng.normal(size=(12, 6)) * scale).astype(np.float32)
        targets = logits + (rng.normal(size=(12, 6)) * np.logspace(-6, 1.5, 12)[:, None]).astype(np.float32)
        # A few ULP; the rounding of a logit over the temperature is as large as the logit has it.
        eps = 2.0**-23 * (16 + (0 if temperature == 1 else scale))
        found = run(logits, targets, temperature)
        for i, (value, *gradients, hessian) in enumerate(zip(*found, strict=True)):
            exact = row(logits[i], targets[i], temperature)
            np.testing.assert_allclose(value, float(exact[0]), rtol=eps)
            for got, gradient in zip(gradients, exact[1:3], strict=True):
                expected = np.array(gradient, float)
                np.testing.assert_allclose(got, expected, atol=eps * np.abs(expected).max(), rtol=eps)
            if i % 5 == 0:
                bends = np.array([bend(logits[i], targets[i], temperature, c) for c in range(6)])
                np.testing.assert_allclose(hessian, bends, atol=eps * np.abs(bends).max(), rtol=64 * eps)
