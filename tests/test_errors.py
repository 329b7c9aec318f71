"""Promise 10 and checkify: an error says which function and argument, what was expected, what came, what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from tests import cases

Z = jnp.zeros((8, 10))
IDS = jnp.zeros(8, jnp.int32)
CE = jaxloss.softmax_cross_entropy
BCE = jaxloss.sigmoid_binary_cross_entropy

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
    "where of another shape": (lambda: CE(Z, IDS, where=jnp.ones(10, bool)), ValueError, r"rows to keep.*classes that exist"),
    "unknown axis": (lambda: CE(Z, IDS, axis=2), ValueError, r"`axis` 2 is out of range.*\(8, 10\)"),
    "axis twice": (lambda: CE(Z, IDS, axis=(1, -1)), ValueError, r"each class axis once"),
    "option by position": (lambda: jaxloss.softmax_focal_loss(Z, IDS, 2.0), TypeError, r"`axis`.*by keyword\); got 2\.0"),
    "gamma below 0": (lambda: jaxloss.softmax_focal_loss(Z, IDS, gamma=-1), ValueError, r"`gamma` must be >= 0; got -1"),
    "smoothing above 1": (lambda: CE(Z, IDS, label_smoothing=1.5), ValueError, r"`label_smoothing` must be in \[0, 1\]; got 1\.5"),
    "q above 1": (lambda: jaxloss.generalized_cross_entropy(Z, IDS, q=2), ValueError, r"`q` must be in \[0, 1\]"),
    "temperature 0": (lambda: jaxloss.softmax_kl_divergence(Z, Z, temperature=0), ValueError, r"`temperature` must be > 0"),
    "NaN option": (lambda: CE(Z, IDS, z_loss=float("nan")), ValueError, r"`z_loss` must be >= 0; got nan"),
    "smoothing per row": (lambda: CE(Z, IDS, label_smoothing=jnp.ones(8)), ValueError, r"`label_smoothing`.*a scalar"),
    "temperature per class": (lambda: jaxloss.softmax_kl_divergence(Z, Z, temperature=jnp.ones(10)), ValueError, r"`temperature` must be a scalar; got"),
    "torch keyword": (lambda: CE(Z, IDS, weight=jnp.ones(10)), TypeError, r"softmax_cross_entropy: .*'weight'.*For `weight` use class_weights"),
    "missing labels": (lambda: CE(Z), TypeError, r"softmax_cross_entropy: missing.*labels.*it takes logits"),
    "channels first": (lambda: CE(jnp.zeros((2, 3, 4, 5)), jnp.zeros((2, 4, 5), jnp.int32)), ValueError, r"Did you mean axis=1"),
    "gamma as an axis": (lambda: jaxloss.softmax_focal_loss(Z, IDS, 2), ValueError, r"`axis` 2.*gamma go by keyword"),
    "one output, integer labels": (lambda: BCE(Z[:, :1], IDS), ValueError, r"single class.*pass logits\[\.\.\., 0\]"),
    "text": (lambda: CE("logits", IDS), TypeError, r"`logits` must be an array or a number; got str"),
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


@cases.softmax_cases
def test_debug_checks_name_function_value_and_range(case):
    step = jax.grad(lambda z, t, **options: jnp.sum(case.call(z, t, **options)))
    for bad in (-1, -100, 10, 17):
        message = user_error(step, Z, IDS.at[3].set(bad))
        assert message is not None
        for part in (case.loss.__name__, "labels", "[0, 10)", str(bad)):
            assert part in message, message
    assert user_error(step, Z, IDS) is None
    assert user_error(lambda z, t: step(z, t, where=t >= 0), Z, IDS.at[3].set(-100)) is None
    message = user_error(step, Z, Z.at[0, 0].set(-0.5))
    assert message is not None
    assert "distribution" in message
    assert "-0.5" in message
    message = user_error(lambda z, w: step(z, IDS, class_weights=w), Z, jnp.ones(10).at[4].set(-2))
    assert message is not None
    assert "class_weights" in message
    assert "-2.0" in message


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


def test_debug_checks_cost_nothing_in_a_plain_step():
    text = jax.jit(lambda z, t: CE(z, t)).lower(Z, IDS).compile().as_text()
    assert "pred[]" not in text  # the checks' reduction to one truth value


@pytest.mark.parametrize("array", [np.zeros((2, 3)), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]], ids=["numpy", "lists"])
def test_anything_array_like_is_taken(array):
    losses = CE(array, [1, 2], where=[True, False], class_weights=[1.0, 2.0, 3.0], axis=np.int64(1))
    expected = CE(jnp.asarray(array, jnp.float32), jnp.array([1, 2]), where=jnp.array([True, False]))
    np.testing.assert_allclose(losses, 2 * expected)
