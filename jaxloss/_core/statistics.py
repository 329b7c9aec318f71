"""Statistics of a row of logits: the softmax link, and the only place with a softmax derivative rule.

The log-odds of class y are l = z_y - logsumexp_{j != y} z_j. A sum over all classes less the term of y would lose every
digit of a confident row, so the sum is formed over the other classes alone, from their largest logit m:

    m = max_{j != y} z_j        S = sum_{j != y} exp(z_j - m) >= 1        l = (z_y - m) - log S

Nothing is subtracted, and gaps beyond the exponent range neither overflow nor underflow. Derivatives, with
q_j = exp(z_j - m) / S over j != y:

    dl = dz_y - sum_{j != y} q_j dz_j        dq_j = q_j (dz_j - sum_k q_k dz_k)

The rules below are `custom_jvp` rules made of the functions themselves, so that every order, direction and batching
works. Statistics of a row have no class axis: on CPU, XLA takes twice as long over arrays that end in an axis of 1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.log_odds import Odds, ceiling, odds, odds_tangent


class ClassAxis(NamedTuple):
    """Where the classes lie: an array axis, and the mesh axis that shards it inside `shard_map`."""

    axis: int
    name: str | tuple[str, ...] | None = None

    def max(self, x: jax.Array) -> jax.Array:
        local = jnp.max(x, self.axis)
        return local if self.name is None else lax.pmax(local, self.name)

    def sum(self, x: jax.Array) -> jax.Array:
        local = jnp.sum(x, self.axis)
        return local if self.name is None else lax.psum(local, self.name)

    def size(self, x: jax.Array) -> int:
        return x.shape[self.axis] * (1 if self.name is None else lax.axis_size(self.name))

    def spread(self, row: jax.Array) -> jax.Array:
        """A value of each row, shaped to broadcast against the logits."""
        return jnp.expand_dims(row, self.axis)

    def along(self, x: jax.Array, like: jax.Array) -> jax.Array:
        """A vector over the classes, shaped to broadcast against `like`."""
        return jnp.expand_dims(x, [i for i in range(like.ndim) if i != self.axis])

    def is_label(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """Mask of the shape of `x`, true at the class `ids` of each row; fused, never stored."""
        sharding = jax.typeof(x).sharding if _is_explicit(x) else None
        iota = lax.broadcasted_iota(jnp.int32, x.shape, self.axis, out_sharding=sharding)
        first = 0 if self.name is None else lax.axis_index(self.name) * x.shape[self.axis]
        return iota == self.spread(ids - first)

    def one_hot(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """The ids as rows of the shape and dtype of `x`, NaN for an id outside, -1; fused, never stored."""
        return jnp.where(self.spread(ids < 0), jnp.nan, self.is_label(x, ids).astype(x.dtype))

    def without(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """`x` with -inf at the class `ids` of each row."""
        return jnp.where(self.is_label(x, ids), -jnp.inf, x)


def _is_explicit(x: jax.Array) -> bool:
    """Whether the type of `x` carries a sharding (explicit meshes)."""
    return any(part is not None for part in jax.typeof(x).sharding.spec)


def _gathers(classes: ClassAxis, x: jax.Array, ids: jax.Array) -> bool:
    """Whether entries can be looked up: rows are whole, and the result has no sharding to be told."""
    return classes.name is None and not _is_explicit(x) and not _is_explicit(ids)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def pick(classes: ClassAxis, x: jax.Array, ids: jax.Array) -> jax.Array:
    """Entry `ids` of `x` along the classes, one for each row; unspecified but finite for ids outside."""
    if _gathers(classes, x, ids):
        inside = classes.spread(jnp.clip(ids, 0, x.shape[classes.axis] - 1))
        return jnp.squeeze(jnp.take_along_axis(x, inside, classes.axis, mode="promise_in_bounds"), classes.axis)
    return classes.sum(jnp.where(classes.is_label(x, ids), x, 0))


@pick.defjvp
def _pick_jvp(classes, primals, tangents):
    # The transpose of a gather is a scatter; that of a masked sum is a comparison.
    x, ids = primals
    mask = classes.is_label(x, ids)
    return pick(classes, x, ids), classes.sum(jnp.where(mask, tangents[0], 0))


def max_of_others(classes: ClassAxis, x: jax.Array, ids: jax.Array, others: jax.Array) -> jax.Array:
    """The largest entry of each row of `x` but the one of class `ids`; `others` is `x` without that."""
    axis, size = classes.axis, x.shape[classes.axis]
    block = _block(size) if _gathers(classes, x, ids) else None
    if block is None:
        return classes.max(others)
    blocks = x.reshape(*x.shape[:axis], size // block, block, *x.shape[axis + 1 :])
    index = jnp.clip(ids // block, 0, size // block - 1)
    own = jnp.take_along_axis(blocks, jnp.expand_dims(index, (axis, axis + 1)), axis, mode="promise_in_bounds")
    own = jnp.squeeze(own, axis)
    own = classes.max(classes.without(own, ids - index * block))
    every = jnp.max(blocks, axis + 1)
    return classes.max(jnp.where(classes.is_label(every, index), classes.spread(own), every))


def _block(size: int) -> int | None:
    """Classes in a block of `max_of_others`, None for no blocks.

    XLA on CPU reduces a plain array while it reads it, but stores a masked one first. So many classes are cut into
    blocks that are reduced as they are, and only the one of the label is reduced again, masked. A mesh might have to
    move logits for that, and accelerators mask while they read.
    """
    if size < 8192 or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return None
    return next((block for block in range(256, 127, -1) if size % block == 0), None)


class LabelOdds(NamedTuple):
    odds: Odds
    logsumexp: jax.Array
    weights: jax.Array  # exp(z_j - m) at the classes other than the label, 0 there; of the shape of the logits
    rest: jax.Array  # S, their sum; 1 where that is 0

    def others(self, classes: ClassAxis) -> jax.Array:
        """The softmax over the classes other than the label."""
        return self.weights / classes.spread(self.rest)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def label_odds(classes: ClassAxis, logits: jax.Array, ids: jax.Array) -> LabelOdds:
    """Odds of class `ids` of each row, which `class_ids` made; NaN for an id outside, -1."""
    label = pick(classes, logits, ids)
    others = classes.without(logits, ids)
    best = max_of_others(classes, logits, ids, others)
    best = jnp.where(best == -jnp.inf, 0, best)
    weights = jnp.exp(others - classes.spread(best))
    rest = classes.sum(weights)
    alone = rest == 0  # no other class has a finite logit
    divisor = jnp.where(alone, 1, rest)
    gap = label - best
    log_rest = jnp.where(alone, jnp.finfo(logits.dtype).min, jnp.log(divisor))
    log_odds = jnp.where(ids >= 0, gap - log_rest, jnp.nan)
    # Each branch adds terms of one sign to the largest logit.
    truth = odds(log_odds)
    logsumexp = jnp.where(alone | (gap >= 0), label + truth.nll, best + (log_rest + truth.nlc))
    return LabelOdds(truth, logsumexp, weights, divisor)


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
    return value, LabelOdds(odds_tangent(value.odds, at_label - mean), logsumexp, moved, change)


class ClassOdds(NamedTuple):
    odds: Odds  # of every class: arrays of the shape of the logits
    logsumexp: jax.Array


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def class_odds(classes: ClassAxis, logits: jax.Array) -> ClassOdds:
    """Odds of every class of each row, from sums over all classes and over those below the largest."""
    highest = ceiling(logits.dtype)
    best = classes.max(logits)
    best = jnp.where(best == -jnp.inf, 0, best)
    is_best = logits == classes.spread(best)
    depth = logits - classes.spread(best)
    weights = jnp.exp(depth)
    everything, below = classes.sum(weights), classes.sum(jnp.where(is_best, 0, weights))
    # All but one largest: where that is less than 1, the largest is alone and `below` has every digit of it.
    rest = jnp.where(everything < 2, below, everything - 1)
    total, log_total = 1 + rest, jnp.log1p(rest)

    # The total less the weight of a class, as a sum of two terms that are not negative.
    spread = classes.spread
    complement = (1 - weights) + spread(rest)
    log_complement = jnp.where(complement == 0, -highest, jnp.log(jnp.where(complement == 0, 1, complement)))
    nll, nlc = spread(log_total) - jnp.maximum(depth, -highest), spread(log_total) - log_complement
    return ClassOdds(Odds(nll, nlc, weights / spread(total), complement / spread(total)), best + log_total)


@class_odds.defjvp
def _class_odds_jvp(classes, primals, tangents):
    # Of class c: dl_c = dz_c - sum_{j != c} p_j dz_j / (1 - p_c). The sum over the others, and its transpose, must be
    # exactly 0 for a one-hot label, or the gradient of a confident label drowns in it. A total less the own part is so
    # for -log p, whose cotangents are plain products; other cotangents are sums, which XLA may round differently where
    # it computes them twice, so a class that holds most of the probability gets a sum that leaves it out.
    (logits,), (tangent,) = primals, tangents
    value = class_odds(classes, logits)
    p, q = value.odds.p, value.odds.q
    major = p > 0.5

    def of_others(x):
        minor = classes.spread(classes.sum(jnp.where(major, 0, x)))
        return jnp.where(major, minor, classes.spread(classes.sum(x)) - x)

    reciprocal = jnp.where(q == 0, 0, 1 / jnp.where(q == 0, 1, q))
    change = odds_tangent(value.odds, tangent - of_others(p * tangent) * reciprocal)
    moved = p * tangent
    total = classes.sum(moved)
    return value, ClassOdds(change._replace(nll=(classes.spread(total) - moved) - q * tangent), total)
