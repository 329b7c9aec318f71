"""Pairs of a relevant label i and an irrelevant label j of one row; sums of exponentials and counts over them.

No array [C, C] is held: sums of exponentials factor into one sum for each side, and the count of pairs in the wrong
order comes from one sort. Means over pairs are in `surrogates`.

An irrelevant label at -inf and a relevant one at +inf are right whatever the others do: their pairs count with a loss
of exactly 0 and gradient 0. At the other end the loss is +inf, with the gradient of a very large finite score.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.arguments import class_elements
from jaxloss._core.checks import check_domain
from jaxloss._core.classes import ClassAxis, nan_where, whole_rows
from jaxloss._core.compose import infinite_where
from jaxloss._core.log_odds import Odds, ceiling, finite, odds
from jaxloss._core.statistics import class_odds

FAR = 4  # times `ceiling`: where labels go that take part in no pair


def spread(row: jax.Array) -> jax.Array:
    return jnp.expand_dims(row, -1)


def places(like: jax.Array) -> jax.Array:
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
        return losses * nan_where(self.undefined, jnp.ones_like(losses))

    def restore(self, values: jax.Array, like: jax.Array) -> jax.Array:
        """Values of every label in the layout and dtype of the argument `like`."""
        values = nan_where(spread(self.undefined), values)
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
    every = class_odds(ClassAxis(mask.ndim - 1), jnp.where(mask, exponents - spread(top), -jnp.inf))
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
                spread(side.p) * p * (q + spread(side.q) * p)
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


def fits_uint16(size: Any) -> bool:
    return isinstance(size, int) and size <= 2**16  # not a symbolic dimension of `jax.export`


def sort_labels(keys: tuple[jax.Array, ...], first: jax.Array, second: jax.Array) -> Order:
    """Sorts by a number and, of equal ones, by what its rounding left."""
    size = first.shape[-1]
    code = jnp.where(first, 0, jnp.where(second, size, 2 * size)) + places(first)
    code = code.astype(jnp.uint16 if fits_uint16(3 * size) else jnp.int32)  # a sort moves all that it sorts, many times
    # No two codes are equal; stability would take one array more.
    *ordered, code = lax.sort((*keys, code), num_keys=len(keys) + 1, is_stable=False)
    return Order(ordered, code < size, (code >= size) & (code < 2 * size), code % size)


def inversions(pairs: Pairs) -> jax.Array:
    """Share of pairs with z_j >= z_i: for each irrelevant label the relevant ones up to its score are counted."""
    scores, *masks = map(whole_rows, (pairs.scores, pairs.relevant, pairs.irrelevant))
    order = sort_labels((scores,), *masks)
    below = jnp.cumsum(order.first.astype(jnp.int32), -1).astype(scores.dtype)
    return jnp.sum(jnp.where(order.second, below, 0), -1) / jnp.multiply(*pairs.sizes)
