"""A teacher's likeliest classes as labels: ids and probabilities of k classes in each row.

The labels name k events, the classes listed, and perhaps one more, all other classes together. A loss is a sum over the
events of a function F(l_e) of each one's log-odds, so that nothing of the size of the logits is made of the labels. For
the slope a_e = dF/dl_e and b_e = a_e / (1 - p_e), with R the event of the others and s_j = p_j / p_R their softmax,

    of a class listed      b_j (1 - p_j) - p_j (sum_{c != j} b_c + b_R)
    of another class       s_j a_R - p_j sum_c b_c

The second is formed for every class, the first for the k listed, which are then set into it: ids are distinct.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from jaxloss._core.classes import ClassAxis, is_explicit, nan_where
from jaxloss._core.log_odds import Odds, odds, odds_tangent
from jaxloss._core.statistics import (
    ClassRow,
    class_row,
    finite_top,
    higher,
    is_major,
    odds_in_row,
    over,
    row_sums,
    split_sums,
)
from jaxloss._core.varying import vary, varying_any


class Events(NamedTuple):
    """A row's events, on the axis of the classes, and the mass of the others; ids as `listed_classes` makes them."""

    ids: jax.Array  # of all shards; C for an entry that names no class
    shares: jax.Array  # probabilities, perhaps weighted
    rest: jax.Array | None  # of each row, the share of the others; None if they are no event
    wrong: jax.Array  # of each row: an id outside, or one twice


class Measure(NamedTuple):
    """A function F of an event's odds, the label's share of it and parameters."""

    values: Callable[..., jax.Array]
    slopes: Callable[..., jax.Array]  # b
    by_share: Callable[..., jax.Array]


def _mapped(function: Callable, ndim: int, axis: int) -> Callable:
    """A function of vectors over the class axis of arrays."""
    for _ in range(ndim - 1 - axis):
        function = jax.vmap(function, 1, 1)
    for _ in range(axis):
        function = jax.vmap(function)
    return function


def _placed(classes: ClassAxis, function: Callable, like: jax.Array, *arguments: jax.Array) -> jax.Array:
    """The function of vectors, on meshes of any kind; the result lies as `like` does."""
    arguments = vary(arguments, varying_any(arguments))
    mapped = _mapped(function, like.ndim, classes.axis)
    if not any(map(is_explicit, arguments)):
        return mapped(*arguments)
    return _automatic(mapped, like)(*arguments)


def _automatic(function: Callable, like: jax.Array) -> Callable[..., jax.Array]:
    """On explicit meshes: where the parts lie is left to the compiler, but for the result."""
    placed: Any = jax.sharding.auto_axes(function, out_sharding=jax.typeof(like).sharding)
    return placed


def _local(classes: ClassAxis, x: jax.Array, ids: jax.Array) -> jax.Array:
    """Ids of a shard; its number of classes for those that lie elsewhere."""
    size, local = x.shape[classes.axis], ids - classes.first(x)
    return jnp.where((local >= 0) & (local < size), local, size)


def _entries(x: jax.Array, ids: jax.Array) -> jax.Array:
    return x.at[ids].get(mode="fill", fill_value=0)


def look_up(classes: ClassAxis, x: jax.Array, ids: jax.Array, nothing: float) -> jax.Array:
    """Entries of `x` at the ids; `nothing` for an id that names no class."""
    local = _local(classes, x, ids)
    like = ids
    if is_explicit(x):
        spec = list(jax.typeof(x).sharding.spec)
        spec[classes.axis] = None
        like = jax.sharding.reshard(ids, NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec)))
    found = _placed(classes, _entries, like, x, local)
    found = found if classes.name is None else lax.psum(found, classes.name)
    return jnp.where(ids < classes.size(x), found, nothing)


