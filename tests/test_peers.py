"""The numbers of optax and scikit-learn, on random inputs; tests/test_coming_from.py has those of other libraries."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import SGDClassifier

import jaxloss
from tests import cases, programs

ROOT = Path(__file__).parent.parent
OPTAX = {
    "softmax_cross_entropy": ("soft", (), {}),
    "softmax_cross_entropy, axis": ("soft axis", (0,), {}),
    "softmax_cross_entropy, axes": ("soft", ((0, 1),), {}),
    "softmax_cross_entropy, all axes": ("soft", (None,), {}),
    "softmax_cross_entropy, rows": ("soft", (-1, np.array([1, 0, 1, 1, 0, 1], bool)), {}),
    "softmax_cross_entropy_with_integer_labels": ("ids", (), {}),
    "softmax_cross_entropy_with_integer_labels, axis": ("ids axis", (0,), {}),
    "softmax_cross_entropy_with_integer_labels, rows": ("ids", (-1, np.array([1, 0, 1, 1, 0, 1], bool)), {}),
    "poly_loss_cross_entropy": ("soft", (), {"epsilon": 1.5}),
    "sigmoid_binary_cross_entropy": ("soft", (), {}),
    "sigmoid_focal_loss": ("soft", (), {}),
    "sigmoid_focal_loss, options": ("soft", (), {"alpha": 0.3, "gamma": 1.5}),
}


@pytest.mark.parametrize("case", OPTAX)
@pytest.mark.usefixtures("standard_promotion")
def test_optax_positional_calls_give_optax_numbers(case, rng):
    name = case.split(",")[0]
    kind, arguments, options = OPTAX[case]
    logits, labels = map(np.asarray, (cases.logits_for(None, rng), cases.labels_for(None, rng, kind.split()[0])))
    if "axis" in kind:
        logits, labels = logits.T, labels.T
    ours, theirs = getattr(jaxloss, name), getattr(optax.losses, name)

    @jax.jit
    def both(z, labels):
        value, pullback = jax.vjp(lambda z: theirs(z, labels, *arguments, **options), z)
        found = jaxloss.per_example_value_and_grad(ours)(z, labels, *arguments, **options)
        return *found, value, pullback(jnp.ones_like(value))[0]

    value, gradient, *expected = both(logits, labels)
    # optax forms log-sum-exp less the label's logit, which rounds in the size of the logits.
    np.testing.assert_allclose(value, expected[0], rtol=1e-6, atol=2.0**-23 * np.abs(logits).max())
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_optax_class_masks(rng):
    logits, labels = cases.logits_for(None, rng), np.asarray(cases.labels_for(None, rng, "soft"))
    where = np.broadcast_to(np.arange(5) != 3, logits.shape)
    ids = np.array([0, 1, 2, 4, 0, 1])

    @jax.jit
    def both(z):
        dense, sparse = "softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"
        ours = getattr(jaxloss, dense)(z, labels * where, -1, where), getattr(jaxloss, sparse)(z, ids, -1, where)
        theirs = getattr(optax.losses, dense)(z, labels, -1, where), getattr(optax.losses, sparse)(z, ids, -1, where)
        return ours, theirs

    np.testing.assert_allclose(*both(logits), rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_optax_kl_divergence_and_huber(rng):
    pair = cases.logits_for(None, rng), cases.logits_for(None, rng)

    @jax.jit
    def both(z, u):
        log_p, p = jax.nn.log_softmax(z), jax.nn.softmax(u)
        calls = ((z,), {}), ((z, u), {}), ((z, u), {"delta": 0.3})
        ours = [jaxloss.softmax_kl_divergence(z, u), *(jaxloss.huber_loss(*x, **options) for x, options in calls)]
        theirs = [
            optax.losses.kl_divergence(log_p, p), *(optax.losses.huber_loss(*x, **options) for x, options in calls)
        ]  # fmt: skip
        return list(zip(ours, theirs, strict=True))

    (divergence, expected), *others = both(*pair)
    np.testing.assert_allclose(divergence, expected, rtol=1e-5)
    for found, expected in others:
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_scikit_learns_modified_huber(rng):
    """Loss and gradient of SGDClassifier: one step of plain descent from 0 shows the gradient."""
    margins = np.linspace(-3, 3, 25)
    stepped = []
    for z in margins:
        for label in (0, 1):
            model = SGDClassifier(
                loss="modified_huber", alpha=0, learning_rate="constant", eta0=1.0, max_iter=1, tol=None, shuffle=False
            )
            model.set_params(fit_intercept=False)
            model.partial_fit(np.array([[1.0]]), [label], classes=[0, 1])
            model.coef_[:] = z
            model.partial_fit(np.array([[1.0]]), [label])
            stepped.append(z - model.coef_[0, 0])
    logits, labels = np.repeat(margins, 2), np.tile([0, 1], 25)
    value, gradient = jaxloss.per_example_value_and_grad(jaxloss.modified_huber_loss)(logits, labels)
    np.testing.assert_allclose(gradient, stepped, rtol=1e-5, atol=1e-6)
    m = np.where(labels == 1, logits, -logits)
    np.testing.assert_allclose(value, np.where(m >= -1, np.maximum(0, 1 - m) ** 2, -4 * m), rtol=1e-6, atol=1e-12)


OWN_TESTS = """
import unittest
from optax.losses import _classification, _classification_test, _regression, _regression_test
import jaxloss

for module in (_classification, _regression):
    for name in jaxloss.__all__:
        if hasattr(module, name):
            setattr(module, name, getattr(jaxloss, name))
suite, load = unittest.TestSuite(), unittest.defaultTestLoader.loadTestsFromTestCase
for name in ("SoftmaxCrossEntropy", "SoftmaxCrossEntropyWithIntegerLabels", "SigmoidCrossEntropy", "PolyLoss",
             "Sparsemax", "SigmoidFocalLoss"):
    suite.addTests(load(getattr(_classification_test, name + "Test")))
suite.addTests(load(_regression_test.HuberLossTest))
result = unittest.TextTestRunner(verbosity=0).run(suite)
print(result.testsRun, len(result.failures) + len(result.errors))
"""


def test_optax_own_tests_pass_with_these_functions_in_place():
    if find_spec("optax.losses._classification_test") is None:
        pytest.skip("this optax comes without its tests")
    command = [sys.executable, "-c", OWN_TESTS]
    environment = {**programs.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    count, failed = map(int, done.stdout.split())
    assert failed == 0, done.stderr
    assert count >= 70
