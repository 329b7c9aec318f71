"""Metrics of class ids and of multi-label predictions: scikit-learn's names and numbers, not differentiable.

Two differences from scikit-learn, for the sake of one contract in this library. The arguments are
(predictions, labels): scikit-learn has (y_true, y_pred). And metrics come back per example, not reduced, like every
loss here: `jaxloss.mean(metric, where)` of them is scikit-learn's number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.annotations import ArrayLike
from jaxloss._core.arguments import Elements, compute_dtype, sigmoid_elements
from jaxloss._core.classes import nan_where
from jaxloss._core.options import compiled, describe
from jaxloss._core.pairs import inversions, label_pairs


@compiled
def hamming_loss(
    predictions: ArrayLike, labels: ArrayLike, axis: int | None = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Hamming loss: whether each label is predicted wrongly; its mean is the fraction of wrong labels.

      loss = 1  where the prediction differs from the label,  0  else

    Not differentiable: the gradient is 0.

    Args:
      predictions: array [*batch, C] of 0/1 or booleans, such as logits > 0; or class ids, such as
        jnp.argmax(logits, -1). Note the order: scikit-learn has (y_true, y_pred).
      labels: array of the shape of `predictions`, any dtype, equal where they are right; or, for 0/1 predictions,
        integer ids [*batch] in [0, C), each one relevant among C.
      axis: the class axis of 0/1 predictions, for ids as labels and for rows to keep.
      where: boolean of the shape of `predictions`, labels that are known, or [*batch], rows to keep; others give 0.

    Returns:
      Losses 0 or 1 of the shape of `predictions`, not reduced, float32. NaN where either is NaN and, throughout its
      row, where an id is out of range.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here.

    Identities:
      `jaxloss.mean(hamming_loss(predictions, labels))` is sklearn.metrics.hamming_loss(labels, predictions). With
      `where` of the shape of `predictions` given to both, it is that of the entries kept.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> from jaxloss import metrics
      >>> wrong = metrics.hamming_loss(jnp.array([[1, 0, 1], [0, 0, 1]]), jnp.array([[1, 1, 1], [0, 0, 1]]))
      >>> print(wrong, jaxloss.mean(wrong))
      [[0. 1. 0.]
       [0. 0. 0.]] 0.166667

    Reference:
      sklearn.metrics.hamming_loss; Tsoumakas and Katakis, Multi-Label Classification: An Overview (2007).
    """
    return lax.stop_gradient(_wrong("hamming_loss", predictions, labels, axis, where).targets)


