"""The compiled programs of a linear layer: a sum over its rows, results by row, and a sum over devices."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.chunks import Splits, splits
from jaxloss._core.linear import Layer, Operands, row_results, row_sum
from jaxloss._core.linear_arguments import check_results, composed
from jaxloss._core.meshes import Layout
from jaxloss._core.varying import Tree, varying_any


def _splits(layer: Layer, chunk_rows: int | None, hidden: jax.Array, kernel: jax.Array) -> Splits:
    *batch, width = hidden.shape
    return splits(tuple(batch), chunk_rows, width, kernel.shape[layer.class_axis] * layer.dtype.itemsize)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), inline=True)
def program_of_sum(closed, functions, has_aux, layer, chunk_rows, hidden, kernel, bias, rows, parameters):
    loss = composed("linear_loss", functions)

    def checked(z, labels, parameters):
        found = loss(z, labels, *parameters)
        if has_aux and not (isinstance(found, tuple) and len(found) == 2):
            raise TypeError(
                f"linear_loss: with has_aux, `loss` must return (losses, auxiliary results); got {found!r}."
            )
        if isinstance(found, tuple) and not has_aux:
            raise TypeError("linear_loss: `loss` returned a tuple; if it has auxiliary results, pass has_aux=True.")
        losses, extra = found if has_aux else (jnp.asarray(found), ())
        check_results("linear_loss", "loss", z, losses, exactly=True)
        check_results("linear_loss", "loss", z, extra)
        return losses.astype(z.dtype), extra

    labels, weights, where = rows
    operands = Operands(hidden, labels, weights, where, kernel, bias, parameters)
    return row_sum(layer, _splits(layer, chunk_rows, hidden, kernel), checked, operands, closed)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def program_of_results(closed, functions, layer, chunk_rows, hidden, kernel, bias, rows, _):
    fn = composed("map_linear_logits", functions)

    def checked(z, *rows):
        found = jax.tree.map(jnp.asarray, fn(z, *rows))
        check_results("map_linear_logits", "fn", z, found)
        return found

    operands = Operands(hidden, rows, kernel=kernel, bias=bias)
    return row_results(layer, _splits(layer, chunk_rows, hidden, kernel), checked, operands, closed)


def sum_over_devices(place: Layout, run: Callable, *arguments) -> tuple[jax.Array, Tree]:
    total, extra = run(*arguments)
    split_by_classes = varying_any((total, extra)) & set(place.classes)
    if split_by_classes:
        axis = place.classes[0] if len(place.classes) == 1 else place.classes
        raise ValueError(
            f"linear_loss: `loss` must combine its results over the shards of the classes on mesh axis {axis!r}; for a "
            f"loss of jaxloss pass functools.partial(loss, axis_name={axis!r})."
        )
    return lax.psum(total, place.batch_names) if place.batch_names else total, extra
