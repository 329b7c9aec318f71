"""Cross-entropy of one class among C, from logits: a scalar function of the log-odds of the true class.

Below, z is a row of logits, p = softmax(z) and y the true class; t is a distribution as label. `focal.py` has losses
of other scalar functions.
"""

from __future__ import annotations

import jax

from jaxloss._core import log_odds as scalars
from jaxloss._core.annotations import ArrayLike, Axis, AxisName
from jaxloss._core.compose import softmax_loss
from jaxloss._core.hessians import softmax_hessian
from jaxloss._core.labels import TopK
from jaxloss._core.options import public


@public(softmax_hessian(scalars.cross_entropy))
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | TopK,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
    class_weights: ArrayLike | None = None,
    label_margins: ArrayLike = 0.0,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
) -> jax.Array:
    """Cross-entropy of softmax probabilities with class ids or a distribution.

      loss = -log p_y  for an id y
      loss = sum_c t_c (-log p_c)  for a distribution t
      dloss/dz_j = p_j  for j != y,  dloss/dz_y = -(1 - p_y)
      dloss/dz_j = p_j (T - t_j) - t_j (1 - p_j)  for a distribution,  T = sum_c t_c

    Args:
      logits: float array [*batch, C], unnormalized log-probabilities; -inf is probability 0.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `logits`, any dtype, entries >= 0; or
        `TopK`, the classes that a teacher holds likeliest.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.
      class_weights: float [C] or a scalar, >= 0; loss = sum_c w_c t_c phi_c, not normalized.
      label_margins: float [C] or a scalar, finite; each phi_c is taken at log-odds lower by m_c, as if z_c were: at
        z_y - m_y for an id y. `z_loss` is of the logits as given.
      label_smoothing: eps in [0, 1]; t becomes (1 - eps) t + eps / C over the C classes that are not left out (by
        `where`, or by a logit of -inf).
      z_loss: coefficient >= 0 of an added logsumexp(z)^2.

    Returns:
      Losses [*batch] in nats, not reduced; float32, or float64 for float64 logits. NaN where an id is out of range,
      +inf where the true class has a logit of -inf.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      Class ids, their one-hot rows, equal soft labels and `TopK` labels without a tail give the same loss and gradient.
      Two classes: `sigmoid_binary_cross_entropy` of the difference of the logits.
      label_margins = m, of an id y: the loss without it of logits from whose entry y m_y was taken.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.softmax_cross_entropy(jnp.array([[20.0, 0.0], [0.0, 0.0]]), jnp.array([0, 1])))
      [2.0611537e-09 6.9314718e-01]

    Reference:
      Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.2.2.3; label_margins: Cao et al., Learning
      Imbalanced Datasets with Label-Distribution-Aware Margin Loss (2019), equations 12 and 13.
    """
    options = (class_weights, label_margins, label_smoothing, z_loss)
    common = ("softmax_cross_entropy", logits, labels, axis, where, axis_name, options)
    return softmax_loss(scalars.cross_entropy, {}, *common)


@public(softmax_hessian(scalars.cross_entropy))
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike | TopK,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
    class_weights: ArrayLike | None = None,
    label_margins: ArrayLike = 0.0,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
) -> jax.Array:
    """Cross-entropy of softmax probabilities with class ids: `softmax_cross_entropy` under optax's name for ids.

      loss = -log p_y
      dloss/dz_j = p_j  for j != y,  dloss/dz_y = -(1 - p_y)

    Args:
      logits: float array [*batch, C], unnormalized log-probabilities; -inf is probability 0.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `logits`, any dtype, entries >= 0; or
        `TopK`, the classes that a teacher holds likeliest.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.
      class_weights: float [C] or a scalar, >= 0; loss = sum_c w_c t_c phi_c, not normalized.
      label_margins: float [C] or a scalar, finite; each phi_c is taken at log-odds lower by m_c, as if z_c were: at
        z_y - m_y for an id y. `z_loss` is of the logits as given.
      label_smoothing: eps in [0, 1]; t becomes (1 - eps) t + eps / C over the C classes that are not left out (by
        `where`, or by a logit of -inf).
      z_loss: coefficient >= 0 of an added logsumexp(z)^2.

    Returns:
      Losses [*batch] in nats, not reduced; float32, or float64 for float64 logits. NaN where an id is out of range,
      +inf where the true class has a logit of -inf.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      The same as `softmax_cross_entropy` for every argument.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.softmax_cross_entropy_with_integer_labels(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([2])))
      [0.407606]

    Reference:
      Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.2.2.3.
    """
    options = (class_weights, label_margins, label_smoothing, z_loss)
    common = ("softmax_cross_entropy_with_integer_labels", logits, labels, axis, where, axis_name, options)
    return softmax_loss(scalars.cross_entropy, {}, *common)
