"""From logits and options to losses: link, scalar function, weights, rows left out.

Every softmax loss is a coefficient times a scalar function at the label id, or a sum of those over the classes (a
distribution as label, label smoothing); and the z-loss. Every sigmoid loss is an elementwise function of the odds and
the target. Nothing here knows which loss it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxloss._core.arguments import Elements, Rows, softmax_rows
from jaxloss._core.classes import pick
from jaxloss._core.expectations import Part, Scalar, Shares, expected
from jaxloss._core.label_odds import LabelOdds, label_odds
from jaxloss._core.labels import TopK
from jaxloss._core.log_odds import Odds, counted, cross_entropy, lowered
from jaxloss._core.top_k import spread_out, top_k_loss


class Terms(NamedTuple):
    """What a loss over rows adds up."""

    rows: Rows
    parameters: tuple[jax.Array | None, ...]  # of the `lowered` scalar function
    z_loss: jax.Array | None  # coefficient of logsumexp^2
    shares: Shares | None  # coefficients of the classes; None for ids
    label: LabelOdds | None  # None for a distribution
    weights: jax.Array | None  # of the label


def softmax_terms(parameters: dict[str, Any], name, logits, labels, axis, where, axis_name, options) -> Terms:
    """Resolves labels and `options` (class weights, margins, smoothing, z-loss); margins lead the parameters."""
    class_weights, label_margins, label_smoothing, z_loss = options
    parameters = {"label_margins": label_margins, **parameters}
    top = labels if isinstance(labels, TopK) else None
    rows = softmax_rows(name, logits, None if top else labels, axis, where, axis_name)
    if top:
        rows = rows._replace(targets=spread_out(rows, "labels", top))
    if label_smoothing is not None:
        rows = distributions(rows)
    given, coefficient = tuple(map(rows.parameter, parameters, parameters.values())), rows.parameter("z_loss", z_loss)
    ids = rows.ids
    if ids is None:
        return Terms(rows, given, coefficient, shares_of(rows, class_weights, label_smoothing), None, None)

    weights = label_weights(rows, class_weights)
    label = label_odds(rows.classes, rows.logits, ids)
    return Terms(rows, tuple(_of_label(rows, x) for x in given), coefficient, None, label, weights)


def _of_label(rows: Rows, x: jax.Array | None) -> jax.Array | None:
    """A parameter of each class, at the label of each row."""
    return x if x is None or not x.ndim else pick(rows.classes, x, rows.ids)


def label_weights(rows: Rows, class_weights) -> jax.Array | None:
    """What the loss of each row's id is multiplied with: 1 for None, 0 for the id of a class left out."""
    weights = _of_label(rows, rows.parameter("class_weights", class_weights))
    if rows.counts is None:
        return weights
    return rows.of_labels(jnp.ones_like(rows.counts, rows.logits.dtype) if weights is None else weights)


def distributions(rows: Rows) -> Rows:
    """Rows whose ids, if they have any, became one-hot targets."""
    return rows if rows.ids is None else rows._replace(ids=None, targets=rows.one_hot())


def shares_of(rows: Rows, class_weights, label_smoothing) -> Shares:
    """Coefficients of the classes of rows with targets."""
    assert rows.targets is not None
    exists = (rows.logits != rows.excluded).astype(rows.logits.dtype)
    options = (("class_weights", class_weights), ("label_smoothing", label_smoothing))
    return Shares(rows.targets, exists, *(rows.parameter(*option) for option in options))


def softmax_loss(scalar: Scalar, parameters: dict[str, Any], *common) -> jax.Array:
    """Losses per row of a scalar function of the log-odds; `common` arguments as `softmax_terms` takes them."""
    name, logits, labels, *place, options = common
    if isinstance(labels, TopK):
        return top_k_loss(lowered(scalar), parameters, softmax_rows(name, logits, None, *place), labels, options)
    rows, given, z_loss, shares, label, weights = softmax_terms(parameters, *common)
    scalar = lowered(scalar)
    if label is not None:
        losses, logsumexp = Part(weights, label.odds, given).values(scalar), label.logsumexp
    else:
        assert shares is not None
        losses, logsumexp = expected(rows.classes, scalar, rows.logits, shares, given)
    return rows.finish(losses if z_loss is None else losses + z_loss * counted(z_loss, jnp.square(logsumexp)))


def probability_loss(
    clean: Callable[..., jax.Array], nll: Callable, excluded: float, argument: str, name, values, *common
) -> jax.Array:
    """Cross-entropy per row of what already is a probability, or its logarithm; `nll` maps it, cleaned, to -log p."""
    labels, axis, where, options = common
    rows = distributions(softmax_rows(name, values, labels, axis, where, excluded=excluded, argument=argument))
    rows = rows._replace(logits=clean(rows, values.dtype, where is not None and where.shape == values.shape))
    minus_logs = nll(rows.logits)
    truth = Odds(minus_logs, minus_logs, minus_logs, minus_logs)  # cross-entropy reads the first alone
    part = Part(shares_of(rows, *options).array(rows.classes), truth, ())
    return rows.finish(rows.classes.sum(part.values(cross_entropy)))


def infinite_where(mask: jax.Array, like: jax.Array) -> jax.Array:
    """A constant to add: +inf where `mask`, else 0."""
    return jnp.where(mask, jnp.full_like(like, jnp.inf), jnp.zeros_like(like))


def elementwise_loss(elements: Elements, values: Callable[[jax.Array, jax.Array], jax.Array], options) -> jax.Array:
    """Losses per element; `values` is a function of the logit (or probability) and the (smoothed) target."""
    weights, smoothing = map(elements.parameter, ("class_weights", "label_smoothing"), options)
    targets = elements.targets
    if smoothing is not None:
        targets = targets * (1 - smoothing) + smoothing / 2
    losses = values(elements.logits, targets)
    if weights is not None:
        losses = counted(weights, losses) * weights
    return losses if elements.keep is None else jnp.where(elements.keep, losses, 0)


def sigmoid_loss(elements: Elements, values: Callable[[jax.Array, jax.Array], jax.Array], options) -> jax.Array:
    """Losses per element without a bound on the wrong side of the target; `values` holds for finite logits.

    There they are 0 where a weight of 0 drops the element.
    """

    def with_limits(logits, targets):
        wrong = ((logits == jnp.inf) & (targets < 1)) | ((logits == -jnp.inf) & (targets > 0))
        losses = values(logits, targets)
        return losses + infinite_where(wrong & (losses != 0), losses)

    return elementwise_loss(elements, with_limits, options)
