"""What XLA is to do differently on one kind of device."""

import jax
import jax.numpy as jnp
from jax import lax


def apart(row: jax.Array) -> jax.Array:
    """The same numbers; on GPUs, what is computed from them is not shared with what is computed from `row`.

    XLA stores there, in the shape of the logits, what is costly and used by two sums. To compute it twice moves less.
    """
    one = jnp.ones((), row.dtype)

    def hidden():
        return lax.optimization_barrier(one)

    return row * lax.platform_dependent(cuda=hidden, rocm=hidden, default=lambda: one)
