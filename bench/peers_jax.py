"""Providers that run in JAX, jaxloss among them. Each imports its package when it is asked for.

"plain JAX" is what one writes by hand with `jax.nn.log_softmax` and the like.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bench.offer import (
    ALPHA,
    CLIP,
    EPSILON,
    GAMMA,
    GAMMA_NEGATIVE,
    POWER,
    SMOOTHING,
    Z_LOSS,
    AbsentError,
    Offer,
)


def _one_hot(loss: Callable) -> Callable:
    return lambda z, ids: loss(z, jax.nn.one_hot(ids, z.shape[-1], dtype=z.dtype))


def jaxloss_offer() -> Offer:
    import jaxloss

    def options(z, labels):
        ids, weights, mask = labels
        options = {"class_weights": weights, "label_smoothing": SMOOTHING, "z_loss": Z_LOSS}
        return jaxloss.softmax_cross_entropy(z, ids, where=mask, **options)

    return Offer(
        {
            "cross-entropy": jaxloss.softmax_cross_entropy,
            "cross-entropy, one-hot": jaxloss.softmax_cross_entropy,
            "cross-entropy, one-hot of ids": _one_hot(jaxloss.softmax_cross_entropy),
            "cross-entropy, all options": options,
            "focal": lambda z, ids: jaxloss.softmax_focal_loss(z, ids, gamma=GAMMA),
            "sigmoid cross-entropy": jaxloss.sigmoid_binary_cross_entropy,
            "sigmoid focal": lambda z, t: jaxloss.sigmoid_focal_loss(z, t, alpha=ALPHA, gamma=GAMMA),
            "sparsemax": jaxloss.multiclass_sparsemax_loss,
            "entmax15": jaxloss.entmax_loss,
        }
    )


def linear_loss_offer(chunk_rows: int | None = None) -> Offer:
    import jaxloss

    def total(x, w, ids):
        return jaxloss.linear_loss(jaxloss.softmax_cross_entropy, x, w, ids, chunk_rows=chunk_rows).total

    return Offer({"cross-entropy": total}, whole=True)


def optax_offer() -> Offer:
    from optax import losses

    def options(z, labels):
        ids, weights, mask = labels
        t = losses.smooth_labels(jax.nn.one_hot(ids, z.shape[-1], dtype=z.dtype), SMOOTHING)
        squared = jax.nn.logsumexp(z, axis=-1) ** 2
        return jnp.where(mask, losses.softmax_cross_entropy(z, t * weights.astype(z.dtype)) + Z_LOSS * squared, 0)

    return Offer(
        {
            "cross-entropy": losses.softmax_cross_entropy_with_integer_labels,
            "cross-entropy, one-hot": losses.softmax_cross_entropy,
            "cross-entropy, one-hot of ids": _one_hot(losses.softmax_cross_entropy),
            "cross-entropy, all options": options,
            "sigmoid cross-entropy": losses.sigmoid_binary_cross_entropy,
            "sigmoid focal": lambda z, t: losses.sigmoid_focal_loss(z, t, alpha=ALPHA, gamma=GAMMA),
            "sparsemax": losses.multiclass_sparsemax_loss,
            "poly": lambda z, t: losses.poly_loss_cross_entropy(z, t, epsilon=EPSILON),
            "KL divergence": lambda z, t: losses.kl_divergence_with_log_targets(
                jax.nn.log_softmax(z), jax.nn.log_softmax(t)
            ),
            "binary sparsemax": losses.sparsemax_loss,
        }
    )


def plain_offer() -> Offer:
    def cross_entropy(z, ids):
        return -jnp.take_along_axis(jax.nn.log_softmax(z), ids[:, None], axis=-1)[:, 0]

    def distribution(z, t):
        return -jnp.sum(t * jax.nn.log_softmax(z), axis=-1)

    def options(z, labels):
        ids, weights, mask = labels
        weights = weights.astype(z.dtype)
        log_p, lse = jax.nn.log_softmax(z), jax.nn.logsumexp(z, axis=-1)
        of_label = -jnp.take_along_axis(weights * log_p, ids[:, None], axis=-1)[:, 0]
        loss = (1 - SMOOTHING) * of_label - SMOOTHING * jnp.mean(weights * log_p, axis=-1) + Z_LOSS * lse**2
        return jnp.where(mask, loss, 0)

    def focal(z, ids):
        nll = cross_entropy(z, ids)
        return (1 - jnp.exp(-nll)) ** GAMMA * nll

    def sigmoid(z, t):
        return -t * jax.nn.log_sigmoid(z) - (1 - t) * jax.nn.log_sigmoid(-z)

    def sigmoid_focal(z, t):
        p = jax.nn.sigmoid(z)
        p_t = t * p + (1 - t) * (1 - p)
        return (t * ALPHA + (1 - t) * (1 - ALPHA)) * (1 - p_t) ** GAMMA * sigmoid(z, t)

    def poly(z, t):
        return distribution(z, t) + EPSILON * jnp.sum(t * (1 - jax.nn.softmax(z)), axis=-1)

    def generalized(z, ids):
        return (1 - jnp.exp(-POWER * cross_entropy(z, ids))) / POWER

    def divergence(z, t):
        log_t = jax.nn.log_softmax(t)
        return jnp.sum(jnp.exp(log_t) * (log_t - jax.nn.log_softmax(z)), axis=-1)

    def asymmetric(z, t):
        clipped = jnp.maximum(jax.nn.sigmoid(z) - CLIP, 0)
        return -t * jax.nn.log_sigmoid(z) - (1 - t) * clipped**GAMMA_NEGATIVE * jnp.log1p(-clipped)

    def zlpr(z, t):
        both = [jnp.where(t == 1, -jnp.inf, z), jnp.where(t == 1, -z, -jnp.inf)]
        return sum(jax.nn.softplus(jax.nn.logsumexp(a, axis=-1)) for a in both)

    def sorted_projection(n):
        """Loss of sparsemax (n = 1) or 1.5-entmax (n = 2); the gradient p - y comes of holding p constant."""

        def loss(z, ids):
            d = (z - jnp.max(z, axis=-1, keepdims=True)) / n
            s = -jnp.sort(-d, axis=-1)
            k = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)
            mean, square = jnp.cumsum(s, axis=-1) / k, jnp.cumsum(s**2, axis=-1) / k
            thresholds = mean - 1 / k if n == 1 else mean - jnp.sqrt(jnp.maximum(1 / k - square + mean**2, 0))
            size = jnp.sum(thresholds <= s, axis=-1, keepdims=True)
            p = jnp.maximum(d - jnp.take_along_axis(thresholds, size - 1, axis=-1), 0) ** n
            p = jax.lax.stop_gradient(p)
            entropy = (1 - jnp.sum(p**2, axis=-1)) / 2 if n == 1 else (1 - jnp.sum(p**1.5, axis=-1)) / 0.75
            return entropy + jnp.sum(p * z, axis=-1) - jnp.take_along_axis(z, ids[:, None], axis=-1)[:, 0]

        return loss

    return Offer(
        {
            "cross-entropy": cross_entropy,
            "cross-entropy, one-hot": distribution,
            "cross-entropy, one-hot of ids": _one_hot(distribution),
            "cross-entropy, all options": options,
            "focal": focal,
            "sigmoid cross-entropy": sigmoid,
            "sigmoid focal": sigmoid_focal,
            "sparsemax": sorted_projection(1),
            "entmax15": sorted_projection(2),
            "poly": poly,
            "generalized": generalized,
            "KL divergence": divergence,
            "asymmetric": asymmetric,
            "zlpr": zlpr,
        }
    )


def keras_offer() -> Offer:
    os.environ.setdefault("KERAS_BACKEND", "jax")  # read when it is imported
    import keras

    if keras.backend.backend() != "jax":
        raise AbsentError(f"its backend is {keras.backend.backend()}")
    losses = keras.losses

    def by_element(z, t):
        return losses.binary_crossentropy(t, z, from_logits=True) * z.shape[-1]  # a mean over the last axis

    def focal(z, ids):
        rows = jax.nn.one_hot(ids, z.shape[-1], dtype=z.dtype)
        return losses.categorical_focal_crossentropy(rows, z, alpha=1.0, gamma=GAMMA, from_logits=True)

    return Offer(
        {
            "cross-entropy": lambda z, ids: losses.sparse_categorical_crossentropy(ids, z, from_logits=True),
            "cross-entropy, one-hot": lambda z, t: losses.categorical_crossentropy(t, z, from_logits=True),
            "sigmoid cross-entropy": by_element,
            "focal": focal,
        }
    )


def tokamax_offer() -> Offer:
    import tokamax
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # or it reads the arguments of this program as its own

    def total(x, w, ids):
        return tokamax.linear_softmax_cross_entropy_loss(x, ids, w, reduction="sum")

    return Offer({"cross-entropy": total}, whole=True, heads_only=True)
