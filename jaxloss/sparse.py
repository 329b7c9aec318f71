"""Sparse probabilities from logits, with exact zeros, and the losses whose gradient they give.

Below, z is a row of logits, d_j = z_j - max z, t a distribution as label. Every function is shift invariant.
"""

from __future__ import annotations

import jax

from jaxloss._core.alpha import ordered
from jaxloss._core.annotations import ArrayLike, Axis, AxisName
from jaxloss._core.arguments import sigmoid_elements
from jaxloss._core.compose import sigmoid_loss
from jaxloss._core.hessians import elementwise_hessian
from jaxloss._core.options import compiled, public
from jaxloss._core.projection import projection, projection_hessian, projection_loss, sparse_sigmoid_loss


@compiled
def sparsemax(
    logits: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None, *, axis_name: AxisName = None
) -> jax.Array:
    """Sparsemax: the point of the probability simplex nearest to the logits, with exact zeros.

      p_j = [z_j - tau]_+  with tau such that  sum_j p_j = 1
      dp_j = dz_j - 1 / K sum_k dz_k  over the K classes of p_k > 0,  dp_j = 0  elsewhere

    Args:
      logits: float array [*batch, C], scores; -inf is probability 0.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep (others give 0, gradient 0), or of the shape of `logits`, classes to keep
        (others count as a logit of -inf).
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.

    Returns:
      Probabilities of the shape of `logits`; float32, or float64 for float64 logits. 0 in a row without classes.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `entmax` of alpha = 2.

    Example:
      >>> import jax.numpy as jnp, jaxloss.sparse
      >>> print(jaxloss.sparsemax(jnp.array([1.0, 0.5, -1.0])))
      [0.75 0.25 0.  ]

    Reference:
      Martins and Astudillo, From Softmax to Sparsemax (2016), sections 2.1 and 2.5.
    """
    return projection("sparsemax", logits, axis, where, axis_name, 1)


@compiled
def entmax15(
    logits: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None, *, axis_name: AxisName = None
) -> jax.Array:
    """1.5-entmax: between softmax and sparsemax, with exact zeros and a continuous derivative.

      p_j = [z_j / 2 - tau]_+^2  with tau such that  sum_j p_j = 1
      dp_j = S_j (dz_j - (sum_k S_k dz_k) / (sum_k S_k)),  with  S_j = sqrt(p_j)

    Args:
      logits: float array [*batch, C], scores; -inf is probability 0.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep (others give 0, gradient 0), or of the shape of `logits`, classes to keep
        (others count as a logit of -inf).
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.

    Returns:
      Probabilities of the shape of `logits`; float32, or float64 for float64 logits. 0 in a row without classes.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `entmax` of alpha = 1.5.

    Example:
      >>> import jax.numpy as jnp, jaxloss.sparse
      >>> print(jaxloss.entmax15(jnp.array([1.0, 0.5, -2.0])))
      [0.673993 0.326007 0.      ]

    Reference:
      Peters, Niculae and Martins, Sparse Sequence-to-Sequence Models (2019), section 3.
    """
    return projection("entmax15", logits, axis, where, axis_name, 2)


@ordered
@compiled
def entmax(
    logits: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    alpha: ArrayLike | None = 1.5,
    axis_name: AxisName = None,
) -> jax.Array:
    """Entmax: the family of sparse probabilities from softmax (alpha = 1) to sparsemax (alpha = 2).

      p_j = [b z_j - tau]_+^(1/b),  b = alpha - 1,  with tau such that  sum_j p_j = 1
      dp_j = S_j (u_j - (sum_k S_k u_k) / (sum_k S_k)),  with  S_j = p_j^(2 - alpha)  for p_j > 0,  0  else
      u_j = dz_j - dalpha d/db (p_j^b - 1) / b

    Args:
      logits: float array [*batch, C], scores; -inf is probability 0.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep (others give 0, gradient 0), or of the shape of `logits`, classes to keep
        (others count as a logit of -inf).
      alpha: order in [1, 2], a scalar, which may be traced and differentiated; beyond 2 the derivative is unbounded.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.

    Returns:
      Probabilities of the shape of `logits`; float32, or float64 for float64 logits. 0 in a row without classes.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      alpha = 1 is softmax; alpha = 1.5 is `entmax15`, bit for bit; alpha = 2 is `sparsemax`.

    Example:
      >>> import jax.numpy as jnp, jaxloss.sparse
      >>> print(jaxloss.entmax(jnp.array([1.0, 0.5, -2.0]), alpha=1.2))
      [0.638907 0.358026 0.003067]

    Reference:
      Peters, Niculae and Martins, Sparse Sequence-to-Sequence Models (2019), section 3; for the derivative by alpha
      Correia, Niculae and Martins, Adaptively Sparse Transformers (2019), proposition 1.
    """
    return projection("entmax", logits, axis, where, axis_name, 2, alpha)


