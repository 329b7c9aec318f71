"""Losses of `TopK` labels: checks, events, and the functions of their odds."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxloss._core.arguments import Rows, class_ids
from jaxloss._core.checks import check_domain, guard
from jaxloss._core.classes import nan_where
from jaxloss._core.divergences import growth, mixture, terms_of
from jaxloss._core.events import Events, Measure, look_up, over_events, picked, put
from jaxloss._core.expectations import Part, Scalar, Shares, expected, slopes_of
from jaxloss._core.labels import TopK
from jaxloss._core.log_odds import Odds, ceiling, counted, minus_log
from jaxloss._core.options import describe
from jaxloss._core.statistics import class_odds, class_row


def events_of(rows: Rows, key: str, top: TopK, others: bool = False) -> Events:
    """The events that labels name; with `others` the classes not listed are one in any case."""
    name, classes, dtype = rows.name, rows.classes, rows.logits.dtype
    ids, shares = jnp.asarray(top.ids), jnp.asarray(top.probabilities)
    size = classes.size(rows.logits)
    _check(name, key, top, ids, shares, tuple(n for i, n in enumerate(rows.logits.shape) if i != classes.axis), size)
    shares = shares.astype(dtype)
    if rows.keep is not None:
        shares = jnp.where(rows.keep[..., None], shares, 0)
    named = shares != 0
    shares = check_domain(name, key, shares, shares >= 0, "top-k probabilities, none of them below 0")
    checked = class_ids(name, jnp.where(named, ids, jnp.zeros((), ids.dtype)), size, key)
    valid = named & (checked >= 0)
    order = jnp.sort(jnp.where(valid, checked, size + _places(ids)), axis=-1)
    again = order[..., 1:] == order[..., :-1]
    message = f"{name}: `{key}` must name each class once in a row; got {{bad}} twice"
    twice = guard(jnp.any(again, -1), ~again, message, jnp.max(order[..., 1:], where=again, initial=-1))
    wrong = jnp.any(named & ~valid, -1) | twice
    rest = None
    if top.tail and ids.shape[-1] < size:
        rest = _rest(name, key, shares)
    elif others:
        rest = jnp.zeros(wrong.shape, dtype)
    ids, shares = (jnp.moveaxis(x, -1, classes.axis) for x in (jnp.where(valid, checked, size), shares))
    if rows.kept is not None:
        kept = look_up(classes, rows.kept.astype(dtype), ids, 0) > 0
        ids, shares = jnp.where(kept, ids, size), jnp.where(kept, shares, 0)
    return Events(ids, shares, rest, wrong)


def _places(x: jax.Array) -> jax.Array:
    return jnp.expand_dims(jnp.arange(x.shape[-1], dtype=jnp.int32), range(x.ndim - 1))


def _rest(name: str, key: str, shares: jax.Array) -> jax.Array:
    """1 less the sum of the probabilities: the largest is taken out first, then the others, so that less is rounded."""
    largest = _places(shares) == jnp.argmax(shares, -1, keepdims=True).astype(jnp.int32)
    rest = (1 - jnp.sum(jnp.where(largest, shares, 0), -1)) - jnp.sum(jnp.where(largest, 0, shares), -1)
    total = jnp.sum(shares, -1)
    domain = "top-k probabilities that add up to 1 at the most where tail=True"
    rest = check_domain(name, key, rest, total <= 1 + 2**-6, domain, " for the rest")
    return jnp.where(rest < 0, 0, rest)


def _check(name: str, key: str, top: TopK, ids: jax.Array, shares: jax.Array, batch: tuple[int, ...], size: int):
    if not isinstance(top.tail, bool):
        raise TypeError(f"{name}: `tail` of TopK must be True or False; got {top.tail!r}.")
    shape = f"({', '.join(map(str, (*batch, 'k')))})"
    expected = f"{name}: `{key}` must be TopK of integer ids and float probabilities of shape {shape}"
    got = f"got {describe(ids)} and {describe(shares)}"
    if not jnp.issubdtype(ids.dtype, jnp.integer) or not jnp.issubdtype(shares.dtype, jnp.floating):
        order = " The order is TopK(ids, probabilities); jax.lax.top_k returns (values, ids)."
        raise TypeError(f"{expected}; {got}.{order}")
    if ids.shape != shares.shape or ids.shape[:-1] != batch or ids.ndim != len(batch) + 1:
        raise ValueError(f"{expected}; {got}. The k classes lie on the last axis, wherever the logits have theirs.")
    if not 1 <= ids.shape[-1] <= size:
        raise ValueError(f"{expected}, k being 1 at the least and {size}, the number of classes, at the most; {got}.")


def _of_events(rows: Rows, ids: jax.Array, key: str, given: Any, tail: bool) -> tuple[Any, Any]:
    """A numeric option at the classes listed, and for the others."""
    value = rows.parameter(key, given)
    if value is None or not value.ndim:
        return value, value
    if tail:
        raise ValueError(
            f"{rows.name}: `{key}` must be a scalar for TopK labels with tail=True, which has no class of its own; got "
            "an entry for each class."
        )
    return picked(rows.classes, value.reshape(-1), ids), None


def top_k_loss(scalar: Scalar, parameters: dict[str, Any], rows: Rows, labels: TopK, options) -> jax.Array:
    """Losses per row of a `lowered` scalar function of each event's log-odds; `options` as `softmax_terms` has them."""
    class_weights, label_margins, label_smoothing, z_loss = options
    parameters = {"label_margins": label_margins, **parameters}
    classes, events = rows.classes, events_of(rows, "labels", labels)
    given = [_of_events(rows, events.ids, *option, labels.tail) for option in parameters.items()]
    weights, of_rest = _of_events(rows, events.ids, "class_weights", class_weights, labels.tail)
    if weights is not None:
        events = events._replace(shares=weights * events.shares)
    if of_rest is not None and events.rest is not None:
        events = events._replace(rest=of_rest * events.rest)
    losses = over_events(classes, _phi(scalar), rows.logits, events, *(tuple(x[i] for x in given) for i in (0, 1)))
    smoothing, z_loss = rows.parameter("label_smoothing", label_smoothing), rows.parameter("z_loss", z_loss)
    if smoothing is not None:
        exists = (rows.logits != rows.excluded).astype(rows.logits.dtype)
        shares = Shares(exists, exists, rows.parameter("class_weights", class_weights))
        every = expected(
            classes, scalar, rows.logits, shares, tuple(rows.parameter(*option) for option in parameters.items())
        )[0]
        mean = every / jnp.maximum(classes.sum(exists), 1)
        losses = counted(1 - smoothing, losses) * (1 - smoothing) + smoothing * mean
    if z_loss is not None:
        losses = losses + z_loss * counted(z_loss, jnp.square(class_row(classes, rows.logits).logsumexp))
    return rows.finish(losses)


