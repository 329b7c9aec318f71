"""Statistics of a row of logits, for losses of one's own and for logging."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import lax

from jaxloss._core.annotations import ArrayLike, Axis, AxisName
from jaxloss._core.arguments import softmax_rows
from jaxloss._core.label_odds import label_odds
from jaxloss._core.options import compiled
from jaxloss._core.statistics import class_odds


class SoftmaxStatistics(NamedTuple):
    """Statistics of each row, p being the probability of its label.

    Args:
      log_odds: l = log p - log(1 - p).
      negative_log_probability: -log p.
      negative_log_complement: -log(1 - p).
      probability: p.
      complement: 1 - p.
      logsumexp: log sum_c exp(z_c).
      entropy: sum_c p_c (-log p_c), in nats.
      accuracy: 1 where the logit of the label is the largest, ties included, else 0; without a derivative.
    """

    log_odds: jax.Array
    negative_log_probability: jax.Array
    negative_log_complement: jax.Array
    probability: jax.Array
    complement: jax.Array
    logsumexp: jax.Array
    entropy: jax.Array
    accuracy: jax.Array


@compiled
def softmax_statistics(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
) -> SoftmaxStatistics:
    """Statistics of each row and its label, without cancellation, differentiable to any order.

    The building blocks of a loss of one's own; what a program does not use is not computed in it. For a distribution t
    the first five and the accuracy are sum_c t_c times the statistic of class c: a product of two of them is not the
    expectation of the product, so losses that are not linear in them need ids. Write powers as exponentials of the
    logarithms, as below: their derivatives stay finite.

    Args:
      logits: float array [*batch, C], unnormalized log-probabilities; -inf is probability 0.
      labels: integer ids [*batch] in [0, C), or a distribution of the shape of `logits`, any dtype, entries >= 0.
      axis: the class axis of `logits`; a tuple of axes (None for all) is one class axis, flattened in that order.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, classes to keep (a label's share of the others
        counts nothing); a row left out or without classes gives loss 0, gradient 0.
      axis_name: inside `jax.shard_map`, the mesh axis that shards the classes, and with them every argument that has a
        class axis; label ids are global.

    Returns:
      `SoftmaxStatistics` of arrays [*batch], float32, or float64 for float64 logits; logarithms in nats. At p = 0 and
      p = 1 infinite logarithms are a finite 5e33. NaN where an id is out of range, 0 in rows left out.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `negative_log_probability` is `softmax_cross_entropy`, where p > 0.

    Example:
      >>> import jax, jax.numpy as jnp, jaxloss
      >>> def focal(logits, labels):
      ...     row = jaxloss.softmax_statistics(logits, labels)
      ...     return jnp.exp(-2.0 * row.negative_log_complement) * row.negative_log_probability
      >>> print(focal(jnp.array([1.0, 2.0, 3.0]), jnp.array(2)))
      0.045678

    Reference:
      Section "The one idea" of the page "Numerics" (docs/measurements/numerics.md).
    """
    rows = softmax_rows("softmax_statistics", logits, labels, axis, where, axis_name)
    classes, ids = rows.classes, rows.ids
    every = class_odds(classes, rows.logits)
    entropy = classes.sum(every.odds.p * every.odds.nll)
    if ids is not None:
        label = label_odds(classes, rows.logits, ids)
        truth, logsumexp, accuracy = label.odds, label.logsumexp, label.leads
        *statistics, accuracy = map(rows.of_labels, (truth.nlc - truth.nll, *truth, accuracy))
    else:
        truth, logsumexp = every.odds, every.logsumexp
        constant = lax.stop_gradient(rows.logits)
        right = (constant >= classes.spread(classes.max(constant))).astype(constant.dtype)
        each = (truth.nlc - truth.nll, *truth, right)
        *statistics, accuracy = (_expected(rows, x) for x in each)
    return SoftmaxStatistics(*map(rows.finish, (*statistics, logsumexp, entropy, accuracy)))


def _expected(rows, statistic: jax.Array) -> jax.Array:
    return rows.classes.sum(rows.targets * statistic)
