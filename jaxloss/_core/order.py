"""Arguments in the other order, as Keras and scikit-learn have them: (y_true, y_pred)."""

import jax
import jax.numpy as jnp

from jaxloss._core.checks import guard


def swapped(argument: str, first: jax.Array, second: jax.Array | None) -> str:
    """A hint, where dtypes and shapes say that labels came first: ids or hard labels, then floats by class."""
    if second is None or not jnp.issubdtype(second.dtype, jnp.floating):
        return ""
    by_class = any(first.shape == second.shape[:i] + second.shape[i + 1 :] for i in range(second.ndim))
    column = first.shape != second.shape and first.shape == (*second.shape[:-1], 1)
    hard = not jnp.issubdtype(first.dtype, jnp.floating) and first.shape == second.shape
    question = f" Are `{argument}` and `labels` swapped? The order is ({argument}, labels); Keras has (y_true, y_pred)."
    return question if by_class or column or hard else ""


def check_order(name: str, argument: str, first: jax.Array, targets: jax.Array, left_out: float) -> jax.Array:
    """`first`, which `checkify` names where it holds hard labels, but `targets` does not."""

    def soft(x: jax.Array) -> jax.Array:
        return (x != 0) & (x != 1) & (x != left_out)

    likely = ~jnp.any(soft(first)) & jnp.any(first == 1) & jnp.any(soft(targets))
    message = (
        f"{name}: `{argument}` must not be labels; got nothing but 0 and 1 there, and {{bad}} in `labels`. Are the two "
        f"swapped? The order is ({argument}, labels)"
    )
    return guard(first, ~likely, message, jnp.max(targets, where=soft(targets), initial=-jnp.inf))