@public(elementwise_hessian)
def sparsemax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Binary sparsemax loss of each logit, for binary and multi-label targets: exactly 0 beyond a margin.

      loss = (t - p)^2 + (1 - t) [z - 1]_+ + t [-1 - z]_+,  with  p = min(max((1 + z) / 2, 0), 1)
      dloss/dz = (1 - t) p - t (1 - p) = p - t

    The second derivative is 1/2 for -1 < z < 1 and else 0, at the kinks that of the flatter side.

    Args:
      logits: float array [*batch] or [*batch, C], log-odds of a positive.
      labels: array of the shape of `logits`, any dtype, entries in [0, 1]; or integer ids [*batch] in [0, C), each one
        positive among C.
      axis: the class axis of `logits`, for ids and for options given per class.
      where: boolean of the shape of `logits`, elements to keep, or [*batch], rows to keep; others give loss 0,
        gradient 0.
      class_weights: float [C], a scalar, or one for each element, >= 0; multiplies the losses.
      label_smoothing: eps in [0, 1]; t becomes (1 - eps) t + eps / 2.

    Returns:
      Losses of the shape of `logits`, not reduced; float32, or float64 for float64 logits. NaN where an id is out of
      range, +inf for an infinite logit on the wrong side.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `multiclass_sparsemax_loss` of the two logits (0, z); sparse_plus(-z) for t = 1, sparse_plus(z) for t = 0.

    Example:
      >>> import jax.numpy as jnp, jaxloss.sparse
      >>> print(jaxloss.sparsemax_loss(jnp.array([0.5, 2.0, 2.0]), jnp.array([1, 1, 0])))
      [0.0625 0.     2.    ]

    Reference:
      Blondel, Martins and Niculae, Learning with Fenchel-Young Losses (2020), section 4.4.
    """
    elements = sigmoid_elements("sparsemax_loss", logits, labels, axis, where)
    return sigmoid_loss(elements, sparse_sigmoid_loss, (class_weights, label_smoothing))


@public(projection_hessian(1))
def multiclass_sparsemax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
    class_weights: ArrayLike | None = None,
) -> jax.Array:
    """Sparsemax loss with class ids, distributions or multi-hot labels: exactly 0 beyond a margin.

      loss = sum_j ((t_j - p_j)^2 / 2 + t_j [-(w + d_j)]_+)
      p = sparsemax(z), w = max_j p_j, d_j = z_j - max_k z_k
      dloss/dz_j = p_j (1 - t_j) - t_j (1 - p_j) = p_j - t_j

    t is divided by its sum: multi-hot labels become uniform; a row of zeros gives 0.

    Args:
      logits: float array [*batch, C], scores; -inf is probability 0.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `logits`, any dtype, entries >= 0.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.
      class_weights: float [C] or a scalar, >= 0; multiplies the loss of a row by sum_c w_c t_c, not normalized.

    Returns:
      Losses [*batch], not reduced; float32, or float64 for float64 logits. NaN where an id is out of range, +inf where
      the true class has a logit of -inf.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      Class ids, their one-hot rows and equal soft labels give the same loss and gradient.
      Two classes: `sparsemax_loss` of the difference of the logits. `entmax_loss` of alpha = 2.

    Example:
      >>> import jax.numpy as jnp, jaxloss.sparse
      >>> logits = jnp.array([[1.0, 0.5, -1.0], [3.0, 0.0, 0.0]])
      >>> print(jaxloss.multiclass_sparsemax_loss(logits, jnp.array([1, 0])))
      [0.5625 0.    ]

    Reference:
      Martins and Astudillo, From Softmax to Sparsemax (2016), sections 3.2 and 3.4 (multi-label).
    """
    return projection_loss(class_weights, "multiclass_sparsemax_loss", logits, labels, axis, where, axis_name, 1)


@ordered
@public(projection_hessian(2))
def entmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    alpha: ArrayLike | None = 1.5,
    axis_name: AxisName = None,
    class_weights: ArrayLike | None = None,
) -> jax.Array:
    """Entmax loss with class ids, distributions or multi-hot labels: from cross-entropy to sparsemax loss.

      loss = Omega(t) - Omega(p) - sum_j z_j (t_j - p_j),  with  p = entmax(z)
      Omega(p) = sum_j (p_j^alpha - p_j) / (alpha (alpha - 1))
      dloss/dz_j = p_j (1 - t_j) - t_j (1 - p_j) = p_j - t_j

    Added up from terms >= 0. t is divided by its sum: multi-hot labels become uniform; a row of zeros gives 0.

    Args:
      logits: float array [*batch, C], scores; -inf is probability 0.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `logits`, any dtype, entries >= 0.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      alpha: order in [1, 2], a scalar, which may be traced and differentiated; beyond 2 the derivative is unbounded.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.
      class_weights: float [C] or a scalar, >= 0; multiplies the loss of a row by sum_c w_c t_c, not normalized.

    Returns:
      Losses [*batch], not reduced; float32, or float64 for float64 logits. NaN where an id is out of range, +inf where
      the true class has a logit of -inf.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      alpha = 2 is `multiclass_sparsemax_loss`; alpha = 1 is `softmax_cross_entropy` less the entropy of t.

    Example:
      >>> import jax.numpy as jnp, jaxloss.sparse
      >>> print(jaxloss.entmax_loss(jnp.array([[1.0, 0.5, -2.0], [6.0, 0.0, 0.0]]), jnp.array([1, 0])))
      [0.684371 0.      ]

    Reference:
      Peters, Niculae and Martins, Sparse Sequence-to-Sequence Models (2019), section 3.
    """
    return projection_loss(class_weights, "entmax_loss", logits, labels, axis, where, axis_name, 2, alpha)
