"""Checks of the arguments of functions of a linear layer, and of what the function that it is given returns."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxloss._core.arguments import check_floating
from jaxloss._core.meshes import Arguments
from jaxloss._core.options import check_given, describe, prepared
from jaxloss._core.varying import Tree


def checked_layer(name, hidden, kernel, bias, rows, axis) -> tuple[Arguments, tuple[int, ...], int]:
    """Arguments as arrays, the shape of the batch, and the class axis of the kernel."""
    check_given(name, "hidden", hidden)
    check_given(name, "kernel", kernel)
    if name == "linear_loss":
        check_given(name, "labels", rows, "an array or a tree of arrays", " For a loss without labels pass ().")
    else:
        for i, part in enumerate(rows):
            check_given(
                name, f"rows[{i}]", part, "an array or a tree of arrays", " What `fn` does not need, leave out."
            )
    hidden, kernel, bias = (prepared(name, *x) for x in (("hidden", hidden), ("kernel", kernel), ("bias", bias)))
    rows = jax.tree.map(partial(prepared, name, "labels" if name == "linear_loss" else "rows"), rows)
    for key, x in {"hidden": hidden, "kernel": kernel, "bias": bias}.items():
        if x is not None:
            check_floating(name, key, x)
    if hidden.ndim == 0 or kernel.ndim != 2:
        raise ValueError(
            f"{name}: `hidden` must have shape [*batch, H] and `kernel` [H, C]; got {describe(hidden)} and "
            f"{describe(kernel)}."
        )
    if axis not in (-2, -1, 0, 1):
        raise ValueError(
            f"{name}: `axis` must be the class axis of `kernel`, 1 or -1 for [H, C], 0 for [C, H]; got {axis}."
        )
    class_axis = axis % 2
    if kernel.shape[1 - class_axis] != hidden.shape[-1] or kernel.shape[class_axis] == 0:
        expected, other = ("[H, C]", "axis=0") if class_axis else ("[C, H]", "axis=-1")
        fits = kernel.shape[class_axis] == hidden.shape[-1]
        raise ValueError(
            f"{name}: `kernel` must have shape {expected} with axis={axis}, H = {hidden.shape[-1]} being the last axis "
            f"of `hidden` {describe(hidden)}; got {describe(kernel)}." + (f" Did you mean {other}?" if fits else "")
        )
    batch, classes = hidden.shape[:-1], kernel.shape[class_axis]
    if bias is not None and bias.shape != (classes,):
        raise ValueError(f"{name}: `bias` must have shape ({classes},), an entry for each class; got {describe(bias)}.")
    for path, x in jax.tree_util.tree_leaves_with_path(rows):
        if x.shape[: len(batch)] != batch:
            key = ("labels" if name == "linear_loss" else "rows") + jax.tree_util.keystr(path)
            raise ValueError(
                f"{name}: `{key}` must have shape {batch} plus any further axes, an entry for each row of `hidden` "
                f"{describe(hidden)}; got {describe(x)}."
            )
    return Arguments(hidden, kernel, bias, rows, ()), batch, class_axis


def hashable(name: str, key: str, function: Callable) -> Callable:
    if not callable(function):
        raise TypeError(f"{name}: `{key}` must be a function of logits and rows; got {type(function).__name__}.")
    try:
        hash(function)
    except TypeError:
        return lambda *arguments: function(*arguments)
    return function


def checked_rows(name: str, chunk_rows: int | None) -> int | None:
    if chunk_rows is not None and (not isinstance(chunk_rows, int) or chunk_rows < 1):
        raise ValueError(f"{name}: `chunk_rows` must be an int >= 1, or None; got {chunk_rows!r}.")
    return chunk_rows


def check_results(name: str, key: str, logits: jax.Array, found: Tree, exactly: bool = False) -> None:
    """That what a function of the logits returned has an entry for each row; losses have no more."""
    for x in jax.tree.leaves(found):
        shape = getattr(x, "shape", ())
        floating = jnp.issubdtype(getattr(x, "dtype", object), jnp.floating)
        if shape[:1] != logits.shape[:1] or (exactly and (len(shape) > 1 or not floating)):
            got = describe(x) if hasattr(x, "dtype") else repr(x)
            raise ValueError(
                f"{name}: `{key}` must return {'one float' if exactly else 'an entry'} for each row of its logits "
                f"{describe(logits)}; got {got}. Do not reduce over the rows in it."
            )
