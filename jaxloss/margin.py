"""Margin losses: polynomials of the margin m = z for a positive label, m = -z for a negative one."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxloss._core.annotations import ArrayLike
from jaxloss._core.arguments import check_floating, check_where, compute_dtype, sigmoid_elements
from jaxloss._core.compose import sigmoid_loss
from jaxloss._core.hessians import elementwise_hessian
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
