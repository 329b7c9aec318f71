"""The Kullback-Leibler divergence of two softmax distributions."""

from __future__ import annotations

import jax

from jaxloss._core.annotations import ArrayLike, Axis, AxisName
from jaxloss._core.compose import kl_values
from jaxloss._core.hessians import kl_hessian
from jaxloss._core.options import public


@public(kl_hessian)
def softmax_kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 1.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """Kullback-Leibler divergence of a target's softmax from the model's, as in distillation.

      loss = sum_c t_c (log t_c - log p_c),  with  p = softmax(z / T), t = softmax(u / T)
      dloss/dz_j = (p_j - t_j) / T
      dloss/du_j = t_j (log t_j - log p_j - loss) / T

    z are the `logits`, u the `target_logits`, T the `temperature`. Use `jax.lax.stop_gradient` for a teacher. To
    keep the gradient's scale while T changes, multiply by T^2.

    Args:
      logits: float array [*batch, C], unnormalized log-probabilities; -inf is probability 0.
      target_logits: float array of the shape of `logits`; -inf is probability 0.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      temperature: T > 0, a scalar; divides both logits.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.

    Returns:
      Divergences [*batch] in nats, >= 0, not reduced; float32, or float64 for float64 logits. +inf where a class of
      positive target probability has a logit of -inf.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      0 for equal logits; `softmax_cross_entropy` with labels t, less the entropy of t.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.softmax_kl_divergence(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 1.0]])))
      [1.150421]

    Reference:
      Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), section 2.
    """
    return kl_values("softmax_kl_divergence", logits, target_logits, axis, where, axis_name, temperature)
