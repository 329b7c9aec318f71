"""Promise 1: value and gradient within (1 + k) (4 + d) units of the last place, nothing lost, shifts without effect."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import jaxloss
from tests import accuracy, cases, oracle

pytestmark = pytest.mark.usefixtures("form")
CROSS_ENTROPY = cases.SOFTMAX[0]
kinds = pytest.mark.parametrize(("case", "kind"), accuracy.KINDS, ids=lambda x: x if isinstance(x, str) else x.name)


@pytest.mark.every("case", "kind")
@kinds
def test_errors_signs_sums_and_shifts(case, kind, rng):
    """In one test, for they are results of one program."""
    keeps_the_promise(case, kind, "float32")
    has_signs_and_sums(case, kind)
    if case.shift_invariant:
        is_blind_to_an_exact_constant(case, kind, rng)


@pytest.mark.thin
@kinds
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_errors_of_other_dtypes_keep_the_promise(case, kind, dtype):
    with jax.enable_x64(dtype == "float64"):
        keeps_the_promise(case, kind, dtype)


def keeps_the_promise(case, kind, dtype):
    errors = accuracy.element_errors(case, dtype) if kind == "binary" else accuracy.row_errors(case, dtype, kind)
    for error in errors:
        assert error.ratio <= 1, error


@cache
def many_rows(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, ids and labels of several classes."""
    rng, rows = np.random.default_rng(5), 100_000
    logits = rng.normal(size=(rows, size)) * np.repeat([0.1, 1, 10, 60], rows // 4)[:, None]
    return logits.astype(np.float32), rng.integers(0, size, rows), rng.integers(0, 2, (rows, size))


def has_signs_and_sums(case, kind):
    """Promise 2: loss >= +0, label gradient <= 0 <= the others, gradients of shift-invariant losses sum to 0."""
    size = accuracy.size(kind)
    logits, ids, several = many_rows(size)
    onehot = (several if kind in ("binary", "multi-hot") else np.eye(size)[ids]).astype(np.float32)
    labels = ids.astype(np.int32) if kind == "ids" else onehot
    values, gradients = accuracy.results(case, np.asarray(case.link(logits)), labels)
    assert not np.signbit(values).any()
    assert not np.isnan(values).any()
    assert np.all(gradients * (1 - 2 * onehot) >= 0)
    if case.shift_invariant and case in cases.LOGITS:
        largest, units = 1 if case.sparse else np.abs(gradients).sum(1), 16 if kind == "one-hot" else 4
        np.testing.assert_array_less(np.abs(gradients.sum(1, dtype=np.float64)), units * 2.0**-23 * largest + 1e-37)


def is_blind_to_an_exact_constant(case, kind, rng):
    size = accuracy.size(kind)
    logits = np.round(rng.normal(size=(64, size)) * 64).astype(np.float32) / 64
    labels = np.asarray(cases.labels_for(case, rng, "ids" if kind == "ids" else "soft", 64, size))
    value, gradient = accuracy.results(case, logits, labels)
    for constant in (64.0, 8192.0, -4096.0):
        shifted_value, shifted_gradient = accuracy.results(case, logits + np.float32(constant), labels)
        np.testing.assert_array_equal(value, shifted_value)
        np.testing.assert_array_equal(gradient, shifted_gradient)


@cases.probability_cases
def test_signs_of_probabilities(case):
    has_signs_and_sums(case, "binary" if case.element else "ids")


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
    got, gradients = case.run(values, labels)
    for row in zip(*map(np.asarray, (values, labels, got, gradients)), strict=True):
        exact = case.row(*row[:2])
        for a, b in zip(row[2:], exact, strict=True):
            assert oracle.ulp_error(a, b, got.dtype).max() <= 4


@pytest.mark.parametrize("size", [1000, 50257])
def test_wide_rows_keep_the_promise(size, rng):
    for scale in (1, 20):
        logits = (rng.normal(size=size) * scale).astype(np.float32)
        label = int(logits.argmax())
        value, gradient = CROSS_ENTROPY.run(logits, np.int32(label))
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
    values, gradients = CROSS_ENTROPY.run(logits, ids)
    exact = logits.astype(np.longdouble) - logits.max(1, keepdims=True)
    odds = np.exp(exact)
    odds[np.arange(1000), ids] = 0
    expected = np.log1p(odds.sum(1)).astype(np.float64)
    assert expected.min() > 1e-37
    np.testing.assert_allclose(values, expected, rtol=(4 + np.ptp(logits, axis=1).max()) * 2.0**-23)
    assert np.all(np.asarray(gradients)[np.arange(1000), ids] < 0)


@cases.parametrize([case for case in cases.SIGMOID if case.name in ("binary", "binary_focal_2")])
def test_every_bfloat16_logit(case):
    """All 65280 finite bfloat16 numbers: the loss is that of float32 logits, the gradient rounded once."""
    logits = np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16)
    logits = logits[np.isfinite(logits.astype(np.float32))]
    labels = np.ones(logits.shape, np.float32)
    value, gradient = case.run(logits, labels)
    wide_value, wide_gradient = case.run(logits.astype(np.float32), labels)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, wide_value)
    np.testing.assert_array_equal(gradient, np.asarray(wide_gradient).astype(jnp.bfloat16))


