"""Checks of the arguments of functions of a linear layer, and of what the function that it is given returns."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._core.arguments import check_floating, class_ids
from jaxloss._core.functions import Frozen, freeze
from jaxloss._core.labels import TopK
from jaxloss._core.linear import Layer
from jaxloss._core.meshes import Arguments, Layout
from jaxloss._core.options import as_argument, check_given, describe, known, required, unwrapped
from jaxloss._core.varying import Tree, names_of


def checked_layer(name, hidden, kernel, bias, rows, axis) -> tuple[Arguments, tuple[int, ...], int]:
    """Arguments as arrays, the shape of the batch, and the class axis of the kernel."""
    hidden, kernel = required(name, "hidden", hidden), required(name, "kernel", kernel)
    bias = as_argument(name, "bias", bias)
    if name == "linear_loss":
        check_given(name, "labels", rows, "an array or a tree of arrays", " For a loss without labels pass ().")
    else:
        for i, part in enumerate(rows):
            check_given(
                name, f"rows[{i}]", part, "an array or a tree of arrays", " What `fn` does not need, leave out."
            )
    rows = jax.tree.map(partial(as_argument, name, "labels" if name == "linear_loss" else "rows"), rows)
    if any(jnp.issubdtype(x.dtype, jnp.floating) and x.ndim == 2 != kernel.ndim for x in jax.tree.leaves(rows)):
        order = "(loss, hidden, kernel, labels)" if name == "linear_loss" else "(fn, hidden, kernel, *rows)"
        raise ValueError(f"{name}: `kernel` must have two axes; got {describe(kernel)}. The order is {order}.")
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
    class_axis = int(axis) % 2
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


def checked_functions(name: str, key: str, function: Callable, logits_fn: Callable | None) -> tuple[Frozen, Frozen]:
    """Both as static arguments of a program; keep what is given while it is traced."""
    for argument, given, of in ((key, function, "logits and rows"), ("logits_fn", logits_fn, "logits")):
        if not callable(given) and (argument == key or given is not None):
            raise TypeError(f"{name}: `{argument}` must be a function of {of}; got {type(given).__name__}.")
    if unwrapped(function)[1].get("where") is not None:
        raise ValueError(
            f"{name}: `{key}` must not hold a mask; got functools.partial with `where`. "
            + (
                f"Pass where= to {name}, which leaves the rows out of the mean, too."
                if name == "linear_loss"
                else "Pass the mask as one of `rows`."
            )
        )
    return freeze(function), freeze(logits_fn)


def composed(name: str, functions: tuple[Frozen, Frozen]) -> Callable:
    """The function, of logits that the other has changed before; classes left out, whose logit is -inf, stay so."""
    function, logits_fn = (frozen.thaw() for frozen in functions)
    if logits_fn is None:
        return function

    def after(z: jax.Array, *rest: Tree) -> Tree:
        left_out = z == -jnp.inf
        found = logits_fn(jnp.where(left_out, 0, z))
        if getattr(found, "shape", None) != z.shape or not jnp.issubdtype(found.dtype, jnp.floating):
            got = describe(found) if hasattr(found, "dtype") else repr(found)
            raise ValueError(
                f"{name}: `logits_fn` must return logits of the shape of those given, {describe(z)}; got {got}."
            )
        return function(jnp.where(left_out, -jnp.inf, found.astype(z.dtype)), *rest)

    return after


class Filling(NamedTuple):
    """Classes that fill up the last shards, where their number does not divide, in arguments of a function."""

    name: str
    key: str  # of the function
    size: int  # classes that exist
    batch: tuple[int, ...]
    known: float | None  # entry of labels, for a function of jaxloss
    class_fill: float | None

    def entry(self, kind: str, x: jax.Array) -> float:
        """Of the classes added to an array with an entry for each row, or to a shared one."""
        fill = self.known if kind == "rows" and self.class_fill is None else self.class_fill
        key = "loss_args" if kind == "shared" else "labels" if self.name == "linear_loss" else "rows"
        if fill is None:
            raise ValueError(
                f"{self.name}: `{key}` {describe(x)} must be filled up with classes, as their number does not divide "
                f"over the mesh, and what `{self.key}` makes of their entries is not known. Pass class_fill=0, or the "
                "number that stands for nothing there."
            )
        if not jnp.issubdtype(x.dtype, jnp.floating) and fill != 0:
            raise ValueError(f"{self.name}: `class_fill` must be 0 for `{key}` {describe(x)}; got {fill}.")
        return fill

    def ids(self, labels: Tree, where: jax.Array | None = None) -> Tree:
        """Labels of a function of jaxloss, no id being that of a class added."""
        if isinstance(labels, TopK) and self.known is not None:
            named, ids = map(jnp.asarray, (labels.probabilities, labels.ids))
            named = named != 0 if where is None else (named != 0) & where[..., None]
            checked = class_ids(self.name, jnp.where(named, ids, jnp.zeros_like(ids)), self.size)
            return TopK(checked, labels.probabilities, labels.tail)
        if not isinstance(labels, jax.Array) or labels.shape != self.batch:
            return labels
        if self.known is None or not jnp.issubdtype(labels.dtype, jnp.integer):
            return labels
        kept = labels if where is None else jnp.where(where, labels, jnp.zeros_like(labels))
        return class_ids(self.name, kept, self.size)


def filling(name, key, function, class_fill, place: Layout, arguments: Arguments) -> Filling:
    """Refuses a function of which nobody has said that it counts classes of logits -inf for nothing."""
    if class_fill is not None and not isinstance(class_fill, int | float | np.number):
        raise TypeError(f"{name}: `class_fill` must be a number, or None; got {class_fill!r}.")
    ours = known(function)
    of_ours = None if ours is None else ours.class_fill
    kernel, added = arguments.kernel, place.added(arguments.kernel)
    if added and of_ours is None and class_fill is None:
        raise ValueError(
            f"{name}: `{key}` must be a function of jaxloss, or known to count classes of logits -inf for nothing, "
            f"as the classes of `kernel` {describe(kernel)} do not divide over the {place.shards} devices of mesh axis "
            f"{'+'.join(place.classes)!r}; got {function!r}. If it counts them for nothing, pass class_fill=0, the "
            "entry of classes added in labels; but a cap or a temperature of the logits must be moved to `logits_fn`. "
            "Else fill up the kernel before."
        )
    size = kernel.shape[place.class_axis]
    value = None if class_fill is None else float(class_fill)
    return Filling(name, key, size, arguments.hidden.shape[:-1], of_ours if added else None, value)


def check_axis_name(name: str, key: str, function: Callable, place: Layout | None) -> None:
    """That a partial which names the mesh axes of the classes names those that split them."""
    given = unwrapped(function)[1].get("axis_name")
    names = set(names_of(given))
    if place is not None and names and names != set(place.classes):
        split = f"over {place.classes}" if place.classes else "over no mesh axis"
        raise ValueError(
            f"{name}: `{key}` must name the mesh axes over which the classes are split; got axis_name={given!r}, and a "
            f"kernel whose classes are split {split}. On automatic meshes pass axis_name to {name} as well; where the "
            "classes are whole, to neither."
        )


def checked_weights(name: str, weights: jax.Array | None, batch: tuple[int, ...], layer: Layer) -> jax.Array | None:
    """Weights of rows; counts as numbers of the computed dtype."""
    if weights is None:
        return None
    if jnp.issubdtype(weights.dtype, jnp.integer) or weights.dtype == jnp.bool_:
        weights = weights.astype(layer.dtype)
    check_floating(name, "weights", weights)
    if weights.shape != batch:
        raise ValueError(f"{name}: `weights` must have shape {batch}; got {describe(weights)}.")
    return weights


def checked_rows(name: str, chunk_rows: int | None) -> int | None:
    if chunk_rows is None:
        return None
    if not isinstance(chunk_rows, int | np.integer) or chunk_rows < 1:
        raise ValueError(f"{name}: `chunk_rows` must be an int >= 1, or None; got {chunk_rows!r}.")
    return int(chunk_rows)


def check_results(name: str, key: str, logits: jax.Array, found: Tree, exactly: bool = False) -> None:
    """That what a function of the logits returned has an entry for each row; losses have no more."""
    for x in jax.tree.leaves(found):
        shape = getattr(x, "shape", ())
        floating = jnp.issubdtype(getattr(x, "dtype", object), jnp.floating)
        if shape[:1] != logits.shape[:1] or (exactly and (len(shape) > 1 or not floating)):
            got = describe(x) if hasattr(x, "dtype") else repr(x)
            advice = "Do not reduce over the rows in it."
            if shape[:1] == logits.shape[:1]:
                advice = (
                    "Losses by element are to be summed by row: lambda logits, labels: loss(logits, labels).sum(-1)."
                )
            raise ValueError(
                f"{name}: `{key}` must return {'one float' if exactly else 'an entry'} for each row of its logits "
                f"{describe(logits)}; got {got}. {advice}"
            )
