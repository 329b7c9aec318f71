"""The expected cost of a class drawn from the softmax: L = sum_c k_c p_c, k_c >= 0 being the cost of class c in a row.

The gradient is p_j (k_j - L). Where one class holds most of the probability, or most classes cost the same, the costs
are near L, and that difference as it stands would lose their digits. With any number r near L,

    k_j - L = (k_j - r) - sum_c p_c (k_c - r),

and r is the cost of the likeliest class, from which nothing is lost where it is near L, or else L as it was rounded.
The diagonal of the Hessian is the gradient times (1 - p_j) - p_j.

On accelerators L comes of one read of logits and costs: to the states of `statistics` are joined sum_c w_c k_c and the
cost of the likeliest class.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from jaxloss._core.arguments import Rows, softmax_rows
from jaxloss._core.checks import check_domain
from jaxloss._core.classes import ClassAxis, is_explicit, nan_where, whole_rows
from jaxloss._core.compose import distributions, label_weights, shares_of
from jaxloss._core.log_odds import Odds
from jaxloss._core.options import describe
from jaxloss._core.platforms import by_row, recomputed
from jaxloss._core.statistics import ClassRow, finite_top, higher, odds_in_row, weights_of

NEAR = 2.0**-10  # of L: so near, the cost of the likeliest class is a better r than the rounded L


class CostRow(NamedTuple):
    """What a row says of its costs."""

    row: ClassRow
    reference: jax.Array  # r
    expected: jax.Array  # L


def cost_row(classes: ClassAxis, logits: jax.Array, costs: jax.Array) -> CostRow:
    """Not to be differentiated."""
    start = (-jnp.inf, 0.0, 0.0, 0.0)

    def join(a, b):
        best, first, gap = higher(a[0], b[0])
        weight = jnp.exp(-gap)
        rest, lower_rest = jnp.where(first, a[1], b[1]), jnp.where(first, b[1], a[1])
        total, lower_total = jnp.where(first, a[2], b[2]), jnp.where(first, b[2], a[2])
        cost = jnp.where(first, a[3], b[3])
        return best, rest + (1 + lower_rest) * weight, total + lower_total * weight, cost

    def one_read(logits, costs):
        return classes.fold((logits, jnp.zeros_like(logits), costs, costs), start, join)

    def plain_sums(logits, costs):
        best = jnp.max(logits, classes.axis)
        weights, top = weights_of(classes, logits, best), logits == classes.spread(best)
        everything = jnp.sum(weights, classes.axis)
        below = jnp.sum(jnp.where(top, 0, weights), classes.axis)
        cost = jnp.max(jnp.where(top, costs, 0), classes.axis)
        rest = jnp.where(everything < 2, below, everything - 1)
        return best, rest, jnp.sum(weights * costs, classes.axis), cost

    size = logits.shape[classes.axis]
    state = by_row(size, len(start), logits, costs, plain=plain_sums, folded=one_read)
    best, rest, total, cost = classes.join(state, start, join)
    nothing = best == -jnp.inf
    # A logit of +inf takes all of the probability; what several take is not defined.
    rest = jnp.where(nothing, 0, nan_where((best == jnp.inf) & (rest > 0), rest))
    expected = jnp.where(nothing, 0, total / (1 + rest))
    reference = jnp.where(jnp.abs(cost - expected) <= NEAR * expected, cost, expected)
    return CostRow(ClassRow(finite_top(best), rest), reference, expected)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def expected_cost(classes: ClassAxis, logits: jax.Array, costs: jax.Array) -> jax.Array:
    """L of each row; `costs` have the shape of the logits."""
    return cost_row(classes, logits, costs).expected


def _expected_cost_jvp(classes, primals, tangents):
    (logits, costs), (moved, changed) = primals, tangents
    truth, excess = _excess(classes, logits, costs)
    terms = [] if isinstance(moved, SymbolicZero) else [truth.p * excess * moved]
    terms += [] if isinstance(changed, SymbolicZero) else [truth.p * changed]
    value = expected_cost(classes, *primals)
    return value, sum(map(classes.sum, terms), jnp.zeros_like(value))


expected_cost.defjvp(_expected_cost_jvp, symbolic_zeros=True)


def _excess(classes: ClassAxis, logits: jax.Array, costs: jax.Array) -> tuple[Odds, jax.Array]:
    """The odds of every class, and k_j - L."""
    row, reference, _ = cost_row(classes, *map(lax.stop_gradient, (logits, costs)))
    again = ClassRow(*map(recomputed, row))
    return odds_in_row(classes, again, logits), excess(classes, row, reference, logits, costs)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def excess(classes: ClassAxis, row: ClassRow, reference: jax.Array, logits: jax.Array, costs: jax.Array) -> jax.Array:
    """The differences k_j - L, `row` being that of the logits and `reference` any number near L."""
    above = costs - classes.spread(reference)
    p = odds_in_row(classes, ClassRow(*(recomputed(x, 2) for x in row)), logits).p
    return above - classes.spread(classes.sum(p * above))


@excess.defjvp
def _excess_jvp(classes, primals, tangents):
    row, _, logits, _ = primals
    value = excess(classes, *primals)
    p = odds_in_row(classes, row, logits).p
    return value, tangents[3] - classes.spread(classes.sum(p * (value * tangents[2] + tangents[3])))


class Priced(NamedTuple):
    """Checked arguments, with the costs of each row."""

    rows: Rows
    costs: jax.Array  # of the shape of the logits
    weights: jax.Array | None  # of each row; 1 for None

    def weighted(self, values: jax.Array) -> jax.Array:
        """Times the weight of each row; of rows, or of the shape of the logits."""
        if self.weights is None:
            return values
        return values * (self.weights if values.ndim == self.weights.ndim else self.rows.classes.spread(self.weights))


def priced(name, logits, labels, axis, where, axis_name, table, options) -> Priced:
    """Resolves labels and `options` (class weights, smoothing); the `table` has a row of costs for each true class."""
    class_weights, label_smoothing = options
    rows = softmax_rows(name, logits, labels, axis, where, axis_name)
    classes, size = rows.classes, rows.logits.shape[rows.classes.axis]
    table = _checked(name, table, (classes.size(rows.logits), size), rows.logits.dtype)
    if label_smoothing is not None:
        rows = distributions(rows)
    if rows.ids is None:
        shares = shares_of(rows, class_weights, label_smoothing).array(classes)
        return Priced(rows, mixed(classes, shares, table), None)
    costs = looked_up(classes, table, rows.ids, lax.stop_gradient(rows.logits))
    return Priced(rows, costs, label_weights(rows, class_weights))


def _checked(name: str, table: jax.Array, shape: tuple[int, int], dtype) -> jax.Array:
    if not (jnp.issubdtype(table.dtype, jnp.floating) or jnp.issubdtype(table.dtype, jnp.integer)):
        raise TypeError(f"{name}: `costs` must hold numbers; got {describe(table)}.")
    if table.shape != shape:
        kind = "a row for each true class and a column for each predicted one"
        hint = " Of several class axes the classes are counted in the order of `axis`." if table.ndim > 2 else ""
        raise ValueError(f"{name}: `costs` must have shape {shape}, {kind}; got {describe(table)}.{hint}")
    table = table.astype(dtype)
    return check_domain(name, "costs", table, (table >= 0) & (table < jnp.inf), "finite and >= 0")


def mixed(classes: ClassAxis, shares: jax.Array, table: jax.Array) -> jax.Array:
    """Of each row the sum of the table's rows times its shares of them, in the shape of the shares."""
    last = jnp.moveaxis(shares, classes.axis, -1)
    if classes.name is not None:  # a device has the costs of predicting its classes, whatever the true one is
        last = lax.all_gather(last, classes.name, axis=last.ndim - 1, tiled=True)
    product = jnp.matmul(whole_rows(last), table, precision=lax.Precision.HIGHEST)
    return _like(jnp.moveaxis(product, -1, classes.axis), shares)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def looked_up(classes: ClassAxis, table: jax.Array, ids: jax.Array, logits: jax.Array) -> jax.Array:
    """Row `ids` of the table, in the shape of the logits; NaN for an id outside, -1."""
    inside = jnp.maximum(ids, 0)
    sharding = jax.typeof(ids).sharding
    out = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, None)) if is_explicit(ids) else None
    found = jnp.moveaxis(table.at[inside].get(mode="promise_in_bounds", out_sharding=out), -1, classes.axis)
    return nan_where(classes.spread(ids < 0), _like(found, logits))


@looked_up.defjvp
def _looked_up_jvp(classes, primals, tangents):
    # The transpose of a gather is a scatter; that of a product with one-hot rows is a product.
    table, ids, logits = primals
    one_hot = classes.is_label(logits, ids).astype(logits.dtype)
    return looked_up(classes, table, ids, logits), mixed(classes, one_hot, tangents[0])


def _like(x: jax.Array, other: jax.Array) -> jax.Array:
    """In the sharding of an array of the same shape; only on explicit meshes does JAX have to be told."""
    return jax.sharding.reshard(x, jax.typeof(other).sharding) if is_explicit(other) else x


def cost_hessian(function: Callable) -> Callable:
    """Of the expected cost: p_j (k_j - L) ((1 - p_j) - p_j)."""

    def hessian(logits, labels, axis, where, *, costs, axis_name, class_weights, label_smoothing):
        options = (class_weights, label_smoothing)
        given = priced(function.__name__, logits, labels, axis, where, axis_name, costs, options)
        truth, above = _excess(given.rows.classes, given.rows.logits, given.costs)
        return given.rows.restore(given.weighted(truth.p * above * (truth.q - truth.p)), logits)

    return hessian
