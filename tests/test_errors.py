"""Promise 10 and checkify: an error says which function and argument, what was expected, what came, what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from jaxloss._core import checks
from tests import cases

Z = jnp.zeros((8, 10))
IDS = jnp.zeros(8, jnp.int32)
CE = jaxloss.softmax_cross_entropy
BCE = jaxloss.sigmoid_binary_cross_entropy
PAIRS = jaxloss.pairwise_ranking_loss
ZLPR = jaxloss.zlpr_loss
HAMMING = jaxloss.soft_hamming_loss
ENTMAX = jaxloss.entmax_loss
COST, TABLE = jaxloss.expected_cost_loss, jnp.ones((10, 10))
HINGE = jaxloss.multiclass_hinge_loss
ORDERED = jaxloss.ordered_logistic_loss

BAD = {
    "float ids": (lambda: CE(Z, IDS.astype(jnp.float32)), TypeError, r"integer ids of shape \(8,\).*float32\[8\].*astype"),
    "bool ids": (lambda: CE(Z, IDS.astype(bool)), TypeError, r"`labels`.*bool\[8\].*sigmoid loss"),
    "column of ids": (lambda: CE(Z, IDS[:, None]), ValueError, r"int32\[8,1\]\. Drop the last axis with labels\[\.\.\., 0\]"),
    "ids of another batch": (lambda: CE(Z, IDS[:1]), ValueError, r"shape \(8,\) or a distribution of shape \(8, 10\)"),
    "one-hot to broadcast": (lambda: CE(Z, jnp.ones((1, 10))), ValueError, r"float32\[1,10\]\. Nothing is broadcast"),
    "labels before logits": (lambda: CE(IDS, Z), TypeError, r"`logits` must be floating point; got int32\[8\]"),
    "no classes": (lambda: CE(jnp.zeros((8, 0)), IDS), ValueError, r"at least one class; got float32\[8,0\]"),
    "weights too short": (lambda: CE(Z, IDS, class_weights=jnp.ones(9)), ValueError, r"`class_weights`.*10 classes.*\[9\]"),
    "weights per row": (lambda: CE(Z, IDS, class_weights=jnp.ones(8)), ValueError, r"each of the 10 classes"),
    "float where": (lambda: CE(Z, IDS, where=jnp.ones(8)), TypeError, r"`where` must be boolean; got float32\[8\].*mean"),
    "where of another shape": (lambda: CE(Z, IDS, where=jnp.ones(10, bool)), ValueError, r"rows to keep.*classes to keep"),
    "unknown axis": (lambda: CE(Z, IDS, axis=2), ValueError, r"`axis` 2 is out of range.*\(8, 10\)"),
    "axis twice": (lambda: CE(Z, IDS, axis=(1, -1)), ValueError, r"each class axis once"),
    "option by position": (lambda: jaxloss.softmax_focal_loss(Z, IDS, 2.0), TypeError, r"`axis`.*by keyword\); got 2\.0"),
    "gamma below 0": (lambda: jaxloss.softmax_focal_loss(Z, IDS, gamma=-1), ValueError, r"`gamma` must be >= 0; got -1"),
    "smoothing above 1": (lambda: CE(Z, IDS, label_smoothing=1.5), ValueError, r"`label_smoothing` must be in \[0, 1\]; got 1\.5"),
    "q above 1": (lambda: jaxloss.generalized_cross_entropy(Z, IDS, q=2), ValueError, r"`q` must be in \[0, 1\]"),
    "temperature 0": (lambda: jaxloss.softmax_kl_divergence(Z, Z, temperature=0), ValueError, r"`temperature` must be > 0"),
    "direction": (lambda: jaxloss.softmax_kl_divergence(Z, Z, direction="backward"), ValueError, r"softmax_kl_divergence: `direction` must be one of 'forward', 'reverse'; got 'backward'"),
    "weight 1 of a mixture": (lambda: jaxloss.softmax_js_divergence(Z, Z, weight=1), ValueError, r"`weight` must be above 0 and below 1; got 1"),
    "NaN option": (lambda: CE(Z, IDS, z_loss=float("nan")), ValueError, r"`z_loss` must be >= 0; got nan"),
    "smoothing per row": (lambda: CE(Z, IDS, label_smoothing=jnp.ones(8)), ValueError, r"`label_smoothing`.*a scalar"),
    "temperature per class": (lambda: jaxloss.softmax_kl_divergence(Z, Z, temperature=jnp.ones(10)), ValueError, r"`temperature` must be a scalar; got"),
    "torch keyword": (lambda: CE(Z, IDS, weight=jnp.ones(10)), TypeError, r"softmax_cross_entropy: .*'weight'.*For `weight` use class_weights"),
    "missing labels": (lambda: CE(Z), TypeError, r"softmax_cross_entropy: missing.*labels.*it takes logits"),
    "channels first": (lambda: CE(jnp.zeros((2, 3, 4, 5)), jnp.zeros((2, 4, 5), jnp.int32)), ValueError, r"Did you mean axis=1"),
    "gamma as an axis": (lambda: jaxloss.softmax_focal_loss(Z, IDS, 2), ValueError, r"`axis` 2.*gamma go by keyword"),
    "one output, integer labels": (lambda: BCE(Z[:, :1], IDS), ValueError, r"single class.*pass logits\[\.\.\., 0\]"),
    "text": (lambda: CE("logits", IDS), TypeError, r"`logits` must be an array or a number; got str"),
    "one class": (lambda: jaxloss.softmax_focal_loss(Z[:, :1], Z[:, :1]), ValueError, r"softmax_focal_loss: `logits` must have two.*`labels`.*float32\[8,1\].*sigmoid loss"),
    "one class of several axes": (lambda: CE(Z[:, None, :1], Z[:, None, :1], (1, 2)), ValueError, r"two classes or more"),
    "one class, integer columns": (lambda: ENTMAX(Z[:, :1], IDS[:, None]), ValueError, r"entmax_loss: `logits` must have two classes or more.*int32\[8,1\]"),
    "one class in a mask": (lambda: CE(Z[:1].T, Z[:1].T, where=Z[:1].T == 0), ValueError, r"two classes or more.*without that axis"),
    "one class of statistics": (lambda: jaxloss.softmax_statistics(Z[:, :1], Z[:, :1]), ValueError, r"two classes or more"),
    "one class of a divergence": (lambda: jaxloss.softmax_kl_divergence(Z[:, :1], Z[:, :1]), ValueError, r"where `target_logits` have their shape"),
    "one probability": (lambda: jaxloss.cross_entropy(Z[:, :1], Z[:, :1]), ValueError, r"cross_entropy: `probs` must.*binary_cross_entropy.*of probs"),
    "complex labels": (lambda: CE(Z, Z.astype(jnp.complex64)), ValueError, r"complex64\[8,10\]"),
    "binary column": (lambda: BCE(Z[:, :1], IDS.astype(jnp.float32)), TypeError, r"Did you mean logits\[\.\.\., 0\]"),
    "binary labels column": (lambda: BCE(Z[:, 0], IDS[:, None]), ValueError, r"Did you mean labels\[\.\.\., 0\]"),
    "binary broadcast": (lambda: BCE(Z, IDS[:3]), ValueError, r"Nothing is broadcast"),
    "binary axis": (lambda: BCE(Z, IDS, axis=(0, 1)), TypeError, r"`axis` must be an int"),
    "pos_weight": (lambda: BCE(Z, Z, pos_weight=jnp.ones(3)), ValueError, r"`pos_weight`.*10 classes"),
    "alpha": (lambda: jaxloss.sigmoid_focal_loss(Z, Z, alpha=-1), ValueError, r"`alpha` must be in \[0, 1\]"),
    "other targets": (lambda: jaxloss.softmax_kl_divergence(Z, Z[:1]), ValueError, r"`target_logits` must have the shape"),
    "weights of a mean": (lambda: jaxloss.mean(Z[:, 0], weights=jnp.ones(10)), ValueError, r"mean: `weights`.*class_weights\["),
    "sum of ids": (lambda: jaxloss.LossSum.of(IDS), TypeError, r"LossSum.of: `losses` must be floating point"),
    "counts in a batch": (lambda: jaxloss.balanced_class_weights(jnp.ones((2, 3))), ValueError, r"use jax\.vmap"),
    "beta": (lambda: jaxloss.effective_number_weights(jnp.ones(3), 1.5), ValueError, r"`beta` must be in \[0, 1\]"),
    "surrogate": (lambda: PAIRS(Z, Z, surrogate="exp"), ValueError, r"`surrogate` must be one of 'logistic', 'hinge'; got 'exp'"),
    "ranking of integers": (lambda: ZLPR(IDS, Z), TypeError, r"zlpr_loss: `logits` must be floating point; got int32\[8\]"),
    "ranking labels": (lambda: ZLPR(Z, Z[:, :9]), ValueError, r"zlpr_loss: `labels`.*\(8, 10\).*got float32\[8,9\]"),
    "ranking where": (lambda: PAIRS(Z, Z, where=Z[0] > 0), ValueError, r"pairwise_ranking_loss: `where`.*elements.*rows to keep"),
    "ranking weights": (lambda: PAIRS(Z, Z, class_weights=jnp.ones(10)), TypeError, r"pairwise_ranking_loss: .*'class_weights'.*it takes"),
    "ranking axes": (lambda: HAMMING(Z, Z, axis=(0, 1)), TypeError, r"soft_hamming_loss: `axis` must be an int"),
    "ranking without an axis": (lambda: ZLPR(Z, Z, axis=None), ValueError, r"at least one class.*axis=None"),
    "ranking a scalar": (lambda: ZLPR(Z[0, 0], Z[0, 0]), ValueError, r"at least one class; got float32\[\]"),
    "ranking no class": (lambda: HAMMING(Z[:, :0], Z[:, :0]), ValueError, r"at least one class; got float32\[8,0\]"),
    "alpha below 1": (lambda: jaxloss.entmax(Z, alpha=0.5), ValueError, r"entmax: `alpha`.* in \[1, 2\]; got 0\.5"),
    "alpha above 2": (lambda: ENTMAX(Z, IDS, alpha=3), ValueError, r"entmax_loss: `alpha`.*\[1, 2\]; got 3"),
    "alpha NaN": (lambda: jaxloss.entmax(Z, alpha=float("nan")), ValueError, r"`alpha` must be in \[1, 2\]; got nan"),
    "alpha per row": (lambda: jaxloss.entmax(Z, alpha=jnp.ones(8)), ValueError, r"one number.*float32\[8\].*vmap"),
    "alpha text": (lambda: jaxloss.entmax(Z, alpha="1.5"), TypeError, r"`alpha` must be an array or a number; got str"),
    "alpha by position": (lambda: jaxloss.entmax(Z, 1.5), TypeError, r"`axis` must be an int"),
    "sparsemax of integers": (lambda: jaxloss.sparsemax(IDS), TypeError, r"sparsemax: `logits` must be floating.*int32\[8\]"),
    "sparsemax where": (lambda: jaxloss.sparsemax(Z, where=jnp.ones(10, bool)), ValueError, r"rows to keep.*classes to keep"),
    "entmax no classes": (lambda: jaxloss.entmax15(Z[:, :0]), ValueError, r"entmax15: `logits` must have at least one"),
    "entmax float ids": (lambda: ENTMAX(Z, Z[:, 0]), TypeError, r"entmax_loss: `labels` must be integer ids"),
    "entmax weights": (lambda: ENTMAX(Z, IDS, class_weights=jnp.ones(8)), ValueError, r"`class_weights`.*10 class"),
    "binary sparsemax": (lambda: jaxloss.sparsemax_loss(Z, IDS[:3]), ValueError, r"sparsemax_loss: `labels`.*Nothing is broad"),
    "margin labels": (lambda: jaxloss.modified_huber_loss(Z, Z[:, :1]), ValueError, r"modified_huber_loss: `labels`.*\(8, 10\).*broadcast"),
    "margin smoothing": (lambda: jaxloss.squared_hinge_loss(Z, Z, label_smoothing=2), ValueError, r"squared_hinge_loss: `label_smoothing`"),
    "margin of integers": (lambda: jaxloss.squared_hinge_loss(IDS, IDS), TypeError, r"squared_hinge_loss: `logits` must be floating"),
    "huber targets": (lambda: jaxloss.huber_loss(Z, Z[:1]), ValueError, r"huber_loss: `targets` must have the shape \(8, 10\)"),
    "huber delta": (lambda: jaxloss.huber_loss(Z, None, 0.0), ValueError, r"huber_loss: `delta` must be > 0; got 0"),
    "huber of integers": (lambda: jaxloss.huber_loss(IDS), TypeError, r"huber_loss: `predictions` must be floating"),
    "asymmetric clip": (lambda: jaxloss.asymmetric_loss(Z, Z, clip=1.5), ValueError, r"asymmetric_loss: `clip` must be in \[0, 1\]"),
    "asymmetric gamma": (lambda: jaxloss.asymmetric_loss(Z, Z, gamma_negative=-1), ValueError, r"`gamma_negative` must be >= 0"),
    "asymmetric keyword": (lambda: jaxloss.asymmetric_loss(Z, Z, gamma_neg=4), TypeError, r"'gamma_neg'.*it takes.*gamma_negative"),
    "probabilities of integers": (lambda: jaxloss.cross_entropy(IDS, Z), TypeError, r"cross_entropy: `probs` must be floating.*int32\[8\]"),
    "probabilities from logits": (lambda: jaxloss.cross_entropy(Z, IDS, from_logits=True), TypeError, r"'from_logits'.*softmax_\* or sigmoid_\*"),
    "probabilities in a column": (lambda: jaxloss.binary_cross_entropy(Z[:, :1], IDS), ValueError, r"`probs`.*pass probs\[\.\.\., 0\]"),
    "log-probabilities": (lambda: jaxloss.negative_log_likelihood(Z, Z[:, 0]), TypeError, r"negative_log_likelihood: `labels` must be integer"),
    "no costs": (lambda: COST(Z, IDS), TypeError, r"expected_cost_loss: missing a required.*'costs'; it takes.*costs"),
    "costs by position": (lambda: COST(Z, IDS, TABLE), TypeError, r"expected_cost_loss: missing .*'costs'.*`costs` goes by keyword: costs="),
    "top k as a pair": (lambda: CE(Z, (Z[:, :2], Z[:, :2])), ValueError, r"float32\[2,8,2\]\. .*TopK\(ids, probabilities\)"),
    "reverse": (lambda: jaxloss.softmax_kl_divergence(Z, Z, reverse=True), TypeError, r"For `reverse` use direction=\"reverse\""),
    "labels a function": (lambda: CE(Z, CE), TypeError, r"`labels` must be an array or a number; got a function\. Is the order"),
    "cutpoints for labels": (lambda: ORDERED(Z[0], Z[1], IDS), ValueError, r"`cutpoints` must be a float array.*order is \(scores, labels, cutpoints\)"),
    "a column of scores": (lambda: ORDERED(Z[:, :1], IDS, Z[0]), ValueError, r"`labels`.*Did you mean scores\[\.\.\., 0\]\?"),
    "costs of a row": (lambda: COST(Z, IDS, costs=Z[0]), ValueError, r"`costs`.*\(10, 10\), a row for each true class.*float32\[10\]"),
    "costs of others": (lambda: COST(Z, IDS, costs=Z), ValueError, r"`costs` must have shape \(10, 10\).*float32\[8,10\]"),
    "boolean costs": (lambda: COST(Z, IDS, costs=TABLE > 0), TypeError, r"`costs` must hold numbers; got bool\[10,10\]"),
    "None for costs": (lambda: COST(Z, IDS, costs=None), TypeError, r"`costs` must be an array; got None"),
    "margin below 0": (lambda: HINGE(Z, IDS, margin=-1), ValueError, r"multiclass_hinge_loss: `margin` must be >= 0; got -1"),
    "margin of classes": (lambda: HINGE(Z, IDS, margin=Z[0]), ValueError, r"`margin` must be a scalar; got float32\[10\]"),
    "integer scores": (lambda: ORDERED(IDS, IDS, Z[0]), TypeError, r"ordered_logistic_loss: `scores` must be floating point"),
    "cutpoints of rows": (lambda: ORDERED(Z[:, 0], IDS, Z), ValueError, r"`cutpoints` must be a float array \[C - 1\].*jax\.vmap"),
    "logits as scores": (lambda: ORDERED(Z, IDS, Z[0]), ValueError, r"`labels` must be integer ids of the shape \(8, 10\) of `scores`"),
    "float grades": (lambda: ORDERED(Z[:, 0], Z[:, 0], Z[0]), ValueError, r"float32\[8\]\. For ids use labels\.astype\(jnp\.int32\)"),
    "too many grades": (lambda: ORDERED(Z[:, 0], Z, Z[0]), ValueError, r"shape \(8, 11\) over the 11 classes"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad):
    call, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()


def user_error(function, *arguments) -> str | None:
    error, _ = checkify.checkify(jax.jit(function), errors=checkify.user_checks)(*arguments)
    return error.get()


def checked(case):
    """Asserts that the checks of a step find nothing but what has all of the parts."""
    z = case.link(Z)
    step = jax.grad(lambda z, t, **options: jnp.sum(case.call(z, t, **options)))
    run = jax.jit(checkify.checkify(lambda t, options: step(z, t, **options), errors=checkify.user_checks))

    def found(*parts, labels=IDS, **options):
        message = run(labels, options)[0].get()
        assert (message is None) == (not parts)
        for part in parts:
            assert part in (message or ""), message

    return found


def with_entry(array, place, value) -> np.ndarray:
    array = np.array(array)
    array[place] = value
    return array


@cases.all_cases
def test_debug_checks_name_function_value_and_range(case):
    found = checked(case)
    found()
    for bad in (-1, -100, 10, 17):
        found(case.loss.__name__, "labels", "[0, 10)", str(bad), labels=with_entry(IDS, 3, bad))


@pytest.mark.thin
@cases.all_cases
def test_debug_checks_of_soft_labels_masks_and_weights(case):
    found = checked(case)
    dropped = with_entry(IDS, 3, -100)
    found(labels=dropped, where=dropped >= 0)
    found("[0, 1]" if case.multilabel else "distribution", "-0.5", labels=with_entry(Z, (0, 0), -0.5))
    if case.takes(class_weights=None):
        found("class_weights", "-2.0", class_weights=with_entry(np.ones(10, np.float32), 4, -2))
    if not case.soft:
        found("leave unknown labels out with `where`); got 0.25", labels=with_entry(Z, (1, 1), 0.25))


def test_debug_checks_of_sigmoid_labels_and_traced_options():
    message = user_error(lambda z, t: BCE(z, t), Z, jnp.full((8, 10), 255, jnp.uint8))
    assert message is not None
    assert "[0, 1]" in message
    assert "255" in message
    message = user_error(lambda g: jaxloss.softmax_focal_loss(Z, IDS, gamma=g), jnp.float32(-1))
    assert message is not None
    assert "gamma" in message


def test_debug_checks_under_transformations():
    ids = IDS.at[2].set(77)
    scanned = user_error(lambda z, t: jax.lax.scan(lambda c, x: (c, CE(*x)), 0, (z, t))[1], Z, ids)
    batched = user_error(jax.vmap(CE), Z, ids)
    for message in (scanned, batched):
        assert message is not None
        assert "77" in message


@pytest.mark.optimized
def test_debug_checks_cost_nothing_in_a_plain_step():
    def step(z, t):
        return jax.value_and_grad(lambda z, gamma: jnp.sum(jaxloss.softmax_focal_loss(z, t, gamma=gamma)), (0, 1))(
            z, 2.0
        )

    text = jax.jit(step).lower(Z, IDS).compile().as_text()
    assert not re.search(r"= pred\[\]\S* (reduce|fusion)\(", text)  # the checks' reduction to one truth value
    assert not jax.make_jaxpr(step)(Z, IDS).effects  # with one, JAX dispatches the whole step by its slow path


def test_debug_checks_where_checkify_has_no_registry(monkeypatch):
    monkeypatch.setattr(checks, "error_checks", {})
    message = user_error(lambda z, t: jaxloss.poly_loss_cross_entropy(z, t, axis=-1, epsilon=0.25), Z[:7], IDS[:7] + 99)
    assert message is not None
    assert "99" in message


@pytest.mark.parametrize("array", [np.zeros((2, 3)), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]], ids=["numpy", "lists"])
def test_anything_array_like_is_taken(array):
    losses = CE(array, [1, 2], where=[True, False], class_weights=[1.0, 2.0, 3.0], axis=np.int64(1))
    expected = CE(jnp.asarray(array, jnp.float32), jnp.array([1, 2]), where=jnp.array([True, False]))
    np.testing.assert_allclose(losses, 2 * expected)
