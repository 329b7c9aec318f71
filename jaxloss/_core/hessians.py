"""Diagonals of Hessians with respect to the logits, in closed form, at the cost of a few passes over the row.

`phi` stands for the scalar function; its first and second derivative with respect to the log-odds l come from the
derivative rule of `odds`, elementwise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxloss._core.arguments import softmax_rows
from jaxloss._core.classes import ClassAxis
from jaxloss._core.compose import heated, softmax_terms
from jaxloss._core.expectations import Part, Scalar
from jaxloss._core.log_odds import odds
from jaxloss._core.statistics import class_odds, complement, over


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

    def decorate(function):
        def hessian(logits, labels, axis, where, *, axis_name, class_weights, label_smoothing, z_loss, **parameters):
            options = (class_weights, label_smoothing, z_loss)
            terms = softmax_terms(parameters, function.__name__, logits, labels, axis, where, axis_name, options)
            rows, given, coefficient, shares, label, weights = terms
            if shares is not None:
                part = Part(shares.array(rows.classes), class_odds(rows.classes, rows.logits).odds, given)
                diagonal = _at_classes(scalar, part, rows.classes)
            else:
                assert label is not None
                assert rows.ids is not None
                is_label = rows.classes.is_label(rows.logits, rows.ids)
                part = Part(weights, label.odds, given)
                diagonal = _at_label(scalar, part, rows.classes, label.others(rows.classes), is_label)
            if coefficient is not None:
                every = class_odds(rows.classes, rows.logits)
                p, q = every.odds.p, every.odds.q
                logsumexp = rows.classes.spread(every.logsumexp)
                diagonal = diagonal + 2 * coefficient * (p * p + logsumexp * p * q)
            return rows.restore(diagonal, logits)

        return hessian

    return decorate


def kl_hessian(function: Callable) -> Callable:
    """Of the Kullback-Leibler divergence: p_j (1 - p_j) / temperature^2."""

    def hessian(logits, target_logits, axis, where, *, axis_name, temperature):
        rows = softmax_rows(function.__name__, logits, None, axis, where, axis_name)
        temperature = rows.parameter("temperature", temperature)
        every = class_odds(rows.classes, heated(rows.logits, temperature)).odds
        scale = 1 if temperature is None else jnp.square(temperature)
        return rows.restore(every.p * every.q / scale, logits)

    return hessian


def elementwise_hessian(function: Callable) -> Callable:
    """Of an elementwise loss: its Hessian is diagonal, so one product with ones reads it off."""

    def hessian(logits, *args, **kwargs):
        gradient = jax.grad(lambda z: jnp.sum(function(z, *args, **kwargs)))
        return jax.jvp(gradient, (logits,), (jnp.ones_like(logits),))[1]

    return hessian