@compiled
def zero_one_loss(
    predictions: ArrayLike, labels: ArrayLike, axis: int | None = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Zero-one loss: whether any label of a row is predicted wrongly; its mean is the fraction of rows not all right.

      loss = 1  where any prediction of the row differs from its label,  0  else

    Not differentiable: the gradient is 0.

    Args:
      predictions: array [*batch, C] of 0/1 or booleans, such as logits > 0; or, with axis=None, class ids, such as
        jnp.argmax(logits, -1). Note the order: scikit-learn has (y_true, y_pred).
      labels: array of the shape of `predictions`, any dtype, equal where they are right; or, for 0/1 predictions,
        integer ids [*batch] in [0, C), each one relevant among C.
      axis: the class axis of 0/1 predictions; None for class ids, of which each is a row.
      where: boolean of the shape of `predictions`, labels that are known, or [*batch], rows to keep (others give 0).

    Returns:
      Losses 0 or 1 [*batch], not reduced, float32. NaN where a row holds NaN or an id out of range.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here. One axis of
        integers may be class ids of many examples or the labels of one: say axis=None, or pass booleans.

    Identities:
      `jaxloss.mean(zero_one_loss(predictions, labels))` is sklearn.metrics.zero_one_loss(labels, predictions); with
      rows to keep given to both, it is that of the rows kept. For class ids it is `hamming_loss`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import metrics
      >>> print(metrics.zero_one_loss(jnp.array([[1, 0, 1], [0, 0, 1]]), jnp.array([[1, 1, 1], [0, 0, 1]])))
      [1. 0.]
      >>> print(metrics.zero_one_loss(jnp.array([4, 2, 0]), jnp.array([4, 1, 0]), axis=None))
      [0. 1. 0.]

    Reference:
      sklearn.metrics.zero_one_loss; Tsoumakas and Katakis, Multi-Label Classification: An Overview (2007).
    """
    _check_one_axis("zero_one_loss", predictions, labels, axis)
    elements = _wrong("zero_one_loss", predictions, labels, axis, where)
    wrong = elements.targets if axis is None else jnp.max(elements.targets, elements.axis, initial=0)
    return lax.stop_gradient(wrong)


@compiled
def label_ranking_loss(
    scores: ArrayLike, labels: ArrayLike, axis: int = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Label ranking loss: share of the pairs of a relevant and an irrelevant label that are in the wrong order.

      loss = 1 / N sum_ij [z_j >= z_i]  over the N pairs of relevant i and irrelevant j

    z are the scores; a tie is wrong, as in scikit-learn. In O(C log C), by sorting. Not differentiable: the
    gradient is 0 (see `pairwise_ranking_loss`).

    Args:
      scores: float array [*batch, C], a score of each label: logits or probabilities. Note the order: scikit-learn has
        (y_true, y_score).
      labels: array of the shape of `scores`, any dtype, 1 for relevant and 0 for irrelevant labels; or integer ids
        [*batch] in [0, C), each one relevant among C.
      axis: the class axis of `scores`.
      where: boolean of the shape of `scores`, labels that are known (others take no part), or [*batch], rows to keep
        (others give 0).

    Returns:
      Losses [*batch] in [0, 1], not reduced; float32, or float64 for float64 scores. 0 for rows without a relevant or
      without an irrelevant label, NaN for rows with a NaN or an id out of range.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here.

    Identities:
      `jaxloss.mean(label_ranking_loss(scores, labels))` is sklearn.metrics.label_ranking_loss(labels, scores); with
      rows to keep given to both, it is that of the rows kept.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> from jaxloss import metrics
      >>> scores, labels = jnp.array([[0.75, 0.5, 1.0], [1.0, 0.2, 0.1]]), jnp.array([[1, 0, 0], [0, 0, 1]])
      >>> print(metrics.label_ranking_loss(scores, labels))
      [0.5 1. ]

    Reference:
      sklearn.metrics.label_ranking_loss; Tsoumakas, Katakis and Vlahavas, Mining Multi-label Data (2010).
    """
    pairs = label_pairs("label_ranking_loss", lax.stop_gradient(scores), labels, axis, where, "scores")
    return pairs.finish(inversions(pairs))


def _check_one_axis(name, predictions, labels, axis) -> None:
    integers = all(jnp.issubdtype(x.dtype, jnp.integer) for x in (predictions, labels))
    if axis is not None and predictions.ndim == labels.ndim == 1 and integers:
        raise ValueError(
            f"{name}: `predictions` of one axis must be class ids with axis=None, or booleans for the labels of one "
            f"row; got {describe(predictions)} with axis={axis}."
        )


def _wrong(name, predictions, labels, axis, where) -> Elements:
    """Checked elements whose targets say whether prediction and label differ, 0 where `where` leaves them out."""
    if predictions.shape == labels.shape:
        wrong = _differ(predictions, labels)
        return sigmoid_elements(name, wrong, wrong, axis, where, "predictions")
    elements = sigmoid_elements(name, predictions.astype(jnp.float32), labels, axis, where, "predictions")
    return elements._replace(targets=_differ(elements.logits, elements.targets))


def _differ(a: jax.Array, b: jax.Array) -> jax.Array:
    """1 where a != b, else 0; NaN where either is."""
    floats = [compute_dtype(x) for x in (a, b) if jnp.issubdtype(x.dtype, jnp.floating)]
    dtype = max(floats, key=lambda x: x.itemsize) if floats else jax.dtypes.canonicalize_dtype(jnp.int64)
    a, b = a.astype(dtype), b.astype(dtype)
    wrong = (a != b).astype(jnp.float32)
    return nan_where(jnp.isnan(a) | jnp.isnan(b), wrong) if floats else wrong
