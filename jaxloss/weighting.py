"""Weights, adjustments of logits and margins from counts of what was seen, for imbalanced classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxloss._core.annotations import ArrayLike
from jaxloss._core.checks import check_domain, guard
from jaxloss._core.options import compiled, describe, number

OF_LABELS = "jnp.bincount(labels, length=C)"
MANY = 32
"""Classes from which on counts can be told from labels."""


def _counts(name: str, key: str, given: ArrayLike) -> jax.Array:
    counts = jnp.asarray(given)
    if not (jnp.issubdtype(counts.dtype, jnp.integer) or jnp.issubdtype(counts.dtype, jnp.floating)):
        raise TypeError(f"{name}: `{key}` must be numbers; got {describe(counts)}.")
    if key == "counts" and counts.ndim != 1:
        raise ValueError(f"{name}: `counts` must have shape [C]; got {describe(counts)}. For a batch use jax.vmap.")
    counts = counts.astype(jnp.float64 if counts.dtype in (jnp.float64, jnp.int64) else jnp.float32)
    counts = check_domain(name, key, counts, counts >= 0, "counts, >= 0", f". Of labels pass {OF_LABELS}")
    if counts.size < MANY:
        return counts
    # Many classes, each seen rarely, on average once in four: a batch of labels looks like that, counts hardly ever do.
    most = jnp.max(counts)
    whole = jnp.all(counts == jnp.floor(counts))
    ids = whole & (most * most <= counts.size) & (4 * jnp.sum(counts) >= counts.size)
    message = f"{name}: `{key}` must be examples seen of each class; got {counts.size} numbers of at most {{bad}}: "
    return guard(counts, ~ids, f"{message}are they labels? Of labels pass {OF_LABELS}", most)


@compiled
def balanced_class_weights(counts: ArrayLike) -> jax.Array:
    """Weights inverse to the frequency of each class.

      w_c = (sum_k n_k) / (K n_c)

    K is the number of classes seen; classes never seen have weight 0. Weighted by them, every class seen carries
    the same total, and the weights of the examples seen average 1.

    Args:
      counts: integer or float array [C], examples n_c seen of each class, for example `jnp.bincount(labels, length=C)`,
        or `jax.nn.one_hot(labels, C).sum(0, where=mask[:, None])`.

    Returns:
      Weights [C], float32 (float64 for 64-bit counts). `checkify` names counts that look like labels: 32 or more whole
      numbers, the largest of which is at most the root of how many they are.

    Raises:
      TypeError, ValueError: while tracing, for dtypes and shapes that are not as said here.

    Identities:
      class_weight="balanced" of scikit-learn.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.balanced_class_weights(jnp.array([90, 10])))
      [0.5555556 5.       ]

    Reference:
      King and Zeng, Logistic Regression in Rare Events Data (2001), section 4.1.
    """
    seen = _counts("balanced_class_weights", "counts", counts)
    return _over_seen(seen, jnp.sum(seen) / jnp.maximum(jnp.sum(seen > 0, dtype=seen.dtype), 1))


def _over_seen(counts: jax.Array, numerator: jax.Array) -> jax.Array:
    seen = counts > 0
    return jnp.where(seen, numerator / jnp.where(seen, counts, 1), 0)


@compiled
def effective_number_weights(counts: ArrayLike, beta: ArrayLike) -> jax.Array:
    """Weights inverse to the effective number of examples of each class.

      w_c = s (1 - beta) / (1 - beta^n_c)  with s such that the classes seen average 1

    Classes never seen have weight 0. beta = 0 weighs the classes seen alike, beta -> 1 by inverse frequency.

    Args:
      counts: integer or float array [C], examples n_c seen of each class, for example `jnp.bincount(labels, length=C)`,
        or `jax.nn.one_hot(labels, C).sum(0, where=mask[:, None])`.
      beta: in [0, 1]; the paper tries 0.9, 0.99, 0.999 and 0.9999.

    Returns:
      Weights [C], float32 (float64 for 64-bit counts). `checkify` names counts that look like labels: 32 or more whole
      numbers, the largest of which is at most the root of how many they are.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      beta = 1 is inverse frequency, scaled.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.effective_number_weights(jnp.array([1000, 10]), beta=0.99))
      [0.174553 1.825447 ]

    Reference:
      Cui et al., Class-Balanced Loss Based on Effective Number of Samples (2019), equations 3 and 4.
    """
    n = _counts("effective_number_weights", "counts", counts)
    b = number("effective_number_weights", "beta", beta, None, n.dtype)
    # 1 - b^n = -expm1(n log(b)), over 1 - b; the limit at b = 1 is n, at b = 0 it is 1.
    inner = (b > 0) & (b < 1)
    log_b = jnp.log(jnp.where(inner, b, 0.5))
    effective = jnp.expm1(n * log_b) / jnp.expm1(log_b)
    effective = jnp.where(inner, effective, jnp.where(b == 1, n, jnp.minimum(n, 1)))
    weights = _over_seen(effective, jnp.ones((), n.dtype))
    return weights * (jnp.sum(n > 0, dtype=n.dtype) / jnp.maximum(jnp.sum(weights), jnp.finfo(n.dtype).tiny))


@compiled
def logit_adjustments(counts: ArrayLike, tau: ArrayLike = 1.0) -> jax.Array:
    """What is added to the logits while training, so that they learn what tells the classes apart, not their frequency.

      a_c = tau log(n_c / (sum_k n_k))

    Train on `logits + a` and predict by `logits`: with tau = 1 these then estimate log-probabilities for classes that
    are equally frequent (balanced softmax). Or train without and predict by `logits - a`.

    Args:
      counts: integer or float array [C], examples n_c seen of each class, for example `jnp.bincount(labels, length=C)`,
        or `jax.nn.one_hot(labels, C).sum(0, where=mask[:, None])`.
      tau: >= 0; 0 adjusts nothing.

    Returns:
      Adjustments [C] <= 0, float32 (float64 for 64-bit counts); -inf for a class never seen, a legal logit, but 0 where
      no class was seen. `checkify` names counts that look like labels: 32 or more whole numbers, the largest of which
      is at most the root of how many they are.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      `softmax_cross_entropy` of equal logits + a is -log of the frequency of the true class, for tau = 1.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.logit_adjustments(jnp.array([90, 10])))
      [-0.10536052 -2.3025851 ]

    Reference:
      Menon et al., Long-tail Learning via Logit Adjustment (2021), equation 10; tau = 1: Ren et al., Balanced
      Meta-Softmax (2020), equation 3.
    """
    n = _counts("logit_adjustments", "counts", counts)
    t = number("logit_adjustments", "tau", tau, None, n.dtype)
    seen, total = n > 0, jnp.sum(n)
    logs = -jnp.log1p((total - n) / jnp.where(seen, n, 1))
    return jnp.where((t > 0) & (total > 0), jnp.where(seen, t * logs, -jnp.inf), 0)


@compiled
def balanced_label_margins(counts: ArrayLike, largest: ArrayLike = 0.5) -> jax.Array:
    """Margins for `label_margins` that grow as classes get rare: those of LDAM.

      m_c = largest (n_min / n_c)^(1/4)  with n_min the smallest count of a class that was seen

    A class never seen has the margin `largest`. The paper's logits are scaled by s (30 in its code), cosines being in
    [-1, 1]: there `largest` is s times its margin. For logits of a plain linear layer choose it by validation.

    Args:
      counts: integer or float array [C], examples n_c seen of each class, for example `jnp.bincount(labels, length=C)`,
        or `jax.nn.one_hot(labels, C).sum(0, where=mask[:, None])`.
      largest: >= 0, the margin of the rarest class; 0 gives no margins.

    Returns:
      Margins [C] in [0, largest], float32 (float64 for 64-bit counts). `checkify` names counts that look like labels:
      32 or more whole numbers, the largest of which is at most the root of how many they are.

    Raises:
      TypeError, ValueError: while tracing, for dtypes, shapes and Python numbers that are not as said here.

    Identities:
      Equal counts give every class the margin `largest`, the additive margin of CosFace.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.balanced_label_margins(jnp.array([1600, 100])))
      [0.25 0.5 ]

    Reference:
      Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss (2019), equation 13.
    """
    n = _counts("balanced_label_margins", "counts", counts)
    most = number("balanced_label_margins", "largest", largest, None, n.dtype)
    seen = n > 0
    fewest = jnp.min(jnp.where(seen, n, jnp.inf))
    return most * jnp.where(seen, jnp.sqrt(jnp.sqrt(fewest / jnp.where(seen, n, fewest))), 1)


@compiled
def balanced_pos_weight(positives: ArrayLike, negatives: ArrayLike) -> jax.Array:
    """Weight of the positive part of a binary loss that balances it with the negative part.

      w = negatives / positives  or 0 where no positive was seen

    Args:
      positives: integer or float array of any shape, positives seen (of each label).
      negatives: array of the shape of `positives`, negatives seen.

    Returns:
      Weights of the shape of `positives`, float32 (float64 for 64-bit counts).

    Raises:
      TypeError, ValueError: while tracing, for dtypes and shapes that are not as said here.

    Identities:
      The ratio of the two `balanced_class_weights`.

    Example:
      >>> import jax.numpy as jnp, jaxloss
      >>> print(jaxloss.balanced_pos_weight(jnp.array(10), jnp.array(90)))
      9.0

    Reference:
      The recommendation in the documentation of torch.nn.BCEWithLogitsLoss.
    """
    p = _counts("balanced_pos_weight", "positives", positives)
    n = _counts("balanced_pos_weight", "negatives", negatives).astype(p.dtype)
    if p.shape != n.shape:
        raise ValueError(
            "balanced_pos_weight: `positives` and `negatives` must have one shape; "
            f"got {describe(p)} and {describe(n)}."
        )
    return _over_seen(p, n)
