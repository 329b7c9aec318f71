"""Margin losses: of the margin m = z for a positive label, m = -z for a negative one, or between classes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxloss._core.annotations import ArrayLike, Axis, AxisName
from jaxloss._core.arguments import check_floating, check_where, compute_dtype, sigmoid_elements
from jaxloss._core.compose import sigmoid_loss
from jaxloss._core.hessians import elementwise_hessian
from jaxloss._core.hinges import hinge_hessian, hinge_values
from jaxloss._core.log_odds import counted, finite
from jaxloss._core.options import compiled, describe, number, public


@jax.custom_jvp
def _huber(x: jax.Array, knee: jax.Array) -> jax.Array:
    """Half the square of `x` where |x| <= `knee`, its tangent beyond: r (x - r / 2), r being `x` clipped."""
    r = jnp.clip(x, -knee, knee)
    return r * (x - r / 2)


@_huber.defjvp
def _huber_jvp(primals, tangents):
    # As written, the derivative at the knee would be split between the branches of `clip`.
    x, knee = primals
    beyond = jnp.abs(x) >= knee
    r = jnp.where(beyond, jnp.sign(x) * knee, x)
    return _huber(x, knee), r * tangents[0] + jnp.where(beyond, jnp.abs(x) - knee, 0) * tangents[1]


def _short_of_one(m: jax.Array) -> jax.Array:
    """max(0, 1 - m), with the derivative 0 at m = 1."""
    return jnp.where(m >= 1, 0, 1 - m)


def _either(phi: Callable[[jax.Array], jax.Array], z: jax.Array, t: jax.Array) -> jax.Array:
    """The sum t phi(z) + (1 - t) phi(-z), where a part with coefficient 0 is 0 even if phi overflows."""
    z = finite(z)
    return t * counted(t, phi(z)) + (1 - t) * counted(1 - t, phi(-z))


@public(elementwise_hessian)
def modified_huber_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Modified Huber loss of each logit, for binary and one-against-the-rest classification; robust to outliers.

      loss = t phi(z) + (1 - t) phi(-z)
      phi(m) = max(0, 1 - m)^2  for m >= -1,  -4 m  for m < -1
      dloss/dz = -2 min(max(0, 1 - z), 2)  for t = 1,  2 min(max(0, 1 + z), 2)  for t = 0

    The second derivative is 2 for -1 < z < 1 and else 0, at the kinks that of the flatter side.

    Args:
      logits: float array [*batch] or [*batch, C], decision values.
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
      loss="modified_huber" of scikit-learn's SGDClassifier, with labels -1 and 1 there.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.modified_huber_loss(jnp.array([2.0, 0.5, -3.0]), jnp.array([1, 1, 1])))
      [ 0. 0.25 12. ]

    Reference:
      Zhang, Solving Large Scale Linear Prediction Problems Using Stochastic Gradient Descent (2004), section 2.
    """
    elements = sigmoid_elements("modified_huber_loss", logits, labels, axis, where)

    def phi(m):
        return 2 * _huber(_short_of_one(m), jnp.full_like(m, 2))

    return sigmoid_loss(elements, lambda z, t: _either(phi, z, t), (class_weights, label_smoothing))


