"""Every static check of logits, labels and masks, every error sentence, and the kinds of labels.

Shapes and dtypes are checked while the program is traced; what only the data can show is left to the guards of
`_core/checks.py`, which only `checkify.checkify` looks at.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._core.annotations import ArrayLike
from jaxloss._core.checks import check_domain, guard
from jaxloss._core.classes import ClassAxis, holds_at
from jaxloss._core.options import describe, number
from jaxloss._core.order import check_order, swapped
from jaxloss._core.varying import check_split


def compute_dtype(x: jax.Array) -> jnp.dtype:
    """float32 for every float type but float64, which stays."""
    return jnp.dtype(jnp.float64) if x.dtype == jnp.float64 else jnp.dtype(jnp.float32)


def check_floating(name: str, argument: str, x: jax.Array, labels: jax.Array | None = None) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        advice = swapped(argument, x, labels) or f" Cast them, for example with {argument}.astype(jnp.float32)."
        raise TypeError(f"{name}: `{argument}` must be floating point; got {describe(x)}.{advice}")


class Rows(NamedTuple):
    """Checked arguments of a loss over rows of classes, ready for arithmetic."""

    name: str
    classes: ClassAxis
    logits: jax.Array  # computed dtype, -inf at classes left out, 0 in rows left out
    ids: jax.Array | None  # int32 of each row
    targets: jax.Array | None  # like logits
    keep: jax.Array | None  # of each row
    axes: tuple[int, ...]  # the class axes of the argument
    excluded: float  # what a class left out holds
    counts: jax.Array | None = None  # of each row with an id: False for the id of a class left out
    kept: jax.Array | None = None  # like logits: the classes that `where` keeps

    def of_labels(self, x: jax.Array) -> jax.Array:
        """What the ids' shares hold, 0 for ids of classes left out; `x` of each row."""
        return x if self.counts is None else jnp.where(self.counts, x, 0)

    def one_hot(self) -> jax.Array:
        """The ids as a distribution; NaN for an id outside, zeros for that of a class left out."""
        assert self.ids is not None
        shares = self.classes.one_hot(self.logits, self.ids)
        return shares if self.counts is None else jnp.where(self.classes.spread(self.counts), shares, 0)

    def restore(self, values: jax.Array, like: jax.Array) -> jax.Array:
        """Values of every class in the shape and dtype of the argument `like`, zero in rows left out."""
        if self.keep is not None:
            values = jnp.where(self.classes.spread(self.keep), values, 0)
        if len(self.axes) > 1:
            split = (*values.shape[: self.classes.axis], *(like.shape[i] for i in self.axes))
            values = jnp.moveaxis(values.reshape(split), range(-len(self.axes), 0), self.axes)
        return values.astype(like.dtype)

    def finish(self, losses: jax.Array) -> jax.Array:
        """Zero for rows left out."""
        return losses if self.keep is None else jnp.where(self.keep, losses, 0)

    def parameter(self, key: str, given: ArrayLike | None) -> jax.Array | None:
        """A numeric option, a vector over the classes being shaped to broadcast against the logits."""
        if given is None:
            return None
        value = number(self.name, key, given, self.logits.shape[self.classes.axis], self.logits.dtype)
        return self.classes.along(value, self.logits) if value.ndim else value


