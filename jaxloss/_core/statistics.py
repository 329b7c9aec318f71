"""Statistics of a row of logits over all its classes: the softmax link, with its derivative rule.

With r the sum over all classes but one largest,

    m = max_j z_j        r = sum_j w_j - 1, w_j = exp(z_j - m)        logsumexp = m + log(1 + r)
    p_c = w_c / (1 + r)        1 - p_c = ((1 - w_c) + r) / (1 + r)

Nothing is subtracted from a larger number, so a confident row keeps its digits. The rules are `custom_jvp` rules made
of the functions themselves, so that every order, direction and batching works. Statistics of a row have no class axis:
on CPU, XLA takes twice as long over arrays that end in an axis of 1.

**One read.** Accelerators take as long as the bytes they move, so there the statistics come of one reduction, whose
states are joined class by class: (m, r) and (m', r') with m >= m' make (m, r + (1 + r') exp(m' - m)). So do sums of
-log p: sum_c u_c (-log p_c) = A + T log(1 + r) with A = sum_c u_c (m - z_c) and T = sum_c u_c, and A, T and A', T' make
A + A' + T' (m - m') and T + T'; all terms are >= 0. XLA on CPU has fast loops for plain maxima and sums alone.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.classes import ClassAxis, nan_where
from jaxloss._core.log_odds import Odds, ceiling, odds_tangent
from jaxloss._core.platforms import by_row, on_platform


def higher(m: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of two maxima: the larger, whether it is `m`, and how far the smaller lies below, also where both are -inf."""
    return jnp.maximum(m, other), m >= other, jnp.where(m == other, 0, jnp.abs(m - other))


def finite_top(best: jax.Array) -> jax.Array:
    """A largest logit to subtract: 0 for -inf, and for +inf a number whose double is finite."""
    return jnp.where(best == -jnp.inf, 0, jnp.where(best == jnp.inf, float(jnp.finfo(best.dtype).max) / 4, best))


def weights_of(classes: ClassAxis, logits: jax.Array, best: jax.Array) -> jax.Array:
    """exp(z - m), 0 where z is -inf; where m is +inf, 1 for a logit of +inf and else 0."""
    return jnp.exp(jnp.minimum(logits - classes.spread(finite_top(best)), 0))


class ClassRow(NamedTuple):
    """What a row says of all its classes; m and r are 0 where every logit is -inf."""

    best: jax.Array  # m; a constant, for r carries the derivative
    rest: jax.Array  # r

    @property
    def logsumexp(self) -> jax.Array:
        return self.best + jnp.log1p(self.rest)