DIVERGENCES = {
    "forward": (jaxloss.softmax_kl_divergence, oracle.kl_row),
    "reverse": (partial(jaxloss.softmax_kl_divergence, direction="reverse"), oracle.reverse_kl_row),
    "jensen-shannon": (partial(jaxloss.softmax_js_divergence, weight=0.25), partial(oracle.js_row, weight=0.25)),
}


@cache
def exact_divergences(name: str) -> list:
    """Logits, targets, temperature, scale and what is exact of them by row: losses, both gradients, some Hessians."""
    rng, row = np.random.default_rng(20261123), DIVERGENCES[name][1]
    found = []
    for scale, temperature in ((3, 1.0), (20, 1.0), (20, 3.0)):
        logits = (rng.normal(size=(12, 6)) * scale).astype(np.float32)
        targets = logits + (rng.normal(size=(12, 6)) * np.logspace(-6, 1.5, 12)[:, None]).astype(np.float32)
        exact = [row(z, u, temperature)[:3] for z, u in zip(logits, targets, strict=True)]
        bends = {
            i: oracle.hessian_diagonal(lambda z, u, t=temperature: row(z, u, t), logits[i], targets[i])
            for i in range(0, 12, 5)
        }
        found.append((logits, targets, temperature, scale, exact, bends))
    return found


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence_against_the_oracle(name):
    """Nothing is lost where model and target agree to many digits, nor of the class that holds nearly all."""
    loss, _ = DIVERGENCES[name]

    @jax.jit
    def everything(z, u, temperature):
        given = partial(loss, temperature=temperature)
        values, pull = jax.vjp(given, z, u)
        return values, *pull(jnp.ones_like(values)), jaxloss.per_example_value_grad_hess(given)(z, u)[2]

    for logits, targets, temperature, scale, exact, bends in exact_divergences(name):
        # A few ULP; the rounding of a logit over the temperature is as large as the logit has it.
        eps = 2.0**-23 * (16 + (0 if temperature == 1 else scale))
        found = map(np.asarray, everything(logits, targets, temperature))
        for i, (value, *gradients, hessian) in enumerate(zip(*found, strict=True)):
            np.testing.assert_allclose(value, float(exact[i][0]), rtol=eps)
            for got, gradient in zip(gradients, exact[i][1:], strict=True):
                expected = np.array(gradient, float)
                np.testing.assert_allclose(got, expected, atol=eps * np.abs(expected).max(), rtol=eps)
            if i in bends:
                expected = np.array(bends[i], float)
                np.testing.assert_allclose(hessian, expected, atol=eps * np.abs(expected).max(), rtol=64 * eps)
