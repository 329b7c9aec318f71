"""Known values, label kinds, reductions and weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.utils.class_weight import compute_class_weight

import jaxloss
from jaxloss._core.classes import ClassAxis
from jaxloss._core.label_odds import max_of_others
from tests import cases, selection


@pytest.mark.parametrize("labels", [np.array([0]), np.array([[1, 0]]), np.array([[1.0, 0.0]], np.float32)])
def test_confident_row(labels):
    value, gradient = jaxloss.per_example_value_and_grad(jaxloss.softmax_cross_entropy)(
        jnp.array([[20.0, 0.0]]), jnp.asarray(labels)
    )
    np.testing.assert_allclose(value, [2.06115362e-9], rtol=1e-7)
    np.testing.assert_allclose(gradient, [[-2.06115362e-9, 2.06115362e-9]], rtol=1e-7)


def test_rows_that_break_peers():
    loss = jaxloss.softmax_cross_entropy
    np.testing.assert_allclose(loss(jnp.full((1, 3), 1e8), jnp.array([1])), [np.log(3)], rtol=2.0**-23)
    wide = loss(jnp.zeros((1, 70000), jnp.float16), jnp.array([1]))
    np.testing.assert_allclose(wide, [11.1562505], rtol=2.0**-23)
    half = loss(jnp.zeros((1, 50257), jnp.bfloat16), jnp.array([1]))
    np.testing.assert_allclose(half, [10.8249052], rtol=2.0**-23)
    assert wide.dtype == half.dtype == jnp.float32
    np.testing.assert_allclose(loss(jnp.array([3e38, -3e38]), jnp.array(1)), np.inf)


OPTIONS = [{}, {"label_smoothing": 0.2}, {"class_weights": np.arange(1.0, 6), "z_loss": 0.1}]
TAKEN = [(case, options) for case in cases.ALL for options in OPTIONS if not options or case.takes(**options)]


def test_a_value_without_a_gradient_of_many_classes(rng):
    """On CPU, from 8192 classes on, the label is in the sum of all classes and taken out of it again."""
    z = rng.normal(size=(3, 192 * 129)).astype(np.float32)
    ids = np.array([5, 129, 24767])
    z[np.arange(3), ids] = 9, 7, -3  # of the sum nearly a third, a twentieth and nothing
    wide = z.astype(np.float64)
    expected = logsumexp(wide, axis=1) - wide[np.arange(3), ids]
    np.testing.assert_allclose(jaxloss.softmax_cross_entropy(z, ids), expected, rtol=64 * 2.0**-24)


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_of_many_classes(axis, rng):
    """On CPU, from 8192 classes on."""
    size, block = 192 * 129, 129
    ids = np.array([0, block - 1, block, size - 1, 700, -1, size])
    z = rng.normal(size=(len(ids), size)) * 3
    z[:5][np.arange(5), ids[:5]] += 200  # the label is the largest,
    z[0, 1], z[1, 0], z[2, -1], z[3, 5] = 150, 150, 150, -np.inf  # and the next in its block, or in another
    z = z.astype(np.float32)
    classes, x = ClassAxis(axis), jnp.moveaxis(jnp.asarray(z), 1, axis)
    others = np.where(np.arange(size) == ids[:, None], -np.inf, z)

    def best(x):
        return max_of_others(classes, x, jnp.asarray(ids), jnp.moveaxis(jnp.asarray(others), 1, axis))

    assert "192,129" in str(jax.make_jaxpr(best)(x))
    np.testing.assert_array_equal(best(x), others.max(1))

    run = jax.value_and_grad(
        lambda x: jnp.sum(jaxloss.softmax_cross_entropy(x, ids, axis=axis, where=ids % size == ids))
    )
    value, gradient = run(x)
    exact = z.astype(np.float64)[:5] - logsumexp(z.astype(np.float64)[:5], axis=1, keepdims=True)
    gaps = z.astype(np.float64)[np.arange(5), ids[:5]] - logsumexp(others[:5].astype(np.float64), axis=1)
    np.testing.assert_allclose(value, np.sum(np.log1p(np.exp(-gaps))), rtol=256 * 2.0**-24)
    expected = np.where(np.arange(size) == ids[:5, None], -(1 / (1 + np.exp(gaps)))[:, None], np.exp(exact))
    gradient = np.moveaxis(np.asarray(gradient), axis, 1)
    np.testing.assert_allclose(gradient[:5], expected, rtol=512 * 2.0**-24, atol=1e-37)
    np.testing.assert_array_equal(gradient[5:], 0)


@pytest.mark.parametrize(("case", "options"), TAKEN, ids=lambda x: "+".join(x) if isinstance(x, dict) else x.name)
def test_ids_and_one_hot_rows_agree(case, options, rng):
    logits = cases.logits_for(case, rng)
    ids = cases.labels_for(case, rng)
    run = case.run
    options = case.takes(**{k: np.asarray(v, np.float32) for k, v in options.items()})
    value, gradient = run(logits, ids, **options)
    # Rows of another dtype are converted first, whatever the loss and its options.
    others = (np.int32, np.bool_, np.float16) if case.name in selection.THIN_CASES and not options else ()
    for dtype in (np.float32, *others):
        other_value, other_gradient = run(logits, np.eye(5, dtype=dtype)[ids], **options)
        np.testing.assert_allclose(value, other_value, rtol=32 * 2.0**-23)
        np.testing.assert_allclose(gradient, other_gradient, rtol=64 * 2.0**-23, atol=2.0**-22)


@pytest.mark.parametrize(
    ("two_classes", "binary"),
    [
        (jaxloss.softmax_cross_entropy, jaxloss.sigmoid_binary_cross_entropy),
        (jaxloss.softmax_focal_loss, jaxloss.sigmoid_focal_loss),
    ],
)
def test_two_classes_are_a_sigmoid_of_the_difference(two_classes, binary, rng):
    logits = jnp.asarray(rng.normal(size=200) * 10, jnp.float32)
    ids = jnp.asarray(rng.integers(0, 2, 200))
    pairs = jnp.stack([jnp.zeros_like(logits), logits], -1)
    value, gradient = jaxloss.per_example_value_and_grad(two_classes)(pairs, ids)
    binary_value, binary_gradient = jaxloss.per_example_value_and_grad(binary)(logits, ids)
    np.testing.assert_allclose(value, binary_value, rtol=(16 + 90) * 2.0**-23)
    np.testing.assert_allclose(gradient[:, 1], binary_gradient, rtol=(16 + 90) * 2.0**-23)


@cases.sigmoid_cases
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_sigmoid_soft_labels_against_the_oracle(case, smoothing, rng):
    logits = rng.normal(size=40).astype(np.float32) * 4
    targets = rng.uniform(size=40).astype(np.float32)
    loss = partial(case.call, label_smoothing=smoothing)
    value, gradient = jax.jit(jaxloss.per_example_value_and_grad(loss))(logits, targets)
    smoothing = float(np.float32(smoothing))
    exact = [case.element(z, t, smoothing=smoothing) for z, t in zip(logits, targets, strict=True)]
    losses = np.array([float(e[0]) for e in exact])
    rounding = 2.0**-23 * np.sqrt(losses) if case.sparse else 0  # of the smoothed label, whose error is in (p - t)^2
    np.testing.assert_array_less(np.abs(value - losses), 2e-6 * losses + rounding)
    np.testing.assert_allclose(gradient, [float(e[1]) for e in exact], rtol=1e-5, atol=1e-6)


def test_sigmoid_options_per_class(rng):
    logits, labels = cases.logits_for(None, rng), cases.labels_for(None, rng, "multihot")
    weights = jnp.asarray(rng.uniform(size=5), jnp.float32)
    loss = jaxloss.sigmoid_binary_cross_entropy
    for c in range(5):
        expected = loss(logits[:, c], labels[:, c], pos_weight=weights[c], class_weights=weights[c])
        np.testing.assert_array_equal(loss(logits, labels, pos_weight=weights, class_weights=weights)[:, c], expected)
        expected = jaxloss.sigmoid_focal_loss(logits[:, c], labels[:, c], gamma=weights[c], alpha=weights[c])
        np.testing.assert_array_equal(
            jaxloss.sigmoid_focal_loss(logits, labels, gamma=weights, alpha=weights)[:, c], expected
        )


def test_mean_and_loss_sum(rng):
    losses = jnp.asarray(rng.uniform(size=(4, 6)), jnp.float32)
    weights = jnp.asarray(rng.uniform(size=(4, 6)), jnp.float32)
    where = jnp.asarray(rng.integers(0, 2, (4, 6)), bool)
    a, w, k = (np.asarray(x, np.float64) for x in (losses, weights, where))
    np.testing.assert_allclose(jaxloss.mean(losses), a.mean(), rtol=1e-6)
    np.testing.assert_allclose(jaxloss.mean(losses, where, weights), (a * w * k).sum() / (w * k).sum(), rtol=1e-6)
    np.testing.assert_allclose(jaxloss.mean(losses, normalizer=7), a.sum() / 7, rtol=1e-6)
    parts = [jaxloss.LossSum.of(losses[i], where[i], weights[i]) for i in range(4)]
    np.testing.assert_allclose(sum(parts).mean(), jaxloss.mean(losses, where, weights), rtol=1e-6)
    whole = jaxloss.LossSum.of(losses, where, weights)
    np.testing.assert_allclose(whole.total, sum(p.total for p in parts), rtol=1e-6)


def test_mean_of_nothing_is_zero_with_zero_gradient():
    def loss(x):
        return jaxloss.mean(x + jnp.nan, where=jnp.zeros(3, bool)) + jaxloss.mean(jnp.zeros((0,)) + jnp.sum(x))

    value, gradient = jax.value_and_grad(loss)(jnp.ones(3))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_what_is_left_out_of_a_mean_may_hold_anything():
    losses, where = jnp.array([1.0, jnp.nan, jnp.inf, 3.0]), jnp.array([True, False, False, True])
    value, gradient = jax.value_and_grad(lambda x: jaxloss.mean(x, where, jnp.array([1.0, jnp.nan, 1.0, 3.0])))(losses)
    np.testing.assert_allclose(value, 2.5)
    np.testing.assert_allclose(gradient, [0.25, 0, 0, 0.75])


def test_loss_sums_of_devices_add_up(rng):
    losses = jnp.asarray(rng.uniform(size=(8, 3)), jnp.float32)
    where = jnp.asarray(rng.integers(0, 2, (8, 3)), bool)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def part(x, w):
        return jax.lax.psum(jaxloss.LossSum.of(x, w), "data").mean()

    mean = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(spec, spec), out_specs=jax.sharding.PartitionSpec()))
    np.testing.assert_allclose(mean(losses, where), jaxloss.mean(losses, where), rtol=1e-6)


def test_balanced_class_weights_are_scikit_learns(rng):
    labels = rng.choice(5, 300, p=[0.6, 0.2, 0.1, 0.06, 0.04])
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels)
    counts = jnp.bincount(jnp.asarray(labels), length=5)
    np.testing.assert_allclose(jaxloss.balanced_class_weights(counts), expected, rtol=1e-6)
    unseen = jaxloss.balanced_class_weights(jnp.append(counts, 0))
    np.testing.assert_allclose(unseen, np.append(expected, 0), rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 1.0])
def test_effective_number_weights(beta):
    counts = np.array([5000, 300, 12, 1, 0])
    number = np.array([n if beta == 1 else sum(beta**i for i in range(n)) for n in counts[:4]])
    rounding = 2.0**-24 / (1 - beta) if beta < 1 else 0  # of beta itself in float32, as seen in 1 - beta
    expected = np.append(4 / number / (1 / number).sum(), 0)
    np.testing.assert_allclose(jaxloss.effective_number_weights(counts, beta), expected, rtol=1e-6 + rounding)


def test_logit_adjustments():
    counts = np.array([900, 90, 10, 0])
    expected = np.log(counts[:3] / 1000)
    for tau in (1, 0.5, jnp.float32(2)):
        np.testing.assert_allclose(jaxloss.logit_adjustments(counts, tau), [*(tau * expected), -np.inf], rtol=1e-6)
    for none in (jaxloss.logit_adjustments(counts, 0), jaxloss.logit_adjustments(0 * counts)):
        np.testing.assert_array_equal(none, np.zeros(4))
    almost = jaxloss.logit_adjustments(np.array([10**7, 1]))  # log(n / N) itself would be 1.19e-07
    np.testing.assert_allclose(almost, [np.log1p(-1 / (10**7 + 1)), -np.log(10**7 + 1)], rtol=1e-6)
    # Balanced softmax: -log of n_y exp(z_y) over sum_c n_c exp(z_c); classes never seen have no part in it.
    z = np.array([1.0, -0.5, 2.0, 9.0], np.float32)
    share = counts * np.exp(z.astype(float))
    losses = jaxloss.softmax_cross_entropy(jnp.tile(z + jaxloss.logit_adjustments(counts), (3, 1)), jnp.arange(3))
    np.testing.assert_allclose(losses, -np.log(share[:3] / share.sum()), rtol=1e-6)
    equal = jaxloss.softmax_cross_entropy(jaxloss.logit_adjustments(counts), jnp.array(2))
    np.testing.assert_allclose(equal, -expected[2], rtol=1e-6)


def test_balanced_label_margins():
    """In the words of the paper's code: 1 / sqrt(sqrt(n)), scaled to a largest entry."""
    counts = np.array([5000, 312, 41, 7])
    inverse = 1 / np.sqrt(np.sqrt(counts))
    np.testing.assert_allclose(jaxloss.balanced_label_margins(counts), inverse * (0.5 / inverse.max()), rtol=1e-6)
    unseen = jaxloss.balanced_label_margins(np.append(counts, 0), 3)
    np.testing.assert_allclose(unseen, np.append(inverse * (3 / inverse.max()), 3), rtol=1e-6)
    for equal in (
        jaxloss.balanced_label_margins(np.full(3, 8), 0.35),
        jaxloss.balanced_label_margins(np.zeros(3), 0.35),
    ):
        np.testing.assert_array_equal(equal, np.full(3, np.float32(0.35)))


