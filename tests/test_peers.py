"""The numbers of optax (in the same run) and of torch (recorded in torch.json by `python -m tests.data_torch`)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import SGDClassifier

import jaxloss
from tests import cases

KERAS = json.loads(Path(__file__).with_name("keras.json").read_text())
TORCH = json.loads(Path(__file__).with_name("torch.json").read_text())
LOGITS, IDS = np.array(TORCH["logits"], np.float32), np.array(TORCH["ids"])
SOFT, MULTI, WEIGHTS = (np.array(TORCH[key], np.float32) for key in ("soft", "multi", "weights"))

OPTAX = {
    "softmax_cross_entropy": ("soft", (), {}),
    "softmax_cross_entropy, axis": ("soft axis", (0,), {}),
    "softmax_cross_entropy, axes": ("soft", ((0, 1),), {}),
    "softmax_cross_entropy, all axes": ("soft", (None,), {}),
    "softmax_cross_entropy, rows": ("soft", (-1, np.array([1, 0, 1, 1, 0, 1], bool)), {}),
    "softmax_cross_entropy_with_integer_labels": ("ids", (), {}),
    "softmax_cross_entropy_with_integer_labels, axis": ("ids axis", (0,), {}),
    "softmax_cross_entropy_with_integer_labels, rows": ("ids", (-1, np.array([1, 0, 1, 1, 0, 1], bool)), {}),
    "poly_loss_cross_entropy": ("soft", (), {"epsilon": 1.5}),
    "sigmoid_binary_cross_entropy": ("soft", (), {}),
    "sigmoid_focal_loss": ("soft", (), {}),
    "sigmoid_focal_loss, options": ("soft", (), {"alpha": 0.3, "gamma": 1.5}),
}


@pytest.mark.parametrize("case", OPTAX)
@pytest.mark.usefixtures("standard_promotion")
def test_optax_positional_calls_give_optax_numbers(case, rng):
    name = case.split(",")[0]
    kind, arguments, options = OPTAX[case]
    logits = cases.logits_for(None, rng)
    labels = cases.labels_for(None, rng, kind.split()[0])
    if "axis" in kind:
        logits, labels = logits.T, labels.T
    ours, theirs = getattr(jaxloss, name), getattr(optax.losses, name)
    value, gradient = jaxloss.per_example_value_and_grad(ours)(logits, labels, *arguments, **options)
    expected = theirs(logits, labels, *arguments, **options)
    # optax forms log-sum-exp less the label's logit, which rounds in the size of the logits.
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=2.0**-23 * float(jnp.max(jnp.abs(logits))))
    expected = jax.grad(lambda z: jnp.sum(theirs(z, labels, *arguments, **options)))(logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_optax_class_masks(rng):
    logits, labels = cases.logits_for(None, rng), cases.labels_for(None, rng, "soft")
    where = np.arange(5) != 3
    where = np.broadcast_to(where, logits.shape)
    np.testing.assert_allclose(
        jaxloss.softmax_cross_entropy(logits, labels * where, -1, where),
        optax.losses.softmax_cross_entropy(logits, labels, -1, where),
        rtol=1e-6,
    )
    ids = np.array([0, 1, 2, 4, 0, 1])
    np.testing.assert_allclose(
        jaxloss.softmax_cross_entropy_with_integer_labels(logits, ids, -1, where),
        optax.losses.softmax_cross_entropy_with_integer_labels(logits, ids, -1, where),
        rtol=1e-6,
    )


@pytest.mark.usefixtures("standard_promotion")
def test_optax_kl_divergence(rng):
    logits, other = cases.logits_for(None, rng), cases.logits_for(None, rng)
    expected = optax.losses.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(other))
    np.testing.assert_allclose(jaxloss.softmax_kl_divergence(logits, other), expected, rtol=1e-5)


def test_torch_losses_per_row():
    loss = jaxloss.softmax_cross_entropy
    expected = {
        "none": loss(LOGITS, IDS),
        "weight_none": loss(LOGITS, IDS, class_weights=WEIGHTS),
        "smooth_weight_none": loss(LOGITS, IDS, class_weights=WEIGHTS, label_smoothing=0.2),
        "soft_smooth_weight_none": loss(LOGITS, SOFT, class_weights=WEIGHTS, label_smoothing=0.2),
        "soft_weight_mean": jaxloss.mean(loss(LOGITS, SOFT, class_weights=WEIGHTS)),
        "smooth_weight_mean": jaxloss.mean(
            loss(LOGITS, IDS, class_weights=WEIGHTS, label_smoothing=0.2), normalizer=WEIGHTS[IDS].sum()
        ),
        "images": loss(LOGITS.T[None], IDS[None], 1)[0],
        "bce_pos_weight": jaxloss.sigmoid_binary_cross_entropy(LOGITS, MULTI, pos_weight=WEIGHTS),
        "multilabel_soft_margin": jaxloss.sigmoid_binary_cross_entropy(LOGITS, MULTI, class_weights=WEIGHTS).mean(1),
        "bce": jaxloss.binary_cross_entropy(1 / (1 + np.exp(-LOGITS)), MULTI),
        "bce_soft": jaxloss.binary_cross_entropy(1 / (1 + np.exp(-LOGITS)), SOFT),
        "nll": jaxloss.negative_log_likelihood(jax.nn.log_softmax(LOGITS), IDS),
        "huber": jaxloss.huber_loss(LOGITS, SOFT, 0.7),
        "kl": jaxloss.softmax_kl_divergence(LOGITS, 2 * LOGITS[::-1]),
    }
    for key, got in expected.items():
        np.testing.assert_allclose(got, TORCH[key], rtol=4e-6, err_msg=key)


def test_torch_means():
    """torch divides by the sum of the weights of the targets; labels that it ignores count nowhere."""
    losses = jaxloss.softmax_cross_entropy(LOGITS, IDS)
    np.testing.assert_allclose(jaxloss.mean(losses, weights=WEIGHTS[IDS]), TORCH["weight_mean"], rtol=1e-6)
    log_probs = jax.nn.log_softmax(LOGITS)
    losses = jaxloss.negative_log_likelihood(log_probs, IDS)
    np.testing.assert_allclose(jaxloss.mean(losses, weights=WEIGHTS[IDS]), TORCH["nll_weight_mean"], rtol=1e-6)
    ignored = np.where(np.arange(6) == 2, -100, IDS)
    where = ignored != -100
    losses = jaxloss.softmax_cross_entropy(LOGITS, ignored, where=where)
    once = jaxloss.masked_loss(jaxloss.softmax_cross_entropy, LOGITS, ignored, where).mean()
    np.testing.assert_allclose(once, TORCH["ignore_mean"], rtol=1e-6)
    weights = WEIGHTS[np.where(where, ignored, 0)]
    np.testing.assert_allclose(jaxloss.mean(losses, where, weights), TORCH["ignore_weight_mean"], rtol=1e-6)


def test_keras_losses_of_probabilities():
    """Interior probabilities: Keras clips those near 0 and 1."""
    probs, ids, soft, multi = (np.array(KERAS[key]) for key in ("probs", "ids", "soft", "multi"))
    binary = 1 - probs
    expected = {
        "sparse": jaxloss.cross_entropy(probs, ids),
        "categorical": jaxloss.cross_entropy(probs, soft),
        "categorical_smoothed": jaxloss.cross_entropy(probs, soft, label_smoothing=0.2),
        "binary": jaxloss.binary_cross_entropy(binary, multi).mean(-1),
        "binary_smoothed": jaxloss.binary_cross_entropy(binary, multi, label_smoothing=0.2).mean(-1),
        "squared_hinge": jaxloss.squared_hinge_loss(np.array(KERAS["scores"]), multi).mean(-1),
        "huber": jaxloss.huber_loss(np.array(KERAS["scores"]), soft, 0.5).mean(-1),
    }
    for key, got in expected.items():
        np.testing.assert_allclose(got, KERAS[key], rtol=4e-6, err_msg=key)


@pytest.mark.usefixtures("standard_promotion")
def test_optax_huber(rng):
    predictions, targets = cases.logits_for(None, rng), cases.logits_for(None, rng)
    pair = (predictions, targets)
    for arguments, options in ((predictions,), {}), (pair, {}), (pair, {"delta": 0.3}):
        expected = optax.losses.huber_loss(*arguments, **options)
        np.testing.assert_allclose(jaxloss.huber_loss(*arguments, **options), expected, rtol=1e-6)


def test_scikit_learns_modified_huber(rng):
    """Loss and gradient of SGDClassifier: one step of plain descent from 0 shows the gradient."""
    margins = np.linspace(-3, 3, 25)
    stepped = []
    for z in margins:
        for label in (0, 1):
            model = SGDClassifier(
                loss="modified_huber", alpha=0, learning_rate="constant", eta0=1.0, max_iter=1, tol=None, shuffle=False
            )
            model.set_params(fit_intercept=False)
            model.partial_fit(np.array([[1.0]]), [label], classes=[0, 1])
            model.coef_[:] = z
            model.partial_fit(np.array([[1.0]]), [label])
            stepped.append(z - model.coef_[0, 0])
    logits, labels = np.repeat(margins, 2), np.tile([0, 1], 25)
    value, gradient = jaxloss.per_example_value_and_grad(jaxloss.modified_huber_loss)(logits, labels)
    np.testing.assert_allclose(gradient, stepped, rtol=1e-5, atol=1e-6)
    m = np.where(labels == 1, logits, -logits)
    np.testing.assert_allclose(value, np.where(m >= -1, np.maximum(0, 1 - m) ** 2, -4 * m), rtol=1e-6, atol=1e-12)
