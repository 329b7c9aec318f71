"""Statistics of a row of logits: the softmax link, and the only place with a softmax derivative rule.

The log-odds of class y are l = z_y - logsumexp_{j != y} z_j. A sum over all classes less the term of y would lose every
digit of a confident row, so the sum is formed over the other classes alone, from their largest logit m:

    m = max_{j != y} z_j        S = sum_{j != y} exp(z_j - m) >= 1        l = (z_y - m) - log S

For all classes at once, r is the sum without one largest entry, so that logsumexp = m + log(1 + r):

    m = max_j z_j               r = sum_j exp(z_j - m) - 1                1 - p_c = ((1 - w_c) + r) / (1 + r)

with w_c = exp(z_c - m). Nothing is subtracted, and gaps beyond the exponent range neither overflow nor underflow.
Derivatives, with q_j = exp(z_j - m) / S over j != y:

    dl = dz_y - sum_{j != y} q_j dz_j        dq_j = q_j (dz_j - sum_k q_k dz_k)

The rules below are `custom_jvp` rules made of the functions themselves, so that every order, direction and batching
works. Statistics of a row have no class axis: on CPU, XLA takes twice as long over arrays that end in an axis of 1.

**One read.** Accelerators take as long as the bytes they move, so there the statistics come of one reduction, whose
states are joined class by class: (m, S) and (m', S') with m >= m' make (m, S + S' exp(m' - m)), and (m, r) likewise
(m, r + (1 + r') exp(m' - m)). XLA on CPU has fast loops for plain maxima and sums alone, and reads twice.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.classes import ClassAxis, entry, gathers
from jaxloss._core.log_odds import Odds, ceiling, odds, odds_tangent
from jaxloss._core.platforms import on_platform


def scales(m: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of two maxima: the larger, whether it is `m`, and the factor exp(smaller - larger)."""
    low, high = jnp.minimum(m, other), jnp.maximum(m, other)
    return high, m >= other, jnp.where(low == -jnp.inf, 0, jnp.exp(low - high))


class LabelRow(NamedTuple):
    """What a row of logits says of its label; of a row without another class, best is -inf and rest 0."""

    best: jax.Array  # m, the largest of the other logits
    rest: jax.Array  # S
    label: jax.Array  # z_y; unspecified but finite for an id outside


def _join_label(a: tuple, b: tuple) -> tuple:
    best, first, scale = scales(a[0], b[0])
    return best, jnp.where(first, a[1], b[1]) + scale * jnp.where(first, b[1], a[1]), a[2] + b[2]


_LABEL_START = (-jnp.inf, 0.0, 0.0)


def label_row(classes: ClassAxis, logits: jax.Array, ids: jax.Array) -> LabelRow:
    """Not to be differentiated."""

    def one_read(logits, ids):
        is_label = classes.is_label(logits, ids)
        others, label = jnp.where(is_label, -jnp.inf, logits), jnp.where(is_label, logits, 0)
        return classes.fold((others, jnp.ones_like(others), label), _LABEL_START, _join_label)

    def two_reads(logits, ids):
        best = max_of_others(classes, logits, ids)
        weights = _weights(classes, classes.without(logits, ids), best)
        return best, jnp.sum(weights, classes.axis), entry(classes, logits, ids)

    row = on_platform(logits, ids, cpu=two_reads, accelerator=one_read)
    best, rest, label = classes.join(row, _LABEL_START, _join_label)
    rest = jnp.where(best == -jnp.inf, 0, rest)
    return LabelRow(best, jnp.where(best == jnp.inf, jnp.nan, rest), label)


def _weights(classes: ClassAxis, logits: jax.Array, best: jax.Array) -> jax.Array:
    """exp(z - m), 0 where z is -inf."""
    return jnp.exp(logits - classes.spread(jnp.where(best == -jnp.inf, 0, best)))