def _class_axes(name: str, argument: str, logits: jax.Array, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    given = tuple(range(logits.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    for part in given:
        if not -logits.ndim <= part < logits.ndim:
            raise ValueError(
                f"{name}: `axis` {part} is out of range for `{argument}` of shape {logits.shape}; "
                f"name the axis that holds the classes, one of {-logits.ndim} to {logits.ndim - 1}. "
                "Options such as gamma go by keyword."
            )
    axes = tuple(part % logits.ndim for part in given)
    if len(set(axes)) != len(axes) or not axes:
        raise ValueError(f"{name}: `axis` must name each class axis once; got {axis!r}.")
    return axes


def check_where(name: str, where: jax.Array | None, allowed: dict[tuple[int, ...], str]) -> None:
    if where is None:
        return
    if where.dtype != jnp.bool_:
        raise TypeError(
            f"{name}: `where` must be boolean; got {describe(where)}. For a 0/1 mask pass where=mask != 0; "
            "for weights of examples use jaxloss.mean(losses, weights=...)."
        )
    if where.shape not in allowed:
        expected = " or ".join(f"{shape} ({meaning})" for shape, meaning in allowed.items())
        hint = (
            " Drop the last axis with where[..., 0]."
            if where.shape[:-1] in allowed and where.shape[-1:] == (1,)
            else ""
        )
        raise ValueError(f"{name}: `where` must have shape {expected}; got {describe(where)}.{hint}")


def softmax_rows(name, logits, labels, axis, where, axis_name=None, excluded=-np.inf, argument="logits") -> Rows:
    """Checks the arguments that every softmax loss takes. Labels: ids by rank, else a distribution, or None."""
    check_floating(name, argument, logits, labels)
    check_split(name, argument, logits, axis_name)
    axes = _class_axes(name, argument, logits, axis)
    batch = tuple(size for i, size in enumerate(logits.shape) if i not in axes)
    size = math.prod(logits.shape[i] for i in axes)
    if size == 0:
        raise ValueError(f"{name}: `{argument}` must have at least one class; got {describe(logits)} with axis={axis}.")
    if labels is not None:
        _check_label_kind(name, argument, logits, labels, batch, size)
    check_where(name, where, {batch: "rows to keep", logits.shape: "classes to keep"})
    position = axes[0] if len(axes) == 1 else len(batch)
    classes = ClassAxis(position, axis_name)

    def arrange(x: jax.Array) -> jax.Array:
        """One class axis, at `position`."""
        if len(axes) == 1 or x.ndim == len(batch):
            return x
        return jnp.moveaxis(x, axes, range(-len(axes), 0)).reshape(*batch, size)

    logits = arrange(logits).astype(compute_dtype(logits))
    keep, kept = where, None
    if where is not None and where.ndim > len(batch):
        kept = arrange(where)
        keep = classes.sum(kept.astype(jnp.int32)) > 0
        logits = jnp.where(kept, logits, excluded)
    if keep is not None:
        logits = jnp.where(classes.spread(keep), logits, 0)
    rows = Rows(name, classes, logits, None, None, keep, axes, excluded, None, kept)
    if labels is None:
        return rows
    is_ids = labels.ndim == len(batch)
    labels = arrange(labels)
    if keep is not None:
        known = keep if is_ids else classes.spread(keep) if kept is None else kept
        labels = jnp.where(known, labels, jnp.zeros((), labels.dtype))
    if is_ids:
        return _with_ids(rows, class_ids(name, labels, classes.size(logits)), kept)
    refuse_one_class(rows, argument, "labels", labels)
    targets = labels.astype(logits.dtype)
    advice = f". Are `{argument}` and `labels` swapped?"
    domain = "a distribution over the classes, no entry below 0"
    targets = check_domain(name, "labels", targets, targets >= 0, domain, advice)
    logits = check_order(name, argument, logits, targets, excluded)
    return rows._replace(logits=logits, targets=targets)


def refuse_one_class(rows: Rows, argument: str, other: str, x: jax.Array) -> None:
    """An error for a batch of one class and labels of its shape, which are binary labels: nothing would be trained."""
    if rows.logits.ndim > 1 and rows.classes.size(rows.logits) == 1:
        raise ValueError(
            f"{rows.name}: `{argument}` must have two classes or more where `{other}` have their shape; got "
            f"{describe(x)}, one class, of probability 1 whatever the logit. For binary labels use a sigmoid loss "
            f"(binary_cross_entropy for probabilities) of {argument} and {other} without that axis."
        )


def _with_ids(rows: Rows, ids: jax.Array, kept: jax.Array | None) -> Rows:
    """The rows with ids that `class_ids` made; `kept` are the classes that `where` keeps."""
    if kept is None:
        return rows._replace(ids=ids)
    counts = (ids < 0) | holds_at(rows.classes, kept, ids)
    message = f"{rows.name}: `labels` must be ids of classes that `where` keeps in their row; got {{bad}}"
    inside = counts if rows.keep is None else counts | ~rows.keep
    ids = guard(ids, inside, message, jnp.max(ids, where=~inside, initial=-1))
    return rows._replace(ids=ids, counts=counts)


def _check_label_kind(name, argument, logits, labels, batch, size) -> None:
    if labels.shape == batch and jnp.issubdtype(labels.dtype, jnp.integer):
        return
    if labels.shape == logits.shape and not jnp.issubdtype(labels.dtype, jnp.complexfloating):
        return
    expected = f"{name}: `labels` must be integer ids of shape {batch} or a distribution of shape {logits.shape}"
    if labels.shape == batch:
        raise TypeError(
            f"{expected}; got {describe(labels)}. For class ids use labels.astype(jnp.int32)"
            + ("; for binary labels use a sigmoid loss." if size <= 2 or labels.dtype == jnp.bool_ else ".")
        )
    hint = ""
    others = [i for i in range(logits.ndim) if labels.shape == logits.shape[:i] + logits.shape[i + 1 :]]
    if labels.ndim > 1 and labels.shape[:-1] == (2, *batch):
        hint = " Of a teacher's top k classes pass TopK(ids, probabilities)."
    elif labels.shape == (*batch, 1):
        cast = "" if jnp.issubdtype(labels.dtype, jnp.integer) else ".astype(jnp.int32)"
        hint = f" Drop the last axis with labels[..., 0]{cast}."
    elif order := swapped(argument, logits, labels):
        hint = order
    elif others and jnp.issubdtype(labels.dtype, jnp.integer):
        hint = f" Did you mean axis={others[0]}?"
    elif labels.ndim == logits.ndim:
        hint = " Nothing is broadcast: labels must name every class, on the axis where the logits do."
    raise ValueError(f"{expected}; got {describe(labels)}.{hint}")


def class_ids(name: str, labels: jax.Array, size: int, key: str = "labels") -> jax.Array:
    """Labels as int32 ids; those outside [0, size) become -1, whatever their own dtype held."""
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    inside = (labels >= 0) & (labels < size)
    ids = jnp.where(inside, labels, 0).astype(jnp.int32) - jnp.where(inside, 0, 1).astype(jnp.int32)
    message = f"{name}: `{key}` must be class ids in [0, {size}), {size} being the number of classes; got {{bad}}"
    if size == 1:
        message += ". For binary labels use a sigmoid loss, of logits without that axis"
    return guard(ids, inside, message, jnp.max(labels, where=~inside, initial=jnp.iinfo(labels.dtype).min))


class Elements(NamedTuple):
    """Checked arguments of an elementwise loss."""

    name: str
    logits: jax.Array
    targets: jax.Array
    keep: jax.Array | None
    axis: int | None

    def parameter(self, key: str, given: ArrayLike | None) -> jax.Array | None:
        """A numeric option, of each element or shaped to broadcast against the logits."""
        if given is None:
            return None
        shape = self.logits.shape
        value = jnp.asarray(given)
        if value.shape == shape and shape and self.keep is not None:
            value = jnp.where(self.keep, value, jnp.ones((), value.dtype))  # what is left out may hold anything
        size = None if self.axis is None else shape[self.axis]
        value = number(self.name, key, value, size, self.logits.dtype, shape)
        return value if value.shape in ((), shape) else ClassAxis(self.axis or 0).along(value, self.logits)


def sigmoid_elements(name, logits, labels, axis, where, argument="logits") -> Elements:
    """Checks the arguments of a binary or multi-label loss. Labels: multi-hot in [0, 1], or class ids by rank."""
    check_floating(name, argument, logits, labels)
    if axis is not None and not isinstance(axis, int):
        raise TypeError(f"{name}: `axis` must be an int, the axis of the classes; got {axis!r}.")
    position = _class_axes(name, argument, logits, axis)[0] if logits.ndim and axis is not None else None
    batch = None if position is None else logits.shape[:position] + logits.shape[position + 1 :]
    is_ids = labels.shape == batch and jnp.issubdtype(labels.dtype, jnp.integer)
    if is_ids and logits.shape[position or 0] == 1:
        raise ValueError(
            f"{name}: `labels` {describe(labels)} would be class ids of the single class of `{argument}` "
            f"{describe(logits)}. For binary labels pass {argument}[..., 0]."
        )
    if not is_ids and (labels.shape != logits.shape or jnp.issubdtype(labels.dtype, jnp.complexfloating)):
        expected = f"{name}: `labels` must have the shape {logits.shape} of `{argument}`, with entries in [0, 1]"
        if batch is not None:
            expected += f", or be integer class ids of shape {batch}"
        hint = ""
        if logits.shape == (*labels.shape, 1):
            hint = f" Did you mean {argument}[..., 0]?"
        elif labels.shape == (*logits.shape, 1):
            hint = " Did you mean labels[..., 0]?"
        elif batch is not None and labels.shape in (batch, (*batch, 1)):
            hint = f" For class ids use labels{'' if labels.shape == batch else '[..., 0]'}.astype(jnp.int32)."
        hint = hint or swapped(argument, logits, labels)
        error = TypeError if labels.shape == batch else ValueError
        raise error(f"{expected}; got {describe(labels)}.{hint} Nothing is broadcast.")
    allowed = {logits.shape: "elements to keep"} | ({} if batch is None else {batch: "rows to keep"})
    check_where(name, where, allowed)
    keep = where if where is None or where.shape == logits.shape else jnp.expand_dims(where, position or 0)
    logits = logits.astype(compute_dtype(logits))
    if is_ids:
        kept = labels if where is None or where.shape != batch else jnp.where(where, labels, jnp.zeros_like(labels))
        classes = ClassAxis(position or 0)
        ids = class_ids(name, kept, classes.size(logits))
        labels = classes.one_hot(logits, ids)
    if keep is not None:
        logits, labels = jnp.where(keep, logits, 0), jnp.where(keep, labels, jnp.zeros((), labels.dtype))
    targets = labels.astype(logits.dtype)
    if not is_ids:
        inside = (targets >= 0) & (targets <= 1)
        advice = (
            ". Leave unknown labels (-1, 255, NaN) out with `where`; for labels -1 and 1 pass (labels + 1) / 2; or are "
            f"`{argument}` and `labels` swapped?"
        )
        targets = check_domain(name, "labels", targets, inside, "in [0, 1]", advice)
        logits = check_order(name, argument, logits, targets, 0)
    return Elements(name, logits, targets, keep, position)


def class_elements(name, logits, labels, axis, where, argument="logits") -> tuple[Elements, int]:
    """Checks the arguments of an elementwise loss that is reduced over the class axis, which it returns."""
    elements = sigmoid_elements(name, logits, labels, axis, where, argument)
    if elements.axis is None or logits.shape[elements.axis] == 0:
        expected = f"`{argument}` must have an axis of at least one class"
        raise ValueError(f"{name}: {expected}; got {describe(logits)} with axis={axis}.")
    return elements, elements.axis
