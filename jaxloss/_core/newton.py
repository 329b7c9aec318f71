"""The largest probability w of a Tsallis projection, by Newton's method.

With b = alpha - 1 and d_j = z_j - max z <= 0 the probabilities are p_j = [w^b + b d_j]_+^(1/b), and w makes their sum
1: r = w^b in [C^-b, 1] is the root of G(r) = (sum_j [r + b d_j]_+^(1/b))^b - 1, for b <= 1 a norm of a convex function,
hence convex. Newton's iterates from r_0 = 1 therefore fall monotonically, and by convexity

    G_{i+1} / G_i + G'_{i+1} / G'_i <= 1.

Let s be the slope at the root, where r s >= 1. After N steps the error of r, as a share of r, is at most G_N / (r s),
and G_0 <= G'_0 (1 - r): at most G'_0 times the N + 1 factors 1 - r and 1 - G'_{i+1} / G'_i. What these take from 1
multiplies to r G'_N / G'_0 >= 1 / G'_0. As G'_0 <= C^b, with M = N + 1 that is at most C^b (1 - C^(-b/M))^M: a number
of steps known beforehand suffices for every row.

Sums are all it takes: no sort (on CPU 3 to 50 times as slow, for C = 10 to 10,000), and the classes may be sharded. A
step reads the logits once.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.log_odds import box_cox, log1p_ratio
from jaxloss._core.platforms import recomputed
from jaxloss._core.statistics import ClassAxis

Alpha = jax.Array | None


class Simplex(NamedTuple):
    """The classes and, unless an array `alpha` is given, n = 1 / (alpha - 1): 1 for sparsemax, 2 for 1.5-entmax."""

    classes: ClassAxis
    n: int


def level(simplex: Simplex, logits: jax.Array, top: jax.Array, alpha: Alpha) -> jax.Array:
    """What says w of each row: w^b for a given n; -log w for any alpha, which the limit b -> 0 leaves defined.

    A step reads the logits in the dtype in which they are stored, and forms the gaps anew. XLA would form what is the
    same in every step once, and store and read it in the computed dtype; the barrier makes it look different.
    """
    classes, n = simplex
    start = 0 * top  # of the same type on a mesh as what follows it
    if alpha is None:
        step, start, b = partial(_newton_step_of, classes, n), start + 1, 1 / n
    else:
        step, b = partial(_newton_step, classes, lax.stop_gradient(alpha) - 1), 1
    size, factors = classes.size(logits), 2
    size = float(size) if isinstance(size, int) else 2.0**31  # a symbolic dimension of `jax.export`: the most there are
    while size**b * (1 - size ** (-b / factors)) ** factors > jnp.finfo(top.dtype).eps / 4:
        factors += 1

    def body(_, at):
        stored = lax.optimization_barrier(logits)
        return step(jnp.minimum(stored.astype(top.dtype) - classes.spread(top), 0), at)

    return lax.fori_loop(0, factors - 1, body, start)


def _newton_step_of(classes: ClassAxis, n: int, d: jax.Array, r: jax.Array) -> jax.Array:
    """The iterate r - G / G' for b = 1 / n, n = 1 or 2; no slope is below 1 where a class exists."""
    root = jnp.maximum(classes.spread(r) + d / n, 0)
    total, slope = (root, jnp.sign(root)) if n == 1 else (root * root, root)
    total, slope = classes.sum(total), classes.sum(slope)
    return r - (total - (1 if n == 1 else jnp.sqrt(total))) / jnp.maximum(slope, 1)


def _newton_step(classes: ClassAxis, b: jax.Array, d: jax.Array, h: jax.Array) -> jax.Array:
    """The same step for h = -log w; for b = 0 it is h = log sum_j exp(d_j), exact at once."""
    weights, _ = weights_of(d, b, classes.spread(h))
    height = jnp.log(or_one(classes.sum(weights)))
    weights, powers = weights_of(d, b, classes.spread(recomputed(h)))
    slope = jnp.exp((b - 1) * height) * classes.sum(weights / powers)
    y = -box_cox(h - height, b) * jnp.exp(b * h) / jnp.maximum(slope, 1)
    return h + y * log1p_ratio(-b * y)


def weights_of(d: jax.Array, b: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The ratios p_j / w, and their b-th powers 1 + b d_j / w^b, 1 outside the support."""
    y = d * jnp.exp(b * h)
    outside = ~(b * y > -1) & ~jnp.isnan(y)  # NaN is to stay; y = -inf is outside for b = 0, too
    y = jnp.where(outside, 0, y)
    return jnp.where(outside, 0, jnp.exp(y * log1p_ratio(b * y))), 1 + b * y


def or_one(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1, x)
