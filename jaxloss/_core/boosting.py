"""Programs that boosting libraries run: gradient and curvature of each score, means of losses, constant scores."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._core.boosting_arguments import XGBOOST, Call, Given, arrays, checked, labels_of, padded
from jaxloss.derivatives import per_example_value_grad_hess

FLOOR = 1e-6  # of the curvature of a row whose gradient underflows


def _logits(loss: Given, scores: jax.Array, classes_first: bool) -> tuple[jax.Array, dict[str, int]]:
    """Logits and the axis of the classes. A score of two classes is the logits (0, score)."""
    if scores.ndim == 2:
        return scores, {"axis": 0 if classes_first else 1}
    return (jnp.stack([jnp.zeros_like(scores), scores]), {"axis": 0}) if loss.by_row else (scores, {})


def _spread(weights: jax.Array, like: jax.Array, classes_first: bool) -> jax.Array:
    """Weights of rows, shaped to broadcast against numbers of rows, or of rows and classes."""
    return weights if like.ndim == 1 else jnp.expand_dims(weights, 0 if classes_first else 1)


STATIC = ("function", "static", "by_row", "classes_first")


@functools.partial(jax.jit, static_argnames=(*STATIC, "curvature", "factor"))
def _derivatives(function, static, traced, by_row, scores, labels, weights, classes_first, curvature, factor):
    loss = Given(function, static, traced, by_row)
    logits, axis = _logits(loss, scores, classes_first)
    options = dict(static) | traced | axis
    _, gradient, hessian = per_example_value_grad_hess(function)(logits, labels, **options)
    curve = factor * (hessian if curvature == "diagonal" else jnp.abs(gradient) + FLOOR)
    if by_row and scores.ndim == 1:
        gradient, curve = gradient[1], curve[1]
    if weights is None:
        return gradient, curve
    each = _spread(weights, gradient, classes_first)
    return each * gradient, each * curve


@functools.partial(jax.jit, static_argnames=STATIC)
def _losses(function, static, traced, by_row, scores, labels, weights, classes_first):
    loss = Given(function, static, traced, by_row)
    logits, axis = _logits(loss, scores, classes_first)
    losses = function(logits, labels, **dict(static) | traced | axis)
    each = jnp.broadcast_to(_spread(weights, losses, classes_first), losses.shape)
    return jnp.where(each == 0, 0, each * losses).sum(), each.sum()  # rows of weight 0 may hold anything


CURVATURES = ("diagonal", "gradient")


def _of(loss: Given) -> tuple:
    """A loss as the first arguments of a program; nothing reaches a device but by `device_put`."""
    return loss.function, loss.static, jax.device_put(loss.traced) if loss.traced else {}, loss.by_row


def derivatives(name: str, loss: Given, call: Call, curvature: str, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and curvature by each score, times the weight of the row; the curvature also times `factor`."""
    given = arrays(name, loss, call)
    both = _derivatives(*_of(loss), *given, curvature=curvature, factor=float(factor))
    gradient, curve = (given.of_rows(x, len(call.scores)) for x in both)
    return gradient, curve


@functools.partial(jax.jit, static_argnames=("function", "static", "by_row", "classes", "curvature", "factor"))
def _row_derivatives(function, static, traced, by_row, row, classes, curvature, factor):
    scores, weight, labels = jnp.split(row, [classes, classes + 1])
    labels = labels.astype(jnp.int32) if len(labels) == 1 else labels[None]
    arguments = (function, static, traced, by_row, scores[None], labels, weight, False, curvature, factor)
    gradient, curve = _derivatives(*arguments)
    matrix = jnp.diag(curve[0])
    if curvature == "diagonal" and by_row:
        matrix = jax.jacfwd(lambda z: _derivatives(*arguments[:4], z[None], *arguments[5:])[0][0])(scores) * factor
    return jnp.concatenate([gradient, matrix])


def row_derivatives(name: str, loss: Given, call: Call, curvature: str, factor: float) -> np.ndarray:
    """Gradient and, below it, the matrix of curvature of a single row of several classes.

    CatBoost asks row by row: so arguments and result are one array each.
    """
    labels = labels_of(name, loss, call)
    assert call.weights is not None
    row = np.concatenate([call.scores[0], call.weights, labels.reshape(-1)]).astype(np.float32)
    found = _row_derivatives(*_of(loss), jax.device_put(row), call.scores.shape[1], curvature, float(factor))
    return np.asarray(jax.device_get(found), np.float64)


def total(name: str, loss: Given, call: Call) -> tuple[float, float]:
    """Weighted sum of the losses, and of the weights."""
    weights = np.ones(len(call.scores), np.float32) if call.weights is None else call.weights
    given = arrays(name, loss, call._replace(weights=weights))
    both = jax.device_get(_losses(*_of(loss), *given))
    return float(both[0]), float(both[1])


STEPS = 200
NEVER = 1e-15  # the share of a class that no row has, as LightGBM takes it


def constant(name: str, loss: Given, labels: Any, weights: Any, classes: int | None, exact: bool) -> np.ndarray:
    """The score, the same for every row, of least weighted loss: one number for two classes, else one for each class.

    An `exact` loss is at its least at the log-odds of the labels, or the logarithms of the classes' shares.
    """
    labels = np.asarray(labels)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    several = labels.shape[1:]
    if loss.by_row and labels.ndim == 1 and labels.dtype.kind in "biuf" and (classes or labels.max(initial=0) > 1):
        several = (classes or int(labels.max()) + 1,)
    call = checked(name, XGBOOST, np.broadcast_to(np.float32(0), (len(labels), *several)), labels, weights)
    labels = labels_of(name, loss, call)
    if not weights.sum() > 0:
        raise ValueError(f"{name}: `weights` must have a sum > 0; got {weights.sum():g}.")
    weights = weights / weights.sum()
    if labels.ndim == 1:  # rows of one label are as one
        labels, index = np.unique(labels, return_inverse=True)
        weights = np.bincount(index, weights)
    elif several:
        labels = labels.T
    if several and labels.ndim == 1:
        shares = np.bincount(labels, weights, several[0])
    else:
        shares = (labels[1] if labels.ndim == 2 and not several else labels) @ weights
    if loss.by_row and several:
        start = np.log(np.maximum(shares, NEVER))
    else:
        start = np.log(np.maximum(shares, NEVER) / np.maximum(1 - shares, NEVER))
    if exact:
        return start
    labels, weights = padded(labels, labels.dtype, labels.ndim - 1), padded(weights, np.float32)
    arguments = jax.device_put((labels, weights, start.astype(np.float32)))
    return np.asarray(jax.device_get(_least(*_of(loss), *arguments)), np.float64)


@functools.partial(jax.jit, static_argnames=("function", "static", "by_row"))
def _least(function, static, traced, by_row, labels, weights, start):
    """Steps of gradient over the larger of its size and of the second derivative, which for a softmax counts twice."""

    def step(_, score):
        scores = jnp.broadcast_to(score[..., None], (*score.shape, *weights.shape))
        sums = {}
        for curvature in ("gradient", "diagonal"):
            arguments = (labels, weights, score.ndim > 0, curvature, 1.0 + (by_row and score.ndim > 0))
            both = _derivatives(function, static, traced, by_row, scores, *arguments)
            sums[curvature] = [x.sum(-1) for x in both]
        gradient, curve = sums["gradient"]
        second = jnp.abs(sums["diagonal"][1])
        return score - gradient / jnp.maximum(curve, second)

    return jax.lax.fori_loop(0, STEPS, step, start)
