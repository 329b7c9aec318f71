"""Binary and multi-label losses from logits: elementwise, one sigmoid for each logit.

Below, z is a logit, p = sigmoid(z) and t its label in [0, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxloss._core.annotations import ArrayLike
from jaxloss._core.arguments import sigmoid_elements
from jaxloss._core.compose import elementwise_loss, infinite_where, sigmoid_loss
from jaxloss._core.hessians import elementwise_hessian
from jaxloss._core.log_odds import focal, log_miss, minus_log1m, odds
from jaxloss._core.options import public
from jaxloss._core.platforms import apart


@public(elementwise_hessian)
def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    pos_weight: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Binary cross-entropy of each logit, for binary and multi-label targets.

      loss = w t (-log p) + (1 - t) (-log(1 - p)),  w  being `pos_weight`, or 1
      dloss/dz = (1 - t) p - w t (1 - p)

    Args:
      logits: float array [*batch] or [*batch, C], log-odds of a positive.
      labels: array of the shape of `logits`, any dtype, entries in [0, 1]; or integer ids [*batch] in [0, C), each one
        positive among C.
      axis: the class axis of `logits`, for ids and for options given per class.
      where: boolean of the shape of `logits`, elements to keep, or [*batch], rows to keep; others give loss 0,
        gradient 0.
      pos_weight: weight >= 0 of the positive part, a scalar, [C], or one for each element.
      class_weights: float [C], a scalar, or one for each element, >= 0; multiplies the losses.
      label_smoothing: eps in [0, 1]; t becomes (1 - eps) t + eps / 2.

    Returns:
      Losses of the shape of `logits` in nats, not reduced; float32, or float64 for float64 logits. NaN where an id is
      out of range, +inf for an infinite logit on the wrong side.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `softmax_cross_entropy` of the two logits (0, z).

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.sigmoid_binary_cross_entropy(jnp.array([20.0, -2.0]), jnp.array([1, 0])))
      [2.0611537e-09 1.2692801e-01]

    Reference:
      Bishop, Pattern Recognition and Machine Learning (2006), equation 4.90.
    """
    elements = sigmoid_elements("sigmoid_binary_cross_entropy", logits, labels, axis, where)
    weight = elements.parameter("pos_weight", pos_weight)

    def values(l, t):
        truth = odds(l)
        return (t if weight is None else t * weight) * truth.nll + (1 - t) * truth.nlc

    return sigmoid_loss(elements, values, (class_weights, label_smoothing))


