"""The hinge of a class among C: h_c = max(0, margin + max_{j != c} z_j - z_c).

With m the largest logit, of n classes, and m' the next smaller one, of n' classes, the largest of the others is m, but
m' for a class that has m alone. Its slope is shared evenly between the classes that have it; at the kink it is 0.

Hinges are finite here, so that their derivatives are; `limit` is what has to be added, +inf or 0.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.arguments import softmax_rows
from jaxloss._core.classes import ClassAxis, entry, nan_where
from jaxloss._core.compose import infinite_where, label_weights
from jaxloss._core.label_odds import max_of_others
from jaxloss._core.log_odds import exact_difference, finite
from jaxloss._core.platforms import by_row, recomputed
from jaxloss._core.statistics import higher


class Hinge(NamedTuple):
    height: jax.Array  # NaN for an id outside
    limit: jax.Array
    best: jax.Array  # the largest of the other logits
    number: jax.Array  # of classes that have it


def _hinge(margin: jax.Array, best: jax.Array, number: jax.Array, own: jax.Array) -> Hinge:
    a, b = finite(best), finite(own)
    difference, lost = exact_difference(a, b)  # what rounding took is as large as a hinge near its kink
    height = jnp.maximum((difference + margin) + jnp.where(jnp.abs(difference) <= 2 * margin, lost, 0), 0)
    height = nan_where((best == jnp.inf) & (own == jnp.inf), jnp.where(best == -jnp.inf, 0, height))
    beyond = (best > -jnp.inf) & (own < jnp.inf) & ((best == jnp.inf) | (own == -jnp.inf))
    return Hinge(height, infinite_where(beyond, height), best, number)


def _active(height: jax.Array) -> jax.Array:
    """1 where a hinge has a slope, else 0; NaN where it is."""
    return nan_where(jnp.isnan(height), (height > 0).astype(height.dtype))


def _larger(a: tuple, b: tuple) -> tuple:
    """Of two logits with the numbers of classes that have them."""
    best, first, gap = higher(a[0], b[0])
    return best, jnp.where(gap == 0, a[1] + b[1], jnp.where(first, a[1], b[1]))


def _join(a: tuple, b: tuple) -> tuple:
    return *_larger(a, b), a[2] + b[2]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def label_hinge(classes: ClassAxis, logits: jax.Array, ids: jax.Array, margin: jax.Array) -> Hinge:
    """Of class `ids` of each row, which `class_ids` made."""
    start, others = (-jnp.inf, 0.0, 0.0), classes.without(logits, ids)

    def one_read(logits, ids, others):
        return classes.fold_label(logits, ids, start, _join)

    def plain(logits, ids, others):
        best = max_of_others(classes, logits, ids, others)
        top = others == classes.spread(best)
        return best, jnp.sum(top.astype(logits.dtype), classes.axis), entry(classes, logits, ids)

    size = logits.shape[classes.axis]
    state = by_row(size, len(start), logits, ids, others, plain=plain, folded=one_read)
    best, number, label = classes.join(state, start, _join)
    found = _hinge(margin, best, number, label)
    return found._replace(height=nan_where(ids < 0, found.height))


def _label_hinge_jvp(classes, primals, tangents):
    (logits, ids, _), (moved, _, widened) = primals, tangents
    value = label_hinge(classes, *primals)
    height, _, best, number = map(lax.stop_gradient, value)
    active, terms = _active(height), []
    if not isinstance(widened, SymbolicZero):
        terms.append(active * widened)
    if not isinstance(moved, SymbolicZero):
        top = classes.without(logits, ids) == classes.spread(best)
        slopes = jnp.where(top, classes.spread(1 / jnp.maximum(number, 1)), 0)
        slopes = jnp.where(classes.is_label(logits, ids), -1, slopes)
        terms.append(classes.sum(classes.spread(active) * slopes * moved))
    constants = map(jnp.zeros_like, value[1:])
    return value, Hinge(sum(terms, jnp.zeros_like(height)), *constants)


label_hinge.defjvp(_label_hinge_jvp, symbolic_zeros=True)


class Tops(NamedTuple):
    """The largest logit of each row and the next smaller one, and how many classes have them."""

    best: jax.Array
    number: jax.Array
    second: jax.Array
    seconds: jax.Array


def _join_tops(a: tuple, b: tuple) -> tuple:
    lower = jnp.minimum(a[0], b[0])
    beaten = jnp.where(a[0] == b[0], -jnp.inf, lower), jnp.where(a[0] < b[0], a[1], b[1])
    return *_larger(a[:2], b[:2]), *_larger(_larger(a[2:], b[2:]), beaten)


def _tops(classes: ClassAxis, logits: jax.Array) -> Tops:
    """Not to be differentiated."""
    start = (-jnp.inf, 0.0, -jnp.inf, 0.0)

    def one_read(logits):
        states = (logits, jnp.ones_like(logits), jnp.full_like(logits, -jnp.inf), jnp.zeros_like(logits))
        return classes.fold(states, start, _join_tops)

    def plain(logits):
        def largest(x):
            best = jnp.max(x, classes.axis)
            mask = x == classes.spread(best)
            return (best, jnp.sum(mask.astype(x.dtype), classes.axis)), mask

        first, mask = largest(logits)
        return *first, *largest(jnp.where(mask, -jnp.inf, logits))[0]

    size = logits.shape[classes.axis]
    state = by_row(size, len(start), logits, plain=plain, folded=one_read)
    return Tops(*classes.join(state, start, _join_tops))


def _of_classes(classes: ClassAxis, logits: jax.Array, margin: jax.Array, tops: Tops) -> Hinge:
    """The hinge of every class."""
    best, number, second, seconds = map(classes.spread, tops)
    top = logits == best
    alone = top & (number == 1)
    others = jnp.where(alone, seconds, number - top.astype(number.dtype))
    return _hinge(margin, jnp.where(alone, second, best), others, logits)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def class_hinges(classes: ClassAxis, logits: jax.Array, margin: jax.Array) -> jax.Array:
    """Of every class, in the shape of the logits; finite."""
    return _of_classes(classes, logits, margin, _tops(classes, logits)).height


@class_hinges.defjvp
def _class_hinges_jvp(classes, primals, tangents):
    (logits, _), (moved, widened) = primals, tangents
    value, constant = class_hinges(classes, *primals), lax.stop_gradient(logits)
    tops = _tops(classes, constant)
    best, number, second, seconds = map(classes.spread, tops)
    first = constant == best
    of_first, of_second = (classes.spread(classes.sum(jnp.where(x, moved, 0))) for x in (first, constant == second))
    among = (of_first - jnp.where(first, moved, 0)) / jnp.maximum(number - first.astype(number.dtype), 1)
    of_others = jnp.where(first & (number == 1), of_second / jnp.maximum(seconds, 1), among)
    return value, _active(lax.stop_gradient(value)) * (widened + of_others - moved)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def expected_hinge(classes: ClassAxis, logits: jax.Array, shares: jax.Array, margin: jax.Array) -> jax.Array:
    """The sum over the classes of their share times their hinge."""
    found = _of_classes(classes, logits, margin, _tops(classes, logits))
    return classes.sum(shares * (found.height + jnp.where(shares != 0, found.limit, 0)))


def _expected_hinge_jvp(classes, primals, tangents):
    (logits, shares, margin), (moved, changed, widened) = primals, tangents
    constant, terms = lax.stop_gradient(logits), []
    tops = _tops(classes, constant)

    def pulls(turn):
        """The shares of classes whose hinge has a slope."""
        again = Tops(*(recomputed(x, turn) for x in tops))
        return shares * _active(_of_classes(classes, constant, lax.stop_gradient(margin), again).height)

    if not isinstance(moved, SymbolicZero):
        first = constant == classes.spread(tops.best)
        of_first, of_rest = (classes.sum(jnp.where(x, pulls(2), 0)) for x in (first, ~first))
        pulled = pulls(1)
        alone = tops.number == 1
        # Each of several first classes has the other first ones before it, a single one the second ones.
        each = jnp.where(alone, 0, 1 / jnp.maximum(tops.number - 1, 1))
        by_second = jnp.where(alone, of_first / jnp.maximum(tops.seconds, 1), 0)
        rows = (of_rest / jnp.maximum(tops.number, 1), of_first, each, by_second, tops.second)
        of_rest, of_first, each, by_second, second = map(classes.spread, rows)
        of_others = of_rest + (of_first - pulled) * each
        slopes = jnp.where(first, of_others, jnp.where(constant == second, by_second, 0))
        terms.append((slopes - pulled) * moved)
    if not isinstance(changed, SymbolicZero):
        terms.append(class_hinges(classes, logits, margin) * changed)
    if not isinstance(widened, SymbolicZero):
        terms.append(pulls(1) * widened)
    value = expected_hinge(classes, *primals)
    return value, sum(map(classes.sum, terms), jnp.zeros_like(value))


expected_hinge.defjvp(_expected_hinge_jvp, symbolic_zeros=True)


def hinge_hessian(function: Callable) -> Callable:
    """Of the hinge, which is piecewise linear: 0."""

    def hessian(logits, labels, axis, where, *, axis_name, **_):
        rows = softmax_rows(function.__name__, logits, labels, axis, where, axis_name)
        return rows.restore(jnp.zeros_like(rows.logits), logits)

    return hessian


def hinge_values(name, logits, labels, axis, where, axis_name, margin, class_weights) -> jax.Array:
    """The hinge of each row's id, or the sum over the classes of their share times their hinge."""
    rows = softmax_rows(name, logits, labels, axis, where, axis_name)
    classes = rows.classes
    margin = rows.parameter("margin", margin)
    if rows.ids is None:
        assert rows.targets is not None
        weights = rows.parameter("class_weights", class_weights)
        shares = rows.targets if weights is None else rows.targets * weights
        return rows.finish(expected_hinge(classes, rows.logits, shares, margin))
    found = label_hinge(classes, rows.logits, rows.ids, margin)
    weights = label_weights(rows, class_weights)
    if weights is None:
        return rows.finish(found.height + found.limit)
    return rows.finish(weights * (found.height + jnp.where(weights != 0, found.limit, 0)))
