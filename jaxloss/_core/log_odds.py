"""Scalar functions of the log-odds of the truth.

A loss sees a row of logits only through the log-odds l of the true class, p = sigmoid(l). `odds` gives the four
functions of l that lose no digits at either end, with their derivatives in closed form; a loss is a formula in them.
Because every derivative of the four is a product of the four, automatic differentiation of such a formula is itself in
closed form: for focal loss it yields phi' = -w (q + gamma p s) and phi'' = w p (q (1 + 2 gamma - gamma s) +
gamma^2 p s) with w = q^gamma, s = -log p, term by term and to any order.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Odds(NamedTuple):
    """A probability p = sigmoid(l) in four forms, each with full relative accuracy."""

    nll: jax.Array  # -log p = softplus(-l)
    nlc: jax.Array  # -log(1 - p) = softplus(l), c for complement
    p: jax.Array
    q: jax.Array  # 1 - p

    def complement(self) -> "Odds":
        """The four forms of 1 - p."""
        return Odds(self.nlc, self.nll, self.q, self.p)


def ceiling(dtype: jnp.dtype) -> float:
    """What stands for infinite log-odds (5e33 in float32): products with it and a few exponents stay finite.

    It keeps terms such as q^gamma (-log p), and their derivatives, free of 0 * inf; where a loss is added up, the
    infinite limit is put back.
    """
    return float(jnp.finfo(dtype).max) / 2**16


@jax.custom_jvp
def finite(x: jax.Array) -> jax.Array:
    """Infinite entries replaced by the finite `ceiling`, without a trace in the derivative."""
    highest = ceiling(x.dtype)
    return jnp.clip(x, -highest, highest)


@finite.defjvp
def _finite_jvp(primals, tangents):
    return finite(*primals), tangents[0]


def counted(coefficient: jax.Array, values: jax.Array) -> jax.Array:
    """The values, 0 where they are infinite and the coefficient is 0: it drops them, in the derivatives too."""
    return jnp.where((coefficient == 0) & (jnp.abs(values) == jnp.inf), 0, values)


@jax.custom_jvp
def minus_log(p: jax.Array) -> jax.Array:
    """-log(p), with the `ceiling` at 0 and the derivative of the least normal number there."""
    return jnp.where(p == 0, ceiling(p.dtype), -jnp.log(jnp.where(p == 0, 1, p)))


@minus_log.defjvp
def _minus_log_jvp(primals, tangents):
    (p,) = primals
    return minus_log(p), -tangents[0] / jnp.maximum(p, jnp.finfo(p.dtype).tiny)


@jax.custom_jvp
def minus_log1m(p: jax.Array) -> jax.Array:
    """-log(1 - p), with the `ceiling` at 1 and a finite derivative there."""
    return jnp.where(p == 1, ceiling(p.dtype), p * log1p_ratio(-jnp.where(p == 1, 0, p)))


@minus_log1m.defjvp
def _minus_log1m_jvp(primals, tangents):
    (p,) = primals
    return minus_log1m(p), tangents[0] / jnp.maximum(1 - p, jnp.finfo(p.dtype).tiny)


def log1p_ratio(x: jax.Array) -> jax.Array:
    """The quotient log(1 + x) / x. XLA's log1p of float64 may lose 7 bits for x between -0.42 and -0.3 (jax 0.10)."""
    return jnp.where(x == 0, 1, jnp.where(jnp.abs(x) < 0.25, jnp.log1p(x), jnp.log(1 + x)) / jnp.where(x == 0, 1, x))


def odds_tangent(value: Odds, tangent: jax.Array) -> Odds:
    """Derivative of the four forms along `tangent`, a change of the log-odds."""
    p, q = value.p, value.q
    return Odds(-q * tangent, p * tangent, p * q * tangent, -p * q * tangent)


@jax.custom_jvp
def odds(log_odds: jax.Array) -> Odds:
    """The four forms of p = sigmoid(log_odds), with a finite `ceiling` in place of infinity."""
    l = finite(log_odds)
    e = jnp.exp(-jnp.abs(l))
    both = jnp.log1p(e)
    likely = l >= 0
    # XLA on CPU stores a quotient of each row, but works a selection out again for every element that uses it.
    return Odds(
        both + jnp.maximum(-l, 0),
        both + jnp.maximum(l, 0),
        jnp.where(likely, 1, e) / (1 + e),
        jnp.where(likely, e, 1) / (1 + e),
    )


@odds.defjvp
def _odds_jvp(primals, tangents):
    value = odds(*primals)
    return value, odds_tangent(value, *tangents)


def impossible(like: jax.Array) -> Odds:
    """The four forms of p = 0, where -log p is infinite."""
    zero = jnp.zeros_like(like)
    return Odds(zero + jnp.inf, zero, zero, zero + 1)


