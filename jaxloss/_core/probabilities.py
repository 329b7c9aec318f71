"""Probabilities as they come: rounded beyond 0 and 1, or logits by mistake."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.arguments import Rows
from jaxloss._core.checks import check_domain, guard
from jaxloss._core.classes import nan_where

STEPS = 8
"""Units in the last place of 1 by which a sum of probabilities may have left [0, 1]."""
NEAR = 1 / 64
"""How far from 1 the sum of a row may be: bfloat16 rounds each term by 1/512 of it, Keras clips each at 1e-7."""


@jax.custom_jvp
def _rounded(x: jax.Array, low: jax.Array, high: jax.Array, slack: jax.Array) -> jax.Array:
    """The nearest number in [low, high], if that is not farther than `slack`, else `x`."""
    nearest = jnp.clip(x, low, high)
    return jnp.where(jnp.abs(x - nearest) <= slack, nearest, x)


@_rounded.defjvp
def _rounded_jvp(primals, tangents):
    # Not the derivative of the clip, which is 0 where it clips: such a probability moves as 0 or 1 does.
    return _rounded(*primals), tangents[0]


def _slack(dtype: jnp.dtype) -> float:
    return STEPS * float(jnp.finfo(dtype).eps)


def probabilities(name: str, probs: jax.Array, dtype: jnp.dtype, instead: str) -> jax.Array:
    """Entries a rounding of `dtype` outside [0, 1] as 0 or 1, those farther out as NaN; `checkify` names them."""
    p = _rounded(probs, *(jnp.asarray(x, probs.dtype) for x in (0, 1, _slack(dtype))))
    inside = (p >= 0) & (p <= 1)
    p = check_domain(name, "probs", p, inside | jnp.isnan(p), f"probabilities in [0, 1] (for logits use {instead})")
    return p * nan_where(~inside, jnp.ones_like(p))


def probability_rows(rows: Rows, dtype: jnp.dtype, restricted: bool) -> jax.Array:
    """`probabilities` of rows; `checkify` names those whose sum is not 1, or is above where classes are left out."""
    p = probabilities(rows.name, rows.logits, dtype, "softmax_cross_entropy")
    return _check_sums(rows, "probs", p, p, restricted)


def log_probability_rows(rows: Rows, dtype: jnp.dtype, restricted: bool) -> jax.Array:
    """Entries a rounding of `dtype` above 0 as 0; `checkify` names those farther out, and sums as above."""
    x = _rounded(rows.logits, *(jnp.asarray(x, rows.logits.dtype) for x in (-jnp.inf, 0, _slack(dtype))))
    domain = "logarithms of probabilities, <= 0 (for logits use softmax_cross_entropy)"
    x = check_domain(rows.name, "log_probs", x, (x <= NEAR) | jnp.isnan(x), domain)
    return _check_sums(rows, "log_probs", x, jnp.exp(lax.stop_gradient(x)), restricted)


def _check_sums(rows: Rows, argument: str, x: jax.Array, p: jax.Array, restricted: bool) -> jax.Array:
    sums = rows.classes.sum(lax.stop_gradient(p))
    low = 0 if restricted else 1 - NEAR
    near = ((sums <= 1 + NEAR) & (sums >= low)) | jnp.isnan(sums)
    near = near if rows.keep is None else near | ~rows.keep
    message = f"{rows.name}: `{argument}` must hold probabilities that sum to 1 in each row; got a sum of {{bad}}. "
    worst = jnp.max(sums, where=~near, initial=-jnp.inf)
    return guard(x, near, f"{message}For logits use softmax_cross_entropy", worst)
