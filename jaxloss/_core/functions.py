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
    jaxpr: ClosedJaxpr  # of the leaves of the arguments and what the function closes over
    structure: Any  # of the results


@dataclass(frozen=True, eq=False)
class Opened:
    """A function of chunks of rows as programs, by the number of rows; what it closes over is their last argument."""

    programs: dict[Any, Program]

    def __call__(self, *arguments: Tree) -> Tree:
        program = self.programs[arguments[0].shape[0]]
        return program.structure.unflatten(jaxpr_as_fun(program.jaxpr)(*jax.tree.leaves(arguments)))


def opened(function: Callable, chunks: list[Tree], closed: bool) -> tuple[Opened, list]:
    """Programs of a function, and the traced arrays that it closes over; none if it is `closed`.

    Nothing else of the function is kept in them: they may be taken up again when its tracers are long gone.
    """
    traced = [jax.make_jaxpr(lambda *x: function(*x), return_shape=True)(*given) for given in chunks]
    enclosed = list({id(x): x for found, _ in traced for x in found.consts if isinstance(x, Tracer)}.values())
    if closed and enclosed:
        raise EnclosesTracersError
    programs = {}
    for given, (found, shapes) in zip(chunks, traced, strict=True):
        jaxpr = _with_arguments(found, jax.tree.leaves(given), enclosed) if enclosed else found
        programs[given[0].shape[0]] = Program(jaxpr, jax.tree.structure(shapes))
    return Opened(programs), enclosed


def _with_arguments(found: ClosedJaxpr, given: list, enclosed: list) -> ClosedJaxpr:
    """The same program, whose traced constants are further arguments."""

    def function(leaves, values):
        put = {id(x): value for x, value in zip(enclosed, values, strict=True)}
        consts = [put.get(id(x), x) for x in found.consts]
        return jaxpr_as_fun(ClosedJaxpr(found.jaxpr, consts))(*leaves)

    return jax.make_jaxpr(function)(given, enclosed)
