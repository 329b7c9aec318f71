"""Multi-label losses of a whole row: relevant labels are to score above irrelevant ones, or on their side of 0.

Below, z is a row of logits of C labels, i runs over its relevant labels, j over its irrelevant ones, p = sigmoid(z).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxloss._core.annotations import ArrayLike
from jaxloss._core.arguments import class_elements
from jaxloss._core.hessians import elementwise_hessian
from jaxloss._core.log_odds import odds
from jaxloss._core.options import public
from jaxloss._core.pairs import jointly, label_pairs, log_sum_hessian, log_sums, separately
from jaxloss._core.platforms import recomputed
from jaxloss._core.surrogates import mean_over_pairs, pair_hessian

SURROGATES = ("logistic", "hinge")


@public(pair_hessian)
def pairwise_ranking_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    surrogate: str = "logistic",
) -> jax.Array:
    """Mean over pairs of a relevant and an irrelevant label of a surrogate for their being in the wrong order.

      loss = 1 / N sum_ij phi(z_j - z_i)  over the N pairs of relevant i and irrelevant j
      phi(d) = log(1 + exp(d))  (logistic),  max(0, 1 + d)  (hinge)
      dloss/dz_j = 1 / N sum_i phi'(z_j - z_i),  dloss/dz_i = -1 / N sum_j phi'(z_j - z_i)
      phi'(d) = sigmoid(d)  (logistic),  [d > -1]  (hinge)

    The Hessian of the hinge is 0. The hinge takes O(C log C), by sorting. The logistic
    surrogate takes O(C K), K being the size of the smaller of the two sets in the row where that is largest (C^2 under
    `vmap` and for second derivatives), in blocks of labels: on CPU and for second derivatives an array
    [*batch, block, C] has at most 2^20 elements, or one label (under `vmap` for each row). GPUs and TPUs hold no such
    array for the value and the gradient, and take at least 32 labels at once.

    Args:
      logits: float array [*batch, C], a score of each label; -inf and inf are the ends of the scale.
      labels: array of the shape of `logits`, any dtype, 1 for relevant and 0 for irrelevant labels; or integer ids
        [*batch] in [0, C), each one relevant among C.
      axis: the class axis of `logits`.
      where: boolean of the shape of `logits`, labels that are known (others take no part), or [*batch], rows to keep
        (others give loss 0, gradient 0).
      surrogate: "logistic" or "hinge".

    Returns:
      Losses [*batch], not reduced (in nats for the logistic surrogate); float32, or float64 for float64 logits. 0 with
      gradient 0 for rows without a relevant or without an irrelevant label, NaN where an id is out of range, +inf for
      an infinite logit at the wrong end.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here.

    Identities:
      One relevant and one irrelevant label, logistic: `sigmoid_binary_cross_entropy` of the difference of the logits.
      For finite logits the hinge is at least `metrics.label_ranking_loss`, the logistic surrogate log 2 times that.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> logits, labels = jnp.array([[3.0, 1.0, 2.5]]), jnp.array([[1, 0, 0]])
      >>> print(jaxloss.pairwise_ranking_loss(logits, labels))
      [0.300502]
      >>> print(jaxloss.pairwise_ranking_loss(logits, labels, surrogate="hinge"))
      [0.25]

    Reference:
      Gao and Zhou, On the Consistency of Multi-Label Learning (2011), on surrogates of the ranking loss; Zhang and
      Zhou, Multilabel Neural Networks (2006), has exp in place of phi.
    """
    name = "pairwise_ranking_loss"
    if surrogate not in SURROGATES:
        raise ValueError(f"{name}: `surrogate` must be one of {', '.join(map(repr, SURROGATES))}; got {surrogate!r}.")
    pairs = label_pairs(name, logits, labels, axis, where)
    return pairs.finish(mean_over_pairs(surrogate, pairs), pairs.wrong_pair)


@public(log_sum_hessian(jointly))
def log_sum_exp_pairwise_loss(
    logits: ArrayLike, labels: ArrayLike, axis: int = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Log-sum-exp pairwise loss (LSEP): a smooth bound on the worst pair of a relevant and an irrelevant label.

      loss = log(1 + sum_ij exp(z_j - z_i)) = log(1 + exp(l))  over relevant i and irrelevant j
      l = log sum_j exp(z_j) + log sum_i exp(-z_i)
      dloss/dz_j = sigmoid(l) exp(z_j) / (sum_k exp(z_k))  over irrelevant k
      dloss/dz_i = -sigmoid(l) exp(-z_i) / (sum_k exp(-z_k))  over relevant k

    Found in O(C), without pairs.

    Args:
      logits: float array [*batch, C], a score of each label; -inf and inf are the ends of the scale.
      labels: array of the shape of `logits`, any dtype, 1 for relevant and 0 for irrelevant labels; or integer ids
        [*batch] in [0, C), each one relevant among C.
      axis: the class axis of `logits`.
      where: boolean of the shape of `logits`, labels that are known (others take no part), or [*batch], rows to keep
        (others give loss 0, gradient 0).

    Returns:
      Losses [*batch] in nats, not reduced; float32, or float64 for float64 logits. 0 with gradient 0 for rows without
      a relevant or without an irrelevant label, NaN where an id is out of range, +inf for an infinite logit at the
      wrong end.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here.

    Identities:
      One relevant label: `softmax_cross_entropy` with it.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> logits, labels = jnp.array([[3.0, 1.0, 2.5]]), jnp.array([[1, 0, 1]])
      >>> print(jaxloss.log_sum_exp_pairwise_loss(logits, labels))
      [0.306356]

    Reference:
      Li, Song and Luo, Improving Pairwise Ranking for Multi-label Image Classification (2017).
    """
    pairs = label_pairs("log_sum_exp_pairwise_loss", logits, labels, axis, where)
    log_odds, _ = jointly(*log_sums(pairs))
    return pairs.finish(odds(log_odds).nlc, pairs.wrong_pair)


