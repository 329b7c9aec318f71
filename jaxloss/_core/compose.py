"""From logits and options to losses: link, scalar function, weights, rows left out.

Every softmax loss is a sum of at most three parts: a coefficient times the scalar function at the label id,
coefficients times the scalar function at every class (a distribution as label, label smoothing), and the z-loss. Every
sigmoid loss is an elementwise function of the odds and the target. Nothing here knows which loss it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.arguments import Elements, Rows, check_floating, compute_dtype, softmax_rows
from jaxloss._core.log_odds import Odds, bregman, ceiling, cross_entropy, impossible, odds
from jaxloss._core.options import describe
from jaxloss._core.statistics import LabelOdds, class_odds, label_odds, pick

Scalar = Callable[..., jax.Array]


class Part(NamedTuple):
    """`coefficients` times a scalar function with `parameters` at `truth`."""

    coefficients: jax.Array | int
    truth: Odds
    parameters: tuple[jax.Array | None, ...]

    def values(self, scalar: Scalar) -> jax.Array:
        """Products, with the exact limit where p is 0 (computed there as a finite odd, for the gradient's sake)."""
        finite = scalar(self.truth, *self.parameters)
        limit = scalar(impossible(finite), *self.parameters)
        at_limit = (self.truth.nll >= ceiling(finite.dtype)) & (self.coefficients != 0)
        values = finite + lax.stop_gradient(jnp.where(at_limit, limit - finite, 0))
        return values if isinstance(self.coefficients, int) else self.coefficients * values


class Terms(NamedTuple):
    """The parts of a loss over rows."""

    rows: Rows
    at_label: Part | None = None
    at_classes: Part | None = None
    label: LabelOdds | None = None
    z_loss: jax.Array | None = None  # coefficient times logsumexp^2


def softmax_terms(parameters: dict[str, Any], name, logits, labels, axis, where, axis_name, options) -> Terms:
    """Resolves labels and `options` (class weights, smoothing, z-loss) into coefficients at the odds of a softmax."""
    rows = softmax_rows(name, logits, labels, axis, where, axis_name)
    classes, logits, ids = rows.classes, rows.logits, rows.ids
    *options, z_loss = options
    share, coefficients = shares(rows, *options)
    at_classes = tuple(map(rows.parameter, parameters, parameters.values()))

    label, label_part, class_part, logsumexp = None, None, None, None
    if coefficients is not None:
        every = class_odds(classes, logits)
        class_part, logsumexp = Part(coefficients, every.odds, at_classes), every.logsumexp
    if ids is not None:
        label = label_odds(classes, logits, ids)
        at_label = tuple(x if x is None or not x.ndim else pick(classes, x, ids) for x in at_classes)
        label_part, logsumexp = Part(share, odds(label.log_odds), at_label), label.logsumexp
    weight = rows.parameter("z_loss", z_loss)
    penalty = None if weight is None or logsumexp is None else weight * jnp.square(logsumexp)
    return Terms(rows, label_part, class_part, label, penalty)


def shares(rows: Rows, class_weights, label_smoothing) -> tuple[jax.Array | int, jax.Array | None]:
    """Coefficients of the scalar function at the label id, and at every class (None for ids without smoothing)."""
    classes = rows.classes
    weights = rows.parameter("class_weights", class_weights)
    smoothing = rows.parameter("label_smoothing", label_smoothing)
    coefficients, share = rows.targets, 1
    if smoothing is not None:
        exists = (rows.logits != rows.excluded).astype(rows.logits.dtype)
        uniform = classes.spread(smoothing / jnp.maximum(classes.sum(exists), 1)) * exists
        coefficients = uniform if coefficients is None else (1 - smoothing) * coefficients + uniform
        share = 1 - smoothing
    if weights is not None:
        coefficients = None if coefficients is None else coefficients * weights
        if rows.ids is not None:
            share = share * (pick(classes, weights, rows.ids) if weights.ndim else weights)
    return share, coefficients


def softmax_loss(scalar: Scalar, parameters: dict[str, Any], *common) -> jax.Array:
    """Losses per row of a scalar function of the log-odds; `common` arguments as `softmax_terms` takes them."""
    terms = softmax_terms(parameters, *common)
    return total(terms, scalar)


def total(terms: Terms, scalar: Scalar) -> jax.Array:
    """The sum of the parts, per row."""
    losses = []
    if terms.at_label is not None:
        losses.append(terms.at_label.values(scalar))
    if terms.at_classes is not None:
        losses.append(terms.rows.classes.sum(terms.at_classes.values(scalar)))
    if terms.z_loss is not None:
        losses.append(terms.z_loss)
    return terms.rows.finish(sum(losses[1:], losses[0]))


def probability_loss(
    nll: Callable[[jax.Array], jax.Array], excluded: float, argument: str, name, values, labels, axis, where, options
) -> jax.Array:
    """Cross-entropy per row of what already is a probability, or its logarithm; `nll` maps it to -log p."""
    rows = softmax_rows(name, values, labels, axis, where, excluded=excluded, argument=argument)
    if rows.ids is not None:  # as one-hot rows, never stored; NaN for an id outside
        onehot = rows.classes.is_label(rows.logits, rows.ids).astype(rows.logits.dtype)
        rows = rows._replace(ids=None, targets=jnp.where(rows.classes.spread(rows.ids < 0), jnp.nan, onehot))
    minus_logs = nll(rows.logits)
    truth = Odds(minus_logs, minus_logs, minus_logs, minus_logs)  # cross-entropy reads the first alone
    _, coefficients = shares(rows, *options)
    return total(Terms(rows, at_classes=None if coefficients is None else Part(coefficients, truth, ())), cross_entropy)


def kl_values(name, logits, target_logits, axis, where, axis_name, temperature) -> jax.Array:
    """sum_c t_c (log t_c - log p_c), as sum_c t_c (exp(d_c) - 1 - d_c) with d_c = log p_c - log t_c: terms >= 0."""
    if target_logits.shape != logits.shape:
        raise ValueError(
            f"{name}: `target_logits` must have the shape of `logits`; got {describe(target_logits)} and "
            f"{describe(logits)}."
        )
    check_floating(name, "target_logits", target_logits)
    target_logits = target_logits.astype(compute_dtype(logits))
    rows, target_rows = (softmax_rows(name, x, None, axis, where, axis_name) for x in (logits, target_logits))
    temperature = rows.parameter("temperature", temperature)
    model, target = (class_odds(r.classes, heated(r.logits, temperature)).odds for r in (rows, target_rows))
    p, t = model.p, target.p
    delta = target.nll - model.nll
    near = delta < 1
    # Where p exceeds e t the three terms are added as they are; t may be 0 there.
    terms = jnp.where(near, t * bregman(jnp.where(near, delta, 0)), (p - t) - t * delta)
    beyond = (model.nll >= ceiling(p.dtype)) & (t > 0)
    terms = terms + infinite_where(beyond, terms)
    return rows.finish(rows.classes.sum(terms))


def infinite_where(mask: jax.Array, like: jax.Array) -> jax.Array:
    """A constant to add: +inf where `mask`, else 0."""
    return jnp.where(mask, jnp.full_like(like, jnp.inf), jnp.zeros_like(like))


def heated(logits: jax.Array, temperature: jax.Array | None) -> jax.Array:
    """Logits over a temperature; -inf stays, without a trace in the derivative by the temperature."""
    if temperature is None:
        return logits
    excluded = logits == -jnp.inf
    return jnp.where(excluded, -jnp.inf, jnp.where(excluded, 0, logits) / temperature)


def elementwise_loss(elements: Elements, values: Callable[[jax.Array, jax.Array], jax.Array], options) -> jax.Array:
    """Losses per element; `values` is a function of the logit (or probability) and the (smoothed) target."""
    weights, smoothing = map(elements.parameter, ("class_weights", "label_smoothing"), options)
    targets = elements.targets
    if smoothing is not None:
        targets = targets * (1 - smoothing) + smoothing / 2
    losses = values(elements.logits, targets)
    if weights is not None:
        losses = losses * weights
    return losses if elements.keep is None else jnp.where(elements.keep, losses, 0)


def sigmoid_loss(elements: Elements, values: Callable[[jax.Array, jax.Array], jax.Array], options) -> jax.Array:
    """Losses per element without a bound on the wrong side of the target; `values` holds for finite logits."""

    def with_limits(logits, targets):
        wrong = ((logits == jnp.inf) & (targets < 1)) | ((logits == -jnp.inf) & (targets > 0))
        losses = values(logits, targets)
        return losses + infinite_where(wrong, losses)

    return elementwise_loss(elements, with_limits, options)