def spread_out(rows: Rows, key: str, top: TopK) -> jax.Array:
    """The classes listed as a distribution of the shape of the logits, for what is of that shape anyway."""
    events = events_of(rows, key, top)
    spread = put(rows.classes, jnp.zeros_like(rows.logits), events.ids, events.shares)
    return nan_where(jnp.broadcast_to(rows.classes.spread(events.wrong), spread.shape), spread)


def shares_of_tail(rows: Rows, class_weights, label_smoothing) -> Any:
    """What the tail's mass is multiplied with."""
    weight = _of_events(rows, jnp.zeros((), jnp.int32), "class_weights", class_weights, True)[1]
    smoothing = rows.parameter("label_smoothing", label_smoothing)
    return (1 if weight is None else weight) * (1 if smoothing is None else 1 - smoothing)


def tail_curvature(rows: Rows, key: str, top: TopK, logits: jax.Array) -> jax.Array:
    """The Hessian's diagonal of -t log p of the tail: t (p_j (1 - p_j) - s_j (1 - s_j)), s being 0 for those listed."""
    classes, events = rows.classes, events_of(rows, key, top)
    if events.rest is None:
        return jnp.zeros_like(logits)
    others = put(classes, logits, events.ids, jnp.full_like(events.shares, -jnp.inf))
    p, s = (class_odds(classes, x).odds for x in (logits, others))
    return classes.spread(events.rest) * (p.p * p.q - s.p * s.q)


