"""A loss of a linear layer without its logits: rows in chunks, loss and gradients of a chunk in one go.

With z = h W + b for the rows h of a chunk and the weighted sum L = sum_i w_i loss_i(z_i), dz = dL/dz comes from the
loss, and the layer adds two more products, dL/dh = dz W' and dL/dW = h' dz. `weighted_sum` finds all gradients that are
asked for beside the sum; its derivative rule is the sum of <gradient, tangent>. That is linear, so that reverse mode
scales what is there already (three products for value and gradient, two for one side alone); forward mode is the same
sum; and since the gradients are computed by plain JAX, the rule can be differentiated again. `jax.checkpoint` keeps the
logits of a chunk from being stored then.

Inside `jax.shard_map` a value's type says over which mesh axes it varies. What enters the loop is made to vary over all
of them beforehand, so that no reduction over devices stands inside it; the rule's tangent is summed over the axes that
the loss itself has summed over (those of the classes).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.chunks import Chunks, Split, Splits, masked, resized
from jaxloss._core.functions import opened
from jaxloss._core.log_odds import counted
from jaxloss._core.options import describe
from jaxloss._core.varying import Tree, spread, vary, varying, varying_any


class Layer(NamedTuple):
    """How logits come of rows and kernel."""

    class_axis: int  # of the kernel: 1 for [H, C], 0 for [C, H]
    operand: jnp.dtype  # of the factors of the products
    dtype: jnp.dtype  # of their sums, and of the logits
    precision: Any

    def product(self, x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
        """The sum of products over an axis of each; the factors are rounded, the result is not."""
        x, y = x.astype(self.operand), y.astype(self.operand)
        return lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), self.precision, self.dtype)

    def narrow(self, x: jax.Array) -> jax.Array:
        """A factor that `spread` widened, before it is looped over: XLA then takes the array as it came."""
        return x.astype(self.operand) if self.operand.itemsize < x.dtype.itemsize else x

    def logits(self, hidden: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        return self.biased(self.product(hidden, kernel, 1, 1 - self.class_axis), bias)

    def biased(self, z: jax.Array, bias: jax.Array | None) -> jax.Array:
        return z if bias is None else z + bias.astype(self.dtype)[None, :]

    def by_hidden(self, dz: jax.Array, kernel: jax.Array) -> jax.Array:
        return self.product(dz, kernel, 1, self.class_axis)

    def by_kernel(self, dz: jax.Array, hidden: jax.Array) -> jax.Array:
        return self.product(hidden, dz, 0, 0) if self.class_axis else self.product(dz, hidden, 0, 0)


class Operands(NamedTuple):
    """What the sum depends on, or its gradients (None: not asked for); rows as they came, [*batch, ...], or chunks."""

    hidden: Any = None
    labels: Tree = None
    weights: Any = None
    keep: Any = None  # mask of rows
    kernel: Any = None
    bias: Any = None
    parameters: Tree = None  # of the loss
    enclosed: Tree = None  # in the loss

    @property
    def rows(self) -> "Operands":
        return Operands(self.hidden, self.labels, self.weights, self.keep)

    def with_rows(self, rows: "Operands") -> "Operands":
        return self._replace(hidden=rows.hidden, labels=rows.labels, weights=rows.weights, keep=rows.keep)


def _chosen(tree: Tree, active: Tree) -> list:
    """The leaves of a tree that are `active`."""
    return [x for x, yes in zip(jax.tree.leaves(tree), jax.tree.leaves(active), strict=True) if yes]


def _restrict(function: Callable, arguments: tuple, active: tuple) -> tuple[Callable, Callable]:
    """A function of the leaves that are `active` alone, and what puts a list of such back, None for the others."""
    leaves, structure = jax.tree.flatten(arguments)
    chosen = structure.flatten_up_to(active)

    def restricted(*variables):
        given = iter(variables)
        return function(*structure.unflatten(next(given) if yes else x for x, yes in zip(leaves, chosen, strict=True)))

    def put_back(values):
        found = iter(values)
        return structure.unflatten(next(found) if yes else None for yes in chosen)

    return restricted, put_back


def _vjp(function: Callable[..., tuple], arguments: tuple, active: tuple) -> tuple[jax.Array, Callable, Tree]:
    """`jax.vjp` with auxiliary results by the leaves of `arguments` that are `active`, None for the others."""
    restricted, put_back = _restrict(function, arguments, active)
    variables = _chosen(arguments, active)
    if not variables:
        value, extra = restricted()
        return value, lambda _: put_back([]), extra
    value, pull, extra = jax.vjp(restricted, *variables, has_aux=True)
    return value, lambda cotangent: put_back(pull(cotangent)), extra


def _perturbed(tangents: Tree) -> Tree:
    return jax.tree.map(lambda t: not isinstance(t, SymbolicZero) and t.dtype != jax.dtypes.float0, tangents)


class Plan(NamedTuple):
    """What is fixed while the program is traced."""

    loss: Callable[..., tuple[jax.Array, Tree]]  # of logits, labels, parameters, enclosed: losses, auxiliary results
    layer: Layer
    splits: Splits

    def find(self, active: Operands, loop: Callable, operands: Operands) -> tuple[jax.Array, Tree, Operands]:
        """The weighted sum, the auxiliary results by row, and the gradients by what is `active`."""

        def chunked(parts: Split, operands: Operands):
            (total, shared), by_row = loop(self.chunks(active, parts, operands))
            extra, by_row = jax.tree.map(parts.undo, by_row)
            return total, extra, shared.with_rows(by_row)

        return self.splits.run(chunked, operands)

    def chunks(self, active: Operands, parts: Split, operands: Operands) -> Chunks:
        """Of each chunk the weighted sum, gradients by what is `active`, and auxiliary results by row."""
        layer, bias = self.layer, operands.bias
        hidden, kernel = layer.narrow(operands.hidden), operands.kernel.astype(layer.operand)
        by_logits = any((active.hidden, active.kernel, active.bias))

        def body(rows: Operands):
            keep = rows.keep
            hidden, labels, weights = masked(keep, (rows.hidden, rows.labels, rows.weights))
            z = layer.logits(hidden, kernel, bias)
            variables = (z, labels, operands.parameters, operands.enclosed)
            which = (by_logits, active.labels, active.parameters, active.enclosed)
            losses, pull, extra = _vjp(self.loss, variables, which)
            ones = jnp.ones(losses.shape, losses.dtype)
            scale = masked(keep, vary(ones if weights is None else weights.astype(losses.dtype), varying(losses)))
            dz, dlabels, dparameters, denclosed = pull(scale)
            losses, dz, dlabels, extra = masked(keep, (counted(scale, losses), dz, dlabels, extra))
            shared = Operands(
                kernel=layer.by_kernel(dz, hidden) if active.kernel else None,
                bias=jnp.sum(dz, 0) if active.bias else None,
                parameters=dparameters,
                enclosed=denclosed,
            )
            by_row = Operands(
                hidden=layer.by_hidden(dz, kernel) if active.hidden else None,
                labels=dlabels,
                weights=losses if active.weights else None,
            )
            return (jnp.sum(losses * scale), shared), (extra, by_row)

        rows = jax.tree.map(parts.apply, operands.rows._replace(hidden=hidden, keep=None))
        return Chunks(body, rows._replace(keep=parts.keep(operands.keep)))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sum_and_gradients(plan: Plan, active: Operands, operands: Operands) -> tuple[jax.Array, Tree, Operands]:
    """The weighted sum, the auxiliary results by row, and the gradients by what is `active`."""
    return plan.find(active, Chunks.loop, operands)


def _sum_and_gradients_jvp(plan, active, primals, tangents):
    perturbed = _perturbed(tangents)
    restricted, _ = _restrict(partial(plan.find, active, Chunks.scan), primals, perturbed)
    return jax.jvp(restricted, _chosen(primals, perturbed), _chosen(tangents, perturbed))


_sum_and_gradients.defjvp(_sum_and_gradients_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def weighted_sum(plan: Plan, operands: Operands) -> tuple[jax.Array, Tree]:
    """Sum of weight times loss over all rows, and the auxiliary results of each, which count as constants."""
    return _sum_and_gradients(plan, jax.tree.map(lambda _: False, operands), operands)[:2]


def _weighted_sum_jvp(plan, primals, tangents):
    (operands,), (tangents,) = primals, tangents
    active = _perturbed(tangents)
    total, extra, gradients = _sum_and_gradients(plan, active, operands)
    parts: dict[tuple[str, ...], list[jax.Array]] = {}
    for gradient, t in zip(jax.tree.leaves(gradients), _chosen(tangents, active), strict=True):
        part = jnp.sum(gradient * t.astype(gradient.dtype)).astype(total.dtype)
        parts.setdefault(tuple(sorted(varying(part) - varying(total))), []).append(part)
    tangent = sum(lax.psum(sum(x), axes) if axes else sum(x) for axes, x in parts.items())
    tangent = vary(tangent, varying(total))
    constants = jax.tree.map(lambda x: SymbolicZero(jax.typeof(x).to_tangent_aval()), extra)
    return (total, extra), (tangent, constants)


weighted_sum.defjvp(_weighted_sum_jvp, symbolic_zeros=True)


def layer_of(hidden: jax.Array, kernel: jax.Array, class_axis: int, precision: Any) -> Layer:
    """Factors in the common dtype of rows and kernel, sums in float32 (float64 for float64)."""
    dtype = jnp.dtype(jnp.float64 if jnp.float64 in (hidden.dtype, kernel.dtype) else jnp.float32)
    operand = hidden.dtype if hidden.dtype == kernel.dtype else dtype
    return Layer(class_axis, operand, dtype, precision)


def row_sum(layer: Layer, splits: Splits, loss: Callable, operands: Operands, closed: bool) -> tuple[jax.Array, Tree]:
    """`weighted_sum` of a function (logits, labels, parameters) that may close over traced arrays unless `closed`."""
    layered = (operands.hidden, operands.kernel, operands.bias)
    hidden, kernel, bias = spread(layered, varying_any(layered))
    operands = operands._replace(hidden=hidden, kernel=kernel, bias=bias)

    def types():
        rows = jax.tree.map(lambda x: splits.other.apply(x)[0], operands.rows._replace(keep=None))
        return layer.logits(rows.hidden, operands.kernel, bias), rows.labels, operands.parameters

    axes = varying(jax.eval_shape(lambda: loss(*types()))[0])
    operands = operands._replace(
        labels=vary(operands.labels, axes),
        weights=vary(operands.weights, axes),
        parameters=vary(operands.parameters, axes),
    )
    *rows, parameters = jax.eval_shape(types)
    sizes = dict.fromkeys(size for parts in splits for size in parts.sizes)
    programs, enclosed = opened(loss, [(*resized(rows, size), parameters) for size in sizes], closed)
    for x in enclosed:
        if axes - varying(x) and jnp.issubdtype(x.dtype, jnp.inexact):
            raise ValueError(
                f"linear_loss: `loss` closes over a traced {describe(x)} that is the same on all devices of mesh axes "
                f"{sorted(axes - varying(x))}. Pass it in `loss_args`."
            )
    return weighted_sum(Plan(programs, layer, splits), operands._replace(enclosed=enclosed))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _logits(layer: Layer, hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """Logits whose cotangents are rounded to the factors' dtype, once, before the products of reverse mode."""
    return layer.logits(hidden, kernel, None)


