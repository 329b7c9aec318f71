"""Forms of one computation for different platforms, chosen when a program is lowered, not when it is traced.

What is exported, or compiled ahead on another host, must be right for where it runs; so nothing here asks what devices
this process has. A form is never differentiated: the functions that choose have derivative rules of their own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def on_platform(*arguments: Any, cpu: Callable, accelerator: Callable) -> Any:
    """The result of the form for CPU, or of that for everything else."""
    return lax.platform_dependent(*arguments, cpu=cpu, default=accelerator)


def recomputed(x: jax.Array) -> jax.Array:
    """`x`, such that XLA on a GPU computes anew what follows from it.

    There, an expensive elementwise part that a sum and a gradient share is computed once and stored, in several arrays
    of the size of the logits; computed twice it costs one more read of the logits. A factor of 1 that the compiler
    cannot see through keeps the two apart.
    """

    def multiplied(x):
        return x * lax.optimization_barrier(jnp.ones((), x.dtype))

    return lax.platform_dependent(x, cuda=multiplied, rocm=multiplied, default=lambda x: x)
