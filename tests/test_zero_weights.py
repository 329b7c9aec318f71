"""A weight of exactly 0 drops what it weighs, in value and gradient, even where the loss is infinite."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests import cases

ELEMENTWISE = [case for case in cases.ALL if case.element]
ROWS = [*cases.CLASSES, *cases.PROBABILITIES[:2]]
INF = np.inf


def values_for(case, logits) -> np.ndarray:
    return np.asarray(case.link(jnp.asarray(logits, jnp.float32)))


@cases.parametrize(ELEMENTWISE)
@pytest.mark.parametrize("half", [jnp.float32, jnp.bfloat16])
def test_class_weights_of_elementwise_losses(case, half):
    logits = values_for(case, [[-INF, -3.0], [INF, 1.0], [1e30, -1e30], [0.0, 2.0]]).astype(half)
    labels = np.array([[1, 1], [0, 0], [0, 1], [1, 0]])
    with jax.debug_nans(True):
        found = case.run(logits, labels, class_weights=np.array([0, 1], np.float32))
        alone = case.run(logits, labels, class_weights=np.ones(2, np.float32))
    for got, whole in zip(map(np.asarray, found), map(np.asarray, alone), strict=True):
        np.testing.assert_array_equal(got[:, 0], np.zeros(4))
        np.testing.assert_array_equal(got[:, 1], whole[:, 1])


@pytest.mark.thin
@cases.parametrize(ROWS)
def test_class_weights_of_losses_over_rows(case):
    logits = values_for(case, [[-INF, 0.0, 1.0], [0.0, -INF, 1.0]])
    weights = np.array([0, 1, 2], np.float32)
    for labels in (np.array([0, 0]), np.eye(3, dtype=np.float32)[[0, 0]]):
        for got in case.run(logits, labels, class_weights=weights):
            np.testing.assert_array_equal(got, np.zeros_like(got))


WEIGHTS = {
    "pos_weight": (partial(jaxloss.sigmoid_binary_cross_entropy, pos_weight=0), 1, -INF),
    "pos_weight traced": (partial(jaxloss.sigmoid_binary_cross_entropy, pos_weight=jnp.float32(0)), 1, -INF),
    "pos_weight of probabilities": (partial(jaxloss.binary_cross_entropy, pos_weight=0), 1, 0.0),
    "alpha 0": (partial(jaxloss.sigmoid_focal_loss, alpha=0), 1, -INF),
    "alpha 1": (partial(jaxloss.sigmoid_focal_loss, alpha=1), 0, INF),
    "alpha 0 without gamma": (partial(jaxloss.sigmoid_focal_loss, alpha=0, gamma=0), 1, -INF),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_either_side(name):
    loss, label, worst = WEIGHTS[name]
    with jax.debug_nans(True):
        value, gradient = jax.value_and_grad(loss)(jnp.float32(worst), jnp.array(label))
        assert value == gradient == 0
        assert loss(jnp.float32(1 if worst == 0 else -worst), jnp.array(0.5)) == INF  # the other side's share is there


def test_z_loss_of_zero():
    logits = np.array([[INF, 0.0], [1e30, 0.0]], np.float32)
    for labels in (np.array([0, 0]), np.eye(2, dtype=np.float32)[[0, 0]]):
        run = jaxloss.per_example_value_and_grad(jaxloss.softmax_cross_entropy)
        for got in run(logits, labels, z_loss=jnp.float32(0)):
            np.testing.assert_array_equal(got, np.zeros_like(got))


def test_means_and_sums(rng):
    losses, weights = np.array([INF, 1.0, INF, 4.0], np.float32), np.array([0.0, 2.0, 0.0, 1.0], np.float32)
    with jax.debug_nans(True):
        value, (by_losses, by_weights) = jax.value_and_grad(
            lambda x, w: jaxloss.mean(x, weights=w, normalizer=3.0), (0, 1)
        )(losses, weights)
        assert jaxloss.LossSum.of(losses, weights=weights).total == 6
    assert value == 2
    np.testing.assert_allclose(by_losses, weights / 3)
    np.testing.assert_allclose(by_weights, [0, 1 / 3, 0, 4 / 3], rtol=1e-6)
    assert jaxloss.mean(losses, weights=np.array([1.0, 2.0, 0.0, 1.0], np.float32)) == INF
    assert np.isnan(jaxloss.mean(np.array([np.nan, 1.0], np.float32), weights=np.array([0.0, 1.0], np.float32)))


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_weights_of_a_linear_layer(chunk_rows):
    hidden, kernel = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), jnp.array([[1.0, 2.0], [0.5, 0.0]])
    bias, labels, weights = jnp.array([0.0, -INF]), jnp.array([1, 0, 0]), jnp.array([0.0, 1.0, 2.0])

    def loss(h, k, w):
        return jaxloss.linear_loss(
            jaxloss.softmax_cross_entropy, h, k, labels, bias=bias, weights=w, chunk_rows=chunk_rows
        ).total

    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(hidden, kernel, weights)
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
