"""Losses of mistakes that do not all cost the same."""

from __future__ import annotations

import jax

from jaxloss._core.annotations import ArrayLike, Axis, AxisName
from jaxloss._core.costs import cost_hessian, expected_cost, priced
from jaxloss._core.options import public


@public(cost_hessian)
def expected_cost_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    costs: ArrayLike,
    axis_name: AxisName = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Expected cost of predicting a class drawn from the softmax, given what each mistake costs.

      loss = sum_y w_y t_y sum_c costs[y, c] p_c
      dloss/dz_j = p_j (k_j - loss),  with  k_c = sum_y w_y t_y costs[y, c]

    t are the labels (an id y is t_y = 1), smoothed if asked for, w the `class_weights`. For ordered classes the
    distance |y - c| or its square is the usual cost. k_j - loss is found without cancellation: a row of any confidence
    keeps the digits of its gradient.

    The loss is bounded and not convex: a row that is confidently wrong has a small gradient, as with
    `generalized_cross_entropy` of q = 1. Ids take their row of the table; distributions (and label smoothing) one
    product with it.

    Args:
      logits: float array [*batch, C], unnormalized log-probabilities; -inf is probability 0.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `logits`, any dtype, entries >= 0.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      costs: array [C, C], finite and >= 0: `costs[y, c]` is the cost of predicting class c where y is true.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global. Of `costs` each device has its columns and all rows, [C, C / devices].
      class_weights: float [C] or a scalar, >= 0; w_y, not normalized.
      label_smoothing: eps in [0, 1]; t becomes (1 - eps) t + eps / C over the C classes that are not left out (by
        `where`, or by a logit of -inf).

    Returns:
      Losses [*batch] in the unit of the costs, >= 0, not reduced; float32, or float64 for float64 logits. NaN where an
      id is out of range.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `generalized_cross_entropy` with q = 1, for costs of 0 on the diagonal and else 1.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> stars = jnp.arange(3)
      >>> distance = jnp.abs(stars[:, None] - stars[None])
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
      >>> print(jaxloss.expected_cost_loss(logits, jnp.array([0]), costs=distance))
      [0.75]

    Reference:
      Elkan, The Foundations of Cost-Sensitive Learning (2001), equation 1, as a loss of the softmax.
    """
    options = (class_weights, label_smoothing)
    given = priced("expected_cost_loss", logits, labels, axis, where, axis_name, costs, options)
    losses = expected_cost(given.rows.classes, given.rows.logits, given.costs)
    return given.rows.finish(given.weighted(losses))