@public(elementwise_hessian)
def squared_hinge_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Squared hinge loss of each logit, for binary and one-against-the-rest classification.

      loss = t max(0, 1 - z)^2 + (1 - t) max(0, 1 + z)^2
      dloss/dz = -2 max(0, 1 - z)  for t = 1,  2 max(0, 1 + z)  for t = 0

    For t = 1 the second derivative is 2 for z < 1 and else 0, at the kink that of the flatter side.

    Args:
      logits: float array [*batch] or [*batch, C], decision values.
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
      `modified_huber_loss` for margins of -1 and more; Keras' SquaredHinge, which takes a mean over the last axis.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.squared_hinge_loss(jnp.array([2.0, 0.5, -3.0]), jnp.array([1, 1, 1])))
      [ 0. 0.25 16. ]

    Reference:
      Rosasco et al., Are Loss Functions All the Same? (2004), section 2.
    """
    elements = sigmoid_elements("squared_hinge_loss", logits, labels, axis, where)

    def phi(m):
        return jnp.square(_short_of_one(m))

    return sigmoid_loss(elements, lambda z, t: _either(phi, z, t), (class_weights, label_smoothing))


@public(hinge_hessian)
def multiclass_hinge_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    margin: ArrayLike = 1.0,
    axis_name: AxisName = None,
    class_weights: ArrayLike | None = None,
) -> jax.Array:
    """Multi-class hinge loss of Crammer and Singer: how far the true class falls short of leading by a margin.

      loss = max(0, margin + z_m - z_y)  for an id y
      loss = sum_c t_c h_c  for a distribution t,  where h_c is the loss of the id c
      dloss/dz_y = -1,  dloss/dz_m = 1  where the loss is above 0

    m is the class of the largest logit but y. Several classes that share that logit share its slope evenly. At the kink
    the gradient is 0. The Hessian is 0. With a margin of 0 it is the multi-class perceptron loss.

    Args:
      logits: float array [*batch, C], a score of each class; -inf is a class that cannot be.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `logits`, any dtype, entries >= 0.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      margin: the lead that costs nothing, >= 0, a scalar.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.
      class_weights: float [C] or a scalar, >= 0; multiplies the loss of each label.

    Returns:
      Losses [*batch], not reduced; float32, or float64 for float64 logits. NaN where an id is out of range, +inf where
      the true class has a logit of -inf and another has not, or another has one of inf.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      optax.losses.multiclass_hinge_loss; scikit-learn's `hinge_loss` of several classes, which takes the mean.
      Two classes: `pairwise_ranking_loss` with surrogate="hinge".

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> logits = jnp.array([[2.0, 0.5, 1.5], [2.0, 0.5, 1.0]])
      >>> print(jaxloss.multiclass_hinge_loss(logits, jnp.array([0, 0])))
      [0.5 0. ]

    Reference:
      Crammer and Singer, On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines (2001), eq. 3.
    """
    options = (margin, class_weights)
    return hinge_values("multiclass_hinge_loss", logits, labels, axis, where, axis_name, *options)


@compiled
def huber_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    delta: ArrayLike = 1.0,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Huber loss of each prediction: quadratic near the target, linear far from it.

      loss = e^2 / 2  for |e| <= delta,  delta (|e| - delta / 2)  else,  with  e = x - t
      dloss/dx = sign(e) min(|e|, delta)

    x are the `predictions`, t the `targets`. The second derivative is 1 for |e| < delta and else 0, at the kink that
    of the flatter side.

    Args:
      predictions: float array of any shape.
      targets: array of the shape of `predictions`; 0 if None.
      delta: where the quadratic part ends, > 0, a scalar.
      where: boolean of the shape of `predictions`, elements to keep; others give loss 0, gradient 0.

    Returns:
      Losses of the shape of `predictions`, not reduced; float32, or float64 for float64 predictions.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      optax.losses.huber_loss, without overflow for large differences.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.huber_loss(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0])))
      [0.125 2.5 ]

    Reference:
      Huber, Robust Estimation of a Location Parameter (1964), section 3.
    """
    z = jnp.asarray(predictions)
    check_floating("huber_loss", "predictions", z)
    t = jnp.zeros_like(z) if targets is None else jnp.asarray(targets)
    if t.shape != z.shape:
        raise ValueError(f"huber_loss: `targets` must have the shape {z.shape} of `predictions`; got {describe(t)}.")
    dtype = compute_dtype(z)
    difference = z.astype(dtype) - t.astype(dtype)
    knee = number("huber_loss", "delta", delta, None, dtype)
    if where is None:
        return _huber(difference, jnp.broadcast_to(knee, z.shape))
    keep = jnp.asarray(where)
    check_where("huber_loss", keep, {z.shape: "elements to keep"})
    losses = _huber(jnp.where(keep, difference, 0), jnp.broadcast_to(knee, z.shape))
    return jnp.where(keep, losses, 0)