class RowSums(NamedTuple):
    """The row and, for each array of coefficients u, sums over its classes."""

    row: ClassRow
    totals: tuple[jax.Array, ...]  # T
    values: tuple[jax.Array, ...]  # sum_c u_c (-log p_c), with a finite `ceiling` of -log p
    limits: tuple[jax.Array, ...]  # to be added: +inf where a class with a coefficient has p = 0, else 0
    counts: tuple[jax.Array, ...]  # sums of other arrays, which are constants


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def row_sums(classes: ClassAxis, logits: jax.Array, shares: tuple, counted: tuple) -> RowSums:
    """Statistics of rows, of arrays u in `shares` and of arrays in `counted`, all of the shape of the logits."""
    start = (-jnp.inf, *[0.0] * (1 + 2 * len(shares) + len(counted)))

    def join(a, b):
        best, first, gap = higher(a[0], b[0])
        rest, lower_rest = jnp.where(first, a[1], b[1]), jnp.where(first, b[1], a[1])
        state = [best, rest + (1 + lower_rest) * jnp.exp(-gap)]
        for k in range(2, 2 + 2 * len(shares), 2):
            lower = jnp.where(first, b[k], a[k])
            state += [a[k] + b[k], a[k + 1] + b[k + 1] + jnp.where(lower == 0, 0, lower * gap)]
        return (*state, *map(jnp.add, a[len(state) :], b[len(state) :]))

    def one_read(logits, shares, counted):
        zero = jnp.zeros_like(logits)
        moments = [x for share in shares for x in (share, zero)]
        return classes.fold((logits, zero, *moments, *counted), start, join)

    def plain_sums(logits, shares, counted):
        best = jnp.max(logits, classes.axis)
        weights = weights_of(classes, logits, best)
        everything = jnp.sum(weights, classes.axis)
        below = jnp.sum(jnp.where(logits == classes.spread(best), 0, weights), classes.axis)
        # All but one largest: where that is less than 1, the largest is alone and `below` has every digit of it.
        state = [best, jnp.where(everything < 2, below, everything - 1)]
        height = jnp.where(logits == classes.spread(best), 0, classes.spread(best) - logits)
        for share in shares:
            moment = jnp.sum(jnp.where(share == 0, 0, share * height), classes.axis)
            state += [jnp.sum(share, classes.axis), moment]
        return (*state, *(jnp.sum(x, classes.axis) for x in counted))

    size, operands = logits.shape[classes.axis], (logits, shares, counted)
    state = by_row(size, len(start), *operands, plain=plain_sums, folded=one_read)
    best, rest, *state = classes.join(state, start, join)
    count = len(state) - len(counted)
    totals, heights, counts = state[:count:2], state[1:count:2], state[count:]
    # A logit of +inf takes all of the probability; what several take is not defined.
    rest = jnp.where(best == -jnp.inf, 0, nan_where((best == jnp.inf) & (rest > 0), rest))
    row = ClassRow(finite_top(best), rest)
    values, limits = [], []
    for total, height in zip(totals, heights, strict=True):
        impossible = ((height == jnp.inf) | ((best == -jnp.inf) & (total > 0))) & ~jnp.isnan(rest)
        values.append(jnp.where(impossible, ceiling(logits.dtype), height + total * jnp.log1p(rest)))
        limits.append(jnp.where(impossible, jnp.inf, jnp.zeros_like(rest)))
    return RowSums(row, tuple(totals), tuple(values), tuple(limits), tuple(counts))


def _row_sums_jvp(classes, primals, tangents):
    # d sum_c u_c (-log p_c) = sum_j (p_j (T - u_j) - u_j (1 - p_j)) dz_j + sum_c (-log p_c) du_c
    (logits, shares, _), (moved, changes, _) = primals, tangents
    value = row_sums(classes, *primals)
    truth = odds_in_row(classes, value.row, logits)

    def summed(like, *products):
        given = [classes.sum(x * tangent) for x, tangent in products if not isinstance(tangent, SymbolicZero)]
        return sum(given, jnp.zeros_like(like))

    values, totals = [], []
    for share, change, total in zip(shares, changes, value.totals, strict=True):
        gradient = truth.p * (classes.spread(total) - share) - share * truth.q
        values.append(summed(total, (gradient, moved), (truth.nll, change)))
        totals.append(summed(total, (1, change)))
    best, rest = value.row
    row = ClassRow(jnp.zeros_like(best), summed(rest, (truth.p * classes.spread(1 + rest), moved)))
    constants = jax.tree.map(jnp.zeros_like, (value.limits, value.counts))
    return value, RowSums(row, tuple(totals), tuple(values), *constants)


row_sums.defjvp(_row_sums_jvp, symbolic_zeros=True)


def class_row(classes: ClassAxis, logits: jax.Array) -> ClassRow:
    return row_sums(classes, logits, (), ()).row


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def odds_in_row(classes: ClassAxis, row: ClassRow, logits: jax.Array) -> Odds:
    """Odds of every class: arrays of the shape of the logits, whose `class_row` is `row`."""
    highest = ceiling(logits.dtype)
    statistics = row.best, row.rest, 1 + row.rest, jnp.log1p(row.rest)
    best, rest, total, log_total = map(classes.spread, statistics)
    depth = jnp.minimum(logits - best, 0)  # above 0 for a logit of +inf alone
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
    (row, logits), tangent = primals, tangents[1]
    value = odds_in_row(classes, row, logits)
    moved, major = value.p * tangent, is_major(classes, row, logits)
    sums = Sums(*map(classes.sum, _split(moved, major)))
    change = odds_tangent(
        value, tangent - sums.of_others(classes, moved, major) * over(jnp.ones_like(value.q), value.q)
    )
    total = classes.spread(sums.minor + sums.major)
    return value, change._replace(nll=(total - moved) - value.q * tangent)


