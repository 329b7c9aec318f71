"""Losses as boosting libraries call them: their arguments, and the layout of their scores.

Each library has its own order of arguments and its own layout. What a call gives is told from its arguments, so none of
the libraries is imported. Rows are padded to one of eight sizes between two powers of two: bags and folds of nearly the
same size then run one program.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._core.options import KNOWN, OPTIONS, bind, known, unwrapped

XGBOOST, LIGHTGBM, CATBOOST = "XGBoost", "LightGBM", "CatBoost"
ABSENT = "absent"


class Call(NamedTuple):
    """What a library hands over."""

    library: str
    scores: np.ndarray  # [rows] or [rows, classes]
    labels: np.ndarray
    weights: np.ndarray | None


def read(name: str, first: Any, second: Any, weight: Any, sample_weight: Any) -> Call:
    """The call of a library: (scores, data), or (labels, scores) with weights from the interfaces of scikit-learn.

    There LightGBM gives weights by position, be they None, and XGBoost by keyword, if there are any.
    """
    if hasattr(second, "get_label"):
        library = XGBOOST if hasattr(second, "get_base_margin") else LIGHTGBM
        scores, labels, weights = first, second.get_label(), second.get_weight()
    else:
        given = isinstance(weight, str) and weight == ABSENT
        library, weights = (XGBOOST, sample_weight) if given else (LIGHTGBM, weight)
        labels, scores = first, second
    return checked(name, library, scores, labels, weights)


def checked(name: str, library: str, scores: Any, labels: Any, weights: Any) -> Call:
    if labels is None:
        raise ValueError(f"{name}: the data of {library} have no labels.")
    scores, labels = np.asarray(scores), np.asarray(labels)
    if labels.dtype.kind not in "biuf":
        raise TypeError(
            f"{name}: labels must be numbers; got dtype {labels.dtype}. "
            "numpy.unique(labels, return_inverse=True)[1] numbers any classes."
        )
    weights = None if weights is None or np.size(weights) == 0 else np.asarray(weights)
    rows = scores.shape[0] if scores.ndim else 0
    if scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    if scores.ndim == 2 and labels.size == scores.size:
        labels = labels.reshape(scores.shape)
    elif labels.size == rows:
        labels = labels.reshape(rows)
    if scores.ndim not in (1, 2) or labels.shape not in ((rows,), scores.shape):
        raise ValueError(
            f"{name}: scores of {library} must have shape (rows,) or (rows, classes) and labels (rows,) or that of the "
            f"scores; got {scores.shape} and {labels.shape}. Flat scores of several classes come from versions before "
            "XGBoost 2.1 and LightGBM 4."
        )
    if weights is not None and weights.shape != (rows,):
        raise ValueError(f"{name}: weights must have shape ({rows},), one for each row; got {weights.shape}.")
    return Call(library, scores, labels, weights)


class Given(NamedTuple):
    """A loss of jaxloss and its options: static ones, and those that a program takes as arguments."""

    function: Callable[..., jax.Array]
    static: tuple[tuple[str, Any], ...]
    traced: dict[str, Any]
    by_row: bool  # one loss for a row of classes; else one for each score


def given(name: str, loss: Any) -> Given:
    """Checks a loss, and sorts its options as `compiled` does: a Python number that switches one off stays static."""
    found = known(loss) if callable(loss) else None
    if found is None or found.hessian is None:
        raise TypeError(
            f"{name}: `loss` must be a loss of jaxloss on logits, or functools.partial of one with keyword options; "
            f"got {_shown(loss)}. {_instead(loss)}"
        )
    function, options = unwrapped(loss)
    for key in ("axis", "where", "axis_name"):
        if key in options:
            raise TypeError(f"{name}: `loss` must not hold `{key}`: libraries hand over whole rows of classes.")
    signature = inspect.signature(function)
    if next(iter(signature.parameters)) != "logits" or "labels" not in signature.parameters:
        raise TypeError(f"{name}: `loss` must take logits and labels; {function.__name__} does not. {_instead(loss)}")
    bind(function.__name__, signature, (None, None), options)
    traced = {
        key: np.asarray(value, np.float32 if isinstance(value, int | float) else None)
        for key, value in options.items()
        if not (value is None or isinstance(value, str | bool) or (key in OPTIONS and _switches_off(key, value)))
    }
    static = tuple((key, value) for key, value in options.items() if key not in traced)
    return Given(function, static, traced, _by_row(function, options))


EXAMPLE = "functools.partial(jaxloss.softmax_focal_loss, gamma=2.0)"
OF_PROBABILITIES = "Scores of trees are logits: use jaxloss."
INSTEAD = {
    "cross_entropy": f"{OF_PROBABILITIES}softmax_cross_entropy.",
    "binary_cross_entropy": f"{OF_PROBABILITIES}sigmoid_binary_cross_entropy.",
    "negative_log_likelihood": f"{OF_PROBABILITIES}softmax_cross_entropy.",
    "huber_loss": "For regression name a loss of the library itself.",
    "softmax_kl_divergence": "Its gradient is that of jaxloss.softmax_cross_entropy with labels of shape [rows, C].",
    "softmax_js_divergence": "For labels of shape [rows, C] use jaxloss.softmax_cross_entropy.",
    "ordered_logistic_loss": "For ordered classes use jaxloss.expected_cost_loss with costs |i - j|.",
}


def _shown(loss: Any) -> str:
    function, options = unwrapped(loss) if callable(loss) else (loss, {})
    label = getattr(function, "__qualname__", repr(function))
    return f"functools.partial of {label}" if options else label


def _instead(loss: Any) -> str:
    """What to give in place of what is refused."""
    if not callable(loss):
        strings = " A string such as 'binary:logistic' goes to the library itself." if isinstance(loss, str) else ""
        return f"Pass the function, as in {EXAMPLE}.{strings}"
    function = unwrapped(loss)[0]
    name = getattr(function, "__name__", "")
    if str(getattr(function, "__module__", "")).startswith("jaxloss"):
        return INSTEAD.get(name, f"Pass a loss, as in {EXAMPLE}.")
    if name != "<lambda>" and any(name == each.__name__ for each, about in KNOWN.items() if about.hessian):
        return f"Use jaxloss.{name}."
    return (
        f"Options go by keyword into functools.partial, in place of a lambda: {EXAMPLE}. "
        'For a loss of your own see docs/guide/boosting.md, "A loss of your own".'
    )


def _switches_off(key: str, value: Any) -> bool:
    return isinstance(value, int | float) and value == OPTIONS[key].off


def _by_row(function: Callable, options: dict[str, Any]) -> bool:
    """Whether a loss is one number for each row of classes; the loss itself checks its options here."""
    sizes = [np.shape(x)[-1] for x in options.values() if np.ndim(x)]
    logits = jax.ShapeDtypeStruct((5, sizes[0] if sizes else 2), jnp.float32)
    ids = jax.ShapeDtypeStruct((5,), jnp.int32)
    return jax.eval_shape(functools.partial(function, **options), logits, ids).ndim == 1


def labels_of(name: str, loss: Given, call: Call) -> np.ndarray:
    """Ids, a distribution over classes, or a label for each score, as the loss takes them."""
    labels, (rows, *several) = call.labels, call.scores.shape
    _check_options(name, loss, several[0] if several else 2 if loss.by_row else None)
    if labels.ndim == 2:
        return labels.astype(np.float32)
    if not several and not loss.by_row:
        _check(name, labels, labels, (0, 1), "in [0, 1]")
        return labels.astype(np.float32)
    ids = np.zeros(rows, np.int32)
    with np.errstate(invalid="ignore"):
        np.copyto(ids, labels, casting="unsafe")
    if not several and not np.array_equal(ids, labels):  # soft labels of two classes
        _check(name, labels, labels, (0, 1), "in [0, 1]")
        return np.stack([1 - labels, labels]).astype(np.float32)
    highest = several[0] - 1 if several else 1
    _check(name, labels, ids, (0, highest), f"class ids 0 to {highest}")
    return ids


ADVICE = {
    ("sigmoid_binary_cross_entropy", "class_weights"): "`pos_weight`, the weight of class 1 over that of class 0, or "
    "jaxloss.softmax_cross_entropy, which takes `class_weights` of two entries",
    ("sigmoid_focal_loss", "class_weights"): "`alpha`, the weight of class 1 (1 - alpha is that of class 0), or "
    "jaxloss.softmax_focal_loss, which takes `class_weights` of two entries",
    ("sigmoid_binary_cross_entropy", "pos_weight"): "a number, the weight of class 1 over that of class 0",
    ("sigmoid_focal_loss", "alpha"): "a number, the weight of class 1 (1 - alpha is that of class 0)",
}


def _check_options(name: str, loss: Given, classes: int | None) -> None:
    """Options with an entry for each class, here, as the loss itself would count padded rows."""
    for key, value in loss.traced.items():
        if key in OPTIONS and OPTIONS[key].per_class and value.ndim and value.shape != (classes,):
            expected = f" or have one entry for each of the {classes} classes" if classes else ": a row has one score"
            advice = ADVICE.get((loss.function.__name__, key)) if classes is None else None
            raise ValueError(
                f"{name}: `{key}` of {loss.function.__name__} must be a scalar{expected}; got shape {value.shape}. "
                + (f"For two classes use {advice}. " if advice else "")
                + "Weights of rows go to the library, with the data."
            )


def _check(name: str, labels: np.ndarray, read_as: np.ndarray, bounds: tuple[float, float], expected: str) -> None:
    wrong = ~((labels == read_as) & (labels >= bounds[0]) & (labels <= bounds[1]))
    if wrong.any():
        raise ValueError(
            f"{name}: labels must be {expected}; got {labels[wrong][0]:g} in row {np.flatnonzero(wrong)[0]}. "
            "numpy.unique(labels, return_inverse=True)[1] numbers any classes."
        )


def padded(x: np.ndarray, dtype: Any, axis: int = 0) -> np.ndarray:
    """A copy whose rows are one of eight numbers between two powers of two, zeros after its own."""
    rows = x.shape[axis]
    step = 1 << max(rows.bit_length() - 4, 0)
    shape = list(x.shape)
    shape[axis] = max(-(-rows // step) * step, 16)
    out = np.zeros(shape, dtype)
    out[(slice(None),) * axis + (slice(rows),)] = x
    return out


class Arrays(NamedTuple):
    """What programs take: rows in front, or the classes, as the scores lie in memory."""

    scores: jax.Array
    labels: jax.Array
    weights: jax.Array | None
    classes_first: bool

    def of_rows(self, x: jax.Array, rows: int) -> np.ndarray:
        """Of a result of the shape of the scores, that of the rows, as an array [rows] or [rows, classes]."""
        found = np.asarray(jax.device_get(x))
        return found[..., :rows].T if self.classes_first else found[:rows]


def arrays(name: str, loss: Given, call: Call) -> Arrays:
    labels = labels_of(name, loss, call)
    first = call.scores.ndim == 2 and call.scores.flags.f_contiguous and not call.scores.flags.c_contiguous
    labels = labels.T if first and labels.ndim == 2 else labels
    rows_of_labels = labels.ndim - 1 if first or call.scores.ndim == 1 else 0
    made = [
        padded(call.scores.T if first else call.scores, np.float32, int(first)),
        padded(labels, labels.dtype, rows_of_labels),
    ]
    if call.weights is not None:
        made.append(padded(call.weights, np.float32))
    moved: Any = jax.device_put(made)
    scores, labels, *weights = moved
    return Arrays(scores, labels, weights[0] if weights else None, first)
