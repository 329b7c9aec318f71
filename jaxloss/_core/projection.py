"""The sparse link: Tsallis projections of logits onto the simplex, and the losses whose gradient they give.

With b = alpha - 1 the alpha-entmax of a row z is p_j = [w^b + b d_j]_+^(1/b), where d_j = z_j - max z <= 0 and w, the
largest probability, makes the sum 1. It maximizes <p, z> - Omega(p), Omega(p) = sum_j (p_j^alpha - p_j) / (alpha b):
softmax for alpha = 1 (b -> 0), sparsemax for alpha = 2. Only d enters, so a constant added to the row changes nothing.
`newton` finds w.

**Derivatives.** On the support w^b + b d_j = p_j^b gives, with S_j = p_j^(2 - alpha) there and 0 elsewhere,

    dp_j = S_j (u_j - sum_k S_k u_k / sum_k S_k),    u_j = dz_j + dalpha (d/db) (1 - p_j^b) / b.

**The loss** of a target t is Omega(t) + max_p (<p, z> - Omega(p)) - <t, z>. Written around p it is a sum of terms >= 0,

    L = sum_j D(t_j, p_j) + t_j [-(w^b / b + d_j)]_+,    D(t, p) = (t^alpha - p^alpha - alpha p^b (t - p)) / (alpha b),

with dL/dz = p - t, dL/dt = (t^b - 1) / b - z and dL/dalpha = (d/dalpha) (Omega(t) - Omega(p)) at fixed t and p. Every
rule here accounts for w as a function of z and alpha; its value is therefore handed on as a constant.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.arguments import Rows, softmax_rows
from jaxloss._core.checks import check_domain
from jaxloss._core.classes import ClassAxis, nan_where
from jaxloss._core.compose import infinite_where
from jaxloss._core.log_odds import box_cox
from jaxloss._core.newton import Alpha, Simplex, level, or_one, weights_of
from jaxloss._core.options import describe
from jaxloss._core.platforms import recomputed
from jaxloss._core.statistics import complement, split_sums


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def gaps(classes: ClassAxis, logits: jax.Array, top: jax.Array) -> jax.Array:
    """The gaps d_j = z_j - max z, the lowest finite number where that is -inf; max z, which cancels, as a constant."""
    return jnp.clip(logits - classes.spread(top), jnp.finfo(top.dtype).min, 0)


gaps.defjvp(lambda classes, primals, tangents: (gaps(classes, *primals), tangents[0]))


def _solution(simplex: Simplex, d: jax.Array, alpha: Alpha, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The point p, and w^b + b d_j: the b-th power of p_j on the support, negative or 0 elsewhere."""
    classes, n = simplex
    if alpha is None:
        base = classes.spread(at) + d / n
        return jnp.maximum(base, 0) ** n, base
    b = alpha - 1
    weights, powers = weights_of(d, b, classes.spread(at))
    total = classes.sum(weights)
    scale = classes.spread(jnp.exp(-b * at))
    return weights / classes.spread(or_one(total)), jnp.where(weights > 0, scale * powers, scale + b * d)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def project(simplex: Simplex, d: jax.Array, alpha: Alpha, at: jax.Array) -> jax.Array:
    """The point p of the simplex, `at` being the `level` of these arguments."""
    return _solution(simplex, d, alpha, at)[0]


@project.defjvp
def _project_jvp(simplex, primals, tangents):
    alpha, (moved, dalpha, _) = primals[1], tangents
    p = project(simplex, *primals)
    if alpha is not None:
        s = -jnp.log(or_one(p))
        moved = moved + jax.jvp(lambda a: box_cox(s, a - 1), (alpha,), (dalpha,))[1]
    slopes = projection_slopes(simplex, p, alpha)
    classes = simplex.classes
    mean = classes.sum(slopes * moved) / or_one(classes.sum(slopes))
    return p, slopes * (moved - classes.spread(mean))


def projection_slopes(simplex: Simplex, p: jax.Array, alpha: Alpha) -> jax.Array:
    """The vector S of the Jacobian diag(S) - S S' / sum(S)."""
    if alpha is None:
        return jnp.sign(p) if simplex.n == 1 else _sqrt(p)
    return jnp.where(p > 0, jnp.exp((2 - alpha) * jnp.log(or_one(p))), 0)


def _sqrt(x: jax.Array) -> jax.Array:
    """Square root whose derivative at 0 counts as 0."""
    return jnp.where(x > 0, jnp.sqrt(or_one(x)), 0)


