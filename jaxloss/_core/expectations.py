"""Losses of a distribution as label: sums over the classes of a coefficient u_c times a scalar function phi(l_c).

Those of cross-entropy are `row_sums`: one read of logits and coefficients, and for the gradient another. For other
functions the sum takes a second read. With b_c = u_c phi'(l_c) / (1 - p_c), the gradient is

    b_j (1 - p_j) - p_j sum_{c != j} b_c;

the sums of the b_c come of the second read as well, the gradient of a third.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.classes import ClassAxis
from jaxloss._core.log_odds import Odds, ceiling, impossible
from jaxloss._core.platforms import recomputed
from jaxloss._core.statistics import (
    ClassRow,
    is_major,
    odds_in_row,
    over,
    row_sums,
    split_sums,
)

Scalar = Callable[..., jax.Array]


class Part(NamedTuple):
    """`coefficients` times a scalar function with `parameters` at `truth`."""

    coefficients: jax.Array | None  # 1 for None
    truth: Odds
    parameters: tuple[jax.Array | None, ...]

    def values(self, scalar: Scalar) -> jax.Array:
        """Products, with the exact limit where p is 0 (computed there as a finite odd, for the gradient's sake)."""
        values = self.limits(scalar)
        return values if self.coefficients is None else self.coefficients * values

    def limits(self, scalar: Scalar) -> jax.Array:
        """The scalar function, with its limit where p is 0 and the coefficient is not."""
        finite = scalar(self.truth, *self.parameters)
        limit = scalar(impossible(finite), *self.parameters)
        at_limit = self.truth.nll >= ceiling(finite.dtype)
        at_limit = at_limit if self.coefficients is None else at_limit & (self.coefficients != 0)
        return finite + lax.stop_gradient(jnp.where(at_limit, limit - finite, 0))


class Shares(NamedTuple):
    """Coefficients: targets, smoothed toward the mean over the n classes that exist, times weights."""

    targets: jax.Array
    exists: jax.Array  # 1 for classes that exist, else 0
    weights: jax.Array | None = None
    smoothing: jax.Array | None = None

    @property
    def parts(self) -> tuple[jax.Array, ...]:
        """Arrays whose sum, each times its factor, is the coefficients."""
        parts = (self.targets,) if self.smoothing is None else (self.targets, self.exists)
        return parts if self.weights is None else tuple(part * self.weights for part in parts)

    def factors(self, count: jax.Array | None) -> list[Any]:
        """Of each part; for every row, n being `count`, which smoothing alone needs."""
        if self.smoothing is None or count is None:
            return [1]
        return [1 - self.smoothing, self.smoothing / jnp.maximum(count, 1)]

    def array(self, classes: ClassAxis, count: jax.Array | None = None) -> jax.Array:
        first, *others = self.parts
        if not others:
            return first
        factor, each = self.factors(classes.sum(self.exists) if count is None else count)
        return factor * first + classes.spread(each) * others[0]


def expected(
    classes: ClassAxis, scalar: Scalar, logits: jax.Array, shares: Shares, parameters: tuple
) -> tuple[jax.Array, jax.Array]:
    """The sum over the classes for each row, and the row's logsumexp."""
    if all(x is None for x in parameters):  # then every scalar function is cross-entropy
        return _expected_cross_entropy(classes, logits, shares)
    sums = row_sums(classes, logits, (), () if shares.smoothing is None else (shares.exists,))
    u = shares.array(classes, *sums.counts)
    return _expected(classes, scalar, sums.row, logits, u, parameters), sums.row.logsumexp


def _expected_cross_entropy(classes: ClassAxis, logits: jax.Array, shares: Shares) -> tuple[jax.Array, jax.Array]:
    smoothed, weighted = shares.smoothing is not None, shares.weights is not None
    sums = row_sums(classes, logits, shares.parts, (shares.exists,) if smoothed and weighted else ())
    count = (sums.counts[0] if weighted else sums.totals[1]) if smoothed else None
    loss = jnp.zeros_like(sums.row.rest)
    for factor, value, limit in zip(shares.factors(count), sums.values, sums.limits, strict=True):
        loss = loss + factor * value + lax.stop_gradient(jnp.where(factor != 0, limit, 0))
    return loss, sums.row.logsumexp


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _expected(classes: ClassAxis, scalar: Scalar, row: ClassRow, logits: jax.Array, u: jax.Array, parameters: tuple):
    """The sum over the classes, `row` being that of the logits."""
    return classes.sum(Part(u, odds_in_row(classes, row, logits), parameters).values(scalar))


def _expected_jvp(classes, scalar, primals, tangents):
    row, logits, u, parameters = primals
    _, moved, changed, changes = tangents
    value, terms = _expected(classes, scalar, *primals), []

    def part_at(turn):
        found = ClassRow(*(recomputed(x, turn) for x in row))
        return Part(u, odds_in_row(classes, found, logits), parameters)

    part = part_at(1)
    if not isinstance(moved, SymbolicZero):
        major = is_major(classes, row, logits)
        sums = split_sums(classes, slopes_of(scalar, part_at(2)), major)
        b = slopes_of(scalar, part)
        terms.append((b * part.truth.q - part.truth.p * sums.of_others(classes, b, major)) * moved)
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


def slopes_of(scalar: Scalar, part: Part) -> jax.Array:
    """The b of each class, by the derivatives of the four forms of p over 1 - p."""
    p, q = part.truth.p, part.truth.q
    along = Odds(nll=-jnp.ones_like(p), nlc=over(p, q), p=p, q=-p)
    slopes = jax.jvp(lambda truth: scalar(truth, *part.parameters), (part.truth,), (along,))[1]
    return slopes if part.coefficients is None else part.coefficients * slopes
