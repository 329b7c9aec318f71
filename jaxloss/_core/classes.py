"""The classes of a row: an array axis, what is summed along it, and the mesh axis that may shard it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxloss._core.platforms import on_platform

State = tuple[jax.Array, ...]
Combine = Callable[[State, State], State]


def nan_where(mask: jax.Array, x: jax.Array) -> jax.Array:
    """`x`, but NaN where `mask`, formed there alone: a constant NaN raises under `jax_debug_nans` in eager code."""
    hole = jnp.where(mask, jnp.inf, x)
    return hole - jnp.where(mask, hole, 0)


class ClassAxis(NamedTuple):
    """Where the classes lie: an array axis, and the mesh axis that shards it inside `shard_map`."""

    axis: int
    name: str | tuple[str, ...] | None = None

    def max(self, x: jax.Array) -> jax.Array:
        local = jnp.max(x, self.axis)
        return local if self.name is None else lax.pmax(local, self.name)

    def sum(self, x: jax.Array) -> jax.Array:
        local = jnp.sum(x, self.axis)
        return local if self.name is None else lax.psum(local, self.name)

    def size(self, x: jax.Array) -> int:
        return x.shape[self.axis] * (1 if self.name is None else lax.axis_size(self.name))

    def fold(self, states: State, start: tuple[float, ...], combine: Combine) -> State:
        """Joins the states of all classes of a shard, in one read of what they are made of."""
        return _reduce(states, start, combine, self.axis)

    def fold_label(self, logits: jax.Array, ids: jax.Array, start: tuple[float, ...], combine: Combine) -> State:
        """Joins (-inf, 1, z) of class `ids` of each row and (z, 1, 0) of the others of a shard, in one read.

        The third of a state is a sum, of which the first two know nothing.
        """
        parts = 1 if is_explicit(logits) else _parts(logits.shape[self.axis], self.name is not None)

        def whole(logits, ids):
            is_label = self.is_label(logits, ids)
            states = jnp.where(is_label, -jnp.inf, logits), jnp.ones_like(logits), jnp.where(is_label, logits, 0)
            return _reduce(states, start, combine, self.axis)

        def in_parts(logits, ids):
            label = ids - self.first(logits)
            # The mask has another shape than that of a gradient, and one use: XLA would store it otherwise.
            across, shape = self.axis + 1, logits.shape
            z = logits.reshape(*shape[: self.axis], -1, parts, *shape[across:])
            index = lax.broadcasted_iota(jnp.int32, z.shape, self.axis) * parts
            index += lax.broadcasted_iota(jnp.int32, z.shape, across)
            z = jnp.where(index == jnp.expand_dims(label, (self.axis, across)), -jnp.inf, z)
            each = [lax.index_in_dim(z, k, across, keepdims=False) for k in range(parts)]
            each = [(x, jnp.ones_like(x)) for x in each]

            def pair(a, b):
                zero = jnp.zeros_like(a[0])
                return combine((*a, zero), (*b, zero))[:2]

            while len(each) > 1:
                each = list(map(pair, each[::2], each[1::2]))
            inside = (label >= 0) & (label < shape[self.axis])
            own = jnp.where(inside, entry(self._replace(name=None), logits, label), 0)
            return *_reduce(each[0], start[:2], pair, self.axis), own

        if parts == 1:
            return whole(logits, ids)
        return on_platform(logits, ids, cpu=whole, accelerator=whole, gpu=in_parts)

    def join(self, state: State, start: tuple[float, ...], combine: Combine) -> State:
        """Joins the states of the shards: each device fills in its own, one sum brings them together."""
        if self.name is None:
            return state
        shards = lax.axis_size(self.name)
        own = lax.iota(jnp.int32, shards) == lax.axis_index(self.name)
        stacked = jnp.stack(state)
        own = own.reshape(shards, *[1] * stacked.ndim)
        slots = lax.psum(jnp.where(own, stacked[None], 0), self.name)
        return _reduce(tuple(jnp.moveaxis(slots, 1, 0)), start, combine, 0)

    def first(self, x: jax.Array) -> jax.Array | int:
        """The class that the first of a shard is."""
        return 0 if self.name is None else lax.axis_index(self.name) * x.shape[self.axis]

    def spread(self, row: jax.Array) -> jax.Array:
        """A value of each row, shaped to broadcast against the logits."""
        return jnp.expand_dims(row, self.axis)

    def along(self, x: jax.Array, like: jax.Array) -> jax.Array:
        """A vector over the classes, shaped to broadcast against `like`."""
        return jnp.expand_dims(x, [i for i in range(like.ndim) if i != self.axis])

    def is_label(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """Mask of the shape of `x`, true at the class `ids` of each row; fused, never stored."""
        sharding = jax.typeof(x).sharding if is_explicit(x) else None
        iota = lax.broadcasted_iota(jnp.int32, x.shape, self.axis, out_sharding=sharding)
        return iota == self.spread(ids - self.first(x))

    def one_hot(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """The ids as rows of the shape and dtype of `x`, NaN for an id outside, -1; fused, never stored."""
        return nan_where(self.spread(ids < 0), self.is_label(x, ids).astype(x.dtype))

    def without(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """`x` with -inf at the class `ids` of each row."""
        return jnp.where(self.is_label(x, ids), -jnp.inf, x)


def _parts(size: int, own: bool) -> int:
    """Into how many parts a GPU cuts the classes, to join those elementwise before it reduces what comes of it.

    XLA has a thread join as few as 8 classes before 32 threads join theirs, which takes longer than to read bfloat16
    logits. With 8 times as many it takes two thirds of the time (docs/measurements/gpu.md). Classes of a part are
    `parts` apart, so that each of up to 64 devices, among which many classes may be split, has whole ones: those of
    others would be fetched.
    """
    if not isinstance(size, int) or size < 512:
        return 1
    whole = 1 if own or size < 4096 else 64
    return next((k for k in (8, 4, 2) if size % (k * whole) == 0), 1)


def _reduce(states: State, start: tuple[float, ...], combine: Combine, axis: int) -> State:
    # Under `jax.checkpoint`, forward over reverse mode differentiates what a derivative rule is made of, and JAX (0.10
    # to 0.12) fails there unless each operand of a reduction has a tangent. This gives it one, which XLA takes out.
    states = (states[0], *(jnp.where(False, states[0], x) for x in states[1:]))
    first = tuple(jnp.asarray(value, x.dtype) for value, x in zip(start, states, strict=True))
    return tuple(lax.reduce(states, first, combine, (axis,)))


def is_explicit(x: jax.Array) -> bool:
    """Whether the type of `x` carries a sharding (explicit meshes)."""
    return any(part is not None for part in jax.typeof(x).sharding.spec)


def gathers(classes: ClassAxis, x: jax.Array, ids: jax.Array) -> bool:
    """Whether entries can be looked up: rows are whole, and the result has no sharding to be told."""
    return classes.name is None and not is_explicit(x) and not is_explicit(ids)


def entry(classes: ClassAxis, x: jax.Array, ids: jax.Array) -> jax.Array:
    """Entry `ids` of `x` along the classes, one for each row; 0 where another shard has it."""
    if gathers(classes, x, ids):
        inside = classes.spread(jnp.clip(ids, 0, x.shape[classes.axis] - 1))
        return jnp.squeeze(jnp.take_along_axis(x, inside, classes.axis, mode="promise_in_bounds"), classes.axis)
    return jnp.sum(jnp.where(classes.is_label(x, ids), x, jnp.zeros((), x.dtype)), classes.axis)


def holds_at(classes: ClassAxis, mask: jax.Array, ids: jax.Array) -> jax.Array:
    """Whether a mask of the shape of the logits is true at class `ids` of each row."""

    def looked_up(mask, ids):
        return entry(classes, mask, ids).astype(jnp.int32)

    def found(mask, ids):
        return jnp.sum(classes.is_label(mask, ids) & mask, classes.axis, dtype=jnp.int32)

    # On accelerators a gather would store a mask that the program makes.
    local = on_platform(mask, ids, cpu=looked_up, accelerator=found)
    return (local if classes.name is None else lax.psum(local, classes.name)) > 0


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def pick(classes: ClassAxis, x: jax.Array, ids: jax.Array) -> jax.Array:
    """Entry `ids` of `x` along the classes, one for each row; unspecified but finite for ids outside."""
    local = entry(classes, x, ids)
    return local if classes.name is None else lax.psum(local, classes.name)


@pick.defjvp
def _pick_jvp(classes, primals, tangents):
    # The transpose of a gather is a scatter; that of a masked sum is a comparison.
    x, ids = primals
    mask = classes.is_label(x, ids)
    return pick(classes, x, ids), classes.sum(jnp.where(mask, tangents[0], 0))


def whole_rows(x: jax.Array) -> jax.Array:
    """The last axis on one device, as sorting needs it; only on explicit meshes does JAX have to be told."""
    sharding = jax.typeof(x).sharding
    if all(part is None for part in sharding.spec[-1:]):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:-1], None)))