def residual(classes: ClassAxis, p: jax.Array, t: jax.Array) -> jax.Array:
    """The difference p - t as p (1 - t) - t (1 - p)."""
    return p * (1 - t) - t * complement(classes, p)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def young_loss(simplex: Simplex, d: jax.Array, t: jax.Array, alpha: Alpha, at: jax.Array) -> jax.Array:
    """The loss L of each row for a distribution t; what a class an infinite gap away would add is left out."""
    classes, n = simplex
    p, base = _solution(simplex, d, alpha, at)
    e = residual(classes, p, t)
    excluded = d <= jnp.finfo(d.dtype).min
    if alpha is not None:
        terms = _young_terms(jnp.where(excluded, 0, d), t, alpha - 1, classes.spread(at), p, base, e)
    else:
        slack = n * t * jnp.maximum(jnp.where(excluded, 0, -base), 0)
        if n == 1:
            terms = 0.5 * e * e + slack
        else:
            # D(t, p) = 2/3 (sqrt t - sqrt p)^2 (2 sqrt t + sqrt p), the difference being (t - p) / (sqrt t + sqrt p).
            root_t = jnp.sqrt(t)
            both = root_t + jnp.maximum(base, 0)
            terms = 2 / 3 * jnp.square(e / or_one(both)) * (both + root_t) + slack
    # The label's term may be larger than all others together, and each of those would be rounded to its last digit.
    sums = split_sums(classes, terms, t > 0)
    return sums.minor + sums.major


def _young_terms(d, t, b, h, p, base, e) -> jax.Array:
    """The terms (t (t^b - B) / b + (p - t) B) / alpha with B = w^b + b d, on the support and off it.

    Where p is near t the two parts cancel, and D = (t - p)^2 p^(alpha - 2) sum_n c_n x^(n - 2) with x = t / p - 1 is
    used, c_n being the coefficient of x^n in (1 + x)^alpha over alpha b.
    """
    near = jnp.abs(e) < 0.25 * p
    x = jnp.where(near, -e / or_one(p), 0)
    coefficients = [jnp.full_like(b, 0.5)]
    for n in range(2, 14 if d.dtype == jnp.float32 else 28):
        coefficients.append(coefficients[-1] * (1 + b - n) / (n + 1))
    series = jnp.zeros_like(x)
    for coefficient in reversed(coefficients):
        series = series * x + coefficient
    log_ratio = box_cox(h, b) - d - _minus_log(t, b)  # (t^b - B) / b
    return jnp.where(near, e * e * (base / or_one(p)) * series, (t * log_ratio + e * base) / (1 + b))


def _minus_log(t: jax.Array, b: jax.Array) -> jax.Array:
    """The deformed logarithm (1 - t^b) / b, -log t for b = 0; at t = 0 that of the smallest normal number."""
    return box_cox(-jnp.log(jnp.maximum(t, jnp.finfo(t.dtype).tiny)), b)


@young_loss.defjvp
def _young_loss_jvp(simplex, primals, tangents):
    # dL/dt only up to a constant of the row: t sums to 1, so that its tangent sums to 0.
    (d, t, alpha, at), (dd, dt, dalpha, _) = primals, tangents
    classes = simplex.classes
    p = project(simplex, d, alpha, recomputed(at) if alpha is None else at)  # p is cheap for a given n
    by_target = t if simplex.n == 1 else 2 * _sqrt(t)
    tangent = classes.sum(residual(classes, p, t) * dd)
    if alpha is not None:
        by_target = -_minus_log(t, alpha - 1)

        def omegas(a):
            return classes.sum(p * _minus_log(p, a - 1) - t * _minus_log(t, a - 1)) / a

        tangent = tangent + jax.jvp(omegas, (alpha,), (dalpha,))[1]
    return young_loss(simplex, *primals), tangent + classes.sum((by_target - d) * dt)


class Problem(NamedTuple):
    """Checked arguments of a projection or its loss, with the level that solves it."""

    rows: Rows
    simplex: Simplex
    d: jax.Array
    alpha: Alpha
    at: jax.Array
    infinite: jax.Array  # rows with a logit of +inf


