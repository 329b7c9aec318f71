"""From losses per example to one number, exact over microbatches and devices."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.annotations import ArrayLike
from jaxloss._core.arguments import check_floating, compute_dtype
from jaxloss._core.log_odds import counted
from jaxloss._core.masks import by_entry, fitted, neutral, rows_of
from jaxloss._core.options import as_argument, compiled, describe, explained, known, number, required, unwrapped
from jaxloss._core.varying import vary, varying


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSum:
    """A sum of losses and the weight that it carries: what adds up over microbatches and devices, as means do not.

    The mean of means differs from the mean wherever parts hold different numbers of examples. Add `LossSum`s, or sum
    them over devices with `jax.lax.psum(loss_sum, axis_name)`, and divide once with `mean()`.
    To start a `jax.lax.scan`, use `LossSum(jnp.float32(0), jnp.float32(0))`.
    What `+` rounds off is kept in the last two fields and given back, so that a float32 sum does not stop to grow:
    without them, one more row is lost on a weight of 2^24.

    Args:
      total: scalar, sum of weight times loss.
      weight: scalar, sum of the weights.
      total_rest: scalar, what `total` was rounded by; 0 if None.
      weight_rest: scalar, what `weight` was rounded by; 0 if None.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> parts = jaxloss.LossSum.of(jnp.array([1.0, 2.0, 3.0])) + jaxloss.LossSum.of(jnp.array([6.0]))
      >>> print(parts.mean(), parts.weight)
      3.0 4.0
    """

    total: jax.Array
    weight: jax.Array
    total_rest: Any = None
    weight_rest: Any = None

    def __post_init__(self):
        for key in ("total", "weight"):
            if getattr(self, f"{key}_rest") is None:
                object.__setattr__(self, f"{key}_rest", _nothing(getattr(self, key)))

    @classmethod
    def of(cls, losses: ArrayLike, where: ArrayLike | None = None, weights: ArrayLike | None = None) -> LossSum:
        """Sum over every entry of `losses`; `where` and `weights` as for `jaxloss.mean`."""
        return cls(*_sums("LossSum.of", losses, where, weights))

    def __add__(self, other: LossSum) -> LossSum:
        if not isinstance(other, LossSum):
            self._not_a_number()
        total, total_rest = _exact_sum(self.total, self.total_rest, other.total, other.total_rest)
        weight, weight_rest = _exact_sum(self.weight, self.weight_rest, other.weight, other.weight_rest)
        return LossSum(total, weight, total_rest, weight_rest)

    def __radd__(self, other: object) -> LossSum:
        """Makes the builtin `sum`, which starts from 0, work."""
        return self if isinstance(other, int) and other == 0 else self._not_a_number()

    def __str__(self) -> str:
        """What `jax.grad` shows of a function that returns this in place of a number."""
        return f"LossSum(total={self.total}, weight={self.weight}), a sum: its .mean() is a number"

    def mean(self, normalizer: ArrayLike | None = None) -> jax.Array:
        """Total over weight, or over `normalizer` as for `jaxloss.mean`; 0 with zero gradient where the weight is 0."""
        return _quotient("LossSum.mean", self.total + self.total_rest, self.weight + self.weight_rest, normalizer)

    def _not_a_number(self, *_: object) -> Any:
        raise TypeError("LossSum: a sum of losses with its weight is no number; take its .mean() first.")

    __float__ = __neg__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __pow__ = __lt__ = _not_a_number


def _nothing(x: Any) -> Any:
    """Zero like an array or a number; anything else (a `PartitionSpec`, a leaf of a transformation) holds for both."""
    if isinstance(x, numbers.Number):
        return type(x)()
    if isinstance(x, jax.Array):
        return vary(jnp.zeros_like(x), varying(x))
    return x


def _exact_sum(a, a_rest, b, b_rest) -> tuple[jax.Array, jax.Array]:
    """Sum of a and b, and what it was rounded by: the exact error of a sum of two floats (Knuth, TAOCP 2, 4.2.2)."""

    def added(a, b):
        total = a + b
        finite = jnp.isfinite(total)
        x, y, z = (jnp.where(finite, lax.stop_gradient(x), jnp.zeros_like(total)) for x in (a, b, total))
        of_b = z - x
        return total, (x - (z - of_b)) + (y - of_b)

    total, error = added(a, b)
    return added(total, a_rest + b_rest + error)


def _quotient(name: str, total: jax.Array, weight: jax.Array, normalizer: ArrayLike | None) -> jax.Array:
    if normalizer is None:
        empty = weight == 0
        return jnp.where(empty, 0, total) / jnp.where(empty, 1, weight)
    given = as_argument(name, "normalizer", normalizer)
    nothing = (given == 0) & (total == 0)
    divisor = number(name, "normalizer", jnp.where(nothing, jnp.ones_like(given), given), None, total.dtype)
    return jnp.where(nothing, 0, total) / divisor


@partial(compiled, static=("name",))
def _sums(name, losses, where=None, weights=None) -> tuple[jax.Array, jax.Array]:
    if losses.dtype == jnp.bool_:
        raise TypeError(
            f"{name}: `losses` must be floating point; got {describe(losses)}. "
            f"A mask goes second: {name}(losses, mask)."
        )
    check_floating(name, "losses", losses)
    losses = losses.astype(compute_dtype(losses))
    weights = jnp.ones_like(losses) if weights is None else by_entry(name, "weights", weights, losses)
    weights = weights.astype(losses.dtype)
    if where is not None:
        where = by_entry(name, "where", where, losses)
        losses, weights = jnp.where(where, losses, 0), jnp.where(where, weights, 0)
    return jnp.sum(counted(weights, losses) * weights), jnp.sum(weights)


@explained
def masked_loss(
    loss: Callable[..., jax.Array],
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    **options: Any,
) -> LossSum:
    """Sum of a loss over what a mask keeps: the mask is taken once, for the loss and for the mean.

    `masked_loss(loss, logits, labels, where).mean()` is the mean over the rows (or elements) kept, with its gradient;
    what is left out may hold anything (NaN, a label of -100) and changes no bit of it.

    Args:
      loss: function (logits, labels, **options) -> losses, not reduced: one of jaxloss (options here or by
        `functools.partial`), of optax, or any other.
      logits: array [*batch, C] or [*batch], what the loss takes first.
      labels: array [*batch] or of the shape of `logits`, what the loss takes second.
      where: boolean [*batch], rows to keep, or of the shape of `logits`, elements or classes as the loss takes them; of
        a loss by row, the rows count that have one left.
      weights: float array [*batch] or of the shape of the losses, a weight of each; 1 each if None.
      options: keyword options of the loss.

    Returns:
      `LossSum`, whose `mean()` is the mean over what is kept and whose sums add up over microbatches and devices.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python values that are not as said here.

    Identities:
      `mean(loss(logits, labels, where=where), where, weights)`, for a mask of the shape of the losses.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, -100])
      >>> print(jaxloss.masked_loss(jaxloss.softmax_cross_entropy, logits, labels, labels >= 0).mean())
      0.126928

    Reference:
      Section "Masks" of docs/semantics.md.
    """
    name = "masked_loss"
    if not callable(loss):
        raise TypeError(f"{name}: `loss` must be a function of (logits, labels); got {type(loss).__name__}.")
    if unwrapped(loss)[1].get("where") is not None:
        raise ValueError(f"{name}: `loss` must not hold a mask; got functools.partial with `where`. Pass both as one.")
    logits, labels = required(name, "logits", logits), required(name, "labels", labels)
    keep = required(name, "where", where, " Without a mask use LossSum.of(loss(logits, labels)).")
    if getattr(labels, "dtype", None) == jnp.bool_ != keep.dtype:
        raise TypeError(
            f"{name}: `where` must be boolean; got {describe(keep)}, and {describe(labels)} as `labels`. Are the two "
            "swapped? The order is (loss, logits, labels, where)."
        )
    parameters = inspect.signature(loss).parameters
    defaults = {key: x.default for key, x in parameters.items() if x.default is not inspect.Parameter.empty}
    rows = rows_of(name, logits, (defaults | options).get("axis", -1), (defaults | options).get("axis_name"))
    ours = known(loss) is not None
    if not ours:
        losses = loss(*neutral(name, rows, keep, logits, labels), **options)
    else:
        keep = keep if "axis" in parameters else by_entry(name, "where", keep, logits, "logits")
        losses = loss(logits, labels, where=keep, **options)
    if not hasattr(losses, "shape") or losses.shape not in (logits.shape, rows.shape):
        got = describe(losses) if hasattr(losses, "shape") else type(losses).__name__
        raise ValueError(
            f"{name}: `loss` must return losses of shape {rows.shape} or {logits.shape}, not reduced; got {got}."
        )
    keep = fitted(rows, keep, losses, reduce=ours)
    return LossSum(*_sums(name, losses, keep, fitted(rows, as_argument(name, "weights", weights), losses)))


@compiled
def mean(
    losses: ArrayLike,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Mean of losses, weighted, over those kept.

      mean = (sum_i w_i loss_i) / (sum_i w_i)  over the entries i that `where` keeps

    It needs losses that were given the same mask, or whose inputs are valid everywhere: a loss of NaN that is left
    out here alone has no effect on the mean, but makes its gradient NaN. `masked_loss` takes the mask once, for
    both.

    Args:
      losses: float array of any shape.
      where: boolean of the shape of `losses`, or of its leading axes (rows of losses by element), losses to keep; what
        others hold, NaN included, has no effect on the mean.
      weights: float array of the shape of `losses`, or of its leading axes (a weight for each row); 1 each if None.
        0 drops a loss, an infinite one too, in value and gradient; NaN stays NaN, for which there is `where`.
      normalizer: scalar > 0 to divide by in place of the sum of weights; for a count that may be 0, such as that of the
        positives in detection, pass `jnp.maximum(count, 1)`.

    Returns:
      Scalar, float32, or float64 for float64 losses. The mean of nothing is 0, with zero gradient; so is a total of 0
      over a normalizer of 0, any other total over 0 is infinite.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `weights=class_weights[labels]` with unweighted losses is the weighted mean of torch.nn.CrossEntropyLoss for ids
      without label smoothing; docs/coming_from/pytorch.md has it with smoothing.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.mean(jnp.array([1.0, 2.0, jnp.nan]), where=jnp.array([True, True, False])))
      1.5
    """
    return _quotient("mean", *_sums("mean", losses, where, weights), normalizer)
