"""Pairs of a relevant label i and an irrelevant label j of one row, and sums of functions of z_j - z_i over them.

No array [C, C] is held. Sums of exponentials factor into one sum for each side; the hinge and the count of pairs in
the wrong order come from one sort; the logistic surrogate goes through blocks of labels. Derivatives are `custom_jvp`
rules that multiply a gradient found in the same pass; they hold sorts and sums, and no gather or scatter.

An irrelevant label at -inf and a relevant one at +inf are right whatever the others do: their pairs count with a loss
of exactly 0 and gradient 0. At the other end the loss is +inf, with the gradient of a very large finite score.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss._core.arguments import class_elements, whole_rows
from jaxloss._core.checks import check_domain
from jaxloss._core.compose import infinite_where
from jaxloss._core.log_odds import Odds, ceiling, finite, odds
from jaxloss._core.statistics import ClassAxis, class_odds

BLOCK_ELEMENTS = 2**20  # of an array [*batch, block, C] of the logistic surrogate: 4 MiB in float32
FAR = 4  # times `ceiling`: where labels go that take part in no pair


def _spread(row: jax.Array) -> jax.Array:
    return jnp.expand_dims(row, -1)


def _places(like: jax.Array) -> jax.Array:
    """0, 1, ... along the last axis, in the sharding of `like`."""
    row = lax.broadcasted_iota(jnp.int32, (1,) * (like.ndim - 1) + like.shape[-1:], like.ndim - 1)
    return jnp.zeros_like(like, jnp.int32) + row


class Pairs(NamedTuple):
    """Checked arguments of a loss over pairs: arrays [*batch, C], the classes last."""

    scores: jax.Array  # of computed dtype, 0 where unknown
    relevant: jax.Array  # masks of known labels
    irrelevant: jax.Array
    undefined: jax.Array  # rows with a NaN or an id outside
    axis: int  # of the classes in the argument

    @property
    def contested(self) -> tuple[jax.Array, jax.Array]:
        """Relevant and irrelevant labels without those that an infinite score puts right whatever the others do."""
        return self.relevant & (self.scores != jnp.inf), self.irrelevant & (self.scores != -jnp.inf)

    @property
    def wrong_ends(self) -> tuple[jax.Array, jax.Array]:
        """Rows with a relevant label at -inf, and rows with an irrelevant one at +inf."""
        low, high = self.relevant & (self.scores == -jnp.inf), self.irrelevant & (self.scores == jnp.inf)
        return jnp.any(low, -1), jnp.any(high, -1)

    @property
    def wrong_pair(self) -> jax.Array:
        """Rows with a pair whose difference z_j - z_i is +inf."""
        (low, high), (relevant, irrelevant) = self.wrong_ends, self.contested
        return (low & jnp.any(irrelevant, -1)) | (high & jnp.any(relevant, -1))

    @property
    def sizes(self) -> tuple[jax.Array, jax.Array]:
        """How many labels of a row are relevant and irrelevant, at least 1, to divide by."""
        counts = (jnp.sum(mask.astype(self.scores.dtype), -1) for mask in (self.relevant, self.irrelevant))
        relevant, irrelevant = (jnp.maximum(count, 1) for count in counts)
        return relevant, irrelevant

    def finish(self, losses: jax.Array, infinite: jax.Array | None = None) -> jax.Array:
        """+inf in rows that are `infinite`; NaN, in the gradient too, in rows that are undefined."""
        losses = losses if infinite is None else losses + infinite_where(infinite, losses)
        return losses * jnp.where(self.undefined, jnp.nan, jnp.ones_like(losses))

    def restore(self, values: jax.Array, like: jax.Array) -> jax.Array:
        """Values of every label in the layout and dtype of the argument `like`."""
        values = jnp.where(_spread(self.undefined), jnp.nan, values)
        return jnp.moveaxis(values, -1, self.axis).astype(like.dtype)


def label_pairs(name, logits, labels, axis, where, argument="logits") -> Pairs:
    """Checks the arguments of a loss over pairs of labels."""
    elements, position = class_elements(name, logits, labels, axis, where, argument)
    scores, targets = (jnp.moveaxis(x, position, -1) for x in (elements.logits, elements.targets))
    known = True if elements.keep is None else jnp.moveaxis(elements.keep, position, -1)
    binary = (targets == 0) | (targets == 1)
    targets = check_domain(name, "labels", targets, binary, "0 or 1 (leave unknown labels out with `where`)")
    undefined = jnp.any(jnp.isnan(scores) | jnp.isnan(targets), -1)
    return Pairs(scores, known & (targets != 0), known & (targets == 0), undefined, position)


class LogSum(NamedTuple):
    """log sum exp over a set of labels, as `top` + `rest`; very negative for the empty set."""

    top: jax.Array  # the largest exponent; a constant, for `rest` carries the derivative
    rest: jax.Array
    share: Odds  # of each label in the sum


def log_sums(pairs: Pairs) -> tuple[LogSum, LogSum]:
    """Of -z over the contested relevant labels and of z over the contested irrelevant ones."""
    scores = finite(pairs.scores)
    relevant, irrelevant = pairs.contested
    return _log_sum(-scores, relevant), _log_sum(scores, irrelevant)


def _log_sum(exponents: jax.Array, mask: jax.Array) -> LogSum:
    top = lax.stop_gradient(jnp.max(jnp.where(mask, exponents, -jnp.inf), -1))
    exists = top > -jnp.inf
    top = jnp.where(exists, top, 0)
    every = class_odds(ClassAxis(mask.ndim - 1), jnp.where(mask, exponents - _spread(top), -jnp.inf))
    return LogSum(top, jnp.where(exists, every.logsumexp, -FAR * ceiling(top.dtype)), every.odds)


def jointly(relevant: LogSum, irrelevant: LogSum) -> tuple[jax.Array, jax.Array]:
    """Logarithm of the sum over pairs, for either side. The tops meet first: a shift of the row cancels exactly."""
    log_odds = (irrelevant.top + relevant.top) + (irrelevant.rest + relevant.rest)
    return log_odds, log_odds


def separately(relevant: LogSum, irrelevant: LogSum) -> tuple[jax.Array, jax.Array]:
    return relevant.top + relevant.rest, irrelevant.top + irrelevant.rest


def log_sum_hessian(sides: Callable) -> Callable[[Callable], Callable]:
    """Diagonal, of losses softplus(l) with l = `sides` of the sums."""

    def decorate(function):
        # With s = sigmoid(l) and a label's share p, q = 1 - p, the gradient is s p up to sign; its own derivative is
        # s p (q + (1 - s) p), whether l sums one side or both.
        def hessian(logits, labels, axis, where):
            pairs = label_pairs(function.__name__, logits, labels, axis, where)
            sums = log_sums(pairs)
            diagonals = [
                _spread(side.p) * p * (q + _spread(side.q) * p)
                for side, (*_, p, q) in zip(map(odds, sides(*sums)), (x.share for x in sums), strict=True)
            ]
            return pairs.restore(diagonals[0] + diagonals[1], logits)

        return hessian

    return decorate


class Order(NamedTuple):
    """Labels sorted by ascending key; of equal keys those in `first` before those in `second` before others."""

    keys: list[jax.Array]
    first: jax.Array
    second: jax.Array
    place: jax.Array  # of each label before sorting


def sort_labels(keys: tuple[jax.Array, ...], first: jax.Array, second: jax.Array) -> Order:
    """Sorts by a number and, of equal ones, by what its rounding left."""
    size = first.shape[-1]
    code = jnp.where(first, 0, jnp.where(second, size, 2 * size)) + _places(first)
    *ordered, code = lax.sort((*keys, code), num_keys=len(keys) + 1)
    return Order(ordered, code < size, (code >= size) & (code < 2 * size), code % size)


def inversions(pairs: Pairs) -> jax.Array:
    """Share of pairs with z_j >= z_i: for each irrelevant label the relevant ones up to its score are counted."""
    scores, *masks = map(whole_rows, (pairs.scores, pairs.relevant, pairs.irrelevant))
    order = sort_labels((scores,), *masks)
    below = jnp.cumsum(order.first.astype(jnp.int32), -1).astype(scores.dtype)
    return jnp.sum(jnp.where(order.second, below, 0), -1) / jnp.multiply(*pairs.sizes)


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
    weights = below / _spread(relevant_size) * (above / _spread(irrelevant_size))  # 0 from the last point on
    counts = jnp.where(order.first, below, jnp.where(order.second, -above, 0))
    # A second sort brings the gradient back in order; a scatter would be slower and explicit meshes refuse it.
    gradient = lax.sort((order.place, counts / _spread(relevant_size * irrelevant_size)), num_keys=1)[1]
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
    swap = _spread(swap)
    few, many = jnp.where(swap, irrelevant, relevant), jnp.where(swap, relevant, irrelevant)
    scores = jnp.where(swap, -scores, scores)
    highs, lows = jnp.where(few, scores, far), jnp.where(many, scores, -far)
    used, place = None, _places(highs)
    if packed:
        used = jnp.max(jnp.sum(few, -1, dtype=jnp.int32), initial=0)
        highs, place = lax.sort((highs, place), num_keys=1)

    def step(carry, block):
        total, by_low = carry
        truth = odds(jnp.expand_dims(lows, -2) - _spread(block))
        total = total + jnp.sum(jnp.sum(truth.nlc, -1) / _spread(sizes[1]), -1)
        if form is None:
            return (total, by_low), block
        values = form(truth)  # 0 for a label that takes no part
        return (total, by_low + jnp.sum(values, -2)), jnp.sum(values, -1)

    step = step if packed else jax.checkpoint(step)
    zeros = jnp.zeros_like(sizes[0]), jnp.zeros_like(scores)
    (total, by_low), by_high = _over_blocks(step, zeros, highs, used)
    by_high = lax.sort((place, by_high), num_keys=1)[1] if packed else by_high
    return total / sizes[0], (by_low + by_high) / _spread(sizes[0] * sizes[1])


def _over_blocks(step: Callable, carry, highs: jax.Array, used: jax.Array | None):
    """Scans `step` over blocks of the last axis, of which only the first `used` entries matter."""
    *batch, classes = highs.shape
    size = max(1, min(classes, BLOCK_ELEMENTS // max(1, highs.size)))
    count = -(-classes // size)
    padding = [(0, 0)] * len(batch) + [(0, count * size - classes)]
    padded = jnp.pad(highs, padding, constant_values=FAR * ceiling(highs.dtype))
    blocks = jnp.moveaxis(padded.reshape(*batch, count, size), -2, 0)

    def body(carry, numbered):
        start, block = numbered
        if used is None:
            return step(carry, block)
        return lax.cond(start < used, step, lambda c, b: (c, jnp.zeros_like(b)), carry, block)

    carry, parts = lax.scan(body, carry, (size * np.arange(count, dtype=np.int32), blocks))
    return carry, jnp.moveaxis(parts, 0, -2).reshape(padded.shape)[..., :classes]
