"""Cross-entropy with another weight for easy and hard rows: focal loss, poly loss, generalized cross-entropy.

They take what `softmax_cross_entropy` takes, and a parameter that at 0 makes them it. z is a row of logits,
p = softmax(z), y the true class; t is a distribution as label.
"""

from __future__ import annotations

import jax

from jaxloss._core import log_odds as scalars
from jaxloss._core.annotations import ArrayLike, Axis, AxisName
from jaxloss._core.compose import softmax_loss
from jaxloss._core.hessians import softmax_hessian
from jaxloss._core.labels import TopK
from jaxloss._core.options import public


@public(softmax_hessian(scalars.focal))
def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike | TopK,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    gamma: ArrayLike = 2.0,
    epsilon: ArrayLike = 0.0,
    axis_name: AxisName = None,
    class_weights: ArrayLike | None = None,
    label_margins: ArrayLike = 0.0,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
) -> jax.Array:
    """Focal loss of softmax probabilities: cross-entropy that fades for rows already classified well.

      loss = (1 - p_y)^gamma (-log p_y + epsilon (1 - p_y))  for an id y
      loss = sum_c t_c (1 - p_c)^gamma (-log p_c + epsilon (1 - p_c))  for a distribution t
      dloss/dz_y = -(1 - p_y)^gamma ((1 - p_y) (1 + (1 + gamma) epsilon p_y) + gamma p_y (-log p_y))
      dloss/dz_j = -p_j / (1 - p_y) dloss/dz_y  for j != y

    Label smoothing changes t alone: each class has the focal factor of its own p_c, as in Keras. docs/semantics.md
    has the two other conventions, one factor for the row, of p_y or of the smoothed cross-entropy.

    Args:
      logits: float array [*batch, C], unnormalized log-probabilities; -inf is probability 0.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `logits`, any dtype, entries >= 0; or
        `TopK`, the classes that a teacher holds likeliest.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      gamma: focusing exponent >= 0, a scalar or [C], of the true class; 0 is cross-entropy.
      epsilon: coefficient >= -1, a scalar or [C], of the true class, of the first power of 1 - p in the factor of
        (1 - p)^gamma, as in the Poly-1 form of focal loss; 0 is focal loss.
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
      gamma = 0 is `poly_loss_cross_entropy`, and `softmax_cross_entropy` where epsilon = 0 as well, bit for bit.
      Two classes: `sigmoid_focal_loss` of the difference of the logits.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.softmax_focal_loss(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([2]), gamma=2.0))
      [0.045678]

    Reference:
      Lin et al., Focal Loss for Dense Object Detection (2017), equation 4; Leng et al., PolyLoss (2022), section 5.
    """
    options = (class_weights, label_margins, label_smoothing, z_loss)
    common = ("softmax_focal_loss", logits, labels, axis, where, axis_name, options)
    return softmax_loss(scalars.focal, {"gamma": gamma, "epsilon": epsilon}, *common)


@public(softmax_hessian(scalars.poly))
def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | TopK,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    epsilon: ArrayLike = 2.0,
    axis_name: AxisName = None,
    class_weights: ArrayLike | None = None,
    label_margins: ArrayLike = 0.0,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
) -> jax.Array:
    """Poly-1 loss: cross-entropy plus a multiple of the first term of its Taylor series in 1 - p.

      loss = -log p_y + epsilon (1 - p_y)  for an id y
      loss = sum_c t_c (-log p_c + epsilon (1 - p_c))  for a distribution t
      dloss/dz_y = -(1 - p_y) (1 + epsilon p_y)
      dloss/dz_j = p_j (1 + epsilon p_y)  for j != y

    Args:
      logits: float array [*batch, C], unnormalized log-probabilities; -inf is probability 0.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `logits`, any dtype, entries >= 0; or
        `TopK`, the classes that a teacher holds likeliest.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      epsilon: coefficient >= -1, a scalar or [C], of the true class; 0 is cross-entropy.
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
      epsilon = 0 is `softmax_cross_entropy`, bit for bit.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.poly_loss_cross_entropy(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([2]), epsilon=2.0))
      [1.077124]

    Reference:
      Leng et al., PolyLoss (2022), equation 5.
    """
    options = (class_weights, label_margins, label_smoothing, z_loss)
    common = ("poly_loss_cross_entropy", logits, labels, axis, where, axis_name, options)
    return softmax_loss(scalars.poly, {"epsilon": epsilon}, *common)


@public(softmax_hessian(scalars.generalized_cross_entropy))
def generalized_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | TopK,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    q: ArrayLike = 0.7,
    axis_name: AxisName = None,
    class_weights: ArrayLike | None = None,
    label_margins: ArrayLike = 0.0,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
) -> jax.Array:
    """Generalized cross-entropy, robust to wrong labels: between cross-entropy (q = 0) and 1 - p (q = 1).

      loss = (1 - p_y^q) / q  for an id y
      loss = sum_c t_c (1 - p_c^q) / q  for a distribution t
      dloss/dz_y = -p_y^q (1 - p_y)
      dloss/dz_j = p_y^q p_j  for j != y

    Args:
      logits: float array [*batch, C], unnormalized log-probabilities; -inf is probability 0.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `logits`, any dtype, entries >= 0; or
        `TopK`, the classes that a teacher holds likeliest.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      q: exponent in [0, 1], a scalar or [C], of the true class; 0 is cross-entropy.
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
      1 / q where the true class has a logit of -inf.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      q = 0 is `softmax_cross_entropy`, bit for bit; q = 1 is 1 - p_y.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.generalized_cross_entropy(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([2]), q=1.0))
      [0.334759]

    Reference:
      Zhang and Sabuncu, Generalized Cross Entropy Loss (2018), equation 6.
    """
    options = (class_weights, label_margins, label_smoothing, z_loss)
    common = ("generalized_cross_entropy", logits, labels, axis, where, axis_name, options)
    return softmax_loss(scalars.generalized_cross_entropy, {"q": q}, *common)
