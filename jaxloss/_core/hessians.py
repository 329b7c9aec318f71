"""Diagonals of Hessians with respect to the logits, in closed form, at the cost of a few passes over the row.

`phi` stands for the scalar function; its first and second derivative with respect to the log-odds l come from the
derivative rule of `odds`, elementwise.
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxloss._core.arguments import softmax_rows
from jaxloss._core.classes import ClassAxis
from jaxloss._core.compose import softmax_terms
from jaxloss._core.divergences import divergence, jensen_shannon, mixture, ratios
from jaxloss._core.expectations import Part, Scalar
from jaxloss._core.labels import TopK
from jaxloss._core.log_odds import lowered, odds
from jaxloss._core.statistics import class_odds, complement, is_major, over, split_sums
from jaxloss._core.teachers import heated, pair_of
from jaxloss._core.top_k import shares_of_tail, spread_out, tail_curvature


def _slope_and_curvature(scalar: Scalar, part: Part) -> tuple[jax.Array, jax.Array]:
    """Coefficient times phi'(l) and phi''(l)."""
    log_odds = part.truth.nlc - part.truth.nll

    def value(l):
        return part._replace(truth=odds(l)).values(scalar)

    def slope(l):
        return jax.jvp(value, (l,), (jnp.ones_like(l),))[1]

    return jax.jvp(slope, (log_odds,), (jnp.ones_like(log_odds),))


def _at_label(scalar: Scalar, part: Part, classes: ClassAxis, others: jax.Array, is_label: jax.Array) -> jax.Array:
    """By phi'' (dl/dz_j)^2 + phi' d2l/dz_j^2: (1, 0) at the label, (-q_j, -q_j (1 - q_j)) at the other classes."""
    slope, curvature = map(classes.spread, _slope_and_curvature(scalar, part))
    at_others = curvature * others * others - slope * others * complement(classes, others)
    return jnp.where(is_label, curvature, at_others)


def _at_classes(scalar: Scalar, part: Part, classes: ClassAxis) -> jax.Array:
    """The derivative by z_j of g_j = a_j - p_j (sum_c b_c - b_j), with a_c = u_c phi'(l_c), b_c = a_c / (1 - p_c)."""
    slope, curvature = _slope_and_curvature(scalar, part)
    p, q = part.truth.p, part.truth.q

    def of_others(x):
        return classes.spread(classes.sum(x)) - x

    through_p = -p * q * of_others(over(slope, q))
    through_b = p * (p * of_others(over(over(curvature + p * slope, q), q)))
    return curvature + through_p + through_b


def softmax_hessian(scalar: Scalar) -> Callable[[Callable], Callable]:
    """Of a softmax loss with this scalar function."""
    keys = list(inspect.signature(scalar).parameters)[1:]  # `jit` sorts keywords
    scalar = lowered(scalar)

    def decorate(function):
        def hessian(logits, labels, axis, where, *, axis_name, **given):
            options = tuple(given[key] for key in ("class_weights", "label_margins", "label_smoothing", "z_loss"))
            parameters = {key: given[key] for key in keys}
            terms = softmax_terms(parameters, function.__name__, logits, labels, axis, where, axis_name, options)
            rows, parameters, coefficient, shares, label, weights = terms
            if shares is not None:
                part = Part(shares.array(rows.classes), class_odds(rows.classes, rows.logits).odds, parameters)
                diagonal = _at_classes(scalar, part, rows.classes)
            else:
                assert label is not None
                assert rows.ids is not None
                is_label = rows.classes.is_label(rows.logits, rows.ids)
                part = Part(weights, label.odds, parameters)
                diagonal = _at_label(scalar, part, rows.classes, label.others(rows.classes), is_label)
            if isinstance(labels, TopK) and labels.tail:
                if any(x is not None for x in parameters):
                    raise _no_hessian(function.__name__, "labels", "with tail=True")
                weight = shares_of_tail(rows, given["class_weights"], given["label_smoothing"])
                diagonal = diagonal + weight * tail_curvature(rows, "labels", labels, rows.logits)
            if coefficient is not None:
                every = class_odds(rows.classes, rows.logits)
                p, q = every.odds.p, every.odds.q
                logsumexp = rows.classes.spread(every.logsumexp)
                diagonal = diagonal + 2 * coefficient * (p * p + logsumexp * p * q)
            return rows.restore(diagonal, logits)

        return hessian

    return decorate


