"""Likelihoods of ordered classes."""

from __future__ import annotations

import jax

from jaxloss._core.annotations import ArrayLike
from jaxloss._core.options import public
from jaxloss._core.ordinal import ordered_logistic, score_hessian


@public(score_hessian)
def ordered_logistic_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    cutpoints: ArrayLike,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
) -> jax.Array:
    """Negative log-likelihood of ordered classes in the cumulative logit (proportional odds) model.

      loss = -log P_y,  with  P_y = sigmoid(a - f) - sigmoid(b - f)
      loss = sum_c t_c (-log P_c)  for a distribution t
      dloss/df = sigmoid(f - a) - sigmoid(b - f)
      dloss/da = -sigmoid(f - a) - 1 / (exp(a - b) - 1)
      dloss/db = sigmoid(b - f) + 1 / (exp(a - b) - 1)

    f are the `scores`, a and b the cutpoints above and below class y: `cutpoints[y]`, inf for the last class, and
    `cutpoints[y - 1]`, -inf for the first. One score orders all classes. The cutpoints are parameters of the model; for
    ascending ones learn the first and the logarithms of the steps:
    `jnp.cumsum(jnp.concatenate([raw[:1], jnp.exp(raw[1:])]))`.

    Args:
      scores: float array [*batch], higher for higher classes.
      labels: integer ids [*batch] in [0, C), or a distribution [*batch, C], any dtype, entries >= 0.
      cutpoints: float array [C - 1], ascending: the scores at which a class above is as likely as one below.
      where: boolean [*batch], rows to keep; others give loss 0, gradient 0.
      class_weights: float [C] or a scalar, >= 0; multiplies each class' share of the loss.

    Returns:
      Losses [*batch] in nats, not reduced; float32, or float64 for float64 scores. NaN where an id is out of range or
      the cutpoints of its class descend, +inf where they are equal or the score is infinite at the wrong end.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      One cutpoint: `sigmoid_binary_cross_entropy` of scores - cutpoint.
      `cross_entropy` of the probabilities of the classes.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> scores, cutpoints = jnp.array([0.0, 30.0]), jnp.array([-1.0, 1.0])
      >>> print(jaxloss.ordered_logistic_loss(scores, jnp.array([1, 2]), cutpoints))
      [7.7193683e-01 2.5436657e-13]

    Reference:
      McCullagh, Regression Models for Ordinal Data (1980), section 2.2.
    """
    return ordered_logistic("ordered_logistic_loss", scores, labels, cutpoints, where, class_weights)
