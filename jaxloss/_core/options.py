"""Numeric options and the compilation of public functions.

Every public function is wrapped by `compiled`: Python numbers are checked and, where they switch an option off, taken
out of the program; one `jit`-compiled program does the rest. An option that stays is a traced array, so that another
value needs no recompilation and can be differentiated.
"""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss._core.checks import check_domain

Axis = int | tuple[int, ...] | None
AxisName = str | tuple[str, ...] | None
Function = TypeVar("Function", bound=Callable[..., Any])


class Option(NamedTuple):
    """Domain of a numeric option, the Python number that switches it off, and whether classes may have one each."""

    low: float
    high: float
    off: float | None = None
    per_class: bool = False


TINY = float(np.finfo(np.float32).tiny)
OPTIONS = {
    "alpha": Option(0, 1, per_class=True),
    "beta": Option(0, 1),
    "clip": Option(0, 1, off=0, per_class=True),
    "class_weights": Option(0, np.inf, off=1, per_class=True),
    "delta": Option(TINY, np.inf),
    "epsilon": Option(-np.inf, np.inf, off=0, per_class=True),
    "gamma": Option(0, np.inf, off=0, per_class=True),
    "gamma_negative": Option(0, np.inf, off=0, per_class=True),
    "gamma_positive": Option(0, np.inf, off=0, per_class=True),
    "label_smoothing": Option(0, 1, off=0),
    "normalizer": Option(0, np.inf),
    "pos_weight": Option(0, np.inf, off=1, per_class=True),
    "q": Option(0, 1, off=0, per_class=True),
    "temperature": Option(TINY, np.inf, off=1),
    "z_loss": Option(0, np.inf, off=0),
}


HESSIANS: dict[Callable[..., Any], Callable[..., Any]] = {}  # by public function, not by attribute: wrappers copy those
ELSEWHERE = {
    "weight": "class_weights",
    "weights": "class_weights, or jaxloss.mean(losses, weights=...)",
    "class_weight": "class_weights",
    "sample_weight": "jaxloss.mean(losses, weights=...)",
    "reduction": "jaxloss.mean(losses)",
    "ignore_index": "where=labels != ignore_index",
    "mask": "where",
    "from_logits": "a softmax_* or sigmoid_* loss for logits, cross_entropy or binary_cross_entropy for probabilities",
}


def public(hessian: Callable[[Callable], Callable]) -> Callable[[Function], Function]:
    """Compiles a public loss once per shape, with static and switched-off options taken out of the program.

    `hessian` makes, of the undecorated function, one of the same arguments that returns the diagonal of its Hessian.
    """

    def decorate(function: Function) -> Function:
        wrapper = compiled(function)
        HESSIANS[wrapper] = compiled(functools.wraps(function)(hessian(function)))
        return wrapper

    return decorate


def compiled(function: Function, static: tuple[str, ...] = ("axis", "axis_name", "surrogate")) -> Function:
    """Compiles a function once per shape; what `_prepare` makes of its arguments is what the program sees."""
    name = function.__name__
    signature = inspect.signature(function)
    program = jax.jit(function, static_argnames=[key for key in signature.parameters if key in static], inline=True)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            hints = [f" For `{key}` use {ELSEWHERE[key]}." for key in kwargs if key in ELSEWHERE]
            accepted = ", ".join(signature.parameters)
            raise TypeError(f"{name}: {error}; it takes {accepted}.{''.join(hints)}") from None
        bound.apply_defaults()
        for key, value in bound.arguments.items():
            if key not in static:
                bound.arguments[key] = _prepare(name, key, value)
            elif key == "axis":
                bound.arguments[key] = _static_axis(name, value)
        return program(**bound.arguments)

    return cast(Function, wrapper)


def _prepare(name: str, key: str, value: Any) -> Any:
    if value is None:
        return None
    option = OPTIONS.get(key)
    if option is not None and isinstance(value, int | float | np.integer | np.floating):
        if not option.low <= value <= option.high:
            raise ValueError(f"{name}: `{key}` must be {_domain(option)}; got {value:g}.")
        return None if value == option.off else float(value)
    if isinstance(value, jax.Array):
        return value
    try:
        return jnp.asarray(value)
    except TypeError as error:
        raise TypeError(f"{name}: `{key}` must be an array or a number; got {type(value).__name__}.") from error


def _domain(option: Option) -> str:
    if option.low == -np.inf:
        return "a finite number"
    if option.low == TINY:
        return "> 0"
    return f"in [{option.low:g}, {option.high:g}]" if option.high < np.inf else f">= {option.low:g}"


def _static_axis(name: str, axis: Any) -> int | tuple[int, ...] | None:
    if axis is None:
        return None
    try:
        return tuple(map(operator.index, axis)) if isinstance(axis, tuple | list) else operator.index(axis)
    except TypeError:
        expected = "an int or a tuple of ints (options such as gamma go by keyword)"
        raise TypeError(f"{name}: `axis` must be {expected}; got {axis!r}.") from None


def describe(x: jax.Array) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def number(name: str, key: str, given: ArrayLike, size: int | None, dtype) -> jax.Array:
    """A numeric option as a scalar or a vector over the classes, in the dtype of the computation."""
    value = jnp.asarray(given)
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"{name}: `{key}` must hold numbers; got {describe(value)}.")
    option = OPTIONS[key]
    if value.ndim and not (option.per_class and value.shape == (size,)):
        classes = f" or have one entry for each of the {size} classes" if option.per_class and size is not None else ""
        raise ValueError(f"{name}: `{key}` must be a scalar{classes}; got {describe(value)}.")
    value = value.astype(dtype)
    return check_domain(name, key, value, (value >= option.low) & (value <= option.high), _domain(option))
