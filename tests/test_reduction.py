"""From losses to a number: a mask taken once, masks and weights by row, sums that keep what they round off."""

import inspect
import re
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

import jaxloss
from tests import cases

LossSum = jaxloss.LossSum
EPS = float(np.finfo(np.float32).eps)
KL = cases.Case("kl", jaxloss.softmax_kl_divergence, {}, pytest.fail)
HUBER = cases.Case("huber", jaxloss.huber_loss, {}, pytest.fail)
OTHERS = [
    cases.Case("optax", optax.softmax_cross_entropy_with_integer_labels, {}, pytest.fail),
    cases.Case("optax_sigmoid", optax.sigmoid_binary_cross_entropy, {}, pytest.fail, soft=False),
    cases.Case("own", lambda p, t: -t * jnp.log(p) - (1 - t) * jnp.log1p(-p), {}, pytest.fail, link=jax.nn.sigmoid),
]
ONE_EACH = list({case.loss: case for case in cases.ALL}.values())


def spoiled(x, keep, value):
    """Rows left out hold what no loss takes."""
    return np.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, np.asarray(value, x.dtype))


@pytest.mark.thin("kl", "huber", "optax", "optax_sigmoid", "own", "binary_probabilities")
@cases.parametrize([*ONE_EACH, KL, HUBER, *OTHERS])
def test_a_mask_given_once_is_right_in_value_and_gradient(case, rng, standard_promotion):
    """That of the kept rows alone: nothing in the rows left out counts, reaches a gradient or makes it NaN."""
    keep = rng.permutation(np.arange(6) < 4)
    ids = case.name == "optax" or (case in cases.ALL and (case.multilabel or rng.integers(2)))
    x = cases.logits_for(case, rng)
    y = cases.labels_for(case, rng, "ids" if ids else "soft").astype(jnp.int32 if ids else jnp.float32)
    y = cases.logits_for(None, rng) if case in (KL, HUBER) else y
    weights = rng.uniform(0.5, 2, 6).astype(np.float32)

    def masked(x, weights):
        return jaxloss.masked_loss(
            case.call, x, spoiled(y, keep, -100 if ids else np.nan), keep, weights=weights
        ).mean()

    def alone(x, weights):
        losses = case.call(x[keep], y[keep])
        w = jnp.broadcast_to(weights[keep].reshape(-1, *[1] * (losses.ndim - 1)), losses.shape)
        return jnp.sum(w * losses) / jnp.sum(w)

    both = jax.jit(lambda x, clean, w: [jax.value_and_grad(f)(z, w) for f, z in ((masked, x), (alone, clean))])
    got, expected = both(spoiled(x, keep, np.nan), x, weights)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)
    np.testing.assert_array_equal(got[1][~keep], np.zeros_like(got[1][~keep]))


def test_rows_left_out_reach_no_derivative_by_an_option(rng):
    keep, t = np.arange(6) < 4, np.ones(6, np.float32)
    p = spoiled(rng.uniform(0.1, 0.9, 6).astype(np.float32), keep, 0)

    def power(exponent):
        def loss(p, t):
            return t * jnp.exp(exponent * jnp.log(-jnp.log(p))) - (1 - t) * jnp.log1p(-p)

        return jaxloss.masked_loss(loss, p, t, keep).mean()

    def focal(gamma):
        return jaxloss.masked_loss(jaxloss.sigmoid_focal_loss, spoiled(p, keep, -jnp.inf), t, keep, gamma=gamma).mean()

    assert jax.grad(focal)(0.5) < 0
    s = -np.log(np.asarray(p[:4]))
    np.testing.assert_allclose(jax.grad(power)(3.0), np.mean(s**3 * np.log(s)), rtol=1e-5)


@pytest.mark.thin("hamming", "zlpr", "binary_probabilities")
@cases.parametrize([case for case in ONE_EACH if case.multilabel])
def test_a_mask_of_elements_given_once(case, rng):
    """Of a loss by row, rows without a known label do not count."""
    known = rng.integers(0, 2, (6, 5)) > 0
    known[1], known[2] = True, False
    x, y = cases.logits_for(case, rng), cases.labels_for(case, rng, "multihot")

    def masked(x):
        return jaxloss.masked_loss(case.call, x, jnp.where(known, y, -1), known).mean()

    def twice(x):
        losses = case.call(x, y, where=known)
        return jaxloss.mean(losses, known if losses.ndim == 2 else known.any(-1))

    both = jax.jit(lambda x, clean: [jax.value_and_grad(f)(z) for f, z in ((masked, x), (twice, clean))])
    got, expected = both(np.where(known, x, np.float32(np.nan)), x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), got, expected)


