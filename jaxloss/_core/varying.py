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


def names_of(axes: Any) -> tuple[str, ...]:
    """Mesh axes of an `axis_name` or of an entry of a `PartitionSpec`: none, one or several."""
    return () if axes is None else tuple(axes) if isinstance(axes, tuple | list) else (axes,)


def check_split(name: str, argument: str, x: jax.Array, axis_name: Any) -> None:
    """That the mesh axes which are to split the classes exist and, as far as types tell, that they do split them."""
    for axis in names_of(axis_name):
        try:
            index = jax.eval_shape(partial(lax.axis_index, axis))
        except NameError:
            raise ValueError(
                f"{name}: `axis_name` must be a mesh axis inside jax.shard_map; got {axis!r}, which is none here. "
                "Where the classes are not split leave it out; linear_loss takes it as well as its loss."
            ) from None
        if lax.axis_size(axis) > 1 and axis in varying(index) - varying(x):
            raise ValueError(
                f"{name}: `{argument}` must be split by class over mesh axis {axis!r}, which `axis_name` names; got "
                f"{x.dtype}{list(x.shape)}, the same on each of its {lax.axis_size(axis)} devices, whose classes would "
                "count as often. Leave axis_name out, or split the classes."
            )


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
