"""Numeric options and the compilation of public functions.

Every public function is wrapped by `compiled`: Python numbers are checked and, where they switch an option off, taken
out of the program; one `jit`-compiled program does the rest. An option that stays is a traced array, so that another
value needs no recompilation and can be differentiated.
"""

import dataclasses
import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._core.annotations import ArrayLike
from jaxloss._core.checks import check_domain
from jaxloss._core.labels import TOP_K, TopK

Function = TypeVar("Function", bound=Callable[..., Any])


class Option(NamedTuple):
    """Domain of a numeric option, the Python number that switches it off, whether classes may have one each, advice."""

    low: float
    high: float
    off: float | None = None
    per_class: bool = False
    advice: str = ""


TINY, FINITE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
OPTIONS = {
    "alpha": Option(0, 1, per_class=True, advice=" (for no weight of the two labels leave it out)"),
    "beta": Option(0, 1),
    "clip": Option(0, 1, off=0, per_class=True),
    "class_weights": Option(0, np.inf, off=1, per_class=True),
    "delta": Option(TINY, np.inf),
    "epsilon": Option(-FINITE, FINITE, off=0, per_class=True),
    "gamma": Option(0, np.inf, off=0, per_class=True),
    "gamma_negative": Option(0, np.inf, off=0, per_class=True),
    "gamma_positive": Option(0, np.inf, off=0, per_class=True),
    "label_margins": Option(-FINITE, FINITE, off=0, per_class=True),
    "label_smoothing": Option(0, 1, off=0),
    "largest": Option(0, FINITE),
    "margin": Option(0, np.inf),
    "normalizer": Option(TINY, np.inf, advice=" (for a count that may be 0 pass jnp.maximum(count, 1))"),
    "pos_weight": Option(0, np.inf, off=1, per_class=True),
    "q": Option(0, 1, off=0, per_class=True),
    "tau": Option(0, FINITE),
    "temperature": Option(TINY, np.inf, off=1),
    "weight": Option(TINY, 1 - 2**-24),
    "z_loss": Option(0, np.inf, off=0),
}


class Known(NamedTuple):
    """What is known of a function of jaxloss."""

    class_fill: float | None  # of one that takes shards of the classes: the entry of a class of logit -inf in labels
    hessian: Callable[..., Any] | None = None  # a function of the same arguments: the diagonal


KNOWN: dict[Callable[..., Any], Known] = {}  # by function, not by attribute: wrappers copy those
ELSEWHERE = {
    "weight": "class_weights",
    "weights": "class_weights, or jaxloss.mean(losses, weights=...)",
    "class_weight": "class_weights",
    "sample_weight": "jaxloss.mean(losses, weights=...)",
    "reverse": 'direction="reverse"',
    "beta": "weight",
    "reduction": "jaxloss.mean(losses) or losses.sum(); a LossSum has .mean()",
    "ignore_index": "where=labels != ignore_index",
    "mask": "where",
    "alpha": "class_weights in a softmax loss, and of binary labels sigmoid_focal_loss or pos_weight",
    "pos_weight": "alpha of sigmoid_focal_loss (1 - alpha of negatives), pos_weight of sigmoid_binary_cross_entropy",
    "gamma": "softmax_focal_loss or sigmoid_focal_loss",
    "margin": "label_margins of a softmax loss, margin of multiclass_hinge_loss",
    "tau": "logits + jaxloss.logit_adjustments(counts, tau)",
    "gamma_neg": "gamma_negative of asymmetric_loss",
    "gamma_pos": "gamma_positive of asymmetric_loss",
    "cost_matrix": "costs of expected_cost_loss",
    "thresholds": "cutpoints of ordered_logistic_loss",
    "dim": "axis",
    "input": "logits",
    "target": "labels",
    "y_pred": "logits, or probs for probabilities",
    "y_true": "labels",
    "from_logits": "a softmax_* or sigmoid_* loss for logits, cross_entropy or binary_cross_entropy for probabilities",
}


def public(hessian: Callable[[Callable], Callable]) -> Callable[[Function], Function]:
    """Compiles a public loss once per shape, with static and switched-off options taken out of the program.

    `hessian` makes, of the undecorated function, one of the same arguments that returns the diagonal of its Hessian.
    """

    def decorate(function: Function) -> Function:
        wrapper = compiled(function)
        KNOWN[wrapper] = KNOWN[wrapper]._replace(hessian=compiled(functools.wraps(function)(hessian(function))))
        return wrapper

    return decorate


