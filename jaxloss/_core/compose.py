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
from jaxloss._core.log_odds import Odds, bregman, ceiling, impossible, odds
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
    """The parts of a softmax loss."""

    rows: Rows
    at_label: Part | None = None
    at_classes: Part | None = None
    label: LabelOdds | None = None
    z_loss: jax.Array | None = None  # coefficient times logsumexp^2


def softmax_terms(parameters: dict[str, Any], name, logits, labels, axis, where, axis_name, options) -> Terms:
    """Resolves labels and `options` (class weights, smoothing, z-loss) into coefficients."""
    rows = softmax_rows(name, logits, labels, axis, where, axis_name)
    classes, logits, ids = rows.classes, rows.logits, rows.ids
    weights, smoothing, z_loss = map(rows.parameter, ("class_weights", "label_smoothing", "z_loss"), options)
    at_classes = tuple(map(rows.parameter, parameters, parameters.values()))

    coefficients = rows.targets
    if smoothing is not None:
        exists = (logits > -jnp.inf).astype(logits.dtype)
        uniform = classes.spread(smoothing / jnp.maximum(classes.sum(exists), 1)) * exists
        coefficients = uniform if coefficients is None else (1 - smoothing) * coefficients + uniform
    if coefficients is not None and weights is not None:
        coefficients = coefficients * weights

    label, label_part, class_part, logsumexp = None, None, None, None
    if coefficients is not None:
        every = class_odds(classes, logits)
        class_part, logsumexp = Part(coefficients, every.odds, at_classes), every.logsumexp
    if ids is not None:

        def at_label(x):
            return x if x is None or not x.ndim else pick(classes, x, ids)

        share = 1 if weights is None else at_label(weights)
        if smoothing is not None:
            share = share * (1 - smoothing)
        label = label_odds(classes, logits, ids)
        label_part, logsumexp = Part(share, odds(label.log_odds), tuple(map(at_label, at_classes))), label.logsumexp
    penalty = None if z_loss is None or logsumexp is None else z_loss * jnp.square(logsumexp)
    return Terms(rows, label_part, class_part, label, penalty)


def softmax_loss(scalar: Scalar, parameters: dict[str, Any], *common) -> jax.Array:
    """Losses per row of a scalar function of the log-odds; `common` arguments as `softmax_terms` takes them."""
    terms = softmax_terms(parameters, *common)
    losses = []
    if terms.at_label is not None:
        losses.append(terms.at_label.values(scalar))
    if terms.at_classes is not None:
        losses.append(terms.rows.classes.sum(terms.at_classes.values(scalar)))
    if terms.z_loss is not None:
        losses.append(terms.z_loss)
    return terms.rows.finish(sum(losses[1:], losses[0]))


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


def sigmoid_loss(elements: Elements, values: Callable[[jax.Array, jax.Array], jax.Array], options) -> jax.Array:
    """Losses per element; `values` is a function of the log-odds of a positive and the (smoothed) target."""
    logits, targets = elements.logits, elements.targets
    weights, smoothing = map(elements.parameter, ("class_weights", "label_smoothing"), options)
    if smoothing is not None:
        targets = targets * (1 - smoothing) + smoothing / 2
    losses = values(logits, targets)
    # An infinite logit on the wrong side of the target: infinite loss, with the gradient of a very large finite one.
    wrong = ((logits == jnp.inf) & (targets < 1)) | ((logits == -jnp.inf) & (targets > 0))
    losses = losses + infinite_where(wrong, losses)
    if weights is not None:
        losses = losses * weights
    return losses if elements.keep is None else jnp.where(elements.keep, losses, 0)