@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_margins_lower_the_logit_of_the_label(kind, rng):
    """LDAM and CosFace: cross-entropy of z with m_y taken from z_y; a distribution has a term for each class."""
    logits, labels = cases.logits_for(None, rng), cases.labels_for(None, rng, kind)
    margins = jnp.array([0.5, -1.0, 0.0, 2.0, 0.75])
    run = jax.jit(
        jax.value_and_grad(lambda z, m: jnp.sum(jaxloss.softmax_cross_entropy(z, labels, label_margins=m)), (0, 1))
    )

    def published(z, m):
        terms = -jax.nn.log_softmax(z[:, None] - jnp.diag(m)[None])  # [rows, label, class]
        shares = jax.nn.one_hot(labels, 5) if kind == "ids" else labels
        return jnp.sum(shares * jnp.diagonal(terms, axis1=1, axis2=2))

    got, expected = run(logits, margins), jax.value_and_grad(published, (0, 1))(logits, margins)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)


def test_margins_of_a_teachers_classes(rng):
    """Each class of a `TopK` label has its own margin; of all classes it is the distribution."""
    logits, labels = cases.logits_for(None, rng), cases.labels_for(None, rng, "soft")
    margins, (probabilities, ids) = jnp.array([0.5, -1.0, 0.0, 2.0, 0.75]), jax.lax.top_k(labels, 5)
    run = jax.jit(jaxloss.per_example_value_and_grad(partial(jaxloss.softmax_focal_loss, label_margins=margins)))
    found = run(logits, jaxloss.TopK(ids, probabilities))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, run(logits, labels))


