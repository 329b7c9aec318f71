"""Rows in chunks: how many, by platform, splitting, masking, and the loops over them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.platforms import on_platform
from jaxloss._core.varying import Tree, vary, varying

PARTS = 4
"""Of a chunk, for second derivatives: they hold about three times as many arrays of logits."""


def parts_of(rows: int) -> int:
    return 1 if rows % PARTS else PARTS


def resized(types: Tree, rows: int) -> Tree:
    """Types of as many rows."""
    return jax.tree.map(lambda x: x.update(shape=(rows, *x.shape[1:])), types)


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

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of rows that `Chunks` takes at once."""
        return (self.rows,) if self.number == 1 else (self.rows, self.rows // parts_of(self.rows))

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
    number = -(-size // chunk_rows)
    if not isinstance(size, int):  # a symbolic dimension of `jax.export`
        return Split(batch, number, -(-size // number))
    number = max(1, number)
    rows = -(-size // number)
    if number > 1 and rows % PARTS and rows + -rows % PARTS <= chunk_rows:
        rows += -rows % PARTS
    return Split(batch, number, rows)


class Splits(NamedTuple):
    """The same rows in chunks, for the platform that a program is lowered for."""

    cpu: Split
    other: Split

    def run(self, function: Callable[..., Tree], *arguments: Tree) -> Tree:
        """`function` of a split and the arguments.

        Of which split is known when the program is lowered: it may be traced on another machine than it runs on.
        """
        if self.cpu == self.other:
            return function(self.other, *arguments)
        cpu, other = (partial(function, parts) for parts in self)
        return on_platform(*arguments, cpu=cpu, accelerator=other)


def splits(batch: tuple[int, ...], chunk_rows: int | None, width: int, row_bytes: int) -> Splits:
    """As asked for, else the default of each platform; `row_bytes` are those of a row's logits."""

    def default(least: int, balance: int, most: int) -> Split:
        if not isinstance(row_bytes, int):  # a symbolic number of classes has no bounds
            return split(batch, balance)
        return split(batch, max(1, least // row_bytes, min(balance, most // row_bytes)))

    if chunk_rows is not None:
        return Splits(split(batch, chunk_rows), split(batch, chunk_rows))
    # Each chunk reads and writes the kernel's gradient once and its logits a few times. docs/linear.md has the figures:
    # on CPU the width sets the balance of the two; elsewhere products do, of which a row has as many as it has of both.
    return Splits(default(16 * 2**20, 4 * width, 112 * 2**20), default(2**30, 8192, 2**32))


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
        parts = parts_of(jax.tree.leaves(self.rows)[0].shape[1])

        def step(sums, part):
            more, results = body(part)
            return jax.tree.map(jnp.add, sums, more), results

        rows = jax.tree.map(lambda x: x.reshape(x.shape[0] * parts, x.shape[1] // parts, *x.shape[2:]), self.rows)
        start = jax.eval_shape(lambda: body(jax.tree.map(lambda x: x[0], rows)))[0]
        sums, results = lax.scan(step, jax.tree.map(zeros, start), rows)
        return sums, jax.tree.map(lambda x: x.reshape(self.number, -1, *x.shape[2:]), results)
