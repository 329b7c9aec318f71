"""From losses per example to one number, exact over microbatches and devices."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import check_floating, check_where, compute_dtype
from jaxloss._core.options import compiled, describe, number


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSum:
    """A sum of losses and the weight that it carries: what adds up over microbatches and devices, as means do not.

    The mean of means differs from the mean wherever parts hold different numbers of examples. Add `LossSum`s, or sum
    them over devices with `jax.lax.psum(loss_sum, axis_name)`, and divide once with `mean()`.
    To start a `jax.lax.scan`, use `LossSum(jnp.float32(0), jnp.float32(0))`.

    Args:
      total: scalar, sum of weight times loss.
      weight: scalar, sum of the weights.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> parts = jaxloss.LossSum.of(jnp.array([1.0, 2.0, 3.0])) + jaxloss.LossSum.of(jnp.array([6.0]))
      >>> print(parts.mean(), parts.weight)
      3.0 4.0
    """

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, losses: ArrayLike, where: ArrayLike | None = None, weights: ArrayLike | None = None) -> "LossSum":
        """Sum over every entry of `losses`; `where` and `weights` as for `jaxloss.mean`."""
        return cls(*_sums("LossSum.of", losses, where, weights))

    def __add__(self, other: "LossSum") -> "LossSum":
        if not isinstance(other, LossSum):
            return NotImplemented
        return LossSum(self.total + other.total, self.weight + other.weight)

    def __radd__(self, other: object) -> "LossSum":
        """Makes the builtin `sum`, which starts from 0, work."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def mean(self) -> jax.Array:
        """Total over weight; 0 with zero gradient where the weight is 0."""
        return _divide(self.total, self.weight)


def _divide(total: jax.Array, weight: jax.Array) -> jax.Array:
    empty = weight == 0
    return jnp.where(empty, 0, total) / jnp.where(empty, 1, weight)


@partial(compiled, static=("name",))
def _sums(name, losses, where, weights) -> tuple[jax.Array, jax.Array]:
    check_floating(name, "losses", losses)
    check_where(name, where, {losses.shape: "losses to keep"})
    if weights is not None and weights.shape != losses.shape:
        raise ValueError(
            f"{name}: `weights` must have the shape {losses.shape} of `losses`; got {describe(weights)}. "
            "For class weights of integer labels pass weights=class_weights[labels]."
        )
    losses = losses.astype(compute_dtype(losses))
    weights = jnp.ones_like(losses) if weights is None else weights.astype(losses.dtype)
    if where is not None:
        losses, weights = jnp.where(where, losses, 0), jnp.where(where, weights, 0)
    return jnp.sum(losses * weights), jnp.sum(weights)


@compiled
def mean(
    losses: ArrayLike,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Mean of losses, weighted, over those kept.

    sum(weights * losses) / sum(weights), both over the entries where `where` is true.

    Args:
      losses: float array of any shape.
      where: boolean of the shape of `losses`, losses to keep; what others hold, NaN included, has no effect.
      weights: float array of the shape of `losses`; 1 each if None.
      normalizer: scalar to divide by in place of the sum of weights.

    Returns:
      Scalar, float32, or float64 for float64 losses. The mean of nothing is 0, with zero gradient.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers other than said above.

    Identities:
      `weights=class_weights[labels]` with unweighted losses is the weighted mean of torch.nn.CrossEntropyLoss for ids
      without label smoothing; docs/migration.md has it with smoothing.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.mean(jnp.array([1.0, 2.0, jnp.nan]), where=jnp.array([True, True, False])))
      1.5
    """
    total, weight = _sums("mean", losses, where, weights)
    if normalizer is not None:
        weight = number("mean", "normalizer", normalizer, None, total.dtype)
    return _divide(total, weight)
