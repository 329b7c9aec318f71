"""The cumulative logit model of ordered classes: P(y <= c) = sigmoid(theta_c - f), f being the score of an example.

The probability of a class is a difference of two sigmoids, and that is a product:

    sigmoid(a) - sigmoid(b) = sigmoid(a) (1 - sigmoid(b)) (1 - exp(-(a - b))),    a = theta_c - f, b = theta_(c-1) - f,

so minus its logarithm is a sum of three terms >= 0, of which the last knows the step between the cutpoints alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloss._core.arguments import check_floating, check_where, class_ids, compute_dtype
from jaxloss._core.checks import check_domain, guard
from jaxloss._core.classes import ClassAxis, nan_where, pick
from jaxloss._core.compose import infinite_where
from jaxloss._core.log_odds import finite, minus_log1m, odds
from jaxloss._core.options import describe, number


@jax.custom_jvp
def minus_log_step(step: jax.Array) -> jax.Array:
    """-log(1 - exp(-step)), +inf for a step of 0 and NaN below."""
    small = step < 0.7
    near, far = jnp.where(small & (step >= 0), step, 1), jnp.where(small, 1, step)
    return nan_where(step < 0, jnp.where(small, -jnp.log(-jnp.expm1(-near)), minus_log1m(jnp.exp(-far))))


@minus_log_step.defjvp
def _minus_log_step_jvp(primals, tangents):
    return minus_log_step(*primals), -_steepness(*primals) * tangents[0]


@jax.custom_jvp
def _steepness(step: jax.Array) -> jax.Array:
    """1 / (exp(step) - 1)."""
    return 1 / jnp.expm1(step)


@_steepness.defjvp
def _steepness_jvp(primals, tangents):
    value = _steepness(*primals)
    return value, -value * (1 + value) * tangents[0]


@jax.custom_jvp
def _outside(f: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """-log sigmoid(upper - f) - log(1 - sigmoid(lower - f))."""
    return odds(f - upper).nlc + odds(lower - f).nlc


@_outside.defjvp
def _outside_jvp(primals, tangents):
    f, lower, upper = primals
    df, dlower, dupper = tangents
    u, v = finite(f - upper), finite(lower - f)
    return _outside(*primals), _difference(u, v) * df + odds(v).p * dlower - odds(u).p * dupper


@jax.custom_jvp
def _difference(u: jax.Array, v: jax.Array) -> jax.Array:
    """sigmoid(u) - sigmoid(v) as a product, for both may be near 1/2."""
    size = -jnp.expm1(-jnp.abs(u - v)) * odds(jnp.maximum(u, v)).p * odds(jnp.minimum(u, v)).q
    return jnp.where(u >= v, size, -size)


@_difference.defjvp
def _difference_jvp(primals, tangents):
    first, second = (truth.p * truth.q * tangent for truth, tangent in zip(map(odds, primals), tangents, strict=True))
    return _difference(*primals), first - second


class Edges(NamedTuple):
    """The cutpoints below and above a class, -inf below the first and inf above the last."""

    lower: jax.Array
    upper: jax.Array


def _minus_log_probability(scores: jax.Array, edges: Edges, counts: jax.Array) -> jax.Array:
    """-log P of a class, which `counts` or is 0."""
    f = finite(scores)
    steps = minus_log_step(jnp.where(counts, edges.upper - edges.lower, jnp.inf))
    losses = _outside(f, *edges) + steps
    beyond = ((scores == jnp.inf) & (edges.upper < jnp.inf)) | ((scores == -jnp.inf) & (edges.lower > -jnp.inf))
    return losses + infinite_where(beyond & counts, losses)


def ordered_logistic(name, scores, labels, cutpoints, where, class_weights) -> jax.Array:
    """The loss of each score."""
    check_floating(name, "scores", scores)
    if cutpoints.ndim != 1 or not jnp.issubdtype(cutpoints.dtype, jnp.floating):
        raise ValueError(
            f"{name}: `cutpoints` must be a float array [C - 1], the ascending bounds between C classes; got "
            f"{describe(cutpoints)}. The order is (scores, labels, cutpoints); for cutpoints of each row use jax.vmap."
        )
    dtype, batch, size = compute_dtype(scores), scores.shape, len(cutpoints) + 1
    is_ids = labels.shape == batch and jnp.issubdtype(labels.dtype, jnp.integer)
    if not is_ids and labels.shape != (*batch, size):
        raise ValueError(
            f"{name}: `labels` must be integer ids of the shape {batch} of `scores`, or a distribution of shape "
            f"{(*batch, size)} over the {size} classes that `cutpoints` {describe(cutpoints)} part; got "
            f"{describe(labels)}."
            + (" For ids use labels.astype(jnp.int32)." if labels.shape == batch else "")
            + (" Did you mean scores[..., 0]?" if batch == (*labels.shape, 1) else "")
        )
    check_where(name, where, {batch: "rows to keep"})
    z, t = scores.astype(dtype), labels
    if where is not None:
        z = jnp.where(where, z, 0)
        t = jnp.where(where if is_ids else where[..., None], labels, jnp.zeros((), labels.dtype))
    cutpoints = cutpoints.astype(dtype)
    steps = cutpoints[1:] - cutpoints[:-1]
    message = f"{name}: `cutpoints` must ascend; got a step of {{bad}}"
    cutpoints = guard(cutpoints, steps > 0, message, jnp.min(steps, initial=jnp.inf))
    end = jnp.full(1, jnp.inf, dtype)
    weights = None if class_weights is None else number(name, "class_weights", class_weights, size, dtype)
    # A row of the classes, to which rows of labels broadcast.
    edges = Edges(
        *(jnp.expand_dims(jnp.concatenate(x), range(len(batch))) for x in ((-end, cutpoints), (cutpoints, end)))
    )
    weights = weights if weights is None or not weights.ndim else jnp.expand_dims(weights, range(len(batch)))
    if not is_ids:
        shares = t.astype(dtype)
        shares = check_domain(name, "labels", shares, shares >= 0, "a distribution over the classes, no entry below 0")
        shares = shares if weights is None else shares * weights
        losses = jnp.sum(shares * _minus_log_probability(z[..., None], edges, shares != 0), -1)
    else:
        ids, classes = class_ids(name, t, size), ClassAxis(len(batch))
        at_label = Edges(*(pick(classes, x, ids) for x in edges))
        weights = weights if weights is None or not weights.ndim else pick(classes, weights, ids)
        counts = jnp.ones(batch, bool) if weights is None else jnp.broadcast_to(weights != 0, batch)
        losses = _minus_log_probability(z, at_label, counts)
        losses = losses * nan_where(ids < 0, jnp.ones_like(losses) if weights is None else weights)
    return losses if where is None else jnp.where(where, losses, 0)


def score_hessian(function: Callable) -> Callable:
    """Of a loss of one score: its second derivative."""

    def hessian(scores, *args, **options):
        gradient = jax.grad(lambda z: jnp.sum(function(z, *args, **options)))
        return jax.jvp(gradient, (scores,), (jnp.ones_like(scores),))[1]

    return hessian
