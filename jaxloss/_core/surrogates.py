"""Means over the pairs of a row of a surrogate for their being in the wrong order, and their derivatives.

The hinge comes from one sort; the logistic surrogate goes through blocks of labels, and no array [C, C] is held.
Derivatives are `custom_jvp` rules that multiply a gradient found in the same pass; they hold sorts and sums, and no
gather or scatter.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss._core.classes import whole_rows
from jaxloss._core.log_odds import ceiling, finite, odds
from jaxloss._core.pairs import FAR, Pairs, label_pairs, places, sort_labels, spread
from jaxloss._core.platforms import on_platform, recomputed

BLOCK = (
    32  # labels at once on GPU and TPU, which hold no array [*batch, block, C]; arithmetic is the limit from there on
)
BLOCK_ELEMENTS = 2**20  # of such an array on CPU, where it is stored: 4 MiB in float32


def mean_over_pairs(surrogate: str, pairs: Pairs) -> jax.Array:
    """Mean of softplus(z_j - z_i) ("logistic") or max(0, 1 + z_j - z_i) ("hinge"); 0 where there is no pair."""
    return _mean(surrogate, *_sides(pairs))


def _sides(pairs: Pairs) -> tuple[jax.Array, ...]:
    return *map(whole_rows, (finite(pairs.scores), *pairs.contested)), *pairs.sizes


def pair_hessian(function: Callable) -> Callable:
    """Diagonal, of a mean over pairs: that of p (1 - p), p = sigmoid(z_j - z_i); the hinge is piecewise linear."""

    def hessian(logits, labels, axis, where, *, surrogate):
        pairs = label_pairs(function.__name__, logits, labels, axis, where)
        if surrogate == "hinge":
            return pairs.restore(jnp.zeros_like(pairs.scores), logits)
        return pairs.restore(_logistic(*_sides(pairs), form=lambda truth: truth.p * truth.q)[1], logits)

    return hessian


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _mean(surrogate, scores, *sides) -> jax.Array:
    return (_hinge if surrogate == "hinge" else _logistic)(scores, *sides)[0]


@_mean.defjvp
def _mean_jvp(surrogate, primals, tangents):
    value, gradient = (_hinge if surrogate == "hinge" else _logistic_gradient)(*primals)
    return value, jnp.sum(gradient * tangents[0], -1)


def _hinge(scores, relevant, irrelevant, relevant_size, irrelevant_size) -> tuple[jax.Array, jax.Array]:
    """Mean of max(0, z_j - a_i), a_i = z_i - 1, as the integral over x of #{i: a_i <= x} #{j: z_j > x}, and gradient.

    On the line where all a_i and z_j lie, that is a sum of gaps times two counts: terms >= 0, nothing cancels. With
    the rounding of z_i - 1 as a second key, order and gaps are exact, at the hinge too.
    """
    scores = lax.stop_gradient(scores)  # the gradient is made of counts: constant where it is differentiable
    moved = scores - 1
    taken = moved - scores
    rounding = (scores - (moved - taken)) - (1 + taken)
    keys = jnp.where(relevant, moved, scores), jnp.where(relevant, rounding, 0)
    order = sort_labels(keys, irrelevant, relevant)  # of equal keys z_j comes first: no loss, gradient 0
    thresholds = jnp.cumsum(order.second.astype(jnp.int32), -1)
    points = jnp.cumsum(order.first.astype(jnp.int32), -1)
    below, above = (x.astype(scores.dtype) for x in (thresholds, points[..., -1:] - points))
    whole, rest = (key[..., 1:] - key[..., :-1] for key in order.keys)
    weights = below / spread(relevant_size) * (above / spread(irrelevant_size))  # 0 from the last point on
    counts = jnp.where(order.first, below, jnp.where(order.second, -above, 0))
    # A second sort brings the gradient back in order; a scatter would be slower and explicit meshes refuse it.
    gradient = lax.sort((order.place, counts / spread(relevant_size * irrelevant_size)), num_keys=1, is_stable=False)[1]
    return jnp.sum((whole + rest) * weights[..., :-1], -1), gradient


@jax.custom_jvp
def _logistic_gradient(scores, relevant, *sides) -> tuple[jax.Array, jax.Array]:
    return _slopes(scores, relevant, *sides)


@_logistic_gradient.defjvp
def _logistic_gradient_jvp(primals, tangents):
    # What is differentiated further neither sorts nor skips, so that its transpose has no scatter.
    scores, *sides = primals
    value, gradient = _logistic_gradient(*primals)
    slope = jnp.sum(gradient * tangents[0], -1)
    return (value, gradient), (
        slope,
        jax.jvp(lambda z: _slopes(z, *sides, packed=False)[1], (scores,), tangents[:1])[1],
    )


def _slopes(scores, relevant, *sides, packed=True) -> tuple[jax.Array, jax.Array]:
    value, sums = _logistic(scores, relevant, *sides, form=lambda truth: truth.p, packed=packed)
    return value, jnp.where(relevant, -sums, sums)


def _logistic(scores, relevant, irrelevant, relevant_size, irrelevant_size, form=None, packed=True):
    """Mean of softplus(z_j - z_i) and, for each label, of its pairs' `form` of the odds of z_j - z_i, over all pairs.

    Exchanging the sets and the sign of z changes no difference z_j - z_i, so that i runs over the smaller set. Packed,
    that costs C times its size: sorting brings its labels together, and blocks that hold none, in no row, are skipped.
    """
    far = FAR * ceiling(scores.dtype)
    swap = jnp.sum(relevant, -1) > jnp.sum(irrelevant, -1)
    sizes = jnp.where(swap, irrelevant_size, relevant_size), jnp.where(swap, relevant_size, irrelevant_size)
    swap = spread(swap)
    few, many = jnp.where(swap, irrelevant, relevant), jnp.where(swap, relevant, irrelevant)
    scores = jnp.where(swap, -scores, scores)
    highs, lows = jnp.where(few, scores, far), jnp.where(many, scores, -far)
    used, place = None, places(highs)
    if packed:
        used = jnp.max(jnp.sum(few, -1, dtype=jnp.int32), initial=0)
        highs, place = lax.sort((highs, place), num_keys=1)

    def step(carry, block):
        total, by_low = carry

        def pairs(block):
            return odds(jnp.expand_dims(lows, -2) - spread(block))

        total = total + jnp.sum(jnp.sum(pairs(block).nlc, -1) / spread(sizes[1]), -1)
        if form is None:
            return (total, by_low), block
        # Three sums over the block, none of which is to make the others store it.
        by_low = by_low + jnp.sum(form(pairs(recomputed(block))), -2)  # 0 for a label that takes no part
        return (total, by_low), jnp.sum(form(pairs(recomputed(block, 2))), -1)

    zeros = jnp.zeros_like(sizes[0]), jnp.zeros_like(scores)
    known = isinstance(highs.size, int)  # or a symbolic dimension of `jax.export`
    stored = BLOCK_ELEMENTS // max(1, highs.size) if known else BLOCK
    if packed:
        on_cpu, elsewhere = (partial(_over_blocks, step, size) for size in (stored, max(BLOCK, stored)))
        (total, by_low), by_high = on_platform(zeros, highs, used, cpu=on_cpu, accelerator=elsewhere)
        by_high = lax.sort((place, by_high), num_keys=1, is_stable=False)[1]
    else:
        (total, by_low), by_high = _over_blocks(jax.checkpoint(step), stored, zeros, highs, used)
    return total / sizes[0], (by_low + by_high) / spread(sizes[0] * sizes[1])


def _over_blocks(step: Callable, size: int, carry, highs: jax.Array, used: jax.Array | None):
    """Scans `step` over blocks of the last axis, of which only the first `used` entries matter."""
    *batch, classes = highs.shape
    size = max(1, min(classes, size)) if isinstance(classes, int) else max(1, size)
    count = -(-classes // size)
    padding = [(0, 0)] * len(batch) + [(0, count * size - classes)]
    padded = jnp.pad(highs, padding, constant_values=FAR * ceiling(highs.dtype))
    blocks = jnp.moveaxis(padded.reshape(*batch, count, size), -2, 0)

    def body(carry, numbered):
        start, block = numbered
        if used is None:
            return step(carry, block)
        return lax.cond(start < used, step, lambda c, b: (c, jnp.zeros_like(b)), carry, block)

    starts = np.arange(count, dtype=np.int32) if isinstance(count, int) else jnp.arange(count, dtype=jnp.int32)
    carry, parts = lax.scan(body, carry, (size * starts, blocks))
    return carry, jnp.moveaxis(parts, 0, -2).reshape(padded.shape)[..., :classes]
