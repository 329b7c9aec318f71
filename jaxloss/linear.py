"""Losses of the last linear layer from its input and its kernel, chunk by chunk, without the logits of all rows.

Below, h is a row of the hidden states, W the kernel, b the bias and z = h W + b the row's logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, overload

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxloss._core.annotations import ArrayLike, AxisName
from jaxloss._core.arguments import check_where
from jaxloss._core.functions import kept_if_closed
from jaxloss._core.linear import layer_of
from jaxloss._core.linear_arguments import (
    check_axis_name,
    checked_functions,
    checked_layer,
    checked_rows,
    checked_weights,
    filling,
)
from jaxloss._core.linear_programs import program_of_results, program_of_sum, sum_over_devices
from jaxloss._core.meshes import P, Spec, layout
from jaxloss._core.options import as_argument, explained
from jaxloss._core.varying import Tree
from jaxloss.reduction import LossSum

Results = TypeVar("Results")


@overload
def linear_loss(
    loss: Callable[..., Any],
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: Tree,
    *,
    bias: ArrayLike | None = ...,
    where: ArrayLike | None = ...,
    weights: ArrayLike | None = ...,
    loss_args: tuple = ...,
    has_aux: Literal[False] = ...,
    logits_fn: Callable[[jax.Array], jax.Array] | None = ...,
    axis: int = ...,
    chunk_rows: int | None = ...,
    precision: Any = ...,
    mesh: Mesh | None = ...,
    batch_spec: Spec = ...,
    axis_name: AxisName = ...,
    kernel_spec: Spec = ...,
    labels_spec: Tree = ...,
    loss_args_spec: Tree = ...,
    class_fill: float | None = ...,
) -> LossSum: ...


@overload
def linear_loss(
    loss: Callable[..., Any],
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: Tree,
    *,
    bias: ArrayLike | None = ...,
    where: ArrayLike | None = ...,
    weights: ArrayLike | None = ...,
    loss_args: tuple = ...,
    has_aux: Literal[True],
    logits_fn: Callable[[jax.Array], jax.Array] | None = ...,
    axis: int = ...,
    chunk_rows: int | None = ...,
    precision: Any = ...,
    mesh: Mesh | None = ...,
    batch_spec: Spec = ...,
    axis_name: AxisName = ...,
    kernel_spec: Spec = ...,
    labels_spec: Tree = ...,
    loss_args_spec: Tree = ...,
    class_fill: float | None = ...,
) -> tuple[LossSum, Tree]: ...


@explained
def linear_loss(
    loss: Callable[..., Any],
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: Tree,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    loss_args: tuple = (),
    has_aux: bool = False,
    logits_fn: Callable[[jax.Array], jax.Array] | None = None,
    axis: int = -1,
    chunk_rows: int | None = None,
    precision: Any = None,
    mesh: Mesh | None = None,
    batch_spec: Spec = None,
    axis_name: AxisName = None,
    kernel_spec: Spec = None,
    labels_spec: Tree = None,
    loss_args_spec: Tree = None,
    class_fill: float | None = None,
) -> Any:
    """Sum of a loss over the rows of a linear layer, with every derivative, never holding all logits.

      total = sum_i w_i loss(h_i W + b, y_i)

    Chunks of rows are looped over; of each, the logits, the losses and the gradients dz (rounded once to the dtype
    of the factors), dh = dz W' and dW = h' dz (added up in float32) are found in one go, so that value and gradient
    take three matrix products, and those with respect to one of h and W two. Forward mode and higher derivatives
    work.

    Args:
      loss: function (logits [rows, C], labels of those rows, *loss_args) -> losses [rows], whose rows do not depend on
        each other; a loss of jaxloss (options by `functools.partial`), of optax, or any other. Logits come in float32
        (float64 for float64 factors). In eager calls, pass the same function each time, or an equal `functools.partial`
        of it: another one is compiled anew.
      hidden: float array [*batch, H].
      kernel: float array [H, C], or [C, H] with axis=0 (a tied embedding table; it is not copied). Rows and kernel of
        two dtypes are multiplied in the one that holds both.
      labels: array or tree of arrays [*batch, ...] of any dtype, an entry for each row: ids, distributions, logits or
        hidden states of a teacher, advantages. Differentiable.
      bias: float array [C]; an entry of -inf leaves a class out.
      where: boolean [*batch], rows to keep; others may hold anything and give loss 0, gradient 0.
      weights: array [*batch] of numbers, a weight of each row; 1 each if None. Differentiable.
      loss_args: tuple of further arguments of `loss`, trees of arrays, differentiable. Traced arrays that `loss` closes
        over are differentiated, too.
      has_aux: whether `loss` returns (losses, auxiliary results), the latter a tree of arrays [rows, ...] to be logged;
        they count as constants. `softmax_statistics` has what is usually logged; an `argmax` is slow on CPU.
      logits_fn: function (logits [rows, C]) -> logits of the same shape, each of its own class alone: a cap or a
        temperature. `loss` gets what it returns, and -inf for classes left out. It may close over traced arrays.
      axis: the class axis of `kernel`.
      chunk_rows: rows of a chunk at the most; as many as there are, or more, for no loop. If None, 8192, but logits of
        1 GiB at least and of 4 GiB at the most; where the program is lowered for CPU, 4 H, but logits of 16 MiB at
        least and of 112 MiB at the most.
      precision: of the products, as for `jax.numpy.dot`.
      mesh: the mesh that the following names belong to; that of `jax.set_mesh` or of the arguments if None.
      batch_spec: the mesh axes that shard the rows: a name, or a `PartitionSpec` with an entry for each batch axis.
      axis_name: the mesh axis that shards the classes; give it to `loss` as well, which sees a shard of the logits.
        Classes that do not divide are filled up with logits of -inf; a function that is not jaxloss's own needs
        `class_fill` then.
      kernel_spec: how `kernel` is split, where over axes of the batch, too (fully sharded data parallelism); it is
        gathered once, and its gradient reduced and scattered.
      labels_spec: tree of `PartitionSpec` for labels that are sharded over more than `batch_spec`.
      loss_args_spec: tree of `PartitionSpec` for `loss_args`, whole on every device if None.
      class_fill: entry that classes added get in arrays with a class axis, such as 0 for distributions and -inf for
        logits of a teacher. Giving it says that `loss` counts classes whose logit is -inf for nothing.

    On explicit meshes the types of the arguments replace the last six; inside `jax.shard_map` give none of them.

    Returns:
      `LossSum`, whose `mean()` is the mean over the rows kept and whose sums add up over microbatches and devices; with
      `has_aux`, a pair of it and the auxiliary results [*batch, ...], 0 in rows left out.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here.

    Identities:
      `LossSum.of(loss(hidden @ kernel + bias, labels), where, weights)`, for every `chunk_rows`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxloss
      >>> hidden, kernel, ids = jnp.ones((6, 4)), jnp.eye(4, 10), jnp.array([0, 1, 2, 3, 4, -100])
      >>> def loss(kernel):
      ...     known = ids >= 0
      ...     total = jaxloss.linear_loss(jaxloss.softmax_cross_entropy, hidden, kernel, ids, where=known, chunk_rows=2)
      ...     return total.mean()
      >>> value, gradient = jax.value_and_grad(loss)(kernel)
      >>> print(value, gradient.shape)
      2.025722 (4, 10)

    Reference:
      Hsu et al., Liger Kernel: Efficient Triton Kernels for LLM Training (2024), has gradients in the forward pass.
    """
    name = "linear_loss"
    given, batch, class_axis = checked_layer(name, hidden, kernel, bias, labels, axis)
    labels = given.rows
    layer = layer_of(given.hidden, given.kernel, class_axis, precision)
    keep: jax.Array | None = as_argument(name, "where", where)
    check_where(name, keep, {batch: "rows to keep"})
    weights = checked_weights(name, as_argument(name, "weights", weights), batch, layer)
    if not isinstance(loss_args, tuple):
        raise TypeError(f"{name}: `loss_args` must be a tuple; got {type(loss_args).__name__}. For one pass (x,).")
    arguments = given._replace(rows=(labels, weights, keep), shared=jax.tree.map(jnp.asarray, loss_args))
    place = layout(name, arguments.hidden, arguments.kernel, class_axis, mesh, batch_spec, axis_name, kernel_spec)
    functions = checked_functions(name, "loss", loss, logits_fn)
    check_axis_name(name, "loss", loss, place)
    run = partial(kept_if_closed, program_of_sum, functions, has_aux, layer, checked_rows(name, chunk_rows))
    if place is None:
        total, extra = run(*arguments)
    else:
        rows_spec = None if labels_spec is None else (labels_spec, place.batch, place.batch)
        shard = partial(sum_over_devices, place, run)
        fill = filling(name, "loss", loss, class_fill, place, arguments)
        arguments = arguments._replace(rows=(fill.ids(labels, keep), weights, keep))
        total, extra = place.run(shard, arguments, rows_spec, loss_args_spec, (P(), place.batch), fill.entry)
    ones = jnp.ones(batch, total.dtype) if weights is None else weights.astype(total.dtype)
    result = LossSum(total, LossSum.of(ones, keep).total)
    return (result, extra) if has_aux else result


@explained
def map_linear_logits(
    fn: Callable[..., Results],
    hidden: ArrayLike,
    kernel: ArrayLike,
    *rows: Tree,
    bias: ArrayLike | None = None,
    logits_fn: Callable[[jax.Array], jax.Array] | None = None,
    axis: int = -1,
    chunk_rows: int | None = None,
    precision: Any = None,
    mesh: Mesh | None = None,
    batch_spec: Spec = None,
    axis_name: AxisName = None,
    kernel_spec: Spec = None,
    rows_spec: Tree = None,
    class_fill: float | None = None,
) -> Results:
    """Results by row of a function of the logits of a linear layer, never holding all logits.

      r_i = fn(h_i W + b, x_i)

    Log-probabilities for reinforcement learning, divergences for distillation, entropies and ranks for evaluation.
    Chunks of rows are looped over; reverse mode computes the logits of a chunk again (four matrix products for
    value and gradient), so that memory is bounded in every mode. Where only a weighted sum of losses is wanted,
    `linear_loss` needs three.

    Args:
      fn: function (logits [rows, C], *rows of the same) -> tree of arrays [rows, ...], whose rows do not depend on each
        other. Logits come in float32 (float64 for float64 factors). It may close over traced arrays.
      hidden: float array [*batch, H].
      kernel: float array [H, C], or [C, H] with axis=0 (a tied embedding table; it is not copied). Rows and kernel of
        two dtypes are multiplied in the one that holds both.
      rows: arrays or trees of arrays [*batch, ...], an entry for each row. Differentiable.
      bias: float array [C]; an entry of -inf leaves a class out.
      logits_fn: function (logits [rows, C]) -> logits of the same shape, each of its own class alone: a cap or a
        temperature. `fn` gets what it returns, and -inf for classes left out. It may close over traced arrays.
      axis: the class axis of `kernel`.
      chunk_rows: rows of a chunk at the most; as many as there are, or more, for no loop. If None, 8192, but logits of
        1 GiB at least and of 4 GiB at the most; where the program is lowered for CPU, 4 H, but logits of 16 MiB at
        least and of 112 MiB at the most.
      precision: of the products, as for `jax.numpy.dot`.
      mesh: the mesh that the following names belong to; that of `jax.set_mesh` or of the arguments if None.
      batch_spec: the mesh axes that shard the rows: a name, or a `PartitionSpec` with an entry for each batch axis.
      axis_name: the mesh axis that shards the classes; `fn` sees a shard of the logits and has to combine its results
        over that axis. Classes that do not divide are filled up with logits of -inf; a function that is not jaxloss's
        own needs `class_fill` then.
      kernel_spec: how `kernel` is split, where over axes of the batch, too (fully sharded data parallelism); it is
        gathered once, and its gradient reduced and scattered.
      rows_spec: tuple of trees of `PartitionSpec` for `rows` that are sharded over more than `batch_spec`.
      class_fill: entry that classes added get in arrays with a class axis, such as 0 for distributions and -inf for
        logits of a teacher. Giving it says that `fn` counts classes whose logit is -inf for nothing.

    On explicit meshes the types of the arguments replace the last five; inside `jax.shard_map` give none of them.

    Returns:
      Tree of arrays [*batch, ...].

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here.

    Identities:
      `fn(hidden @ kernel + bias, *rows)`, for every `chunk_rows`.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> hidden, kernel, ids = jnp.ones((2, 3, 4)), jnp.eye(4, 10), jnp.array([[0, 1, 2], [3, 4, 5]])
      >>> def log_prob(logits, ids):
      ...     return -jaxloss.softmax_cross_entropy(logits, ids)
      >>> print(jaxloss.map_linear_logits(log_prob, hidden, kernel, ids, chunk_rows=4))
      [[-1.825722 -1.825722 -1.825722]
       [-1.825722 -2.825722 -2.825722]]
    """
    name = "map_linear_logits"
    arguments, _, class_axis = checked_layer(name, hidden, kernel, bias, rows, axis)
    place = layout(name, arguments.hidden, arguments.kernel, class_axis, mesh, batch_spec, axis_name, kernel_spec)
    layer = layer_of(arguments.hidden, arguments.kernel, class_axis, precision)
    functions = checked_functions(name, "fn", fn, logits_fn)
    check_axis_name(name, "fn", fn, place)
    run = partial(kept_if_closed, program_of_results, functions, layer, checked_rows(name, chunk_rows))
    if place is None:
        return run(*arguments)
    fill = filling(name, "fn", fn, class_fill, place, arguments)
    arguments = arguments._replace(rows=tuple(fill.ids(x) for x in arguments.rows))
    return place.run(run, arguments, rows_spec, None, place.batch, fill.entry)
