"""Divergences of a model's logits and a teacher's: arguments, temperature, direction."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxloss._core.arguments import Rows, check_floating, compute_dtype, refuse_one_class, softmax_rows
from jaxloss._core.divergences import Pair, divergence, jensen_shannon
from jaxloss._core.labels import TopK
from jaxloss._core.options import describe
from jaxloss._core.statistics import class_row
from jaxloss._core.top_k import top_k_divergence

DIRECTIONS = ("forward", "reverse")


def check_direction(name: str, direction: Any) -> None:
    if direction not in DIRECTIONS:
        expected = ", ".join(map(repr, DIRECTIONS))
        raise ValueError(f"{name}: `direction` must be one of {expected}; got {direction!r}.")


def pair_of(
    name, logits, target_logits, axis, where, axis_name, temperature
) -> tuple[Rows, Pair, jax.Array, jax.Array]:
    """Checked rows of the model, what is known of both, and both logits over the temperature."""
    if target_logits.shape != logits.shape:
        raise ValueError(
            f"{name}: `target_logits` must have the shape of `logits`; got {describe(target_logits)} and "
            f"{describe(logits)}."
        )
    check_floating(name, "target_logits", target_logits)
    target_logits = target_logits.astype(compute_dtype(logits))
    rows, target_rows = (softmax_rows(name, x, None, axis, where, axis_name) for x in (logits, target_logits))
    refuse_one_class(rows, "logits", "target_logits", target_logits)
    temperature = rows.parameter("temperature", temperature)
    hot = None if temperature is None else (rows.logits, target_rows.logits, temperature)
    z, u = heated(rows.logits, temperature), heated(target_rows.logits, temperature)
    return rows, Pair(class_row(rows.classes, z), class_row(rows.classes, u), hot), z, u


def kl_values(name, logits, target_logits, axis, where, axis_name, temperature, direction) -> jax.Array:
    """The Kullback-Leibler divergence of each row."""
    check_direction(name, direction)
    if isinstance(target_logits, TopK):
        return _of_top_k(direction, name, logits, target_logits, axis, where, axis_name, temperature)
    rows, pair, *given = pair_of(name, logits, target_logits, axis, where, axis_name, temperature)
    if direction == "reverse":
        pair, given = pair.swapped(), given[::-1]
    return rows.finish(divergence(rows.classes, pair, *given).value)


def js_values(name, logits, target_logits, axis, where, axis_name, temperature, weight) -> jax.Array:
    """The Jensen-Shannon divergence of each row."""
    if isinstance(target_logits, TopK):
        return _of_top_k("mixed", name, logits, target_logits, axis, where, axis_name, temperature, weight)
    rows, *given = pair_of(name, logits, target_logits, axis, where, axis_name, temperature)
    weight = rows.parameter("weight", weight)
    assert weight is not None
    return rows.finish(jensen_shannon(rows.classes, *given, weight).value)


def _of_top_k(kind, name, logits, top, axis, where, axis_name, temperature, weight=None) -> jax.Array:
    rows = softmax_rows(name, logits, None, axis, where, axis_name)
    heats = heated(rows.logits, rows.parameter("temperature", temperature))
    return top_k_divergence(kind, rows, heats, top, rows.parameter("weight", weight))


def heated(logits: jax.Array, temperature: jax.Array | None) -> jax.Array:
    """Logits over a temperature; infinite ones stay, without a trace in the derivative by the temperature."""
    if temperature is None:
        return logits
    infinite = jnp.abs(logits) == jnp.inf
    return jnp.where(infinite, logits, jnp.where(infinite, 0, logits) / temperature)
