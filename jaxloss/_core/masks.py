"""Masks and weights brought to the shape of the losses, for sums and means of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.annotations import AxisName
from jaxloss._core.arguments import check_where
from jaxloss._core.options import describe, static_axis


def by_entry(name: str, key: str, x: jax.Array, losses: jax.Array, of: str = "losses") -> jax.Array:
    """A mask or weights of the shape of `losses`, given in that shape or, by row, in that of its leading axes."""
    leading = [losses.shape[:axes] for axes in range(max(losses.ndim, 1), 0, -1)]
    if key == "where":
        check_where(name, x, {x.shape: ""})  # its dtype
    if x.shape not in leading:
        rows = ", or that of its leading axes," if losses.ndim > 1 else ""
        raise ValueError(
            f"{name}: `{key}` must have the shape {losses.shape}{rows} of `{of}`; got {describe(x)}."
            f"{_hint(key, x.shape, losses.shape)}"
        )
    return jnp.broadcast_to(jnp.expand_dims(x, range(x.ndim, losses.ndim)), losses.shape)


def _hint(key: str, given: tuple[int, ...], losses: tuple[int, ...]) -> str:
    missing = [i for i in range(len(losses)) if given == losses[:i] + losses[i + 1 :]]
    if not losses:
        return " Is the loss reduced already? Losses of jaxloss come by row or by element: pass those."
    if given == (*losses, 1):
        return f" Drop the last axis with {key}[..., 0]."
    if given[: len(losses)] == losses and key == "where":
        return (
            " Losses are by row: pass mask.any(-1), and this to the loss (masked_loss does both for those of jaxloss)."
        )
    if missing and len(given) == 1:
        return " For a weight of each class pass class_weights to the loss." * (key == "weights")
    if missing:
        spread = f"jnp.broadcast_to(jnp.expand_dims({key}, {missing[0]}), losses.shape)"
        return f" For rows with the classes on axis {missing[0]} pass {spread}."
    if len(given) == 1 and key == "weights":
        return " For class weights of integer labels pass weights=class_weights[labels]."
    return ""


class RowShape(NamedTuple):
    """The shape of the rows of logits whose classes lie on `axes`, and the mesh axes that shard those."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    axis_name: AxisName

    def spread(self, x: jax.Array) -> jax.Array:
        return jnp.expand_dims(x, self.axes)

    def any(self, x: jax.Array) -> jax.Array:
        found = jnp.any(x, self.axes)
        return found if self.axis_name is None else lax.pmax(found.astype(jnp.int32), self.axis_name) > 0


def rows_of(name: str, logits: jax.Array, axis: Any, axis_name: AxisName) -> RowShape:
    axis = static_axis(name, axis)
    given = range(logits.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(sorted(part % logits.ndim for part in given)) if logits.ndim else ()
    return RowShape(tuple(size for i, size in enumerate(logits.shape) if i not in axes), axes, axis_name)


def fitted(rows: RowShape, x: jax.Array | None, losses: jax.Array, reduce: bool = False) -> jax.Array | None:
    """A mask or weights of rows spread over losses by element, or, to `reduce`, rows with an element kept."""
    if x is None or x.shape == losses.shape:
        return x
    if x.shape == rows.shape:
        return jnp.broadcast_to(rows.spread(x), losses.shape)
    return rows.any(x) if reduce and losses.shape == rows.shape else x


def neutral(name: str, rows: RowShape, where: jax.Array, logits: jax.Array, labels: jax.Array) -> list[Any]:
    """Logits and labels that are valid for any loss where left out, so that its derivatives by options are finite."""
    check_where(name, where, {rows.shape: "rows to keep", logits.shape: "elements to keep"})

    def fill(x: jax.Array) -> jax.Array:
        by_row = where.shape == rows.shape and x.shape == logits.shape != rows.shape
        keep = rows.spread(where) if by_row else where
        if x.ndim != keep.ndim:
            return x
        # 1/2 has a finite logarithm, and so has its complement, if the loss is one of probabilities.
        other = 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else 0
        return jnp.where(keep, x, jnp.asarray(other, x.dtype))

    return [fill(logits), jax.tree.map(fill, labels)]
