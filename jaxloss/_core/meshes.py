"""A function of rows and a kernel on a mesh: how its arguments are laid out, and the `shard_map` that runs it.

Rows are split over the axes of the batch and classes over theirs; a kernel that is split over the batch's axes as well
(fully sharded data parallelism) is gathered once, before the rows are looped over, and each device keeps its part of
the sum of gradients. On explicit meshes the types of the arguments say all this; on automatic meshes the caller does.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloss._core.annotations import AxisName
from jaxloss._core.options import describe
from jaxloss._core.varying import Gathers, Tree, names_of, spread

Spec = str | P | None


def _entry(names: tuple[str, ...]) -> Any:
    return names[0] if len(names) == 1 else names or None


def _entries(spec: P, ndim: int) -> P:
    return P(*spec, *[None] * (ndim - len(spec)))


def _typed(x: jax.Array) -> P:
    """How the type of an array says that it is laid out, an entry for each axis (explicit meshes)."""
    return _entries(jax.typeof(x).sharding.spec, x.ndim)


class Layout(NamedTuple):
    """Where rows and classes lie."""

    mesh: Mesh | AbstractMesh
    batch: P  # an entry for each batch axis
    classes: tuple[str, ...]
    class_axis: int  # of the kernel
    kernel: P
    gathers: Gathers  # of the kernel

    @property
    def batch_names(self) -> tuple[str, ...]:
        return sum(map(names_of, self.batch), ())

    @property
    def shards(self) -> int:
        """How many the classes are split into."""
        return math.prod(self.mesh.shape[name] for name in self.classes)

    def specs(self, tree: Tree, given: Tree, by_row: bool) -> Tree:
        """Specs of a tree of arrays: as given, else rows by the batch's axes and the rest as the types say."""

        def default(x):
            if not by_row:
                return _typed(x)
            rest = [_entry(tuple(n for n in names_of(e) if n not in self.batch_names)) for e in _typed(x)]
            return P(*self.batch, *rest[len(self.batch) :])

        if given is None:
            return jax.tree.map(default, tree)
        given = jax.tree.map(lambda spec: P(spec) if isinstance(spec, str) else spec, given, is_leaf=_is_spec)
        return jax.tree.map(lambda spec, part: jax.tree.map(lambda _: spec, part), given, tree, is_leaf=_is_spec)

    def added(self, kernel: jax.Array) -> int:
        """How many classes fill up the last shards."""
        return -kernel.shape[self.class_axis] % self.shards

    def run(self, function: Callable, arguments: "Arguments", rows_spec: Tree, shared_spec: Tree, out_specs: Tree,
            fill: Callable[[str, jax.Array], float]):  # fmt: skip
        """The function of the shards of its arguments; `fill` has the entry of classes added to rows or shared."""
        kernel, bias = arguments.kernel, arguments.bias
        classes, size, added = P(_entry(self.classes)), kernel.shape[self.class_axis], self.added(kernel)
        if added and bias is None:
            bias = jnp.zeros(size, kernel.dtype)
        specs = Arguments(
            P(*self.batch, None),
            self.kernel,
            None if bias is None else classes,
            self.specs(arguments.rows, rows_spec, True),
            self.specs(arguments.shared, shared_spec, False),
        )
        arguments = arguments._replace(bias=bias)
        if added:
            fills = Arguments(0, 0, -jnp.inf, partial(fill, "rows"), partial(fill, "shared"))
            arguments = Arguments(*map(partial(self._filled, size, added), arguments, specs, fills))
        leaves, structure = jax.tree.flatten(arguments)
        in_specs = tuple(jax.tree.leaves(specs))
        if self.mesh.explicit_axes:
            placed = (NamedSharding(self.mesh, spec) for spec in in_specs)
            leaves = [jax.sharding.reshard(x, where) for x, where in zip(leaves, placed, strict=True)]

        def shard(*leaves):
            given = structure.unflatten(leaves)
            if self.gathers:
                given = given._replace(kernel=spread(given.kernel, frozenset(self.batch_names), self.gathers))
            return function(*given)

        return jax.shard_map(shard, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)(*leaves)

    def _filled(self, size: int, added: int, tree: Tree, specs: Tree, fill: Any) -> Tree:
        """With classes added to every array that is split by classes."""

        def pad(x, spec):
            entries = zip(x.shape, _entries(spec, x.ndim), strict=True)
            widths = [(0, added if n == size and names_of(e) == self.classes else 0) for n, e in entries]
            if not any(map(any, widths)):
                return x
            return jnp.pad(x, widths, constant_values=fill(x) if callable(fill) else fill)

        return jax.tree.map(pad, tree, specs)