def compiled(function: Function, static: tuple[str, ...] = ("axis", "axis_name", "surrogate", "direction")) -> Function:
    """Compiles a function once per shape; what `as_argument` makes of its arguments is what the program sees."""
    name = function.__name__
    signature = inspect.signature(function)
    program = jax.jit(function, static_argnames=[key for key in signature.parameters if key in static], inline=True)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        bound = bind(name, signature, args, kwargs)
        bound.apply_defaults()
        caller = bound.arguments.get("name", name)
        for key, value in bound.arguments.items():
            if key not in static:
                default, admitted = signature.parameters[key].default, str(signature.parameters[key].annotation)
                needed = default is inspect.Parameter.empty
                if value is None and not needed and key in OPTIONS and "None" not in admitted:
                    raise TypeError(f"{caller}: `{key}` must be a number; got None. Leave it out for {default}.")
                bound.arguments[key] = (required if needed else as_argument)(caller, key, value)
            elif key == "axis":
                bound.arguments[key] = static_axis(caller, value)
        return program(**bound.arguments)

    of_targets = -np.inf if "target_logits" in signature.parameters else 0
    KNOWN[wrapper] = Known(of_targets if "axis_name" in signature.parameters else None)
    return cast(Function, wrapper)


def explained(function: Function) -> Function:
    """A function that is not compiled as a whole; names that it does not know are explained."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        bind(function.__name__, signature, args, kwargs)
        return function(*args, **kwargs)

    return cast(Function, wrapper)


def bind(name: str, signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> inspect.BoundArguments:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        names = list(signature.parameters)
        unknown = [key for key in kwargs if key not in names]
        if unknown and "missing" in str(error):  # the cause: a name of another library, or one misspelt
            error = f"got an unexpected keyword argument {unknown[0]!r}"
        hints = [_meant(key, names) for key in unknown]
        by_name = [key for key, x in signature.parameters.items() if x.kind is x.KEYWORD_ONLY and x.default is x.empty]
        hints += [f" `{key}` goes by keyword: {key}=..." for key in by_name if key not in kwargs]
        shown = ", ".join(str(x.replace(annotation=x.empty, default=x.empty)) for x in signature.parameters.values())
        by_keyword = next((key for key, x in signature.parameters.items() if x.kind is x.KEYWORD_ONLY), None)
        shown = shown.replace(f", {by_keyword}", f", *, {by_keyword}", 1)
        raise TypeError(f"{name}: {error}; it takes {shown}.{''.join(hints)}") from None


def _meant(key: str, names: list[str]) -> str:
    """What is meant by the name of an argument that a function does not take."""
    if key in OPTIONS and names[0] in ("loss", "fn"):
        return f" Options of `{names[0]}` go to it: functools.partial({names[0]}, {key}=...)."
    if key in ELSEWHERE:
        return f" For `{key}` use {ELSEWHERE[key]}."
    close = difflib.get_close_matches(key, names, 1)
    return f" Did you mean `{close[0]}`?" if close else ""


def unwrapped(function: Callable) -> tuple[Callable, dict[str, Any]]:
    """A function without the keyword options of `functools.partial`, and these."""
    options: dict[str, Any] = {}
    while isinstance(function, functools.partial) and not function.args:
        function, options = function.func, function.keywords | options
    return function, options


def known(function: Callable) -> Known | None:
    """Of a function of jaxloss, or of partials of one with keyword options; None for any other."""
    base = unwrapped(function)[0]
    return KNOWN.get(base) if isinstance(base, Hashable) else None


def check_given(name: str, key: str, value: Any, kind: str = "an array", hint: str = "") -> None:
    """That a required argument is not None, as a look-up of a missing key returns it."""
    if value is None:
        raise TypeError(f"{name}: `{key}` must be {kind}; got None, as `get` returns it for a missing key.{hint}")


def required(name: str, key: str, value: Any, hint: str = "") -> jax.Array:
    check_given(name, key, value, hint=hint)
    return as_argument(name, key, value)


def as_argument(name: str, key: str, value: Any) -> Any:
    if value is None:
        return None
    option = OPTIONS.get(key)
    if option is not None and isinstance(value, bool | np.bool_):
        switched = f" To switch it off pass {option.off:g}." if option.off is not None and not value else ""
        raise TypeError(f"{name}: `{key}` must be a number; got {value}.{switched}")
    if option is not None and isinstance(value, int | float | np.integer | np.floating):
        if not option.low <= value <= option.high:
            raise ValueError(f"{name}: `{key}` must be {_domain(option)}; got {value:g}.")
        return None if value == option.off else float(value)
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, TopK):
        if name not in (*TOP_K, "masked_loss"):
            raise TypeError(f"{name}: `{key}` must be an array; got TopK, which is for {', '.join(TOP_K)}.")
        parts = ("ids", "probabilities")
        return dataclasses.replace(value, **{part: required(name, part, getattr(value, part)) for part in parts})
    if option is not None and isinstance(value, list | tuple):
        for x in value:
            if isinstance(x, int | float) and not option.low <= x <= option.high:
                raise ValueError(f"{name}: `{key}` must be {_domain(option)}; got {x:g} in {value!r}.")
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: `{key}` must be an array or a number; got {_described(key, value)}") from error


def _described(key: str, value: Any) -> str:
    """What cannot become an array, and what to do with text."""
    kind = type(value).__name__
    if callable(value):
        return f"a {kind}. Is the order of the arguments right?"
    if isinstance(value, dict):
        return "a dict. Of weights by class d pass jnp.array([d[c] for c in range(C)])."
    if key == "class_weights" and isinstance(value, str):
        return f"{value!r}. Weights of balanced classes: balanced_class_weights(jnp.bincount(labels, length=C))."
    try:
        dtype = np.asarray(value).dtype
    except ValueError:
        return f"{kind} of unequal lengths."
    if hasattr(value, "total") and hasattr(value, "mean"):
        return f"{kind}, a sum: its .mean() is a number."
    if dtype.kind not in "SUO":
        return f"{kind} of dtype {dtype}."
    strings = dtype.kind != "O" or any(isinstance(x, str | bytes) for x in np.ravel(np.asarray(value)))
    hint = " For ids of named classes use numpy.unique(names, return_inverse=True)[1]."
    kind = kind if isinstance(value, str | bytes) else f"{kind} of dtype {dtype}"
    return f"{kind}.{hint if strings and key == 'labels' else ''}"


def _domain(option: Option) -> str:
    if option.low == -FINITE:
        return "a finite number"
    if option.low == TINY:
        return f"> 0{option.advice}" if option.high == np.inf else "above 0 and below 1"
    domain = f"in [{option.low:g}, {option.high:g}]" if option.high < FINITE else f">= {option.low:g}"
    return domain + option.advice


def static_axis(name: str, axis: Any) -> int | tuple[int, ...] | None:
    if axis is None:
        return None
    try:
        return tuple(map(operator.index, axis)) if isinstance(axis, tuple | list) else operator.index(axis)
    except TypeError:
        expected = "an int or a tuple of ints (options such as gamma go by keyword)"
        raise TypeError(f"{name}: `axis` must be {expected}; got {axis!r}.") from None


def describe(x: jax.Array) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def number(
    name: str, key: str, given: ArrayLike, size: int | None, dtype, elements: tuple[int, ...] | None = None
) -> jax.Array:
    """A numeric option as a scalar, a vector over the classes or an array of `elements`, in the computed dtype."""
    value = jnp.asarray(given)
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"{name}: `{key}` must hold numbers; got {describe(value)}.")
    option = OPTIONS[key]
    if value.ndim and not (option.per_class and value.shape in ((size,), elements)):
        classes = f" or have one entry for each of the {size} classes" if option.per_class and size is not None else ""
        if option.per_class and (elements or key != "class_weights"):
            classes += f" or the shape {elements} of the logits" if elements else "; for one of each row use jax.vmap"
        counts = ""
        if key == "class_weights":
            counts = (
                " Of labels, balanced_class_weights takes jnp.bincount(labels, length=C). Weights of rows go to "
                "jaxloss.mean(losses, weights=...)."
            )
        if elements is not None and len(elements) == 1:
            counts += " For binary labels pass a scalar pos_weight, the weight of positives over that of negatives."
        raise ValueError(f"{name}: `{key}` must be a scalar{classes}; got {describe(value)}.{counts}")
    value = value.astype(dtype)
    return check_domain(name, key, value, (value >= option.low) & (value <= option.high), _domain(option))
