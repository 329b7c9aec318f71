"""Code as users write it, for type checkers: `pyright tests/user_code.py` and `mypy tests/user_code.py`."""

import functools
from typing import Any, assert_type

import jax
import jax.numpy as jnp

import jaxloss


def lists_of_numbers() -> jax.Array:
    losses = jaxloss.softmax_cross_entropy([[2.0, 0.0], [0.0, 1.0]], [0, 1], class_weights=[1.0, 2.0])
    return jaxloss.mean(losses, where=[True, False], weights=[1, 2])


def last_layer(hidden: jax.Array, kernel: jax.Array, ids: jax.Array) -> None:
    loss = functools.partial(jaxloss.softmax_focal_loss, gamma=1.5)
    assert_type(jaxloss.linear_loss(loss, hidden, kernel, ids), jaxloss.LossSum)
    assert_type(jaxloss.linear_loss(loss, hidden, kernel, ids, has_aux=False).mean(), jax.Array)

    def with_best(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return loss(logits, ids), {"best": jnp.max(logits, -1)}

    assert_type(jaxloss.linear_loss(with_best, hidden, kernel, ids, has_aux=True), tuple[jaxloss.LossSum, Any])

    def best(logits: jax.Array) -> jax.Array:
        return jnp.max(logits, -1)

    assert_type(jaxloss.map_linear_logits(best, hidden, kernel), jax.Array)


def derivatives(logits: jax.Array, ids: jax.Array) -> None:
    found = jaxloss.per_example_value_grad_hess(jaxloss.softmax_cross_entropy)(logits, ids)
    assert_type(found, tuple[jax.Array, jax.Array, jax.Array])
    assert_type(jaxloss.softmax_statistics(logits, ids).probability, jax.Array)


def sums(losses: jax.Array) -> jax.Array:
    total = sum((jaxloss.LossSum.of(losses), jaxloss.LossSum.of(losses)), jaxloss.LossSum.of(losses))
    return total.mean(normalizer=3)