def _logits_jvp(layer, primals, tangents):
    (hidden, kernel), perturbed = primals, _perturbed(tangents)
    narrow = layer._replace(dtype=layer.operand)
    parts = [
        narrow.logits(*pair, None).astype(layer.dtype)
        for pair, yes in zip([(tangents[0], kernel), (hidden, tangents[1])], perturbed, strict=True)
        if yes
    ]
    return _logits(layer, hidden, kernel), sum(parts[1:], parts[0])


_logits.defjvp(_logits_jvp, symbolic_zeros=True)


def row_results(layer: Layer, splits: Splits, function: Callable, operands: Operands, closed: bool) -> Tree:
    """Results by row of a function (logits, *labels), as in `row_sum`; logits are computed again in reverse mode."""
    layered = (operands.hidden, operands.kernel, operands.bias)
    hidden, kernel, bias = spread(layered, varying_any(layered))
    # The loop adds up the cotangents of the kernel in the kernel's dtype.
    kernel = kernel.astype(layer.dtype)

    def types():
        rows, labels = jax.tree.map(lambda x: splits.other.apply(x)[0], (hidden, operands.labels))
        return layer.logits(rows, kernel, bias), *labels

    rows = jax.eval_shape(types)
    sizes = dict.fromkeys(parts.rows for parts in splits)
    programs, enclosed = opened(function, [resized(rows, size) for size in sizes], closed)

    def chunked(parts: Split, hidden, kernel, bias, labels):
        def chunk(hidden, labels):
            return programs(layer.biased(_logits(layer, hidden, kernel), bias), *labels, enclosed)

        rows = jax.tree.map(parts.apply, (layer.narrow(hidden), labels))
        found = lax.map(lambda x: jax.checkpoint(chunk, prevent_cse=False)(*x), rows)
        return jax.tree.map(parts.undo, found)

    return splits.run(chunked, hidden, kernel, bias, operands.labels)
