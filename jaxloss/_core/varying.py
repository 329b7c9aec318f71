"""Mesh axes over which values vary.

Inside `jax.shard_map` a value's type says over which mesh axes it varies. A value that does not vary and meets one that
does is cast, and the derivative of that cast is a sum over devices: casts belong before a loop, not in it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any  # of arrays
Axes = frozenset[str]
Gathers = tuple[tuple[int, tuple[str, ...]], ...]
"""Array axes, and the mesh axes over which each is gathered."""


def varying(x: Any) -> Axes:
    """Mesh axes over which an array, or the type of one, varies inside `shard_map`."""
    kind = (x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)).manual_axis_type
    return frozenset() if kind is None else kind.varying


def vary(tree: Tree, axes: Axes) -> Tree:
    """The same values, typed as varying over `axes`, too."""

    def cast(x):
        missing = tuple(sorted(axes - varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def varying_any(tree: Tree) -> Axes:
    """Mesh axes over which any array of a tree varies."""
    return frozenset().union(*map(varying, jax.tree.leaves(tree)))


def spread(tree: Tree, axes: Axes, gathers: Gathers = ()) -> Tree:
    """The same values on every device of `axes`, gathered if need be; their gradient is summed over devices in float32.

    Arrays come back in float32 for that, where devices share them: a sum of rounded parts would be rounded twice. What
    they hold moves in their own dtype.
    """

    def move(x):
        return _spread(axes, gathers, x) if gathers or axes - varying(x) else x

    return jax.tree.map(move, tree)


def _moved(axes: Axes, gathers: Gathers, x: jax.Array) -> jax.Array:
    for axis, names in gathers:
        x = lax.all_gather(x, names, axis=axis, tiled=True)
    return vary(x, axes)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _spread(axes: Axes, gathers: Gathers, x: jax.Array) -> jax.Array:
    return _wide(_moved(axes, gathers, x))


@_spread.defjvp
def _spread_jvp(axes, gathers, primals, tangents):
    # The transpose of the cast to varying is a sum, that of the gather a sum of which each device keeps its part.
    return _spread(axes, gathers, *primals), _moved(axes, gathers, _wide(*tangents))
