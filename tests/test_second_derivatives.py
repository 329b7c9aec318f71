"""Second derivatives keep their digits too: by ids as by one-hot rows, whichever class leads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss._core.classes import ClassAxis
from jaxloss._core.statistics import class_odds
from tests import cases, oracle

SIZE, LABEL = 10, 1


def leading(rng) -> np.ndarray:
    """Rows in which class 0 leads the label 1, by a little to a lot, alone or not; and two in which the label leads."""
    rows = np.round(rng.normal(size=(8, SIZE)) * 64) / 64
    rows[:6, 0] = [4, 12, 20, 40, 60, 20]
    rows[5, 2] = 20
    rows[6:, 1] = [12, 40]
    return rows.astype(np.float32)


@cases.softmax_cases
@pytest.mark.parametrize("labels", ["ids", "onehot"])
def test_a_class_that_wrongly_leads_keeps_its_digits(case, labels, rng):
    logits = leading(rng)
    given = np.full(len(logits), LABEL) if labels == "ids" else np.eye(SIZE, dtype=np.float32)[[LABEL] * len(logits)]

    @jax.jit
    def hessians(z, t):
        return jaxloss.per_example_value_grad_hess(case.call)(z, t)[2], jax.vmap(jax.hessian(case.call))(z, t)

    closed, full = map(np.asarray, hessians(logits, given))
    shares = oracle.shares(LABEL, SIZE)
    for i, row in enumerate(logits):
        exact = np.array(oracle.softmax_row(row, shares, case.phi, case.value, order=2)[2], float)
        # The promise for values and gradients; where terms of either sign meet in an entry, of the larger gradient.
        bound = (1 + case.exponent) * (4 + np.ptp(row)) * 2.0**-23
        slack = bound * 2.0**-4 * np.abs(exact).max() if case.parameter else 0
        for got in (closed[i], np.diag(full[i])):
            assert (np.abs(got - exact) <= bound * np.abs(exact) + slack + 1e-36).all(), (i, got, exact)
    np.testing.assert_allclose(full, np.swapaxes(full, 1, 2), rtol=1e-4, atol=1e-7)


def test_both_kinds_of_labels_give_the_same_number():
    """The loss by an id of logits [20, 0, 0], label 1: 2.06e-9 before, for p (1 - p) = 4.12e-9."""
    run = cases.SOFTMAX[0].run_twice
    logits = np.array([20.0, 0.0, 0.0], np.float32)
    by_id, by_row = (np.asarray(run(logits, label)[2]) for label in (1, np.eye(3, dtype=np.float32)[1]))
    np.testing.assert_allclose(by_id[0], 4.1223072e-09, rtol=1e-6)
    np.testing.assert_allclose(by_id, by_row, rtol=1e-6)


TWOS = [(-1, 0), (1, 1)]  # of a binary label: sign of the margin
KINKS = {  # the loss as a function of one number, a kink, and the step to the flatter side
    **{
        f"{name}, label {t}, margin {m}": (partial(loss, labels=jnp.array(t)), sign * m, sign * step)
        for sign, t in TWOS
        for name, loss, m, step in [
            ("squared hinge", lambda z, labels: jaxloss.squared_hinge_loss(z, labels), 1.0, 0.25),
            ("modified Huber", lambda z, labels: jaxloss.modified_huber_loss(z, labels), 1.0, 0.25),
            ("modified Huber", lambda z, labels: jaxloss.modified_huber_loss(z, labels), -1.0, 0.0),
            ("binary sparsemax", lambda z, labels: jaxloss.sparsemax_loss(z, labels), 1.0, 0.25),
            ("binary sparsemax", lambda z, labels: jaxloss.sparsemax_loss(z, labels), -1.0, -0.25),
        ]
    },
    "Huber above": (lambda x: jaxloss.huber_loss(x, delta=2.0), 2.0, 0.0),
    "Huber below": (lambda x: jaxloss.huber_loss(x, jnp.float32(1), 2.0), -1.0, 0.0),
    "ranking hinge": (
        lambda z: jaxloss.pairwise_ranking_loss(jnp.stack([z, jnp.float32(0)]), jnp.array([1, 0]), surrogate="hinge"),
        1.0,
        0.25,
    ),
    "asymmetric": (
        lambda z: jaxloss.asymmetric_loss(z, jnp.array(0), gamma_negative=0, clip=0.5),
        0.0,
        -0.25,
    ),
    "sparsemax": (
        lambda z: jaxloss.multiclass_sparsemax_loss(jnp.stack([z, jnp.float32(0), jnp.float32(0)]), 2),
        -0.5,
        -0.25,
    ),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_have_the_derivatives_of_the_flatter_side(name):
    loss, kink, step = KINKS[name]
    with jax.debug_nans(True):
        run = jax.jit(lambda x: (jax.grad(loss)(x), jax.hessian(loss)(x)))
        (first, second), (first_beside, second_beside) = run(np.float32(kink)), run(np.float32(kink + step))
    assert second == second_beside == 0
    if step:
        assert first == first_beside
    else:
        assert first != 0


def test_huber_loss_bends_at_a_difference_of_zero():
    second = jax.jit(jax.vmap(jax.hessian(jaxloss.huber_loss)))(jnp.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(second, [0, 0, 1, 1, 1, 0])
    assert np.isnan(jax.grad(jaxloss.huber_loss)(jnp.nan))
    by_knee = jax.grad(lambda d: jaxloss.huber_loss(jnp.float32(-3.0), delta=d))
    assert by_knee(1.0) == 2
    assert by_knee(4.0) == 0


def test_minus_log_p_of_a_confident_class_has_a_gradient_with_its_digits():
    """Backward, the cotangents less the class' own are exactly 0, and nothing is left of p - 1."""
    z = np.array([20.0, 0.0, 1.0], np.float32)
    gradient = jax.jit(jax.grad(lambda z: class_odds(ClassAxis(0), z).odds.nll[0]))(z)
    others = np.exp([-20.0, -19.0])
    expected = np.array([-others.sum(), *others]) / (1 + others.sum())
    np.testing.assert_allclose(gradient, expected, rtol=8 * 2.0**-23)
