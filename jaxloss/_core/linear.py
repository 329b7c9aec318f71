"""A loss of a linear layer without its logits: rows in chunks, loss and gradients of a chunk in one go.

With z = h W + b for the rows h of a chunk and the weighted sum L = sum_i w_i loss_i(z_i), dz = dL/dz comes from the loss,
and the layer adds two more products, dL/dh = dz W' and dL/dW = h' dz. `weighted_sum` finds all gradients that are asked
for beside the sum; its derivative rule is the sum of <gradient, tangent>. That is linear, so that reverse mode scales
what is there already (three products for value and gradient, two for one side alone); forward mode is the same sum;
and since the gradients are computed by plain JAX, the rule can be differentiated again. `jax.checkpoint` keeps the
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
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

Tree = Any  # of arrays
Axes = frozenset[str]


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

    def logits(self, hidden: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        z = self.product(hidden, kernel, 1, 1 - self.class_axis)
        return z if bias is None else z + bias.astype(self.dtype)[None, :]

    def by_hidden(self, dz: jax.Array, kernel: jax.Array) -> jax.Array:
        return self.product(dz, kernel, 1, self.class_axis)

    def by_kernel(self, dz: jax.Array, hidden: jax.Array) -> jax.Array:
        return self.product(hidden, dz, 0, 0) if self.class_axis else self.product(dz, hidden, 0, 0)


class Operands(NamedTuple):
    """What the sum depends on, or its gradients (None: not asked for); rows in chunks, [chunks, rows, ...]."""

    hidden: Any = None
    labels: Tree = None
    weights: Any = None
    keep: Any = None  # mask of rows
    kernel: Any = None
    bias: Any = None
    parameters: Tree = None  # of the loss

    @property
    def rows(self) -> "Operands":
        return self._replace(kernel=None, bias=None, parameters=None)

    def with_rows(self, rows: "Operands") -> "Operands":
        return rows._replace(kernel=self.kernel, bias=self.bias, parameters=self.parameters)


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


def _zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
    return vary(jnp.zeros(like.shape, like.dtype), varying(like))


def masked(keep: jax.Array | None, tree: Tree) -> Tree:
    """Zero in rows left out."""

    def mask(x):
        return jnp.where(jnp.expand_dims(keep, range(1, x.ndim)), x, jnp.zeros((), x.dtype))

    return tree if keep is None else jax.tree.map(mask, tree)


class Chunks(NamedTuple):
    """Sums, and results by row, of a function of a chunk of rows, over all chunks; no loop for a single chunk."""

    body: Callable[[Tree], tuple[Tree, Tree]]
    rows: Tree

    @property
    def count(self) -> int:
        return jax.tree.leaves(self.rows)[0].shape[0]

    def at(self, i) -> Tree:
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), self.rows)

    def single(self) -> tuple[Tree, Tree]:
        sums, results = self.body(self.at(0))
        return sums, jax.tree.map(lambda x: x[None], results)

    def loop(self) -> tuple[Tree, Tree]:
        """Not differentiable in reverse, but what the body makes of nothing, such as masks' constants, stays in it.

        JAX moves that out of a differentiated `scan`, where it takes the memory of several chunks.
        """
        if self.count == 1:
            return self.single()
        sums, results = jax.eval_shape(lambda: self.body(self.at(0)))
        results = jax.tree.map(lambda x: x.update(shape=(self.count, *x.shape)), results)

        def step(state):
            i, sums, results = state
            more, found = self.body(self.at(i))
            results = jax.tree.map(lambda x, part: lax.dynamic_update_index_in_dim(x, part, i, 0), results, found)
            return i + 1, jax.tree.map(jnp.add, sums, more), results

        start = (jnp.int32(0), jax.tree.map(_zeros, sums), jax.tree.map(_zeros, results))
        return lax.while_loop(lambda state: state[0] < self.count, step, start)[1:]

    def scan(self) -> tuple[Tree, Tree]:
        """The same, differentiable; of a chunk no more is stored than its rows."""
        body = jax.checkpoint(self.body, prevent_cse=False)
        if self.count == 1:
            return self._replace(body=body).single()

        def step(sums, chunk):
            more, results = body(chunk)
            return jax.tree.map(jnp.add, sums, more), results

        return lax.scan(step, jax.tree.map(_zeros, jax.eval_shape(lambda: body(self.at(0)))[0]), self.rows)


def _restrict(function: Callable, arguments: tuple, active: tuple) -> tuple[Callable, list, Callable]:
    """A function of the leaves that are `active` alone; these; and what puts such a list back, None for the others."""
    leaves, structure = jax.tree.flatten(arguments)
    chosen = structure.flatten_up_to(active)

    def restricted(*variables):
        given = iter(variables)
        return function(*structure.unflatten(next(given) if yes else x for x, yes in zip(leaves, chosen, strict=True)))

    def put_back(values):
        found = iter(values)
        return structure.unflatten(next(found) if yes else None for yes in chosen)

    return restricted, [x for x, yes in zip(leaves, chosen, strict=True) if yes], put_back


def _vjp(function: Callable[..., tuple], arguments: tuple, active: tuple) -> tuple[jax.Array, Callable, Tree]:
    """`jax.vjp` with auxiliary results by the leaves of `arguments` that are `active`, None for the others."""
    restricted, variables, put_back = _restrict(function, arguments, active)
    if not variables:
        value, extra = restricted()
        return value, lambda _: put_back([]), extra
    value, pull, extra = jax.vjp(restricted, *variables, has_aux=True)
    return value, lambda cotangent: put_back(pull(cotangent)), extra


def _perturbed(tangents: Tree) -> Tree:
    return jax.tree.map(lambda t: not isinstance(t, SymbolicZero) and t.dtype != jax.dtypes.float0, tangents)


class Plan(NamedTuple):
    """What is fixed while the program is traced."""

    loss: Callable[..., tuple[jax.Array, Tree]]  # of logits, labels and parameters: losses and auxiliary results
    layer: Layer

    def chunks(self, active: Operands, operands: Operands) -> Chunks:
        """Of each chunk the weighted sum, gradients by what is `active`, and auxiliary results by row."""
        layer, kernel, bias = self.layer, operands.kernel, operands.bias
        by_logits = active.hidden or active.kernel or active.bias

        def body(rows: Operands):
            keep = rows.keep
            hidden, labels, weights = masked(keep, (rows.hidden, rows.labels, rows.weights))
            z = layer.logits(hidden, kernel, bias)
            variables, which = (z, labels, operands.parameters), (by_logits, active.labels, active.parameters)
            losses, pull, extra = _vjp(self.loss, variables, which)
            ones = jnp.ones(losses.shape, losses.dtype)
            scale = masked(keep, vary(ones if weights is None else weights.astype(losses.dtype), varying(losses)))
            dz, dlabels, dparameters = pull(scale)
            losses, dz, dlabels, extra = masked(keep, (losses, dz, dlabels, extra))
            shared = Operands(
                kernel=layer.by_kernel(dz, hidden) if active.kernel else None,
                bias=jnp.sum(dz, 0) if active.bias else None,
                parameters=dparameters,
            )
            by_row = Operands(
                hidden=layer.by_hidden(dz, kernel) if active.hidden else None,
                labels=dlabels,
                weights=losses if active.weights else None,
            )
            return (jnp.sum(losses * scale), shared), (extra, by_row)

        return Chunks(body, operands.rows)


def _gather(found: tuple[Tree, Tree]) -> tuple[jax.Array, Tree, Operands]:
    (total, shared), (extra, by_row) = found
    return total, extra, shared.with_rows(by_row)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sum_and_gradients(plan: Plan, active: Operands, operands: Operands) -> tuple[jax.Array, Tree, Operands]:
    """The weighted sum, the auxiliary results by row, and the gradients by what is `active`."""
    return _gather(plan.chunks(active, operands).loop())


def _sum_and_gradients_jvp(plan, active, primals, tangents):
    (tangents,) = tangents
    perturbed = _perturbed(tangents)
    function = lambda operands: _gather(plan.chunks(active, operands).scan())  # noqa: E731
    restricted, variables, _ = _restrict(function, primals, (perturbed,))
    return jax.jvp(restricted, variables, _restrict(function, (tangents,), (perturbed,))[1])


_sum_and_gradients.defjvp(_sum_and_gradients_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def weighted_sum(plan: Plan, operands: Operands) -> tuple[jax.Array, Tree]:
    """Sum of weight times loss over all rows, and the auxiliary results of each, which count as constants."""
    return _sum_and_gradients(plan, jax.tree.map(lambda _: False, operands), operands)[:2]


def _weighted_sum_jvp(plan, primals, tangents):
    (operands,), (tangents,) = primals, tangents
    active = _perturbed(tangents)
    total, extra, gradients = _sum_and_gradients(plan, active, operands)
    tangent = jnp.zeros((), total.dtype)
    for gradient, t in zip(jax.tree.leaves(gradients), _restrict(tuple, (tangents,), (active,))[1], strict=True):
        tangent = tangent + jnp.sum(gradient * t.astype(gradient.dtype)).astype(total.dtype)
    within = tuple(sorted(varying(tangent) - varying(total)))
    tangent = vary(lax.psum(tangent, within) if within else tangent, varying(total))
    return (total, extra), (tangent, jax.tree.map(_no_tangent, extra))


weighted_sum.defjvp(_weighted_sum_jvp, symbolic_zeros=True)


def _no_tangent(x: jax.Array) -> jax.Array | np.ndarray:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return np.zeros(x.shape, jax.dtypes.float0)
    return vary(jnp.zeros(x.shape, x.dtype), varying(x))
