"""Kinds of labels that are more than an array."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax

from jaxloss._core.annotations import ArrayLike

TOP_K = (
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_focal_loss",
    "poly_loss_cross_entropy",
    "generalized_cross_entropy",
    "softmax_kl_divergence",
    "softmax_js_divergence",
)
"""Losses that take `TopK` labels."""


@partial(jax.tree_util.register_dataclass, data_fields=["ids", "probabilities"], meta_fields=["tail"])
@dataclass(frozen=True)
class TopK:
    """Labels of k classes in each row: what a teacher holds likeliest.

    Losses see the classes listed and, with `tail`, the rest of the mass as one event, "any other class", for the labels
    and for the model. No array of the size of the logits is made of them. A tree of two arrays: `linear_loss`,
    `jax.vmap`, `jax.lax.scan` and `shard_map` take it as such.

    Args:
      ids: integer array [*batch, k] of class ids in [0, C), each at most once in a row.
      probabilities: float array [*batch, k], >= 0. An entry of 0 names no class, and its id may hold anything: so rows
        of fewer classes are filled up.
      tail: whether the rest, 1 less the sum of the probabilities, belongs to the other classes together. If not, they
        have probability 0, and the sum need not be 1.

    Example:
      >>> import jax, jax.numpy as jnp, jaxloss
      >>> teacher = jnp.array([[4.0, 2.0, 1.0, 0.0]])
      >>> probabilities, ids = jax.lax.top_k(jax.nn.softmax(teacher), 2)
      >>> labels = jaxloss.TopK(ids, probabilities, tail=True)
      >>> print(jaxloss.softmax_cross_entropy(jnp.array([[3.0, 1.0, 1.0, 1.0]]), labels))
      [0.6396224]
    """

    ids: ArrayLike
    probabilities: ArrayLike
    tail: bool = False
