"""Divergences of two softmax distributions."""

from __future__ import annotations

import jax

from jaxloss._core.annotations import ArrayLike, Axis, AxisName
from jaxloss._core.hessians import js_hessian, kl_hessian
from jaxloss._core.labels import TopK
from jaxloss._core.options import public
from jaxloss._core.teachers import js_values, kl_values


@public(kl_hessian)
def softmax_kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike | TopK,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    direction: str = "forward",
    temperature: ArrayLike = 1.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """Kullback-Leibler divergence between the softmax of a target's logits and the model's, as in distillation.

      loss = sum_c t_c (log t_c - log p_c),  with  p = softmax(z / T), t = softmax(u / T)
      dloss/dz_j = (p_j - t_j) / T
      dloss/du_j = t_j (log t_j - log p_j - loss) / T
      loss = sum_c p_c (log p_c - log t_c)  in the reverse direction
      dloss/dz_j = p_j (log p_j - log t_j - loss) / T,  dloss/du_j = (t_j - p_j) / T

    z are the `logits`, u the `target_logits`, T the `temperature`. Forward, the model is to cover all that the target
    holds likely; in reverse, to hold likely only what the target does. Use `jax.lax.stop_gradient` for a teacher. To
    keep the gradient's scale while T changes, multiply by T^2. Of `TopK` targets the sums are over the classes listed
    and the tail; without a tail KL(p || t) is infinite, and an error.

    Args:
      logits: float array [*batch, C], unnormalized log-probabilities; -inf is probability 0.
      target_logits: float array of the shape of `logits`, -inf is probability 0; or `TopK`, the classes that a teacher
        holds likeliest, with their probabilities at this temperature.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      direction: "forward" for KL(t || p), "reverse" for KL(p || t).
      temperature: T > 0, a scalar; divides both logits.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.

    Returns:
      Divergences [*batch] in nats, >= 0 but for `TopK` without a tail, not reduced; float32, or float64 for float64
      logits. +inf where a class of positive probability in the first distribution has a logit of -inf in the second.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here.

    Identities:
      0 for equal logits; forward, `softmax_cross_entropy` with labels t, less the entropy of t.
      Reverse is forward with `logits` and `target_logits` exchanged.
      `TopK` of all classes, in any order, is the whole distribution.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> z, u = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 1.0]])
      >>> print(jaxloss.softmax_kl_divergence(z, u))
      [1.150421]

    Reference:
      Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), section 2; reverse: Gu et al.,
      MiniLLM (2024), section 2.1.
    """
    return kl_values("softmax_kl_divergence", logits, target_logits, axis, where, axis_name, temperature, direction)


@public(js_hessian)
def softmax_js_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike | TopK,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    weight: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """Jensen-Shannon divergence of the softmax of a target's logits and the model's, with a weight between them.

      loss = w KL(t, m) + (1 - w) KL(p, m),  with  m = w t + (1 - w) p, p = softmax(z / T), t = softmax(u / T)
      KL(a, m) = sum_c a_c (log a_c - log m_c)
      dloss/dz_j = (1 - w) p_j (log p_j - log m_j - KL(p, m)) / T
      dloss/du_j = w t_j (log t_j - log m_j - KL(t, m)) / T
      dloss/dw = KL(t, m) - KL(p, m)

    z are the `logits`, u the `target_logits`, w the `weight`, T the `temperature`. Unlike the Kullback-Leibler
    divergence it is bounded, whatever class has probability 0. loss / w tends to `softmax_kl_divergence` as w goes to
    0, and loss / (1 - w) to the reverse one as w goes to 1; the GKD trainers of TRL and Liger Kernel, whose beta is w,
    take those in the place of the limits, which are 0. Of `TopK` targets without a tail, t is 0 at the other classes.

    Args:
      logits: float array [*batch, C], unnormalized log-probabilities; -inf is probability 0.
      target_logits: float array of the shape of `logits`, -inf is probability 0; or `TopK`, the classes that a teacher
        holds likeliest, with their probabilities at this temperature.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      weight: w of the target, above 0 and below 1, a scalar.
      temperature: T > 0, a scalar; divides both logits.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.

    Returns:
      Divergences [*batch] in nats, from 0 to -w log w - (1 - w) log(1 - w), not reduced; float32, or float64 for
      float64 logits.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      0 for equal logits; the entropy of (w, 1 - w) where no class has a share in both distributions.
      That of weight 1 - w with `logits` and `target_logits` exchanged.
      `TopK` of all classes, in any order, is the whole distribution.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> z, u = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 1.0]])
      >>> print(jaxloss.softmax_js_divergence(z, u))
      [0.24758807]

    Reference:
      Lin, Divergence Measures Based on the Shannon Entropy (1991), equation 4.1; Agarwal et al., On-Policy Distillation
      of Language Models (2024), section 2.
    """
    return js_values("softmax_js_divergence", logits, target_logits, axis, where, axis_name, temperature, weight)