@functools.cache
def lowered(scalar: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The scalar function at log-odds lower by the first of its parameters, a margin, or at these for None."""

    def at_margin(truth: Odds, margin: jax.Array | None, *parameters: jax.Array | None) -> jax.Array:
        if margin is None:
            return scalar(truth, *parameters)
        # Of nll and nlc one is at most log 2: their difference has the digits of the log-odds. Those of an `impossible`
        # truth stay as they are, for `odds` makes its infinity finite.
        moved = odds((truth.nlc - truth.nll) - margin)
        stays = truth.nll == jnp.inf
        return scalar(Odds(*(jnp.where(stays, x, y) for x, y in zip(truth, moved, strict=True))), *parameters)

    return at_margin


def cross_entropy(truth: Odds) -> jax.Array:
    return truth.nll


def poly(truth: Odds, epsilon: jax.Array | None) -> jax.Array:
    if epsilon is None:
        return truth.nll
    return truth.nll + epsilon * truth.q


def focal(truth: Odds, gamma: jax.Array | None, epsilon: jax.Array | None = None) -> jax.Array:
    if gamma is None:
        return poly(truth, epsilon)
    return jnp.exp(-gamma * truth.nlc) * poly(truth, epsilon)


def generalized_cross_entropy(truth: Odds, q: jax.Array | None) -> jax.Array:
    if q is None:
        return truth.nll
    return box_cox(truth.nll, jnp.broadcast_to(q, truth.nll.shape))


@jax.custom_jvp
def box_cox(s: jax.Array, q: jax.Array) -> jax.Array:
    """(1 - exp(-q s)) / q, and s at q = 0."""
    return jnp.where(q == 0, s, -jnp.expm1(-q * s) / jnp.where(q == 0, 1, q))


@box_cox.defjvp
def box_cox_jvp(primals, tangents):
    # d/ds = exp(-q s), d/dq = -s^2 k(q s) with k(x) = (1 - (1 + x) exp(-x)) / x^2. The closed form of k cancels for
    # small x, where its Taylor series sum_n (-x)^n (n + 1) / (n + 2)! is used (next term below 2^-53 at x = 1/2).
    s, q = primals
    ds, dq = tangents
    x = q * s
    small = x < 0.5
    near, far = jnp.where(small, x, 0), jnp.where(small, 1, x)
    series = _polynomial([(-1) ** n * (n + 1) / math.factorial(n + 2) for n in range(14)], near)
    closed = (-jnp.expm1(-far) - far * jnp.exp(-far)) / (far * far)
    return box_cox(s, q), jnp.exp(-x) * ds - jnp.where(small, series * s * s, closed * s * s) * dq


@jax.custom_jvp
def log_miss(log_odds: jax.Array, t: jax.Array) -> jax.Array:
    """log(t (1 - p) + (1 - t) p), the log-probability that a label drawn with mean t is missed."""
    truth = odds(log_odds)
    miss = t * truth.q + (1 - t) * truth.p
    return jnp.log(jnp.maximum(miss, jnp.finfo(miss.dtype).tiny))


@log_miss.defjvp
def _log_miss_jvp(primals, tangents):
    # With r the share of t (1 - p) in the miss, d/dl = (1 - r) (1 - p) - r p: no quotient of two vanishing numbers.
    # log(r / (1 - r)) = log(t / (1 - t)) - l; a hard label has r = t.
    log_odds, t = primals
    truth, value = odds(log_odds), log_miss(log_odds, t)
    hard = (t <= 0) | (t >= 1)
    soft_t = jnp.where(hard, 0.5, t)
    share = odds(jnp.log(soft_t) - jnp.log1p(-soft_t) - log_odds)
    r, rest = jnp.where(hard, t, share.p), jnp.where(hard, 1 - t, share.q)
    dlog_odds, dt = tangents
    return value, (rest * truth.q - r * truth.p) * dlog_odds + (truth.q - truth.p) * jnp.exp(-value) * dt


def _polynomial(coefficients: list[float], x: jax.Array) -> jax.Array:
    value = jnp.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def bregman(delta: jax.Array) -> jax.Array:
    """exp(delta) - 1 - delta >= 0, without cancellation near 0."""
    small = jnp.abs(delta) < 0.5
    near, far = jnp.where(small, delta, 0), jnp.where(small, 1, delta)
    series = _polynomial([1 / math.factorial(n) for n in range(2, 17)], near)
    return jnp.where(small, near * near * series, jnp.expm1(far) - far)


def exact_difference(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference x - y, rounded, and what rounding took of it (Knuth's sum of two numbers)."""
    rounded = x - y
    taken = rounded - x
    return rounded, (x - (rounded - taken)) - (y + taken)