def test_a_mask_given_once_follows_the_class_axis(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    keep = jnp.asarray(rng.integers(0, 2, (2, 4)), bool).at[0, 0].set(True)
    labels = jnp.where(keep, 1, -100)
    for loss in (jaxloss.softmax_cross_entropy, jaxloss.sigmoid_binary_cross_entropy):
        by_option = jaxloss.masked_loss(loss, x, labels, keep, axis=1)
        by_partial = jaxloss.masked_loss(partial(loss, axis=1), x, labels, keep)
        last = jaxloss.masked_loss(loss, jnp.moveaxis(x, 1, 2), labels, keep)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), (by_option, by_partial), (last, last))


def test_a_mask_of_classes_that_are_sharded(rng):
    x, y = cases.logits_for(None, rng, 4, 8), cases.labels_for(None, rng, "soft", 4, 8)
    classes = jnp.ones((4, 8), bool).at[:, 5].set(False).at[1].set(False)

    def total(name, *x):
        return jaxloss.masked_loss(jaxloss.softmax_focal_loss, *x, axis_name=name).mean()

    mesh = jax.make_mesh((4,), ("m",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.shard_map(partial(total, "m"), mesh=mesh, in_specs=(P(None, "m"),) * 3, out_specs=P())
    y = jnp.where(classes, y, 0)
    np.testing.assert_allclose(jax.jit(split)(x, y, classes), total(None, x, y, classes), rtol=1e-6)


BAD = {
    "no mask": (lambda x, y: (jaxloss.softmax_cross_entropy, x, y, None), TypeError, r"`where`.*got None.*LossSum\.of"),
    "no loss": (lambda x, y: (x, x, y, y > 0), TypeError, r"`loss` must be a function of \(logits, labels\)"),
    "reduced": (lambda x, y: (lambda x, y: x.sum(), x, y, y > 0), ValueError, r"not reduced; got float32\[\]"),
    "statistics": (lambda x, y: (jaxloss.softmax_statistics, x, y, y > 0), ValueError, r"not reduced; got Softmax"),
    "elements of a loss by row": (
        lambda x, y: (optax.softmax_cross_entropy_with_integer_labels, x, y, x > 0),
        ValueError,
        r"`where` must have the shape \(6,\).*by row",
    ),
    "another mask": (
        lambda x, y: (lambda x, y: x, x, y, y[:2] > 0),
        ValueError,
        r"\(6,\) \(rows to keep\) or \(6, 5\)",
    ),
    "0/1 mask": (lambda x, y: (jaxloss.softmax_cross_entropy, x, y, y), TypeError, r"`where` must be boolean"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_of_masked_loss(bad):
    arguments, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        jaxloss.masked_loss(*arguments(jnp.zeros((6, 5)), jnp.zeros(6, jnp.int32)))


@pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 4), (1, 1), (0, 3)])
def test_masks_and_weights_by_row_are_those_of_the_leading_axes(shape, rng):
    losses = rng.normal(size=shape).astype(np.float32)
    both = jax.jit(lambda *x: (jaxloss.mean(*x), LossSum.of(*x)))
    for axes in range(1, len(shape) + 1):
        keep = rng.integers(0, 2, shape[:axes]) > 0
        weights = rng.uniform(0.5, 2, shape[:axes]).astype(np.float32)
        wide = [np.broadcast_to(x.reshape(*x.shape, *[1] * (len(shape) - axes)), shape) for x in (keep, weights)]
        given = np.where(wide[0], losses, np.float32(np.nan))
        got, expected = both(given, keep, weights), both(given, *wide)
        # Two programs, whose sums XLA forms in another order.
        jax.tree.map(partial(np.testing.assert_allclose, rtol=4 * EPS, atol=4 * EPS), got, expected)


HINTS = {
    "weights by class of elements": ((3, 4), "weights", (4,), "pass class_weights to the loss"),
    "weights by class of rows": ((3,), "weights", (4,), r"weights=class_weights\[labels\]"),
    "column": ((3,), "weights", (3, 1), r"Drop the last axis with weights\[\.\.\., 0\]"),
    "elements of rows": ((3,), "where", (3, 4), r"pass mask\.any\(-1\), and this to the loss"),
    "channels first": (
        (2, 3, 4, 5),
        "where",
        (2, 4, 5),
        r"broadcast_to\(jnp\.expand_dims\(where, 1\), losses\.shape\)",
    ),
    "reduced": ((), "where", (3,), "Is the loss reduced already"),
}


@pytest.mark.parametrize("hint", HINTS)
def test_hints_for_masks_and_weights_fit_the_case(hint):
    losses, key, shape, message = HINTS[hint]
    given = {key: jnp.ones(shape, bool if key == "where" else jnp.float32)}
    for function in (jaxloss.mean, LossSum.of):
        with pytest.raises(ValueError, match=f"`{key}` must have the shape {re.escape(str(losses))}.*{message}"):
            function(jnp.ones(losses), **given)


def test_a_normalizer_of_zero():
    losses = jnp.array([1.0, 3.0])
    with pytest.raises(ValueError, match=r"`normalizer` must be > 0 \(for a count that may be 0 pass jnp\.maximum"):
        jaxloss.mean(losses, normalizer=0)
    zero = jnp.float32(0)
    assert jaxloss.mean(losses, normalizer=zero) == np.inf
    assert jaxloss.LossSum.of(losses).mean(normalizer=zero) == np.inf
    assert jaxloss.LossSum.of(losses).mean(2) == 2
    assert jaxloss.mean(losses, normalizer=jnp.maximum(jnp.array(0), 1)) == 4
    found = checkify.checkify(jax.jit(jaxloss.mean), errors=checkify.user_checks)
    assert "`normalizer` must be > 0" in str(found(losses, normalizer=zero)[0].get())
    nothing = losses > 5
    value, gradient = jax.value_and_grad(lambda x: jaxloss.mean(x, nothing, normalizer=zero))(losses)
    assert found(losses, nothing, normalizer=zero)[0].get() is None
    assert value == 0
    np.testing.assert_array_equal(gradient, [0, 0])


def test_a_mask_given_to_the_mean_alone_does_not_pass_in_silence():
    """The value is right; a gradient of NaN, and `checkify`, say that the loss has to be given the mask, too."""
    z, labels = jnp.zeros((4, 3)), jnp.array([0, -100, 2, -100])

    def step(z):
        return jaxloss.mean(jaxloss.softmax_cross_entropy(z, labels), labels >= 0)

    value, gradient = jax.value_and_grad(step)(z)
    np.testing.assert_allclose(value, np.log(3), rtol=1e-6)
    assert np.isnan(gradient[1::2]).all()
    assert "-100" in str(checkify.checkify(jax.jit(step), errors=checkify.user_checks)(z)[0].get())
    assert "masked_loss" in (inspect.getdoc(jaxloss.mean) or "")


@pytest.mark.parametrize("start", [0, 2**24, 2**30])
def test_a_long_sum_loses_no_row(start, rng):
    """One row at a time, in a loop of ten thousand: exact in float64."""
    losses = rng.uniform(0, 1, 10000).astype(np.float32)

    def add(total, x):
        return total + LossSum.of(x), None

    @jax.jit
    def run(total, x):
        return jax.lax.scan(add, total, x)[0]

    total = run(LossSum(jnp.float32(start), jnp.float32(start)), losses)
    exact = start + losses.astype(np.float64).sum(), start + 10000
    np.testing.assert_allclose(total.total, exact[0], rtol=EPS / 2)
    np.testing.assert_allclose(total.weight, exact[1], rtol=EPS / 2)
    np.testing.assert_allclose(total.mean(), exact[0] / exact[1], rtol=2 * EPS)


def test_sums_stay_trees_that_devices_and_transformations_add():
    def part(x):
        return LossSum(jnp.float32(2**24), jnp.float32(2**24)) + LossSum.of(x)

    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.ones(8)
    run = jax.shard_map(lambda x: jax.lax.psum(part(x), "d"), mesh=mesh, in_specs=P("d"), out_specs=P())
    total = jax.jit(run)(x)
    assert total.weight + np.float64(total.weight_rest) == 8 * (2**24 + 1)
    batch = jax.vmap(part)(jnp.ones((3, 2)))
    assert [x.shape for x in jax.tree.leaves(batch)] == [(3,)] * 4
    like_arrays: Any = LossSum(*[cast(Any, P("d"))] * 2)
    per_device = jax.shard_map(
        lambda x: jax.tree.map(lambda y: y[None], part(x)),
        mesh=mesh,
        in_specs=P("d"),
        out_specs=like_arrays,
    )
    assert jax.jit(per_device)(x).weight.shape == (8,)
    gradient = jax.grad(lambda x: (LossSum.of(x) + part(x)).total)(jnp.ones(3))
    np.testing.assert_array_equal(gradient, [2, 2, 2])
    with jax.debug_nans(True):
        infinite = LossSum.of(jnp.array([jnp.inf])) + LossSum.of(jnp.ones(1))
    assert infinite.mean() == np.inf


def test_the_gradient_of_a_sum_says_where_its_number_is():
    with pytest.raises(TypeError, match=r"Gradient only defined for scalar.*a sum: its \.mean\(\) is a number"):
        jax.grad(LossSum.of)(jnp.ones(3))


@cases.parametrize(
    [case for case in cases.CLASSES if case.name in ("cross_entropy", "entmax15", "entmax", "sparsemax")]
)
def test_a_mask_of_classes_given_once_means_the_same_in_every_loss(case, rng):
    logits, ids = cases.logits_for(case, rng), cases.labels_for(case, rng)
    keep = jnp.asarray(rng.integers(0, 2, logits.shape) > 0).at[0].set(False)
    found = jaxloss.masked_loss(case.call, logits, ids, keep).mean()
    np.testing.assert_array_equal(found, jaxloss.mean(case.call(logits, ids, where=keep), keep.any(-1)))