def test_margins_of_impossible_and_certain_classes():
    """No margin makes an impossible class possible, or a lone one impossible; a weight of 0 drops it as without."""
    logits, margins = jnp.array([[-jnp.inf, 0.0, 1.0], [0.0, -jnp.inf, -jnp.inf]]), jnp.array([-3.0, 1.0, 2.0])
    focal = partial(jaxloss.softmax_focal_loss, epsilon=1.0)
    for loss, labels in ((focal, jnp.array([0, 0])), (jaxloss.softmax_cross_entropy, jnp.eye(3)[jnp.array([0, 0])])):

        @jax.jit
        def run(z, loss=loss, labels=labels):
            found = jaxloss.per_example_value_and_grad(loss)
            dropped = loss(z, labels, label_margins=margins, class_weights=jnp.zeros(3))
            return found(z, labels, label_margins=margins), found(z, labels), dropped

        with jax.debug_nans(True):
            (value, gradient), plain, dropped = run(logits)
        for x in (value, plain[0]):
            np.testing.assert_array_equal(x, [np.inf, 0])
        np.testing.assert_allclose(gradient, plain[1], rtol=1e-6)
        np.testing.assert_array_equal(dropped, 0)


def test_balanced_pos_weight():
    np.testing.assert_allclose(jaxloss.balanced_pos_weight(np.array([10, 0, 5]), np.array([90, 4, 5])), [9, 0, 1])