def problem(name, logits, labels, axis, where, axis_name, n: int, alpha: Alpha = None) -> Problem:
    """The projection of n or, where one is given, of alpha."""
    rows = softmax_rows(name, logits, labels, axis, where, axis_name)
    if alpha is not None:
        if alpha.ndim or not (jnp.issubdtype(alpha.dtype, jnp.floating) or jnp.issubdtype(alpha.dtype, jnp.integer)):
            raise ValueError(
                f"{name}: `alpha` must be one number in [1, 2]; got {describe(alpha)}. "
                "For an alpha of its own in each row use jax.vmap."
            )
        alpha = alpha.astype(rows.logits.dtype)
        alpha = check_domain(name, "alpha", alpha, (alpha >= 1) & (alpha <= 2), "in [1, 2]")
    simplex, constant = Simplex(rows.classes, n), lax.stop_gradient(rows.logits)
    top = rows.classes.max(constant)
    infinite = top == jnp.inf
    top = jnp.where(top == -jnp.inf, 0, jnp.where(infinite, jnp.finfo(top.dtype).max, top))
    at = level(simplex, constant.astype(logits.dtype), top, alpha)
    # A logit of +inf takes all of the probability, where Newton's method starts; what several take is not defined.
    at = nan_where(infinite & (at != (1 if alpha is None else 0)), at)
    return Problem(rows, simplex, gaps(rows.classes, rows.logits, top), alpha, at, infinite)


def projection(name, logits, *common) -> jax.Array:
    """The point p in the shape of the logits; `common` arguments as `problem` takes them after the labels."""
    rows, simplex, d, alpha, at, _ = problem(name, logits, None, *common)
    return rows.restore(project(simplex, d, alpha, at), logits.astype(d.dtype))


def _target(rows, class_weights) -> tuple[jax.Array, jax.Array]:
    """The label as a distribution, and the weight of its row: NaN for an id outside, 0 where nothing is labeled."""
    classes, weights = rows.classes, rows.parameter("class_weights", class_weights)
    t = rows.targets
    if t is None:
        t = classes.is_label(rows.logits, rows.ids).astype(rows.logits.dtype)
    total = classes.sum(t)
    share = (total if weights is None else classes.sum(t * weights)) / or_one(total)
    if rows.ids is not None:
        share = rows.of_labels(nan_where(rows.ids < 0, share))
    return t / classes.spread(or_one(total)), share


def projection_loss(class_weights, name, *common) -> jax.Array:
    """Losses per row; `common` arguments as `problem` takes them."""
    rows, simplex, d, alpha, at, infinite = problem(name, *common)
    t, share = _target(rows, class_weights)
    losses = share * young_loss(simplex, d, t, alpha, at)
    # A label an infinite gap away; of the arguments alone, so that GPUs find it where they read them first.
    constant = lax.stop_gradient(rows.logits)
    labeled = t > 0 if rows.targets is None else rows.targets > 0
    lowest = -rows.classes.max(jnp.where(labeled, -constant, -jnp.inf))
    lost = (lowest == -jnp.inf) | (infinite & (lowest < jnp.inf))
    return rows.finish(losses + infinite_where(lost & (share > 0), losses))


def projection_hessian(n: int) -> Callable[[Callable], Callable]:
    """Of a loss whose gradient is a projection less the target: the Jacobian's diagonal, S_j (1 - S_j / sum(S))."""

    def decorate(function):
        def hessian(logits, labels, axis, where, *, axis_name, class_weights, alpha=None):
            common = (function.__name__, logits, labels, axis, where, axis_name, n, alpha)
            rows, simplex, d, alpha, at, _ = problem(*common)
            slopes = projection_slopes(simplex, project(simplex, d, alpha, at), alpha)
            shares = slopes / rows.classes.spread(or_one(rows.classes.sum(slopes)))
            weight = rows.classes.spread(_target(rows, class_weights)[1])
            return rows.restore(weight * slopes * complement(rows.classes, shares), logits)

        return hessian

    return decorate


def sparse_sigmoid_loss(z: jax.Array, t: jax.Array) -> jax.Array:
    """Two classes, logits 0 and z: (t - p)^2 + (1 - t) [z - 1]_+ + t [-1 - z]_+ with p = clip((1 + z) / 2, 0, 1)."""
    above, below = z >= 1, z <= -1
    half = 0.5 * jnp.where(above | below, 0, z)
    p = jnp.where(above, 1, jnp.where(below, 0, 0.5 + half))
    q = jnp.where(below, 1, jnp.where(above, 0, 0.5 - half))
    # An infinite logit on the right side of a hard label is no 0 * inf; an id outside is a label NaN.
    over = jnp.where(above & ~((t >= 1) & (z == jnp.inf)), z, 1) - 1
    under = jnp.where(below & ~((t <= 0) & (z == -jnp.inf)), -z, 1) - 1
    return jnp.square(t * q - (1 - t) * p) + (1 - t) * over + t * under
