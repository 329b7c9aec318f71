"""Statistics of a row of logits: the softmax link, and the only place with a softmax derivative rule.

The log-odds of class y are l = z_y - logsumexp_{j != y} z_j. Taken as written, with the largest logit subtracted, the
sum over j != y is formed as a difference and loses every digit of a confident row. Here exponents are clipped at the
largest logit among the *other* classes, m = max_{j != y} z_j:

    S = sum_j exp(min(z_j - m, 0)) - exp(min(z_y - m, 0))        l = (z_y - m) - log S

What class y adds to the sum is at most 1, and what stays is at least 1, so that taking it out again costs 2 eps; gaps
beyond the exponent range neither overflow nor underflow. Derivatives, with q_j = exp(z_j - m) / S over j != y:

    dl = dz_y - sum_{j != y} q_j dz_j        dq_j = q_j (dz_j - sum_k q_k dz_k)

An automatic derivative through `min` would halve the gradient at z_j = m, hence the rules below. They are `custom_jvp`
rules made of the functions themselves, so that every order, direction and batching works.
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
        local = jnp.max(x, self.axis, keepdims=True)
        return local if self.name is None else lax.pmax(local, self.name)

    def sum(self, x: jax.Array) -> jax.Array:
        local = jnp.sum(x, self.axis, keepdims=True)
        return local if self.name is None else lax.psum(local, self.name)

    def size(self, x: jax.Array) -> int:
        return x.shape[self.axis] * (1 if self.name is None else lax.axis_size(self.name))

    def first(self, x: jax.Array) -> jax.Array | int:
        """Global id of the first class of this shard."""
        return 0 if self.name is None else lax.axis_index(self.name) * x.shape[self.axis]

    def is_label(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """Mask of the shape of `x`, true at the class `ids` (size 1 along the axis); fused, never stored."""
        spec = jax.typeof(x).sharding
        iota = lax.broadcasted_iota(jnp.int32, x.shape, self.axis, out_sharding=spec if _is_explicit(x) else None)
        return iota == ids - self.first(x)

    def along(self, x: jax.Array, like: jax.Array) -> jax.Array:
        """A vector over the classes, shaped to broadcast against `like`."""
        return jnp.expand_dims(x, [i for i in range(like.ndim) if i != self.axis % like.ndim])


def _is_explicit(x: jax.Array) -> bool:
    """Whether the type of `x` carries a sharding (explicit meshes), where a gather has none to offer."""
    return any(part is not None for part in jax.typeof(x).sharding.spec)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def pick(classes: ClassAxis, x: jax.Array, ids: jax.Array) -> jax.Array:
    """Entry `ids` of `x` along the classes (size 1 there); `ids` outside gives an unspecified finite pick."""
    if classes.name is None and not _is_explicit(x) and not _is_explicit(ids):
        return jnp.take_along_axis(x, jnp.clip(ids, 0, x.shape[classes.axis] - 1), classes.axis)
    return classes.sum(jnp.where(classes.is_label(x, ids), x, 0))


@pick.defjvp
def _pick_jvp(classes, primals, tangents):
    # The transpose of a gather is a scatter; that of a masked sum is a comparison.
    x, ids = primals
    mask = classes.is_label(x, ids)
    return pick(classes, x, ids), classes.sum(jnp.where(mask, tangents[0], 0))


class LabelOdds(NamedTuple):
    log_odds: jax.Array
    others: jax.Array  # softmax over the classes other than the label, 0 at the label
    logsumexp: jax.Array


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def label_odds(classes: ClassAxis, logits: jax.Array, ids: jax.Array) -> LabelOdds:
    """Log-odds of class `ids` of each row: +-inf where p is exactly 1 or 0, NaN for an id outside."""
    is_label = classes.is_label(logits, ids)
    label = pick(classes, logits, ids)
    rival = classes.max(jnp.where(is_label, -jnp.inf, logits))
    rival = jnp.where(rival == -jnp.inf, jnp.maximum(label, jnp.finfo(logits.dtype).min), rival)
    gap = label - rival
    rest = classes.sum(jnp.exp(jnp.minimum(logits - rival, 0))) - jnp.exp(jnp.minimum(gap, 0))
    alone = rest == 0  # no other class has a finite logit
    divisor = jnp.where(alone, 1, rest)
    log_rest = jnp.log(divisor)
    log_odds = jnp.where(alone & (gap >= 0), jnp.inf, gap - log_rest)
    log_odds = jnp.where((ids >= 0) & (ids < classes.size(logits)), log_odds, jnp.nan)
    others = jnp.exp(jnp.where(is_label, -jnp.inf, logits - rival)) / divisor
    side = odds(log_odds)
    # Each branch adds terms of one sign to the largest logit.
    logsumexp = jnp.where(gap >= 0, label + side.nll, rival + (log_rest + side.nlc))
    return LabelOdds(log_odds, others, logsumexp)


@label_odds.defjvp
def _label_odds_jvp(classes, primals, tangents):
    logits, ids = primals
    tangent = tangents[0]
    value = label_odds(classes, logits, ids)
    is_label = classes.is_label(logits, ids)
    truth = odds(value.log_odds)
    mean = classes.sum(value.others * tangent)
    return value, LabelOdds(
        classes.sum(jnp.where(is_label, 1, -value.others) * tangent),
        value.others * (tangent - mean),
        classes.sum(jnp.where(is_label, truth.p, truth.q * value.others) * tangent),
    )


class ClassOdds(NamedTuple):
    odds: Odds  # of every class: arrays of the shape of the logits
    logsumexp: jax.Array


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def class_odds(classes: ClassAxis, logits: jax.Array) -> ClassOdds:
    """Odds of every class of each row, by the statistics of the row's largest logit."""
    highest = ceiling(logits.dtype)
    best = classes.max(logits)
    best = jnp.where(best == -jnp.inf, 0, best)
    is_best = logits == best
    ties = classes.sum(is_best.astype(logits.dtype))
    rival = classes.max(jnp.where(is_best, -jnp.inf, logits))
    rival = jnp.where((ties > 1) | (rival == -jnp.inf), best, rival)
    rest = jnp.maximum(classes.sum(jnp.exp(jnp.minimum(logits - rival, 0))) - 1, 0)
    alone = rest == 0
    log_rest = jnp.where(alone, -highest, (rival - best) + jnp.log(jnp.where(alone, 1, rest)))
    rest = jnp.exp(log_rest)  # sum of exp(z_j - best) over all classes but one that holds the maximum
    total, log_total = 1 + rest, jax.nn.softplus(log_rest)
    depth = jnp.maximum(logits - best, -highest)
    weight = jnp.exp(depth)
    # total - weight >= 1 for a class below the maximum, so the difference keeps its digits.
    complement = jnp.where(is_best, rest, total - weight)
    nlc = log_total - jnp.where(is_best, log_rest, jnp.log(jnp.where(is_best, 1, complement)))
    return ClassOdds(Odds(log_total - depth, nlc, weight / total, complement / total), best + log_total)


@class_odds.defjvp
def _class_odds_jvp(classes, primals, tangents):
    # Of class c: dl_c = dz_c - sum_{j != c} p_j dz_j / (1 - p_c). The sum over the others is a total minus an own
    # part, whose transpose is a total minus an own part again: for a one-hot label that difference is exactly 0, and
    # the gradient of the label stays -(1 - p), never p - 1.
    (logits,), (tangent,) = primals, tangents
    value = class_odds(classes, logits)
    p, q = value.odds.p, value.odds.q
    moved = p * tangent
    total = classes.sum(moved)
    reciprocal = jnp.where(q == 0, 0, 1 / jnp.where(q == 0, 1, q))
    dlog_odds = tangent - (total - moved) * reciprocal
    return value, ClassOdds(odds_tangent(value.odds, dlog_odds), total)
