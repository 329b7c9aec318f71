"""Functions given by a caller, as static arguments of a program and as programs of their own.

A compiled program is found again by its static arguments, which JAX keeps. So equal partials of one function are equal
here, and a function itself is held weakly: what it closes over, tracers among it, is not kept alive.
"""

import functools
import types
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxloss._core.varying import Tree


class EnclosesTracersError(Exception):
    """Of a function, found while a program of it is traced that would be kept."""


class Reference:
    """Something that is equal to nothing but itself, as long as it lives."""

    def __init__(self, thing: Any):
        self._thing, self._hash = weakref.ref(thing), id(thing)

    def thaw(self) -> Any:
        return self._thing()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and (self is other or self.thaw() is other.thaw() is not None)

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True)
class Constant:
    """A value; 1, 1.0 and True differ, and so do 0.0 and -0.0."""

    key: Hashable
    value: Any = field(compare=False)

    def thaw(self) -> Any:
        return self.value


class Bound(NamedTuple):
    """A partial, or a method, of trees of arguments."""

    function: "Frozen"
    structure: Any
    leaves: "tuple[Frozen, ...]"

    def thaw(self) -> Callable:
        args, keywords = self.structure.unflatten(leaf.thaw() for leaf in self.leaves)
        return functools.partial(self.function.thaw(), *args, **keywords)


Frozen = Reference | Constant | Bound


def freeze(thing: Any) -> Frozen:
    """A key of which `thaw` makes the thing again, as long as that lives."""
    if isinstance(thing, types.MethodType):
        thing = functools.partial(thing.__func__, thing.__self__)
    if isinstance(thing, functools.partial):
        leaves, structure = jax.tree.flatten((thing.args, thing.keywords))
        bound = Bound(freeze(thing.func), structure, tuple(map(freeze, leaves)))
        return bound if _hashable(structure) else Constant(object(), thing)
    if isinstance(thing, float):
        return Constant((type(thing), thing.hex()), thing)
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        return Constant((str(thing.dtype), thing.shape, thing.tobytes()), thing)
    if type(thing).__eq__ is not object.__eq__ and _hashable(thing):
        return Constant((type(thing), thing), thing)
    try:
        return Reference(thing)
    except TypeError:  # nothing refers weakly to it: None, for one
        return Constant((type(thing), thing) if _hashable(thing) else object(), thing)


def _hashable(thing: Any) -> bool:
    try:
        hash(thing)
    except TypeError:
        return False
    return True


def kept_if_closed(program: Any, *arguments: Any) -> Any:
    """A compiled function, but not compiled here, nor kept, where functions in it close over traced arrays."""
    try:
        return program(True, *arguments)
    except EnclosesTracersError:
        pass
    return program.__wrapped__(False, *arguments)


class Program(NamedTuple):
    jaxpr: tuple[Any, list]  # and its constants
    structure: Any  # of the results
    enclosed: tuple[int | None, ...]  # of each constant the place among traced arrays; None where it is not traced


@dataclass(frozen=True, eq=False)
class Opened:
    """A function of chunks of rows as programs, by the number of rows; what it closes over is their last argument."""

    programs: dict[Any, Program]

    def __call__(self, *arguments: Tree) -> Tree:
        *rows, enclosed = arguments
        (jaxpr, consts), structure, places = self.programs[rows[0].shape[0]]
        consts = [x if place is None else enclosed[place] for x, place in zip(consts, places, strict=True)]
        return structure.unflatten(jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*jax.tree.leaves(rows)))


def opened(function: Callable, chunks: list[Tree], closed: bool) -> tuple[Opened, list[jax.Array]]:
    """Programs of a function, and the traced arrays that it closes over; none if it is `closed`.

    Nothing else of the function is kept in them: they may be taken up again when its tracers are long gone.
    """
    enclosed: list[jax.Array] = []
    programs = {}
    for given in chunks:
        found, shapes = jax.make_jaxpr(lambda *arguments: function(*arguments), return_shape=True)(*given)
        places = []
        for x in found.consts:
            if isinstance(x, Tracer) and all(x is not y for y in enclosed):
                enclosed.append(x)
            places.append(next((i for i, y in enumerate(enclosed) if x is y), None))
        consts = [x if place is None else None for x, place in zip(found.consts, places, strict=True)]
        programs[given[0].shape[0]] = Program((found.jaxpr, consts), jax.tree.structure(shapes), tuple(places))
    if closed and enclosed:
        raise EnclosesTracersError
    return Opened(programs), enclosed
