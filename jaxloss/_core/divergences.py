"""Divergences of two softmax distributions: a model's p and a target's t.

Both are sums of terms b (exp(x) - 1 - x) >= 0, b being a probability and x a logarithm of a ratio to it, so that no
digits are lost where the distributions are close:

    KL(t || p) = sum_c t_c (exp(d_c) - 1 - d_c)        d_c = log p_c - log t_c
    JS = w KL(t || m) + (1 - w) KL(p || m)             m = w t + (1 - w) p
    log m_c - log t_c = log(1 + (1 - w) (exp(d_c) - 1))        log m_c - log p_c = log(1 + w (exp(-d_c) - 1))

d itself must keep its digits there. With the largest logits a of the model and b of the target,

    d_c = ((z_c - a) - (u_c - b)) - (logsumexp(z - a) - logsumexp(u - b));

the first difference is formed exactly (Knuth's sum of two numbers and its rounding). The second is the same for all
classes of a row; its rounding would shift all d_c alike. As sum_c t_c exp(d_c) = 1, that shift is seen: it is
log(1 + S) with S = sum_c t_c (exp(d_c) - 1). S comes in one pass with the value, which is corrected by it, and the
gradient's d is free of it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.classes import ClassAxis
from jaxloss._core.log_odds import Odds, bregman, ceiling, exact_difference
from jaxloss._core.platforms import on_platform, recomputed
from jaxloss._core.statistics import ClassRow, is_major, odds_in_row


class Pair(NamedTuple):
    """What is known of logits and targets beside them; constants, for a rule accounts for all as functions of these."""

    model: ClassRow
    target: ClassRow
    hot: tuple[jax.Array, jax.Array, jax.Array] | None = None  # logits and targets before a temperature divides them

    @property
    def rows(self) -> tuple[ClassRow, ClassRow]:
        return self.model, self.target

    def log_of_sums(self) -> jax.Array:
        """The logarithm of (1 + r) / (1 + r'), r and r' being sums over all but one largest.

        XLA may compute it anew in each of its kernels, where `log1p` rounds otherwise: of the small quotient here it
        rounds by a share of it, and what the others round is the same everywhere.
        """
        r, other = self.model.rest, self.target.rest
        return jnp.sign(r - other) * jnp.log1p(jnp.abs(r - other) / (1 + jnp.minimum(r, other)))

    def again(self, turn: int) -> "Pair":
        """The same, from which an accelerator computes what follows anew in each `turn`, and stores nothing for it."""
        model, target = jax.tree.map(lambda x: recomputed(x, turn), self.rows)
        return Pair(model, target, self.hot)

    def swapped(self) -> "Pair":
        """Of targets and logits."""
        hot = self.hot if self.hot is None else (self.hot[1], self.hot[0], self.hot[2])
        return Pair(self.target, self.model, hot)


class Divergence(NamedTuple):
    value: jax.Array
    shift: jax.Array  # of all d of the row, as far as rounding goes: mathematically 0
    target: "Side"
    model: "Side"


class Side(NamedTuple):
    """Of t or p: b. With x = log b - log m, the gradient by its logits is b_j (x_j - sum_c b_c x_c), times a factor."""

    mean: jax.Array  # sum_c b_c x_c = KL(b || m)
    minor: jax.Array  # the same sum without a class that holds more than half of b: what that is compared with

    def gradient(self, classes: ClassAxis, row: ClassRow, logits: jax.Array, odds: Odds, x: jax.Array) -> jax.Array:
        """A class that holds nearly all is x_j - sum_c b_c x_c = (1 - b_j) x_j - sum_{c != j} b_c x_c."""
        mean, minor = (classes.spread(jnp.where(jnp.abs(y) == jnp.inf, 0, y)) for y in self)
        return odds.p * jnp.where(is_major(classes, row, logits), odds.q * x - minor, x - mean)


def terms_of(base: jax.Array, grown: jax.Array, x: jax.Array) -> jax.Array:
    """The product base (exp(x) - 1 - x), with `grown` = base (exp(x) - 1); base may be 0 where x is large."""
    near = x < 1
    return jnp.where(near, base * bregman(jnp.where(near, x, 0)), grown - base * x)


def growth(base: jax.Array, x: jax.Array, other: jax.Array) -> jax.Array:
    """The difference other - base, as base (exp(x) - 1) where the two are near."""
    near = x < 1
    return jnp.where(near, base * jnp.expm1(jnp.where(near, x, 0)), other - base)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_ratio(classes: ClassAxis, pair: Pair, shift: jax.Array, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """d_c, less the `shift` of the row."""
    model, target = (odds_in_row(classes, row, z) for row, z in zip(pair.rows, (logits, targets), strict=True))
    largest = float(jnp.finfo(logits.dtype).max) / 8  # beyond it are tops of rows with a logit of +inf
    ordinary = jnp.maximum(jnp.abs(pair.model.best), jnp.abs(pair.target.best)) < largest
    finite = (jnp.abs(logits) < jnp.inf) & (jnp.abs(targets) < jnp.inf) & classes.spread(ordinary)
    # The difference of the arguments as they came: over a temperature, each is rounded.
    z, u, temperature = (logits, targets, None) if pair.hot is None else pair.hot
    z, u = (jnp.where(finite, x, 0) for x in (z, u))
    tops = (jnp.where(ordinary, row.best, 0) for row in pair.rows)
    a, b = (classes.spread(top if temperature is None else top * temperature) for top in tops)
    (z, lost), (u, lost_of_target) = exact_difference(z, a), exact_difference(u, b)
    apart, lost_between = exact_difference(z, u)
    residue = (lost - lost_of_target) + lost_between
    if temperature is not None:
        apart, residue = apart / temperature, residue / temperature
    logs = classes.spread(pair.log_of_sums() + shift)
    return jnp.where(finite, (apart - logs) + residue, target.nll - model.nll)


@log_ratio.defjvp
def _log_ratio_jvp(classes, primals, tangents):
    pair, _, *given = primals
    model, target = (
        jax.jvp(lambda z, row=row: odds_in_row(classes, row, z).nll, (x,), (tangent,))[1]
        for row, x, tangent in zip(pair.rows, given, tangents[2:], strict=True)
    )
    return log_ratio(classes, *primals), target - model


def ratios(classes, pair, shift, logits, targets) -> tuple[Odds, Odds, jax.Array]:
    model, target = (odds_in_row(classes, row, z) for row, z in zip(pair.rows, (logits, targets), strict=True))
    return model, target, log_ratio(classes, pair, shift, logits, targets)


def _sums(classes: ClassAxis, *terms: jax.Array) -> tuple[jax.Array, ...]:
    """Sums over the classes, in one read of what they are made of; none shares a part with another that is stored."""

    def plain(*terms):
        return tuple(jnp.sum(x, classes.axis) for x in terms)

    def one_read(*terms):
        return classes.fold(terms, (0.0,) * len(terms), lambda a, b: tuple(map(jnp.add, a, b)))

    sums = on_platform(*terms, cpu=plain, accelerator=one_read)
    return sums if classes.name is None else lax.psum(sums, classes.name)


def _corrected(value: jax.Array, curvature, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A value with `curvature` at d = 0 whose d are all shifted, and the shift."""
    shift = jnp.log1p(jnp.where(s > -1, s, 0))
    return jnp.maximum(value - curvature * bregman(shift), 0), shift


def _shifted(minor: jax.Array, shift: jax.Array, row: ClassRow) -> jax.Array:
    """`minor`, every x of whose sum is `shift` larger; exact where that matters, which is where all x are small."""
    return minor + shift * (row.rest / (1 + row.rest))


def _minor(classes: ClassAxis, row: ClassRow, logits: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(is_major(classes, row, logits), 0, x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def divergence(classes: ClassAxis, pair: Pair, logits: jax.Array, targets: jax.Array) -> Divergence:
    """KL(t || p): m is p."""
    none = jnp.zeros_like(pair.model.rest)

    def found(turn):
        return ratios(classes, pair.again(turn), none, logits, targets)

    model, target, d = found(1)
    beyond = (model.nll >= ceiling(logits.dtype)) & (target.p > 0)
    value = jnp.where(beyond, jnp.inf, terms_of(target.p, model.p - target.p, d))
    model, target, d = found(2)
    s = growth(target.p, d, model.p)
    model, target, d = found(3)
    minor = _minor(classes, pair.target, targets, -target.p * d)
    value, s, minor = _sums(classes, value, s, minor)
    value, shift = _corrected(value, 1.0, s)
    zero = jnp.zeros_like(value)
    return Divergence(value, shift, Side(value, _shifted(minor, shift, pair.target)), Side(zero, zero))


@divergence.defjvp
def _divergence_jvp(classes, primals, tangents):
    # By the logits p_j - t_j, as t_j (exp(d_j) - 1) where that is near 0.
    pair, logits, targets = primals
    found = divergence(classes, *primals)
    pair_again, shift = pair.again(4), recomputed(found.shift, 4)

    def minor(logits, targets):
        _, target, d = ratios(classes, pair_again, shift, logits, targets)
        return _minor(classes, pair.target, targets, -target.p * d)

    model, target, d = ratios(classes, pair_again, shift, logits, targets)
    by_targets = found.target.gradient(classes, pair_again.target, targets, target, -d)
    change = classes.sum(growth(target.p, d, model.p) * tangents[1] + by_targets * tangents[2])
    zero = jnp.zeros_like(change)
    moved = classes.sum(jax.jvp(minor, primals[1:], tangents[1:])[1])
    return found, Divergence(change, zero, Side(change, moved), Side(zero, zero))


class Mixture(NamedTuple):
    """log t - log m and log p - log m of each class, and the terms of KL(t || m) and KL(p || m)."""

    target: jax.Array
    model: jax.Array
    of_target: jax.Array
    of_model: jax.Array


FAR = 30.0
"""|d| beyond which exp(|d|) could overflow before a share of it is taken; there, one log-ratio follows of the other."""


def _log_mean(share: jax.Array, rest: jax.Array, d: jax.Array) -> jax.Array:
    """The logarithm log(rest + share exp(d)), the two shares adding up to 1."""
    above = share * jnp.expm1(d)
    near = above > -0.5
    return jnp.where(near, jnp.log1p(jnp.where(near, above, 0)), jnp.log(rest + share * jnp.exp(d)))


def mixture(p: jax.Array, t: jax.Array, d: jax.Array, weight: jax.Array) -> Mixture:
    """Of probabilities p and t with d = log p - log t and the `weight` w of t."""
    inside = jnp.clip(d, -FAR, FAR)
    over_t, over_p = _log_mean(1 - weight, weight, inside), _log_mean(weight, 1 - weight, -inside)
    over_t, over_p = jnp.where(d > FAR, d + over_p, over_t), jnp.where(d < -FAR, over_t - d, over_p)
    of_target = terms_of(t, (1 - weight) * (p - t), over_t)
    return Mixture(-over_t, -over_p, of_target, terms_of(p, weight * (t - p), over_p))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def jensen_shannon(
    classes: ClassAxis, pair: Pair, logits: jax.Array, targets: jax.Array, weight: jax.Array
) -> Divergence:
    """The sum w KL(t || m) + (1 - w) KL(p || m)."""
    none = jnp.zeros_like(pair.model.rest)

    def found(turn):
        model, target, d = ratios(classes, pair.again(turn), none, logits, targets)
        return model.p, target.p, d, mixture(model.p, target.p, d, weight)

    of_target, of_model = found(1)[3].of_target, found(2)[3].of_model
    p, t, d, _ = found(3)
    s = growth(t, d, p)
    _, t, _, parts = found(4)
    minor = _minor(classes, pair.target, targets, t * parts.target)
    p, _, _, parts = found(5)
    minor_of_model = _minor(classes, pair.model, logits, p * parts.model)
    of_target, of_model, s, minor, minor_of_model = _sums(classes, of_target, of_model, s, minor, minor_of_model)
    value, shift = _corrected(weight * of_target + (1 - weight) * of_model, weight * (1 - weight), s)
    minor = _shifted(minor, (1 - weight) * shift, pair.target)
    minor_of_model = _shifted(minor_of_model, -weight * shift, pair.model)
    return Divergence(value, shift, Side(of_target, minor), Side(of_model, minor_of_model))


@jensen_shannon.defjvp
def _jensen_shannon_jvp(classes, primals, tangents):
    # Each side's gradient times its weight; by w the difference of the two divergences.
    pair, logits, targets, weight = primals
    _, by_logits, by_targets, by_weight = tangents
    found = jensen_shannon(classes, *primals)
    pair_again, shift = pair.again(6), recomputed(found.shift, 6)

    def parts(logits, targets, weight):
        model, target, d = ratios(classes, pair_again, shift, logits, targets)
        mixed = mixture(model.p, target.p, d, weight)
        return mixed, model, target, model.p * mixed.model, target.p * mixed.target

    (mixed, model, target, *_), (moved, _, _, *shares) = jax.jvp(parts, primals[1:], tangents[1:])
    slope = (1 - weight) * found.model.gradient(classes, pair_again.model, logits, model, mixed.model)
    slope_of_target = weight * found.target.gradient(classes, pair_again.target, targets, target, mixed.target)
    change = classes.sum(slope * by_logits + slope_of_target * by_targets)
    change = change + (found.target.mean - found.model.mean) * by_weight
    minors = (_minor(classes, row, z, x) for row, z, x in zip(pair.rows, (logits, targets), shares, strict=True))
    of_model, of_target = map(classes.sum, minors)
    sides = Side(classes.sum(moved.of_target), of_target), Side(classes.sum(moved.of_model), of_model)
    return found, Divergence(change, jnp.zeros_like(change), *sides)
