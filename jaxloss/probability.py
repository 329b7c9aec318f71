"""Losses of what already is a probability or a log-probability, as Keras users call them.

No clip is hidden here. Losses from logits keep digits that a probability in float32 has lost already: prefer them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxloss._core.annotations import ArrayLike, Axis
from jaxloss._core.arguments import sigmoid_elements
from jaxloss._core.compose import elementwise_loss, infinite_where, probability_loss
from jaxloss._core.log_odds import finite, minus_log, minus_log1m
from jaxloss._core.options import compiled
from jaxloss._core.probabilities import log_probability_rows, probabilities, probability_rows


@compiled
def cross_entropy(
    probs: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Cross-entropy of probabilities with class ids or a distribution.

      loss = -log p_y  for an id y
      loss = sum_c t_c (-log p_c)  for a distribution t
      dloss/dp_c = -t_c / p_c

    Terms with t_c = 0 are exactly 0; the gradient at p_c = 0 is that of the least normal number. Entries up to 8
    eps outside [0, 1], as sums that are rounded end, count as 0 or 1; farther out the loss is NaN. Keras clips p to
    [1e-7, 1 - 1e-7]: for its numbers pass `jnp.clip(probs, 1e-7, 1 - 1e-7)`.

    Args:
      probs: float array [*batch, C] of probabilities in [0, 1]; they are not normalized.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `probs`, any dtype, entries >= 0.
      axis: the class axis of `probs`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `probs`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      class_weights: float [C] or a scalar, >= 0; loss = sum_c w_c t_c phi_c, not normalized.
      label_smoothing: eps in [0, 1]; t becomes (1 - eps) t + eps / C over the C classes of p > 0.

    Returns:
      Losses [*batch] in nats, not reduced; float32, or float64 for float64 input. NaN where an id is out of range, +inf
      where the true class has probability 0.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `softmax_cross_entropy` of the logits, for probs = softmax(logits).

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.cross_entropy(jnp.array([[0.25, 0.75], [1.0, 0.0]]), jnp.array([1, 1])))
      [0.287682 inf]
    """
    options = (class_weights, label_smoothing)
    common = ("probs", "cross_entropy", probs, labels, axis, where, options)
    return probability_loss(probability_rows, minus_log, 0.0, *common)


@compiled
def negative_log_likelihood(
    log_probs: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Negative log-likelihood of log-probabilities under class ids or a distribution.

      loss = -log p_y  for an id y
      loss = sum_c t_c (-log p_c)  for a distribution t
      dloss/d(log p_c) = -t_c

    Terms with t_c = 0 are exactly 0. Entries up to 8 eps above 0 count as 0. torch's `nll_loss` is `mean` of it.

    Args:
      log_probs: float array [*batch, C] of logarithms of probabilities; they are not normalized.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `log_probs`, any dtype, entries >= 0.
      axis: the class axis of `log_probs`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `log_probs`, classes to keep (a label's share of the
        others counts nothing); a row left out or without classes gives loss 0, gradient 0.
      class_weights: float [C] or a scalar, >= 0; loss = sum_c w_c t_c phi_c, not normalized.
      label_smoothing: eps in [0, 1]; t becomes (1 - eps) t + eps / C over the C classes above -inf.

    Returns:
      Losses [*batch] in nats, not reduced; float32, or float64 for float64 input. NaN where an id is out of range, +inf
      where the true class has a logarithm of -inf.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `softmax_cross_entropy` of the logits, for log_probs = log_softmax(logits).

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.negative_log_likelihood(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([1])))
      [0.287682]
    """
    options, name = (class_weights, label_smoothing), "negative_log_likelihood"

    def nll(log_p):
        return -finite(log_p)

    return probability_loss(
        log_probability_rows, nll, -jnp.inf, "log_probs", name, log_probs, labels, axis, where, options
    )


@compiled
def binary_cross_entropy(
    probs: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    pos_weight: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Binary cross-entropy of each probability, for binary and multi-label targets.

      loss = w t (-log p) + (1 - t) (-log(1 - p)),  w  being `pos_weight`, or 1
      dloss/dp = (1 - t) / (1 - p) - (w t) / p

    Terms with a coefficient of 0 are exactly 0; the gradient at p = 0 and 1 has the least normal number as divisor.
    Entries up to 8 eps outside [0, 1], as sums that are rounded end, count as 0 or 1; farther out the loss is NaN.
    torch clamps the logarithms at -100, Keras clips p to [1e-7, 1 - 1e-7]: for Keras' numbers pass
    `jnp.clip(probs, 1e-7, 1 - 1e-7)`, for torch's values take the minimum with 100 where the labels are hard.

    Args:
      probs: float array [*batch] or [*batch, C] of probabilities in [0, 1].
      labels: array of the shape of `probs`, any dtype, entries in [0, 1]; or integer ids [*batch] in [0, C), each one
        positive among C.
      axis: the class axis of `probs`, for ids and for options given per class.
      where: boolean of the shape of `probs`, elements to keep, or [*batch], rows to keep; others give loss 0,
        gradient 0.
      pos_weight: weight >= 0 of the positive part, a scalar, [C], or one for each element.
      class_weights: float [C], a scalar, or one for each element, >= 0; multiplies the losses.
      label_smoothing: eps in [0, 1]; t becomes (1 - eps) t + eps / 2.

    Returns:
      Losses of the shape of `probs` in nats, not reduced; float32, or float64 for float64 input. NaN where an id is out
      of range, +inf for a true outcome of probability 0.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `sigmoid_binary_cross_entropy` of the logits, for probs = sigmoid(logits).

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.binary_cross_entropy(jnp.array([0.25, 0.0, 1.0]), jnp.array([1, 0, 0])))
      [1.386294 0. inf]
    """
    elements = sigmoid_elements("binary_cross_entropy", probs, labels, axis, where, argument="probs")
    p = probabilities(elements.name, elements.logits, jnp.result_type(probs), "sigmoid_binary_cross_entropy")
    elements = elements._replace(logits=p)
    weight = elements.parameter("pos_weight", pos_weight)

    def values(p, t):
        positive = t if weight is None else t * weight
        losses = positive * minus_log(p) + (1 - t) * minus_log1m(p)
        return losses + infinite_where(((p == 0) & (positive > 0)) | ((p == 1) & (t < 1)), losses)

    return elementwise_loss(elements, values, (class_weights, label_smoothing))
