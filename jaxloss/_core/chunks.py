"""Rows in chunks: splitting, masking, and the loops over them; mesh axes over which values vary.

Inside `jax.shard_map` a value's type says over which mesh axes it varies. A value that does not vary and meets one that
does is cast, and the derivative of that cast is a sum over devices: casts belong before a loop, not in it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any  # of arrays
Axes = frozenset[str]

PARTS = 4
"""Of a chunk, for second derivatives: they hold about three times as many arrays of logits."""


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


def zeros(like: Any) -> jax.Array:
    return vary(jnp.zeros(like.shape, like.dtype), varying(like))


class Split(NamedTuple):
    """Rows [*batch, ...] as chunks [number, rows, ...], the last row repeated to fill the last chunk."""

    batch: tuple[int, ...]
    number: int
    rows: int

    @property
    def size(self) -> int:
        return math.prod(self.batch)

    def apply(self, x: jax.Array) -> jax.Array:
        x = x.reshape(self.size, *x.shape[len(self.batch) :])
        added = self.number * self.rows - self.size
        if added:
            x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (added, *x.shape[1:]))])
        return x.reshape(self.number, self.rows, *x.shape[1:])

    def undo(self, x: jax.Array) -> jax.Array:
        return x.reshape(self.number * self.rows, *x.shape[2:])[: self.size].reshape(*self.batch, *x.shape[2:])

    def keep(self, where: jax.Array | None) -> jax.Array | None:
        """Mask [number, rows] of the rows to keep, without those that fill up; None for all."""
        mask = None if where is None else self.apply(where)
        if self.number * self.rows == self.size:
            return mask
        real = lax.iota(jnp.int32, self.number * self.rows).reshape(self.number, self.rows) < self.size
        return real if mask is None else mask & real


def split(batch: tuple[int, ...], chunk_rows: int) -> Split:
    """Chunks of `chunk_rows` rows at the most, all alike; of a multiple of `PARTS` where they hold as many."""
    size = math.prod(batch)
    number = max(1, -(-size // chunk_rows))
    rows = -(-size // number)
    if number > 1 and rows % PARTS and rows + -rows % PARTS <= chunk_rows:
        rows += -rows % PARTS
    return Split(batch, number, rows)


def masked(keep: jax.Array | None, tree: Tree) -> Tree:
    """Zero in rows left out."""
    if keep is None:
        return tree

    def mask(x):
        return jnp.where(jnp.expand_dims(keep, range(1, x.ndim)), x, jnp.zeros((), x.dtype))

    return jax.tree.map(mask, tree)


class Chunks(NamedTuple):
    """Sums, and results by row, of a function of a chunk of rows, over all chunks; no loop for a single chunk."""

    body: Callable[[Tree], tuple[Tree, Tree]]
    rows: Tree

    @property
    def number(self) -> int:
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
        if self.number == 1:
            return self.single()
        sums, results = jax.eval_shape(lambda: self.body(self.at(0)))
        results = jax.tree.map(lambda x: x.update(shape=(self.number, *x.shape)), results)

        def step(state):
            i, sums, results = state
            more, found = self.body(self.at(i))
            results = jax.tree.map(lambda x, part: lax.dynamic_update_index_in_dim(x, part, i, 0), results, found)
            return i + 1, jax.tree.map(jnp.add, sums, more), results

        start = (jnp.int32(0), jax.tree.map(zeros, sums), jax.tree.map(zeros, results))
        return lax.while_loop(lambda state: state[0] < self.number, step, start)[1:]

    def scan(self) -> tuple[Tree, Tree]:
        """The same, differentiable, in parts of the chunks; of a part no more is stored than its rows."""
        body = jax.checkpoint(self.body, prevent_cse=False)
        if self.number == 1:
            return self._replace(body=body).single()
        parts = 1 if jax.tree.leaves(self.rows)[0].shape[1] % PARTS else PARTS

        def step(sums, part):
            more, results = body(part)
            return jax.tree.map(jnp.add, sums, more), results

        rows = jax.tree.map(lambda x: x.reshape(x.shape[0] * parts, x.shape[1] // parts, *x.shape[2:]), self.rows)
        start = jax.eval_shape(lambda: body(jax.tree.map(lambda x: x[0], rows)))[0]
        sums, results = lax.scan(step, jax.tree.map(zeros, start), rows)
        return sums, jax.tree.map(lambda x: x.reshape(self.number, -1, *x.shape[2:]), results)