def picked(classes: ClassAxis, x: jax.Array, ids: jax.Array) -> jax.Array:
    """Entries of a vector over the classes of a shard at the ids; 0 for an id that names no class."""
    local = _local(ClassAxis(0, classes.name), x, ids)
    arguments = vary((x, local), varying_any((x, local)))
    found = (_automatic(_entries, ids) if any(map(is_explicit, arguments)) else _entries)(*arguments)
    return found if classes.name is None else lax.psum(found, classes.name)


def put(classes: ClassAxis, x: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """`x` with the values at the ids, which are distinct."""

    def set_at(x, i, values):
        return x.at[i].set(values, mode="drop", unique_indices=True)

    return _placed(classes, set_at, x, x, _local(classes, x, ids), values)


class Listed(NamedTuple):
    """Odds of the events, and what the gradient of the classes is made of."""

    row: ClassRow
    at_ids: jax.Array  # logits
    odds: Odds
    others: jax.Array  # logits, those of the classes listed replaced by -inf if the others are an event
    rest_row: ClassRow | None
    rest: Odds | None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _listed(classes: ClassAxis, with_rest: bool, logits: jax.Array, ids: jax.Array) -> Listed:
    each = ClassAxis(classes.axis)
    at_ids = look_up(classes, logits, ids, -jnp.inf)
    if not with_rest:
        row = class_row(classes, logits)
        return Listed(row, at_ids, odds_in_row(each, row, at_ids), logits, None, None)
    others = put(classes, logits, ids, jnp.full_like(at_ids, -jnp.inf))
    sums = row_sums(classes, others, (), ((others != -jnp.inf).astype(others.dtype),))
    rest_row, (count,), listed_row = sums.row, sums.counts, class_row(each, at_ids)
    none_else, none_listed = count == 0, jnp.all(at_ids == -jnp.inf, classes.axis)
    log_odds = (rest_row.best - listed_row.best) + (jnp.log1p(rest_row.rest) - jnp.log1p(listed_row.rest))
    log_odds = jnp.where(none_else, -jnp.inf, jnp.where(none_listed, jnp.inf, log_odds))
    tops = jnp.where(none_listed, -jnp.inf, listed_row.best), jnp.where(none_else, -jnp.inf, rest_row.best)
    best, first, gap = higher(*tops)
    below = jnp.where(first, rest_row.rest, listed_row.rest)
    rest = jnp.where(first, listed_row.rest, rest_row.rest) + (1 + below) * jnp.exp(-gap)
    row = ClassRow(finite_top(best), jnp.where(best == -jnp.inf, 0, rest))
    return Listed(row, at_ids, odds_in_row(each, row, at_ids), others, rest_row, odds(log_odds))


@_listed.defjvp
def _listed_jvp(classes, with_rest, primals, tangents):
    # With M the mean of dz under p: d(-log p_c) = M - dz_c, and of a class that holds most of the probability
    # dz_c - M = (1 - p_c) dz_c - sum_{j != c} p_j dz_j. The log-odds of the rest change by the difference of the means
    # within the rest and within the classes listed.
    (logits, ids), tangent, each = primals, tangents[0], ClassAxis(classes.axis)
    found = _listed(classes, with_rest, *primals)
    at_ids = look_up(classes, tangent, ids, 0)
    moved = _softmax(classes, found.row, logits) * tangent
    mean = classes.sum(moved)
    minor = classes.sum(jnp.where(is_major(classes, found.row, logits), 0, moved))
    p, q = found.odds.p, found.odds.q
    major = is_major(each, found.row, found.at_ids)
    centred = jnp.where(major, q * at_ids - each.spread(minor), at_ids - each.spread(mean))
    changes = Odds(-centred, over(p * centred, q), p * centred, -p * centred)
    row = ClassRow(jnp.zeros_like(mean), (1 + found.row.rest) * mean)
    if not with_rest:
        return found, Listed(row, at_ids, changes, tangent, None, None)
    of_rest = classes.sum(_softmax(classes, found.rest_row, found.others) * tangent)
    of_listed = each.sum(_softmax(each, class_row(each, found.at_ids), found.at_ids) * at_ids)
    rest_row = ClassRow(jnp.zeros_like(mean), (1 + found.rest_row.rest) * of_rest)
    others = put(classes, tangent, ids, jnp.zeros_like(at_ids))
    return found, Listed(row, at_ids, changes, others, rest_row, odds_tangent(found.rest, of_rest - of_listed))


def _softmax(classes: ClassAxis, row: ClassRow, logits: jax.Array) -> jax.Array:
    """Shares in a row; its derivative is that of a function of both."""
    depth = logits - classes.spread(row.best)
    return jnp.exp(jnp.where(depth > 0, 0, depth)) / classes.spread(1 + row.rest)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def over_events(
    classes: ClassAxis, measure: Measure, logits: jax.Array, events: Events, parameters: tuple, of_rest: tuple
) -> jax.Array:
    """The sum of F over the events; NaN for a row of `wrong` ids. Parameters have an entry of each event, or of all."""
    found = _listed(classes, events.rest is not None, logits, events.ids)
    return _total(classes, measure, found, events, parameters, of_rest)


def _total(classes, measure, found: Listed, events: Events, parameters, of_rest) -> jax.Array:
    total = jnp.sum(measure.values(found.odds, events.shares, *parameters), classes.axis)
    if events.rest is not None:
        total = total + measure.values(found.rest, events.rest, *of_rest)
    return nan_where(events.wrong, total)


def _over_events_jvp(classes, measure, primals, tangents):
    logits, events, parameters, of_rest = primals
    moved, changed, *changes = tangents
    value, terms = over_events(classes, measure, *primals), []
    found, each = _listed(classes, events.rest is not None, logits, events.ids), ClassAxis(classes.axis)
    if not isinstance(moved, SymbolicZero):
        gradient = _gradient(classes, each, measure, found, events, parameters, of_rest)
        terms.append(classes.sum(gradient * moved))
    if not isinstance(changed.shares, SymbolicZero):
        named = events.ids < classes.size(logits)
        by_share = jnp.where(named, measure.by_share(found.odds, events.shares, *parameters), 0)
        terms.append(each.sum(by_share * changed.shares))
    if events.rest is not None and not isinstance(changed.rest, SymbolicZero):
        terms.append(measure.by_share(found.rest, events.rest, *of_rest) * changed.rest)
    leaves, structure = jax.tree.flatten((parameters, of_rest))
    changes = jax.tree.leaves(tuple(changes), is_leaf=lambda x: isinstance(x, SymbolicZero))
    moving = {k: t for k, t in enumerate(changes) if not isinstance(t, SymbolicZero)}
    if moving:

        def total(given):
            arguments = structure.unflatten(given.get(k, x) for k, x in enumerate(leaves))
            return _total(classes, measure, found, events, *arguments)

        terms.append(jax.jvp(total, ({k: leaves[k] for k in moving},), (moving,))[1])
    return value, sum(terms, jnp.zeros_like(value))


over_events.defjvp(_over_events_jvp, symbolic_zeros=True)


def _gradient(classes, each, measure, found: Listed, events: Events, parameters, of_rest) -> jax.Array:
    """By every logit."""
    b = measure.slopes(found.odds, events.shares, *parameters)
    b = nan_where(jnp.broadcast_to(each.spread(events.wrong), b.shape), b)
    major = is_major(each, found.row, found.at_ids)
    sums = split_sums(each, b, major)
    total, beside = sums.minor + sums.major, sums.of_others(each, b, major)
    gradient = -_softmax(classes, found.row, found.others) * classes.spread(total)
    if events.rest is not None:
        assert found.rest is not None
        assert found.rest_row is not None
        b_rest = measure.slopes(found.rest, events.rest, *of_rest)
        beside = beside + each.spread(b_rest)
        gradient = _softmax(classes, found.rest_row, found.others) * classes.spread(b_rest * found.rest.q) + gradient
    at_ids = b * found.odds.q - found.odds.p * beside
    return put(classes, gradient, events.ids, at_ids)
