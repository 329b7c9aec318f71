"""Losses of a distribution as label: sums over the classes of a coefficient u_c times a scalar function phi(l_c).

For cross-entropy, sum_c u_c (-log p_c) = A + T log(1 + r) with A = sum_c u_c (m - z_c) and T = sum_c u_c, terms >= 0.
A and T join as the statistics of a row do: of states with maxima m >= m', A + A' + T' (m - m'). So the value takes one
read of logits and coefficients, and its gradient p_j (T - u_j) - u_j (1 - p_j) another.

For other functions, sum_c u_c phi(l_c) takes a second read. With a_j = u_j phi'(l_j) and b_j = a_j / (1 - p_j), the
gradient is a_j - p_j sum_{c != j} b_c; the sums of the b_c come of the second read as well, the gradient of a third.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.classes import ClassAxis
from jaxloss._core.log_odds import Odds, ceiling, cross_entropy, impossible, odds_tangent
from jaxloss._core.platforms import on_platform, recomputed
from jaxloss._core.statistics import (
    CLASS_START,
    ClassRow,
    odds_in_row,
    class_row,
    class_sums,
    finished,
    join_class,
    others_of,
    over,
)

Scalar = Callable[..., jax.Array]


class Part(NamedTuple):
    """`coefficients` times a scalar function with `parameters` at `truth`."""

    coefficients: jax.Array | int
    truth: Odds
    parameters: tuple[jax.Array | None, ...]

    def values(self, scalar: Scalar) -> jax.Array:
        """Products, with the exact limit where p is 0 (computed there as a finite odd, for the gradient's sake)."""
        values = self.limits(scalar)
        return values if isinstance(self.coefficients, int) else self.coefficients * values

    def limits(self, scalar: Scalar) -> jax.Array:
        """The scalar function, with its limit where p is 0 and the coefficient is not."""
        finite = scalar(self.truth, *self.parameters)
        limit = scalar(impossible(finite), *self.parameters)
        at_limit = (self.truth.nll >= ceiling(finite.dtype)) & (self.coefficients != 0)
        return finite + lax.stop_gradient(jnp.where(at_limit, limit - finite, 0))


class Shares(NamedTuple):
    """Coefficients: targets times weights, smoothed toward the mean over the classes that exist."""

    targets: jax.Array
    exists: jax.Array  # 1 for classes that exist, else 0
    weights: jax.Array | None = None
    smoothing: jax.Array | None = None

    def array(self, classes: ClassAxis) -> jax.Array:
        result = self.targets
        if self.smoothing is not None:
            each = classes.spread(self.smoothing / jnp.maximum(classes.sum(self.exists), 1))
            result = (1 - self.smoothing) * result + each * self.exists
        return result if self.weights is None else result * self.weights


def expected(
    classes: ClassAxis, scalar: Scalar, logits: jax.Array, shares: Shares, parameters: tuple
) -> tuple[jax.Array, jax.Array]:
    """The sum over the classes for each row, and the row's logsumexp."""
    if all(x is None for x in parameters):  # then every scalar function is cross-entropy
        return _expected_cross_entropy(classes, logits, shares)
    row = class_row(classes, logits)
    return _expected(classes, scalar, lax.stop_gradient(row), logits, shares.array(classes), parameters), row.logsumexp


def _expected_cross_entropy(classes: ClassAxis, logits: jax.Array, shares: Shares) -> tuple[jax.Array, jax.Array]:
    targets, exists, weights, smoothing = shares
    parts = (targets,) if smoothing is None else (targets, exists)
    parts = parts if weights is None else tuple(part * weights for part in parts)
    counted = () if smoothing is None else (exists,)
    sums = nll_sums(classes, logits, parts, counted)
    factors = [1] if smoothing is None else [1 - smoothing, smoothing / jnp.maximum(sums.counts[0], 1)]
    loss = sum(factor * value for factor, value in zip(factors, sums.values, strict=True))
    for factor, limit in zip(factors, sums.limits, strict=True):
        loss = loss + lax.stop_gradient(jnp.where(factor != 0, limit, 0))
    return loss, ClassRow(sums.best, sums.rest).logsumexp


class NllSums(NamedTuple):
    """Of -log p, for each array of coefficients; and what the row says of all its classes."""

    best: jax.Array
    rest: jax.Array
    totals: tuple[jax.Array, ...]  # T
    values: tuple[jax.Array, ...]  # sum_c u_c (-log p_c), with a finite `ceiling` of -log p
    limits: tuple[jax.Array, ...]  # to be added: +inf where a class with a coefficient has p = 0, else 0
    counts: tuple[jax.Array, ...]  # sums of other arrays, which are constants


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def nll_sums(classes: ClassAxis, logits: jax.Array, shares: tuple, counted: tuple) -> NllSums:
    start = (*CLASS_START, *[0.0] * (2 * len(shares) + len(counted)))

    def join(a, b):
        low, high = jnp.minimum(a[0], b[0]), jnp.maximum(a[0], b[0])
        gap = jnp.where(low == high, 0, high - low)
        state = list(join_class(a[:2], b[:2]))
        for k in range(2, 2 + 2 * len(shares), 2):
            lower = jnp.where(a[0] < b[0], a[k], b[k])
            state += [a[k] + b[k], a[k + 1] + b[k + 1] + jnp.where(lower == 0, 0, lower * gap)]
        return (*state, *map(jnp.add, a[len(state) :], b[len(state) :]))

    def one_read(logits, shares, counted):
        zero = jnp.zeros_like(logits)
        moments = [x for share in shares for x in (share, zero)]
        return classes.fold((logits, zero, *moments, *counted), start, join)

    def plain_sums(logits, shares, counted):
        best, rest = class_sums(classes, logits)
        height = classes.spread(jnp.where(best == -jnp.inf, 0, best)) - logits
        state = [best, rest]
        for share in shares:
            moment = jnp.sum(jnp.where(share == 0, 0, share * height), classes.axis)
            state += [jnp.sum(share, classes.axis), moment]
        return (*state, *(jnp.sum(x, classes.axis) for x in counted))

    state = on_platform(logits, shares, counted, cpu=plain_sums, accelerator=one_read)
    best, rest, *state = classes.join(state, start, join)
    row, log_total, highest = finished(best, rest), None, ceiling(logits.dtype)
    log_total = jnp.log1p(row.rest)
    moments = state[: 2 * len(shares)]
    totals, heights = moments[::2], moments[1::2]
    impossible = [(x == jnp.inf) | ((best == -jnp.inf) & (total > 0)) for x, total in zip(heights, totals, strict=True)]
    values = [
        jnp.where(beyond, highest, x + total * log_total)
        for beyond, x, total in zip(impossible, heights, totals, strict=True)
    ]
    limits = [jnp.where(beyond, jnp.inf, jnp.zeros_like(rest)) for beyond in impossible]
    return NllSums(*row, tuple(totals), tuple(values), tuple(limits), tuple(state[len(moments) :]))


def _nll_sums_jvp(classes, primals, tangents):
    (logits, shares, _), (moved, changes, _) = primals, tangents
    value = nll_sums(classes, *primals)
    row = lax.stop_gradient(ClassRow(value.best, value.rest))
    truth = odds_in_row(classes, row, logits)

    def along(x, tangent):
        """The sum over the classes of x times a tangent; None for none."""
        return [] if isinstance(tangent, SymbolicZero) else [classes.sum(x * tangent)]

    def added(terms, like):
        return sum(terms[1:], terms[0]) if terms else jnp.zeros_like(like)

    values, totals = [], []
    for share, change, total in zip(shares, changes, value.totals, strict=True):
        gradient = truth.p * (classes.spread(total) - share) - share * truth.q
        values.append(added(along(gradient, moved) + along(truth.nll, change), total))
        totals.append(added(along(1, change), total))
    rest = added(along(truth.p * classes.spread(1 + value.rest), moved), value.rest)
    zero = jnp.zeros_like
    constants = jax.tree.map(zero, (value.limits, value.counts))
    return value, NllSums(zero(value.best), rest, tuple(totals), tuple(values), *constants)


nll_sums.defjvp(_nll_sums_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _expected(classes: ClassAxis, scalar: Scalar, row: ClassRow, logits: jax.Array, u: jax.Array, parameters: tuple):
    """The sum over the classes, `row` being that of the logits."""
    return classes.sum(Part(u, odds_in_row(classes, row, logits), parameters).values(scalar))


def _expected_jvp(classes, scalar, primals, tangents):
    row, logits, u, parameters = primals
    _, moved, changed, changes = tangents
    value, total, minor = _sums(classes, scalar, *primals)
    again = ClassRow(*map(recomputed, row))
    part, terms = Part(u, odds_in_row(classes, again, logits), parameters), []
    if not isinstance(moved, SymbolicZero):
        a, b = _slopes(scalar, part)
        gradient = a - part.truth.p * others_of(classes, part.truth.p, b, total, minor)
        terms.append(gradient * moved)
    if not isinstance(changed, SymbolicZero):
        terms.append(part.limits(scalar) * changed)
    moving = [k for k, x in enumerate(changes) if x is not None and not isinstance(x, SymbolicZero)]
    if moving:

        def values(given):
            arguments = list(parameters)
            for k, x in zip(moving, given, strict=True):
                arguments[k] = x
            return part._replace(parameters=tuple(arguments)).values(scalar)

        terms.append(jax.jvp(values, ([parameters[k] for k in moving],), ([changes[k] for k in moving],))[1])
    return value, sum(map(classes.sum, terms), jnp.zeros_like(value))


_expected.defjvp(_expected_jvp, symbolic_zeros=True)


def _slopes(scalar: Scalar, part: Part) -> tuple[jax.Array, jax.Array]:
    """a and b of each class."""
    truth = part.truth
    ones = odds_tangent(truth, jnp.ones_like(truth.p))
    a = part.coefficients * jax.jvp(lambda truth: scalar(truth, *part.parameters), (truth,), (ones,))[1]
    return a, over(a, truth.q)


def _terms(classes, scalar, row, logits, u, parameters) -> tuple[jax.Array, ...]:
    """Of the sums over the classes: losses, b, and b without the class of more than half of the probability."""
    part = Part(u, odds_in_row(classes, row, logits), parameters)
    b = _slopes(scalar, part)[1]
    return part.values(scalar), b, jnp.where(part.truth.p > 0.5, 0, b)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sums(classes: ClassAxis, scalar: Scalar, *arguments) -> tuple[jax.Array, ...]:
    """All of them from one read: XLA on a GPU would store what separate sums share."""

    def one_read(*arguments):
        return classes.fold(_terms(classes, scalar, *arguments), _ZEROS, _add)

    def plain_sums(*arguments):
        return tuple(jnp.sum(x, classes.axis) for x in _terms(classes, scalar, *arguments))

    return classes.join(on_platform(*arguments, cpu=plain_sums, accelerator=one_read), _ZEROS, _add)


_ZEROS = (0.0, 0.0, 0.0)


def _add(a: tuple, b: tuple) -> tuple:
    return tuple(map(jnp.add, a, b))


@_sums.defjvp
def _sums_jvp(classes, scalar, primals, tangents):
    changes = jax.jvp(partial(_terms, classes, scalar), primals, tangents)[1]
    return _sums(classes, scalar, *primals), tuple(map(classes.sum, changes))