def kl_hessian(function: Callable) -> Callable:
    """Of the Kullback-Leibler divergence, times temperature^2: forward p_j (1 - p_j).

    Reverse, with x_j = log p_j - log t_j and the loss its mean under p: p_j ((1 - 2 p_j) (x_j - loss) + 1 - p_j).
    """

    def hessian(logits, target_logits, axis, where, *, direction, temperature, **options):
        if isinstance(target_logits, TopK) and direction == "reverse":
            raise _no_hessian(function.__name__, "target_logits", "in the reverse direction")
        if direction == "reverse":
            return _of_mean(function.__name__, logits, target_logits, axis, where, None, temperature, **options)
        rows = softmax_rows(function.__name__, logits, None, axis, where, options["axis_name"])
        temperature = rows.parameter("temperature", temperature)
        every = class_odds(rows.classes, heated(rows.logits, temperature)).odds
        scale = 1 if temperature is None else jnp.square(temperature)
        diagonal = every.p * every.q
        if isinstance(target_logits, TopK):
            total = rows.classes.spread(rows.classes.sum(spread_out(rows, "target_logits", target_logits)))
            heats = heated(rows.logits, temperature)
            diagonal = total * diagonal + tail_curvature(rows, "target_logits", target_logits, heats)
        return rows.restore(diagonal / scale, logits)

    return hessian


def _no_hessian(name: str, key: str, when: str) -> TypeError:
    return TypeError(
        f"per_example_value_grad_hess: `{key}` of {name} must be arrays; got TopK {when}. "
        "For gradients alone use per_example_value_and_grad; the Hessian is there for cross-entropy and forward KL."
    )


def js_hessian(function: Callable) -> Callable:
    """Of the Jensen-Shannon divergence, in `_of_mean`."""

    def hessian(logits, target_logits, axis, where, *, weight, temperature, axis_name):
        if isinstance(target_logits, TopK):
            raise _no_hessian(function.__name__, "target_logits", "here")
        return _of_mean(function.__name__, logits, target_logits, axis, where, weight, temperature, axis_name)

    return hessian


def _of_mean(name, logits, target_logits, axis, where, weight, temperature, axis_name) -> jax.Array:
    """Of (1 - w) times the mean X of x_c = log p_c - log m_c under p; without w, m is the target t and the factor 1.

    The gradient is p_j (x_j - X). With s_c = w t_c / m_c (1 without w) and S its mean, dx_c/dz_j = ([c = j] - p_j) s_c,
    and the diagonal is p_j ((1 - 2 p_j) (x_j - X) + (1 - p_j) s_j + p_j (S - s_j)), over temperature^2.
    """
    rows, pair, *given = pair_of(name, logits, target_logits, axis, where, axis_name, temperature)
    classes, weight = rows.classes, rows.parameter("weight", weight)
    shift = (
        divergence(classes, pair, *given) if weight is None else jensen_shannon(classes, pair, *given, weight)
    ).shift
    model, target, x = ratios(classes, pair, shift, *given)
    p, q, share, factor = model.p, model.q, jnp.ones_like(x), 1
    if weight is not None:
        x, factor = mixture(p, target.p, x, weight).model, 1 - weight
        share = over(weight * target.p, weight * target.p + factor * p)
    major = is_major(classes, pair.model, given[0])

    def above_mean(y):
        return q * y - split_sums(classes, p * y, major).of_others(classes, p * y, major)

    diagonal = factor * p * ((q - p) * above_mean(x) + q * share - p * above_mean(share))
    return rows.restore(diagonal if pair.hot is None else diagonal / jnp.square(pair.hot[2]), logits)


def elementwise_hessian(function: Callable) -> Callable:
    """Of an elementwise loss: its Hessian is diagonal, so one product with ones reads it off."""

    def hessian(logits, *args, **kwargs):
        gradient = jax.grad(lambda z: jnp.sum(function(z, *args, **kwargs)))
        return jax.jvp(gradient, (logits,), (jnp.ones_like(logits),))[1]

    return hessian