class Arguments(NamedTuple):
    """Of a function of a linear layer, or their specs."""

    hidden: Any
    kernel: Any
    bias: Any
    rows: Tree  # arrays that have an entry for each row
    shared: Tree  # arrays that have not


def _is_spec(x: Any) -> bool:
    return isinstance(x, P | str)


def _kernel(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], spec: P, own: list, rows: tuple[str, ...]):
    """How the kernel enters, and what of it is gathered then: parts of it that lie on axes of the batch.

    `own` has the names over which each of its axes stays split. They come first, so that parts gathered are neighbours.
    """
    entries, gathers = [], []
    for axis, names in enumerate(own):
        found = names_of(spec[axis])
        rest = found[len(names) :]
        fits = found == names + rest and set(rest) <= set(rows)
        if fits and rest and shape[axis] % math.prod(mesh.shape[n] for n in found) == 0:
            gathers.append((axis, rest))
            names = found
        entries.append(_entry(names))
    return P(*entries), tuple(gathers)


def layout(name: str, hidden: jax.Array, kernel: jax.Array, class_axis: int, mesh: Mesh | None, batch_spec: Spec,
           axis_name: AxisName, kernel_spec: Spec) -> Layout | None:  # fmt: skip
    """The layout that the caller names or the types say; None where nothing is split, or inside `shard_map`."""
    typed_kernel, hidden_spec = _typed(kernel), _typed(hidden)
    named = (batch_spec, axis_name, kernel_spec) != (None, None, None)
    if not named and not any([*typed_kernel, *hidden_spec]):
        return None
    ambient = jax.sharding.get_abstract_mesh()
    typed = (jax.typeof(x).sharding.mesh for x in (hidden, kernel))
    devices = mesh or next((given for given in (ambient, *typed) if not given.empty), ambient)
    if devices.empty:
        raise ValueError(
            f"{name}: `batch_spec` and `axis_name` name axes of a mesh; there is none here. Call it under "
            "jax.set_mesh(mesh), or pass mesh=mesh."
        )
    batch = P(batch_spec) if isinstance(batch_spec, str) else batch_spec
    batch = P(*hidden_spec[:-1]) if batch is None else batch
    if len(batch) > hidden.ndim - 1:
        raise ValueError(
            f"{name}: `batch_spec` must have at most an entry for each batch axis of `hidden` {describe(hidden)}; "
            f"got {batch}."
        )
    batch = _entries(batch, hidden.ndim - 1)
    rows = sum(map(names_of, batch), ())
    classes = names_of(typed_kernel[class_axis]) if axis_name is None else names_of(axis_name)
    if axis_name is None:
        classes = tuple(n for n in classes if n not in rows)
    _check(name, devices, batch, rows, classes, hidden, hidden_spec)
    if kernel_spec is not None:
        typed_kernel = _entries(P(kernel_spec) if isinstance(kernel_spec, str) else kernel_spec, 2)
        wrong = sorted(set(sum(map(names_of, typed_kernel), ())) - {*rows, *classes})
        if wrong:
            raise ValueError(
                f"{name}: `kernel_spec` must name axes of `batch_spec` and `axis_name` alone; got {kernel_spec}, with "
                f"{', '.join(map(repr, wrong))}."
            )
    own = [classes if axis == class_axis else () for axis in (0, 1)]
    return Layout(devices, batch, classes, class_axis, *_kernel(devices, kernel.shape, typed_kernel, own, rows))


def _check(name, mesh, batch, rows, classes, hidden, hidden_spec) -> None:
    for axis in (*rows, *classes):
        if axis not in mesh.axis_names:
            raise ValueError(f"{name}: the mesh has no axis {axis!r}; it has {', '.join(map(repr, mesh.axis_names))}.")
        if axis in mesh.manual_axes:
            raise ValueError(
                f"{name}: inside jax.shard_map over {axis!r} the arguments are shards already: leave out `batch_spec` "
                "and `axis_name` here, and name the axis of the classes in the loss alone."
            )
    both = set(rows) & set(classes)
    if both:
        raise ValueError(f"{name}: rows and classes must lie on different mesh axes; both are given {sorted(both)}.")
    if names_of(hidden_spec[-1]):
        raise ValueError(
            f"{name}: the last axis of `hidden` must be whole on every device; its type says {hidden_spec}. Use "
            "jax.sharding.reshard(hidden, ...) before."
        )
    for size, entry in zip(hidden.shape, batch, strict=False):
        parts = math.prod(mesh.shape[n] for n in names_of(entry))
        if size % parts:
            raise ValueError(
                f"{name}: {size} rows of `hidden` {describe(hidden)} do not divide over the {parts} devices of mesh "
                f"axis {entry!r}. Add rows and leave them out with `where`."
            )