def _phi(scalar: Scalar) -> Measure:
    return Measure(
        lambda truth, share, *given: Part(share, truth, given).values(scalar),
        lambda truth, share, *given: slopes_of(scalar, Part(share, truth, given)),
        lambda truth, share, *given: Part(share, truth, given).limits(scalar),
    )


def _ratio(truth: Odds, share: jax.Array) -> jax.Array:
    """D = log p - log t."""
    return minus_log(share) - truth.nll


def _forward(whole: bool) -> Measure:
    """T (log t - log p); `whole` says that shares add up to 1, as p does: then t - p is taken away, which sums to 0."""

    def values(truth, share):
        d = _ratio(truth, share)
        beyond = (truth.nll >= ceiling(d.dtype)) & (share > 0)
        terms = terms_of(share, truth.p - share, d) if whole else -share * d
        return terms + jax.lax.stop_gradient(jnp.where(beyond, jnp.inf, 0 * terms))

    def slopes(truth, share):
        return growth(share, _ratio(truth, share), truth.p) if whole else -share

    return Measure(values, slopes, lambda truth, share: -_ratio(truth, share) + (0 if whole else 1))


def _reverse(whole: bool) -> Measure:
    """P (log p - log t), and t - p taken away in the same way."""

    def values(truth, share):
        d = _ratio(truth, share)
        beyond = (share == 0) & (truth.p > 0)
        terms = terms_of(truth.p, share - truth.p, -d) if whole else truth.p * d
        return jnp.where(beyond, jnp.inf, terms)

    def slopes(truth, share):
        return jnp.where(share == 0, 0, truth.p * (_ratio(truth, share) + (0 if whole else 1)))

    def by_share(truth, share):
        ratio = truth.p / jnp.where(share == 0, 1, share)
        return jnp.where(share == 0, 0, (1 - ratio) if whole else -ratio)

    return Measure(values, slopes, by_share)


def _mixed() -> Measure:
    """W t (log t - log m) + (1 - w) p (log p - log m), for shares of any sum."""

    def parts(truth, share, weight):
        return mixture(truth.p, share, _ratio(truth, share), weight)

    def values(truth, share, weight):
        found = parts(truth, share, weight)
        return weight * found.of_target + (1 - weight) * found.of_model

    def slopes(truth, share, weight):
        return (1 - weight) * truth.p * parts(truth, share, weight).model

    return Measure(values, slopes, lambda truth, share, weight: weight * parts(truth, share, weight).target)


def top_k_divergence(kind: str, rows: Rows, logits: jax.Array, top: TopK, weight: jax.Array | None) -> jax.Array:
    """Of `kind` forward, reverse or mixed; `logits` are those of the rows over the temperature."""
    size, k = rows.classes.size(logits), jnp.asarray(top.ids).shape[-1]
    whole = top.tail and k < size
    if kind == "reverse" and not top.tail and k < size:
        raise ValueError(
            f"{rows.name}: `target_logits` must be TopK with tail=True in the reverse direction; got tail=False and "
            f"{k} of {size} classes: KL(p || t) is infinite where classes of p have no probability in t."
        )
    events = events_of(rows, "target_logits", top, others=kind != "forward")
    measure = {"forward": _forward, "reverse": _reverse}[kind](whole) if weight is None else _mixed()
    given = () if weight is None else (weight,)
    return rows.finish(over_events(rows.classes, measure, logits, events, given, given))
