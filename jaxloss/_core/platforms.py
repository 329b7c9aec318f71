"""Forms of one computation for different platforms, chosen when a program is lowered, not when it is traced.

What is exported, or compiled ahead on another host, must be right for where it runs; so nothing here asks what devices
this process has. A form is never differentiated: the functions that choose have derivative rules of their own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.varying import vary, varying_any


def on_platform(*arguments: Any, cpu: Callable, accelerator: Callable, gpu: Callable | None = None) -> Any:
    """The result of the form for CPU, or of that for everything else; of one type, whatever a form reads of them."""
    arguments = vary(arguments, varying_any(arguments))
    own = {} if gpu is None else {"cuda": gpu, "rocm": gpu}
    return lax.platform_dependent(*arguments, cpu=cpu, **own, default=accelerator)


FEW = 10
"""Up to so many classes XLA on CPU writes out a reduction of several results, in less time than plain sums take (half,
at 10); with six results or more, two classes fewer. From 16 on it takes several times as long (jax 0.10.2, 2 cores)."""


def by_row(classes: int, results: int, *arguments: Any, plain: Callable, folded: Callable) -> Any:
    """The `results` of plain sums for many classes on CPU, or of one read of the row."""
    few = isinstance(classes, int) and classes <= (FEW if results < 6 else FEW - 2)
    return folded(*arguments) if few else on_platform(*arguments, cpu=plain, accelerator=folded)


def recomputed(x: jax.Array, turn: int = 1) -> jax.Array:
    """`x`, such that XLA on an accelerator computes anew, in each `turn`, what follows from it.

    An expensive elementwise part that two sums, or a sum and a gradient, share is else computed once and stored, in
    arrays of the size of the logits in float32; computed twice it costs arithmetic alone, as all that reads the same
    logits then goes into one kernel. A factor of 1 that the compiler cannot see through keeps the turns apart.
    """

    def multiplied(x):
        one = jnp.ones((), x.dtype)
        for _ in range(turn):
            one = lax.optimization_barrier(one)
        return x * one

    return on_platform(x, cpu=lambda x: x, accelerator=multiplied)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def apart(function: Callable[..., Any], x: jax.Array, *arguments: Any) -> Any:
    """`function(x, *arguments)`, whose derivative shares nothing of what follows from `x` with its value."""
    return function(x, *arguments)


def _apart_jvp(function, primals, tangents):
    leaves, structure = jax.tree.flatten((recomputed(primals[0]), *primals[1:]))
    moving = {k: t for k, t in enumerate(jax.tree.leaves(tangents)) if not isinstance(t, SymbolicZero)}

    def moved(given):
        return function(*structure.unflatten(given.get(k, x) for k, x in enumerate(leaves)))

    return apart(function, *primals), jax.jvp(moved, ({k: leaves[k] for k in moving},), (moving,))[1]


apart.defjvp(_apart_jvp, symbolic_zeros=True)
