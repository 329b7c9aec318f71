"""The odds of a row's label id, from the other classes alone.

The log-odds of class y are l = z_y - logsumexp_{j != y} z_j. A sum over all classes less the term of y would lose every
digit of a confident row, so the sum is formed over the other classes, from their largest logit m:

    m = max_{j != y} z_j        S = sum_{j != y} exp(z_j - m) >= 1        l = (z_y - m) - log S

Nothing is subtracted, and gaps beyond the exponent range neither overflow nor underflow. Derivatives, with
q_j = exp(z_j - m) / S over j != y:

    dl = dz_y - sum_{j != y} q_j dz_j        dq_j = q_j (dz_j - sum_k q_k dz_k)

The last difference is formed from the other terms alone for a class that holds most of q, whose digits would be lost.

On accelerators m, S and z_y come of one read of the logits; see `statistics.py`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloss._core.classes import ClassAxis, entry, gathers, nan_where
from jaxloss._core.log_odds import Odds, odds, odds_tangent
from jaxloss._core.platforms import by_row
from jaxloss._core.statistics import finite_top, higher, weights_of


class LabelRow(NamedTuple):
    """What a row of logits says of its label; of a row without another class, best is -inf and rest 0."""

    best: jax.Array  # m, the largest of the other logits
    rest: jax.Array  # S
    label: jax.Array  # z_y; unspecified but finite for an id outside


def _join_label(a: tuple, b: tuple) -> tuple:
    best, first, gap = higher(a[0], b[0])
    return best, jnp.where(first, a[1], b[1]) + jnp.exp(-gap) * jnp.where(first, b[1], a[1]), a[2] + b[2]


_LABEL_START = (-jnp.inf, 0.0, 0.0)


def label_row(classes: ClassAxis, alone: bool, logits: jax.Array, ids: jax.Array, others: jax.Array) -> LabelRow:
    """Not to be differentiated. `others` are the logits without the label's.

    `alone` says that no gradient, which has a use for `others` as well, is found beside it.
    """

    def one_read(logits, ids, others):
        return classes.fold_label(logits, ids, _LABEL_START, _join_label)

    def two_reads(logits, ids, others):
        best, label = max_of_others(classes, logits, ids, others), entry(classes, logits, ids)
        if alone and _block(classes, logits, ids):
            # The label adds at most 1 to a sum that is at least 1 without it, so taking it out again costs 2 eps.
            shift = finite_top(best)
            every = jnp.sum(jnp.exp(jnp.minimum(logits - classes.spread(shift), 0)), classes.axis)
            return best, every - jnp.exp(jnp.minimum(label - shift, 0)), label
        return best, jnp.sum(weights_of(classes, others, best), classes.axis), label

    size, operands = logits.shape[classes.axis], (logits, ids, others)
    row = by_row(size, len(_LABEL_START), *operands, plain=two_reads, folded=one_read)
    best, rest, label = classes.join(row, _LABEL_START, _join_label)
    rest = jnp.where(best == -jnp.inf, 0, rest)
    return LabelRow(best, nan_where((best == jnp.inf) & (rest > 1), rest), label)


def max_of_others(classes: ClassAxis, x: jax.Array, ids: jax.Array, others: jax.Array) -> jax.Array:
    """The largest entry of each row of `x` but the one of class `ids`, of a shard; `others` is `x` without that.

    XLA on CPU reduces a plain array while it reads it, but stores a masked one first. So many classes are cut into
    blocks that are reduced as they are, and only the one of the label is reduced again, masked.
    """
    axis, size = classes.axis, x.shape[classes.axis]
    block = _block(classes, x, ids)
    if block is None:
        return jnp.max(others, axis)
    blocks = x.reshape(*x.shape[:axis], size // block, block, *x.shape[axis + 1 :])
    index = jnp.clip(ids // block, 0, size // block - 1)
    own = jnp.take_along_axis(blocks, jnp.expand_dims(index, (axis, axis + 1)), axis, mode="promise_in_bounds")
    own = jnp.squeeze(own, axis)
    own = classes.max(classes.without(own, ids - index * block))
    every = jnp.max(blocks, axis + 1)
    return classes.max(jnp.where(classes.is_label(every, index), classes.spread(own), every))


def _block(classes: ClassAxis, x: jax.Array, ids: jax.Array) -> int | None:
    """Classes in a block of `max_of_others`, None for no blocks.

    The number of blocks is a multiple of 64, so that up to 64 devices on an automatic mesh have whole ones: cut blocks
    would be moved between devices.
    """
    size = x.shape[classes.axis]
    if not gathers(classes, x, ids) or not isinstance(size, int) or size < 8192:
        return None
    return next((block for block in range(256, 127, -1) if size % (64 * block) == 0), None)


class LabelOdds(NamedTuple):
    odds: Odds
    logsumexp: jax.Array
    weights: jax.Array  # exp(z_j - m) at the classes other than the label, 0 there; of the shape of the logits
    rest: jax.Array  # S, their sum; 1 where that is 0
    leads: jax.Array  # 1 where no other logit is larger, else 0; without a derivative

    def others(self, classes: ClassAxis) -> jax.Array:
        """The softmax over the classes other than the label."""
        return self.weights / classes.spread(self.rest)


def label_odds(classes: ClassAxis, logits: jax.Array, ids: jax.Array) -> LabelOdds:
    """Odds of class `ids` of each row, which `class_ids` made; NaN for an id outside, -1."""
    return _label_odds(classes, True, logits, ids)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _label_odds(classes: ClassAxis, alone: bool, logits: jax.Array, ids: jax.Array) -> LabelOdds:
    others = classes.without(logits, ids)
    best, rest, label = label_row(classes, alone, logits, ids, others)
    weights = weights_of(classes, others, best)
    leads = nan_where(ids < 0, (label >= best).astype(label.dtype))
    best = jnp.where(best == -jnp.inf, 0, best)
    single, nothing = rest == 0, label == -jnp.inf  # no other class has a probability; the label has none
    divisor = jnp.where(single, 1, rest)
    gap = label - best
    log_rest = jnp.where(single, jnp.finfo(logits.dtype).min, jnp.log(divisor))
    log_odds = nan_where(ids < 0, gap - log_rest)
    # Each branch adds terms of one sign to the largest logit.
    truth = odds(log_odds)
    label, best = finite_top(label), finite_top(best)
    logsumexp = jnp.where(single | (gap >= 0), label + truth.nll, best + (log_rest + truth.nlc))
    logsumexp = jnp.where(single & nothing, 0, logsumexp)
    return LabelOdds(truth, logsumexp, weights, divisor, leads)


@_label_odds.defjvp
def _label_odds_jvp(classes, _, primals, tangents):
    # The shift of the weights cancels in every use of them. They change as if it were the logarithm of their sum, which
    # then is a constant, so that their derivative is that of the quotient q.
    logits, ids = primals
    tangent = tangents[0]
    value = _label_odds(classes, False, logits, ids)
    at_label = classes.sum(jnp.where(classes.is_label(logits, ids), tangent, 0))
    moved = value.weights * tangent
    mean = classes.sum(moved) / value.rest
    logsumexp = value.odds.p * at_label + value.odds.q * mean
    moving = odds_tangent(value.odds, at_label - mean)
    weights = value.weights * _centered(classes, value, moved, mean, tangent)
    constants = map(jnp.zeros_like, (value.rest, value.leads))
    return value, LabelOdds(moving, logsumexp, weights, *constants)


def _centered(classes, value: LabelOdds, moved: jax.Array, mean: jax.Array, tangent: jax.Array) -> jax.Array:
    """The tangent less its mean under q."""
    major = (value.weights == 1) & classes.spread(value.rest < 2)
    share, mean_of_minor = (classes.sum(jnp.where(major, 0, x)) / value.rest for x in (value.weights, moved))
    of_major = classes.spread(share) * tangent - classes.spread(mean_of_minor)
    return jnp.where(major, of_major, tangent - classes.spread(mean))