def max_of_others(classes: ClassAxis, x: jax.Array, ids: jax.Array) -> jax.Array:
    """The largest entry of each row of `x` but the one of class `ids`, of a shard: a form for CPU.

    XLA on CPU reduces a plain array while it reads it, but stores a masked one first. So many classes are cut into
    blocks that are reduced as they are, and only the one of the label is reduced again, masked.
    """
    axis, size = classes.axis, x.shape[classes.axis]
    block = _block(size) if gathers(classes, x, ids) else None
    if block is None:
        return jnp.max(classes.without(x, ids), axis)
    blocks = x.reshape(*x.shape[:axis], size // block, block, *x.shape[axis + 1 :])
    index = jnp.clip(ids // block, 0, size // block - 1)
    own = jnp.take_along_axis(blocks, jnp.expand_dims(index, (axis, axis + 1)), axis, mode="promise_in_bounds")
    own = jnp.squeeze(own, axis)
    own = classes.max(classes.without(own, ids - index * block))
    every = jnp.max(blocks, axis + 1)
    return classes.max(jnp.where(classes.is_label(every, index), classes.spread(own), every))


def _block(size: int) -> int | None:
    """Classes in a block of `max_of_others`, None for no blocks.

    The number of blocks is a multiple of 64, so that up to 64 devices on an automatic mesh have whole ones: cut blocks
    would be moved between devices.
    """
    if not isinstance(size, int) or size < 8192:
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


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def label_odds(classes: ClassAxis, logits: jax.Array, ids: jax.Array) -> LabelOdds:
    """Odds of class `ids` of each row, which `class_ids` made; NaN for an id outside, -1."""
    best, rest, label = label_row(classes, logits, ids)
    weights = _weights(classes, classes.without(logits, ids), best)
    leads = jnp.where(ids >= 0, (label >= best).astype(label.dtype), jnp.nan)
    best = jnp.where(best == -jnp.inf, 0, best)
    alone = rest == 0  # no other class has a finite logit
    divisor = jnp.where(alone, 1, rest)
    gap = label - best
    log_rest = jnp.where(alone, jnp.finfo(logits.dtype).min, jnp.log(divisor))
    log_odds = jnp.where(ids >= 0, gap - log_rest, jnp.nan)
    # Each branch adds terms of one sign to the largest logit.
    truth = odds(log_odds)
    logsumexp = jnp.where(alone | (gap >= 0), label + truth.nll, best + (log_rest + truth.nlc))
    return LabelOdds(truth, logsumexp, weights, divisor, leads)


@label_odds.defjvp
def _label_odds_jvp(classes, primals, tangents):
    # The shift m cancels in every use of the weights, so they and their sum may change as if it were a constant.
    logits, ids = primals
    tangent = tangents[0]
    value = label_odds(classes, logits, ids)
    at_label = classes.sum(jnp.where(classes.is_label(logits, ids), tangent, 0))
    moved = value.weights * tangent
    change = classes.sum(moved)
    mean = change / value.rest
    logsumexp = value.odds.p * at_label + value.odds.q * mean
    moving = odds_tangent(value.odds, at_label - mean)
    return value, LabelOdds(moving, logsumexp, moved, change, jnp.zeros_like(value.leads))


class ClassRow(NamedTuple):
    """What a row says of all its classes."""

    best: jax.Array  # m; 0 where no logit is finite; a constant, for r carries the derivative
    rest: jax.Array  # r

    @property
    def logsumexp(self) -> jax.Array:
        return self.best + jnp.log1p(self.rest)


def join_class(a: tuple, b: tuple) -> tuple:
    best, first, scale = scales(a[0], b[0])
    return best, jnp.where(first, a[1], b[1]) + (1 + jnp.where(first, b[1], a[1])) * scale


CLASS_START = (-jnp.inf, 0.0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def class_row(classes: ClassAxis, logits: jax.Array) -> ClassRow:
    def one_read(logits):
        return classes.fold((logits, jnp.zeros_like(logits)), CLASS_START, join_class)

    row = on_platform(logits, cpu=partial(class_sums, classes), accelerator=one_read)
    return finished(*classes.join(row, CLASS_START, join_class))


def class_sums(classes: ClassAxis, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The state of all classes of a shard: a form for CPU, of plain sums."""
    best = jnp.max(logits, classes.axis)
    weights = _weights(classes, logits, best)
    everything = jnp.sum(weights, classes.axis)
    below = jnp.sum(jnp.where(logits == classes.spread(best), 0, weights), classes.axis)
    # All but one largest: where that is less than 1, the largest is alone and `below` has every digit of it.
    return best, jnp.where(everything < 2, below, everything - 1)


def finished(best: jax.Array, rest: jax.Array) -> ClassRow:
    """The row of the state of all its classes; without a finite logit r is 0, with one of +inf NaN."""
    rest = jnp.where(best == -jnp.inf, 0, jnp.where(best == jnp.inf, jnp.nan, rest))
    return ClassRow(jnp.where(best == -jnp.inf, 0, best), rest)


@class_row.defjvp
def _class_row_jvp(classes, primals, tangents):
    value = class_row(classes, *primals)
    change = classes.sum(_weights(classes, primals[0], value.best) * tangents[0])
    return value, ClassRow(jnp.zeros_like(value.best), change)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def odds_in_row(classes: ClassAxis, row: ClassRow, logits: jax.Array) -> Odds:
    """Odds of every class: arrays of the shape of the logits, whose `class_row` is `row`."""
    highest = ceiling(logits.dtype)
    statistics = row.best, row.rest, 1 + row.rest, jnp.log1p(row.rest)
    best, rest, total, log_total = map(classes.spread, statistics)
    depth = logits - best
    weights = jnp.exp(depth)
    # The total less the weight of a class, as a sum of two terms that are not negative.
    complement = (1 - weights) + rest
    log_complement = jnp.where(complement == 0, -highest, jnp.log(jnp.where(complement == 0, 1, complement)))
    nll, nlc = log_total - jnp.maximum(depth, -highest), log_total - log_complement
    return Odds(nll, nlc, weights / total, complement / total)


@odds_in_row.defjvp
def _odds_in_row_jvp(classes, primals, tangents):
    # Of class c: dl_c = dz_c - sum_{j != c} p_j dz_j / (1 - p_c). The sum over the others, and its transpose, must be
    # exactly 0 for a one-hot label, or the gradient of a confident label drowns in it. A total less the own part is so
    # for -log p, whose cotangents are plain products; other cotangents are sums, which XLA may round differently where
    # it computes them twice, so a class that holds most of the probability gets a sum that leaves it out. The rule
    # accounts for the row as a function of the logits.
    value, tangent = odds_in_row(classes, *primals), tangents[-1]
    p, q = value.p, value.q
    moved = p * tangent
    change = odds_tangent(value, tangent - sum_of_others(classes, p, moved) * over(1, q))
    return value, change._replace(nll=(classes.spread(classes.sum(moved)) - moved) - q * tangent)


class ClassOdds(NamedTuple):
    odds: Odds  # of every class: arrays of the shape of the logits
    logsumexp: jax.Array


def class_odds(classes: ClassAxis, logits: jax.Array) -> ClassOdds:
    """Odds of every class of each row."""
    row = class_row(classes, logits)
    return ClassOdds(odds_in_row(classes, row, logits), row.logsumexp)


def sum_of_others(classes: ClassAxis, p: jax.Array, x: jax.Array) -> jax.Array:
    """For each class the sum of `x` over the others."""
    return others_of(classes, p, x, classes.sum(x), classes.sum(jnp.where(p > 0.5, 0, x)))


def others_of(classes: ClassAxis, p: jax.Array, x: jax.Array, total: jax.Array, minor: jax.Array) -> jax.Array:
    """The same, given the sum of `x`, and that without a class of more than half of the probability.

    What such a class holds would drown the others' digits in a total less it.
    """
    return jnp.where(p > 0.5, classes.spread(minor), classes.spread(total) - x)


def over(x, q: jax.Array) -> jax.Array:
    """The quotient x / q, 0 where q is."""
    return jnp.where(q == 0, 0, x / jnp.where(q == 0, 1, q))