class ClassOdds(NamedTuple):
    odds: Odds  # of every class: arrays of the shape of the logits
    logsumexp: jax.Array


def class_odds(classes: ClassAxis, logits: jax.Array) -> ClassOdds:
    """Odds of every class of each row."""
    row = class_row(classes, logits)
    return ClassOdds(odds_in_row(classes, row, logits), row.logsumexp)


class Sums(NamedTuple):
    """A sum over the classes in two parts: over all but the one that holds most of the probability, and of that one.

    What such a class holds would drown the others' digits.
    """

    minor: jax.Array
    major: jax.Array

    def of_others(self, classes: ClassAxis, x: jax.Array, is_major: jax.Array) -> jax.Array:
        """For each class the sum over the others; exactly 0 where all others are."""
        total = classes.spread(self.minor + self.major)
        return jnp.where(is_major, classes.spread(self.minor), total - x)


def is_major(classes: ClassAxis, row: ClassRow, logits: jax.Array) -> jax.Array:
    """Mask of a class that holds more than half of the probability."""
    return (logits >= classes.spread(row.best)) & classes.spread(row.rest < 1)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def split_sums(classes: ClassAxis, x: jax.Array, major: jax.Array) -> Sums:
    def one_read(x, major):
        # XLA stores an array that two sums are made of, so the mask goes along with it.
        states = (x, jnp.zeros_like(x), major.astype(x.dtype))
        minor, major, alone = classes.fold(states, (0.0, 0.0, 0.0), _join_split)
        minor, own = _split(minor, alone > 0)  # a single class is joined with nothing
        return minor, major + own

    def plain_sums(x, major):
        return tuple(jnp.sum(part, classes.axis) for part in _split(x, major))

    parts = on_platform(x, major, cpu=plain_sums, accelerator=one_read)
    return Sums(*(part if classes.name is None else lax.psum(part, classes.name) for part in parts))


@split_sums.defjvp
def _split_sums_jvp(classes, primals, tangents):
    return split_sums(classes, *primals), Sums(*map(classes.sum, _split(tangents[0], primals[1])))


def _split(x: jax.Array, major: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(major, 0, x), jnp.where(major, x, 0)


def _join_split(a: tuple, b: tuple) -> tuple:
    """Of (minor, major, 0); the state of a class starts as (x, 0, whether it is major)."""
    (minor, major), (other_minor, other_major) = (_split(x, flag > 0) for x, _, flag in (a, b))
    return minor + other_minor, (a[1] + b[1]) + (major + other_major), jnp.zeros_like(a[2])


@jax.custom_jvp
def over(x: jax.Array, q: jax.Array) -> jax.Array:
    """The quotient x / q, 0 where q is."""
    return jnp.where(q == 0, 0, x / jnp.where(q == 0, 1, q))


@over.defjvp
def _over_jvp(primals, tangents):
    # As written, the derivative would divide by the square of q, which overflows or is 0 long before q is.
    quotient = over(*primals)
    return quotient, over(tangents[0] - quotient * tangents[1], primals[1])


def complement(classes: ClassAxis, p: jax.Array) -> jax.Array:
    """The other probabilities' sum, 1 - p: their sum indeed for a likely class, whose own digits say little of it."""
    likely = p > 0.75  # one class at most, however p is rounded: two tied ones may both be above 1/2
    return jnp.where(likely, classes.spread(classes.sum(jnp.where(likely, 0, p))), 1 - p)