@public(elementwise_hessian)
def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Focal loss of each logit, for binary and multi-label targets: fades where the label is already likely.

      loss = a_t (1 - p_t)^gamma (t (-log p) + (1 - t) (-log(1 - p)))
      p_t = t p + (1 - t) (1 - p)
      a_t = alpha t + (1 - alpha) (1 - t),  or 1 without alpha
      dloss/dz = -a_t (1 - p)^gamma ((1 - p) + gamma p (-log p))  for t = 1
      dloss/dz = a_t p^gamma (p + gamma (1 - p) (-log(1 - p)))  for t = 0

    With label smoothing, t in p_t and a_t is the smoothed label, as in Keras. docs/semantics.md has p_t of the
    given label.

    Args:
      logits: float array [*batch] or [*batch, C], log-odds of a positive.
      labels: array of the shape of `logits`, any dtype, entries in [0, 1]; or integer ids [*batch] in [0, C), each one
        positive among C.
      axis: the class axis of `logits`, for ids and for options given per class.
      where: boolean of the shape of `logits`, elements to keep, or [*batch], rows to keep; others give loss 0,
        gradient 0.
      alpha: weight in [0, 1] of positives, negatives having 1 - alpha, a scalar, [C], or one for each element; None for
        no weights.
      gamma: focusing exponent >= 0, a scalar, [C], or one for each element; 0 is binary cross-entropy.
      class_weights: float [C], a scalar, or one for each element, >= 0; multiplies the losses.
      label_smoothing: eps in [0, 1]; t becomes (1 - eps) t + eps / 2.

    Returns:
      Losses of the shape of `logits` in nats, not reduced; float32, or float64 for float64 logits. NaN where an id is
      out of range, +inf for an infinite logit on the wrong side.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      gamma = 0 is `sigmoid_binary_cross_entropy`, bit for bit; `softmax_focal_loss` of the two logits (0, z).

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.sigmoid_focal_loss(jnp.array([2.0, -2.0]), jnp.array([1, 1]), gamma=2.0))
      [0.001804 1.650078 ]

    Reference:
      Lin et al., Focal Loss for Dense Object Detection (2017), equation 5; soft labels as in torchvision and optax.
    """
    elements = sigmoid_elements("sigmoid_focal_loss", logits, labels, axis, where)
    given = elements.parameter("gamma", gamma), elements.parameter("alpha", alpha)

    def values(l, t, exponent, share):
        truth = odds(l)
        losses = t * truth.nll + (1 - t) * truth.nlc
        if exponent is not None:
            losses = losses * jnp.exp(exponent * log_miss(l, t))
        return losses if share is None else losses * (share * t + (1 - share) * (1 - t))

    return sigmoid_loss(elements, lambda l, t: apart(values, l, t, *given), (class_weights, label_smoothing))


@public(elementwise_hessian)
def asymmetric_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    gamma_positive: ArrayLike = 0.0,
    gamma_negative: ArrayLike = 4.0,
    clip: ArrayLike = 0.05,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Asymmetric loss of each logit, for multi-label targets with few positives: easy negatives fade and are dropped.

      loss = t (1 - p)^a (-log p) + (1 - t) p_m^b (-log(1 - p_m)),  with  p_m = max(p - m, 0)
      dloss/dz = -(1 - p)^a ((1 - p) + a p (-log p))  for t = 1
      dloss/dz = p (1 - p) p_m^b (b (-log(1 - p_m)) / p_m + 1 / (1 - p_m))  for t = 0, p > m,  0  for p <= m

    a is `gamma_positive`, b `gamma_negative` and m `clip`.

    Args:
      logits: float array [*batch] or [*batch, C], log-odds of a positive.
      labels: array of the shape of `logits`, any dtype, entries in [0, 1]; or integer ids [*batch] in [0, C), each one
        positive among C.
      axis: the class axis of `logits`, for ids and for options given per class.
      where: boolean of the shape of `logits`, elements to keep, or [*batch], rows to keep; others give loss 0,
        gradient 0.
      gamma_positive: focusing exponent >= 0 of the positive part, a scalar, [C], or one for each element.
      gamma_negative: focusing exponent >= 0 of the negative part, a scalar, [C], or one for each element.
      clip: in [0, 1], subtracted from the probability in the negative part, a scalar, [C], or one for each element.
      class_weights: float [C], a scalar, or one for each element, >= 0; multiplies the losses.
      label_smoothing: eps in [0, 1]; t becomes (1 - eps) t + eps / 2.

    Returns:
      Losses of the shape of `logits` in nats, not reduced; float32, or float64 for float64 logits. NaN where an id is
      out of range, +inf for a logit of -inf with a positive label, or of +inf with a negative one and no clip.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      Exponents and clip of 0: `sigmoid_binary_cross_entropy`, bit for bit.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.asymmetric_loss(jnp.array([-20.0, -3.0, 0.0]), jnp.array([1, 0, 0])))
      [20. 0. 0.024515]

    Reference:
      Ridnik et al., Asymmetric Loss for Multi-Label Classification (2021), equations 4 to 6.
    """
    elements = sigmoid_elements("asymmetric_loss", logits, labels, axis, where)
    names, given = ("gamma_positive", "gamma_negative", "clip"), (gamma_positive, gamma_negative, clip)
    given = tuple(map(elements.parameter, names, given))

    def values(l, t, positive_exponent, negative_exponent, margin):
        truth = odds(l)
        positive, negative = focal(truth, positive_exponent), focal(truth.complement(), negative_exponent)
        if margin is not None:
            # log p_m only where p exceeds the margin: its derivative has no bound toward it.
            shifted = truth.p - margin
            above = shifted > 0
            negative = minus_log1m(jnp.where(shifted <= 0, 0, shifted))
            if negative_exponent is not None:
                power = jnp.exp(negative_exponent * jnp.log(jnp.where(above, shifted, 1)))
                negative = jnp.where(above, power * negative, 0)
        wrong = ((l == -jnp.inf) & (t > 0)) | ((l == jnp.inf) & (t < 1) & (True if margin is None else margin == 0))
        losses = t * positive + (1 - t) * negative
        return losses + infinite_where(wrong, losses)

    return elementwise_loss(elements, lambda l, t: apart(values, l, t, *given), (class_weights, label_smoothing))