@public(log_sum_hessian(separately))
def zlpr_loss(logits: ArrayLike, labels: ArrayLike, axis: int = -1, where: ArrayLike | None = None) -> jax.Array:
    """Zero-bounded log-sum-exp and pairwise rank-based loss (ZLPR): LSEP with a threshold label of score 0.

      loss = log(1 + sum_i exp(-z_i)) + log(1 + sum_j exp(z_j))  over relevant i and irrelevant j
      dloss/dz_j = exp(z_j) / (1 + sum_k exp(z_k))  over irrelevant k
      dloss/dz_i = -exp(-z_i) / (1 + sum_k exp(-z_k))  over relevant k

    Args:
      logits: float array [*batch, C], a score of each label; -inf and inf are the ends of the scale.
      labels: array of the shape of `logits`, any dtype, 1 for relevant and 0 for irrelevant labels; or integer ids
        [*batch] in [0, C), each one relevant among C.
      axis: the class axis of `logits`.
      where: boolean of the shape of `logits`, labels that are known (others take no part), or [*batch], rows to keep
        (others give loss 0, gradient 0).

    Returns:
      Losses [*batch] in nats, not reduced; float32, or float64 for float64 logits. Rows without a relevant or without
      an irrelevant label keep the other term, for the threshold 0 ranks them too. NaN where an id is out of range,
      +inf for an infinite logit at the wrong end.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here.

    Identities:
      C = 1: `sigmoid_binary_cross_entropy`. The sum of `softmax_cross_entropy` of (0, z_j for all j) and
      (0, -z_i for all i) with label 0.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.zlpr_loss(jnp.array([[3.0, -1.0, 2.5]]), jnp.array([[1, 0, 1]])))
      [0.437135]

    Reference:
      Su et al., ZLPR: A Novel Loss for Multi-label Classification (2022).
    """
    pairs = label_pairs("zlpr_loss", logits, labels, axis, where)
    relevant, irrelevant = map(odds, separately(*log_sums(pairs)))
    low, high = pairs.wrong_ends
    return pairs.finish(relevant.nlc + irrelevant.nlc, low | high)


@public(elementwise_hessian)
def soft_hamming_loss(
    logits: ArrayLike, labels: ArrayLike, axis: int = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Expected Hamming loss: the share of labels that independent draws with probabilities p get wrong.

      loss = 1 / C sum_c (t_c (1 - p_c) + (1 - t_c) p_c)  over the C labels that are known
      dloss/dz_c = 1 / C (1 - 2 t_c) p_c (1 - p_c)

    Args:
      logits: float array [*batch, C], log-odds of each label.
      labels: array of the shape of `logits`, any dtype, entries in [0, 1]; or integer ids [*batch] in [0, C), each one
        positive among C.
      axis: the class axis of `logits`.
      where: boolean of the shape of `logits`, labels that are known (others take no part), or [*batch], rows to keep
        (others give loss 0, gradient 0).

    Returns:
      Losses [*batch] in [0, 1], not reduced; float32, or float64 for float64 logits. 0 where no label is known, NaN
      where an id is out of range.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here.

    Identities:
      For logits of -inf and inf the mean over the row of `metrics.hamming_loss` of logits > 0.
      C = 1: `generalized_cross_entropy` with q = 1 of the two logits (0, z).

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.soft_hamming_loss(jnp.array([[3.0, -1.0, 20.0]]), jnp.array([[1, 0, 1]])))
      [0.105456]

    Reference:
      Dembczynski et al., On Label Dependence and Loss Minimization in Multi-label Classification (2012), on the
      Hamming loss; here in expectation over independent predictions.
    """
    elements, position = class_elements("soft_hamming_loss", logits, labels, axis, where)
    known = jnp.ones_like(elements.logits)
    known = known if elements.keep is None else jnp.where(elements.keep, known, 0)
    misses = jnp.where(known > 0, _miss(elements.logits, elements.targets), 0)
    return jnp.sum(misses, position) / jnp.maximum(jnp.sum(known, position), 1)


@jax.custom_jvp
def _miss(log_odds: jax.Array, t: jax.Array) -> jax.Array:
    """Probability t (1 - p) + (1 - t) p that a label and a prediction, drawn with means t and p, differ."""
    truth = odds(log_odds)
    return t * truth.q + (1 - t) * truth.p


@_miss.defjvp
def _miss_jvp(primals, tangents):
    # (1 - 2 t) p (1 - p) as one product: the sum of the two terms' derivatives would cancel near t = 1/2.
    truth, t = odds(recomputed(primals[0])), primals[1]
    slope = (1 - 2 * t) * truth.p * truth.q
    return _miss(*primals), slope * tangents[0] + (truth.q - truth.p) * tangents[1]