@pytest.mark.parametrize(
    "row", [[0.7431, 1.2567, -3000.193], [-3000.193, -3001.57, 1.2567], [-3000.193, 1.2567, 0.7431]]
)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_logsumexp_keeps_its_digits_however_far_the_label_lies(row, label):
    """Read off the label's log-probability, it would carry the rounding of 3000: 1e-4."""
    z = np.array(row, np.float32)
    exact = logsumexp(z.astype(np.float64))
    p = np.exp(z.astype(np.float64) - exact)
    for given in (np.array(label), np.eye(3, dtype=np.float32)[label]):
        found, slopes = logsumexp_and_slopes(z, given)
        np.testing.assert_allclose(found, exact, rtol=4 * 2.0**-23)
        expected = 2 * exact * p + p - np.eye(3)[label]
        np.testing.assert_allclose(slopes, expected, rtol=8 * 2.0**-23, atol=8 * 2.0**-23)


@jax.jit
def logsumexp_and_slopes(z, labels):
    penalized = partial(jaxloss.softmax_cross_entropy, z_loss=1.0)
    return jaxloss.softmax_statistics(z, labels).logsumexp, jax.grad(penalized)(z, labels)


def test_a_class_that_leads_moves_as_the_others_do():
    """Along a direction in which all classes move, the odds of a likely class are those of the others' sum.

    A total over the classes less its own part would be 0, and the odds would move by 1.
    """
    z, along = jnp.array([[20.0, 0.0, 0.0], [0.0, 40.0, 1.0]]), jnp.array([[1.0, 1.0, 2.0], [3.0, 1.0, -1.0]])
    labels = jnp.eye(3)[jnp.array([0, 1])]
    moved = jax.jit(lambda z: jax.jvp(lambda z: jaxloss.softmax_statistics(z, labels), (z,), (along,))[1])(z)
    weight = 1 / (1 + np.exp(1))  # of class 0 among the others of the second row
    slopes = np.array([1 - 1.5, 1 - (3 * weight - (1 - weight))])
    complement = np.array([2 * np.exp(-20), np.exp(-40) + np.exp(-39)])
    np.testing.assert_allclose(moved.negative_log_complement, slopes, rtol=32 * 2.0**-23)
    np.testing.assert_allclose(moved.complement, -slopes * complement, rtol=128 * 2.0**-23)


@pytest.mark.parametrize("size", [1, 3])
def test_a_row_without_any_probability_has_no_logsumexp(size):
    """It is 0, by ids as by rows, and adds nothing to a z-loss."""
    z = jnp.full(size, -jnp.inf)
    for given in (jnp.array(0), jnp.eye(size)[0]):
        np.testing.assert_array_equal(jax.jit(jaxloss.softmax_statistics)(z, given).logsumexp, 0)


def test_the_mean_counts_what_sums_of_devices_were_rounded_by():
    """A sum over devices adds up their roundings, to more than one of the total."""
    zero, one, large, rest = (jnp.float32(x) for x in (0, 1, 2**24, 8))
    assert jaxloss.LossSum(large, one, rest, zero).mean() == 2**24 + 8
    assert jaxloss.LossSum(large, large, zero, rest).mean() == np.float32(2**24 / (2**24 + 8))
