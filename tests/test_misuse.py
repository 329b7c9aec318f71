"""What is given by mistake, and as other libraries hand it over: it works, raises, or `checkify` names it."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from tests import cases

FUNCTIONS = {name: getattr(jaxloss, name) for name in jaxloss.__all__ if inspect.isfunction(getattr(jaxloss, name))}
FUNCTIONS |= {name: f for name, f in vars(jaxloss.metrics).items() if name.endswith("_loss")}
FUNCTIONS |= {"LossSum.of": jaxloss.LossSum.of}
SHAPES = [((6,), 5), ((2, 3), 4), ((), 3)]


def checked(function):
    """A function of the same arguments that returns what `checkify` finds, "" for nothing."""
    run = jax.jit(checkify.checkify(function, errors=checkify.user_checks))

    def user_error(*arguments, **arrays) -> str:
        return run(*arguments, **arrays)[0].get() or ""

    return user_error


def required(function) -> list[str]:
    given = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [x.name for x in parameters if x.kind in given and x.default is x.empty]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_required_arguments_that_are_none_are_refused_by_name(name):
    function, batch = FUNCTIONS[name], {"labels": None}
    some = {"loss": jaxloss.softmax_cross_entropy, "fn": jaxloss.softmax_cross_entropy, "kernel": jnp.zeros((4, 4))}
    for missing in required(function):
        given = {key: some.get(key, jnp.zeros((4, 4))) for key in required(function)} | {missing: batch.get("labels")}
        if name.startswith("per_example"):
            given = {"loss": None}
        with pytest.raises(TypeError, match=rf"^{name}: `{missing}` must be .*; got None") as error:
            function(**given)
        assert missing in ("loss", "fn") or "as `get` returns it for a missing key" in str(error.value)


@cases.all_cases
def test_none_reaches_no_derivative_and_no_layer(case):
    z = case.link(jnp.zeros((4, 4)))
    for transform in (jaxloss.per_example_value_and_grad, lambda f: f):
        with pytest.raises(TypeError, match=r"`labels` must be an array; got None"):
            transform(case.call)(z, None)
        with pytest.raises(TypeError, match=r"`\w+` must be an array; got None"):
            transform(case.call)(None, z)
    with pytest.raises(TypeError, match=r"linear_loss: `labels` .* For a loss without labels pass \(\)"):
        jaxloss.linear_loss(case.call, z, z, None)
    with pytest.raises(TypeError, match=r"map_linear_logits: `rows\[1\]` must be .*got None"):
        jaxloss.map_linear_logits(case.call, z, z, z, None)


@cases.all_cases
@pytest.mark.parametrize(("batch", "size"), SHAPES)
def test_labels_before_logits_are_named_where_shapes_or_dtypes_tell(case, batch, size):
    """As Keras, torch's transforms and scikit-learn order them: (y_true, y_pred)."""
    predictions = case.link(jnp.zeros((*batch, size)))
    ids, onehot = jnp.zeros(batch, jnp.int32), jnp.zeros((*batch, size))
    column = [ids[..., None], ids[..., None].astype(jnp.float32)] if batch else []
    for labels in (ids, ids.astype(jnp.float32), onehot.astype(jnp.int32), onehot > 0, *column):
        if labels.ndim:
            with pytest.raises(
                (TypeError, ValueError), match=r"swapped\? The order is \(\w+, labels\); Keras has \(y_"
            ):
                case.call(labels, predictions)


PATHS = [c for c in cases.ALL if c.name in {"cross_entropy", "entmax", "binary", "hamming", "probabilities"}]


@cases.parametrize(PATHS)
def test_labels_before_logits_are_named_by_their_data(case, rng):
    batch = (2, 3)
    onehot = np.eye(4, dtype=np.float32)[rng.integers(0, 4, batch)]
    scores = rng.normal(size=(*batch, 4)).astype(np.float32)
    scores[..., 0] = -1
    probabilities, right = np.asarray(jax.nn.softmax(scores)), np.asarray(case.link(scores))
    user_error = checked(case.call)
    for predictions in (scores, np.abs(scores), probabilities):
        assert "swapped?" in user_error(onehot, predictions)
    assert user_error(right, onehot) == ""
    if case.soft:
        assert user_error(right, probabilities) == ""
        assert user_error(onehot, onehot) == ""


@cases.probability_cases
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_probabilities_a_rounding_outside_count_as_0_or_1(case, dtype, rng, x64):
    logarithms = case.name == "log_probabilities"
    eps = float(jnp.finfo(dtype).eps)
    run, user_error = case.run, checked(case.loss)
    ends = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    onehot = ends.astype(np.float32)
    labels = [onehot, np.array([0, 1, 0], np.int32)] if case.name != "binary_probabilities" else [onehot]
    for t in labels:
        with np.errstate(divide="ignore"):
            exact = run((np.log(ends) if logarithms else ends).astype(dtype), t)
        for steps in (1, 7):
            off = ends + eps * steps * np.array([[1, -1], [-0.5, 0.5], [0.5, -1]])
            given = np.where(ends == 1, off - 1, -np.inf) if logarithms else off
            with jax.debug_nans(True):
                got = run(given.astype(dtype), t)
            jax.tree.map(np.testing.assert_array_equal, got, exact)
            assert np.isfinite(np.asarray(got[1], np.float64)).all()
            assert user_error(given.astype(dtype), t) == ""
        if not logarithms:
            far = run((ends + eps * 20 * np.array([[1, -1], [0, 0], [0, -1]])).astype(dtype), t)
            np.testing.assert_array_equal(np.isnan(far[0]).reshape(3, -1).any(1), [True, False, True])
            np.testing.assert_array_equal(np.isnan(far[1]).any(1), [True, False, True])


@cases.probability_cases
@pytest.mark.parametrize(("batch", "size"), [((6,), 5), ((2, 3), 40)])
def test_logits_as_probabilities_are_named(case, batch, size, rng):
    logits = (rng.normal(size=(*batch, size)) * 3).astype(np.float32)
    labels = np.asarray(cases.labels_for(case, rng, "onehot", int(np.prod(batch)), size)).reshape(logits.shape)
    right, user_error = np.asarray(case.link(logits)), checked(case.loss)
    message = user_error(logits, labels)
    assert "must be" in message
    assert "for logits use s" in message
    assert user_error(right.astype(jnp.bfloat16), labels) == ""
    if case.name == "binary_probabilities":
        return
    positive = 1 / (1 + np.exp(-logits)) if case.name == "probabilities" else -np.abs(logits) * np.float32(0.01)
    assert "sum to 1 in each row" in user_error(positive, labels)
    assert user_error(positive, labels, where=np.zeros(batch, bool)) == ""
    classes = np.arange(size) == np.zeros((*batch, 1))
    assert user_error(right, labels * classes, where=classes) == ""


EFFECTIVE = partial(jaxloss.effective_number_weights, beta=0.9)
COUNTED = [
    (jaxloss.balanced_class_weights, jnp.int32),
    (EFFECTIVE, jnp.float32),
    (jaxloss.logit_adjustments, jnp.int32),
    (jaxloss.balanced_label_margins, jnp.float32),
]


@pytest.mark.parametrize(("weights", "dtype"), COUNTED)
def test_labels_in_place_of_counts_are_named(weights, dtype, rng):
    user_error = checked(weights)

    def as_weights(labels):
        rows = len(labels)
        return CE(np.zeros((rows, 3), np.float32), np.zeros(rows, np.int32), class_weights=weights(labels))

    for rows, classes in ((32, 2), (5000, 37)):
        labels = rng.integers(0, classes, rows)
        assert "are they labels?" in user_error(labels.astype(dtype))
        assert user_error(np.bincount(labels, minlength=classes).astype(dtype)) == ""
        with pytest.raises(ValueError, match=r"one entry for each of the 3 classes.*bincount\(labels, length=C\)"):
            jax.eval_shape(as_weights, labels.astype(dtype))
    counts = np.array([900, 5, 1, 1] * 8, dtype)
    assert user_error(counts) == ""
    counts[0] = -1
    assert "counts, >= 0; got -1" in user_error(counts)


@cases.all_cases
def test_labels_as_other_libraries_hand_them_over(case, rng):
    """Keras' fit: floats, in a column; XGBoost: a float32 vector; scikit-learn's margins: -1 and 1; names."""
    z, ids = cases.logits_for(case, rng), rng.integers(0, 5, 6)
    with pytest.raises((TypeError, ValueError), match=r"float32\[6\]\. For class ids use labels\.astype\(jnp\.int32\)"):
        case.call(z, ids.astype(np.float32))
    with pytest.raises(ValueError, match=r"float32\[6,1\]\..* labels\[\.\.\., 0\]\.astype\(jnp\.int32\)"):
        case.call(z, ids[:, None].astype(np.float32))
    for names in (np.array(["cat", "dog"] * 3), ["cat"] * 6, np.array(["cat", 1, 2], object)):
        with pytest.raises(TypeError, match=r"`labels`.* of dtype .*numpy\.unique\(names, return_inverse=True\)\[1\]"):
            case.call(z, names)
    with pytest.raises(TypeError, match=r"linear_loss: `labels`.*numpy\.unique"):
        jaxloss.linear_loss(case.call, z, z.T, np.array(["cat", "dog"] * 3))
    if case not in PATHS:
        return
    signs = np.sign(rng.normal(size=z.shape)).astype(np.float32)
    signs[0, 0] = -1
    assert "got -1.0" in checked(case.call)(z, signs)


def test_alpha_of_a_softmax_loss_says_what_does_it():
    with pytest.raises(TypeError, match=r"'alpha'; it takes .* For `alpha` use class_weights"):
        jaxloss.softmax_focal_loss(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), **{"alpha": 0.25})


@pytest.mark.parametrize("value", [True, np.True_])
def test_an_option_is_a_number_not_a_switch(value):
    with pytest.raises(TypeError, match="`label_smoothing` must be a number; got True"):
        jaxloss.softmax_cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), label_smoothing=value)


CE, Z, Y, KEEP = jaxloss.softmax_cross_entropy, jnp.zeros((3, 4)), jnp.zeros(3, jnp.int32), jnp.ones(3, bool)
SUM = jaxloss.LossSum(jnp.float32(6), jnp.float32(3))
NAMED = {
    "sum for losses": (lambda: jaxloss.mean(SUM), r"got LossSum, a sum: its \.mean\(\) is a number"),
    "sum as number": (lambda: float(SUM), r"LossSum: a sum of losses .* is no number; take its \.mean\(\) first"),
    "a sum and a number": (lambda: SUM + jnp.ones(()), r"take its \.mean\(\) first"),
    "a number and a sum": (lambda: 1.0 - SUM, r"take its \.mean\(\) first"),
    "two masks": (lambda: jaxloss.masked_loss(partial(CE, where=KEEP), Z, Y, KEEP), r"`loss` must not hold a mask"),
    "scaled sum": (lambda: 2 * SUM, r"take its \.mean\(\) first"),
    "divided sum": (lambda: SUM / jnp.float32(8), r"take its \.mean\(\) first"),
    "mask for losses": (lambda: jaxloss.mean(KEEP, jnp.ones(3)), r"A mask goes second: mean\(losses, mask\)"),
    "mask for labels": (
        lambda: jaxloss.masked_loss(CE, Z, KEEP, Y),
        r"`where` must be boolean; got int32\[3\], and bool\[3\] as `labels`\. Are the two swapped\?",
    ),
    "labels for kernel": (
        lambda: jaxloss.linear_loss(CE, Z, Y, Z.T),
        r"`kernel` must have two axes; got int32\[3\]\. The order is \(loss, hidden, kernel, labels\)",
    ),
    "option of the layer": (
        lambda: jaxloss.linear_loss(CE, Z, Z.T, Y, **{"gamma": 2.0}),
        r"'gamma'; it takes loss, .*labels, \*, bias.* Options of `loss` go to it: functools\.partial\(loss, gamma=",
    ),
    "bias by position": (lambda: jaxloss.linear_loss(*(CE, Z, Z.T, Y), *(Y,)), r"too many .*labels, \*, bias"),
    "option of derivatives": (
        lambda: jaxloss.per_example_value_grad_hess(CE, **{"z_loss": 1.0}),
        r"per_example_value_grad_hess: .*functools\.partial\(loss, z_loss=\.\.\.\)",
    ),
    "None for an option": (
        lambda: jaxloss.softmax_focal_loss(Z, Y, gamma=None),
        r"`gamma` must be a number; got None\. Leave it out for 2\.0\.",
    ),
    "names of torch": (
        lambda: CE(**{"input": Z, "target": Y}),
        r"unexpected keyword argument 'input'; .* For `input` use logits\. For `target` use labels\.",
    ),
    "names of costs": (
        lambda: jaxloss.expected_cost_loss(Z, Y, **{"cost_matrix": jnp.ones((4, 4))}),
        r"'cost_matrix'; it takes logits, labels, .*costs.* For `cost_matrix` use costs",
    ),
    "weight of positives": (
        lambda: jaxloss.sigmoid_focal_loss(Z, Z, **{"pos_weight": 2.0}),
        r"For `pos_weight` use alpha of sigmoid_focal_loss",
    ),
    "margin": (lambda: CE(Z, Y, **{"margin": 0.5}), r"For `margin` use label_margins of a softmax loss"),
    "infinite margin": (
        lambda: CE(Z, Y, label_margins=[0, np.inf, 0, 0]),
        r"must be a finite number; got inf in \[0, inf",
    ),
    "adjusted logits": (lambda: CE(Z, Y, **{"tau": 1.0}), r"use logits \+ jaxloss\.logit_adjustments\(counts, tau\)"),
    "negative tau": (lambda: jaxloss.logit_adjustments(Z[0], -1), r"logit_adjustments: `tau` must be >= 0; got -1"),
    "negative weight in a list": (
        lambda: CE(Z, Y, class_weights=[-1.0, 1, 1, 1]),
        r"must be >= 0; got -1 in \[-1\.0, 1",
    ),
    "weights of Keras": (lambda: CE(Z, Y, class_weights={0: 1.0}), r"got a dict\. .*jnp\.array\(\[d\[c\] for c in"),
    "weights of scikit-learn": (
        lambda: CE(Z, Y, class_weights="balanced"),
        r"got 'balanced'\. .*balanced_class_weights",
    ),
    "weights of binary labels": (
        lambda: jaxloss.sigmoid_binary_cross_entropy(Z[0], Z[0], pos_weight=[1.0, 2.0]),
        r"For binary labels pass a scalar pos_weight",
    ),
    "no mask": (
        lambda: jaxloss.masked_loss(CE, Z, Y),
        r"masked_loss: missing .*'where'; it takes .*where, \*, weights, \*\*opt",
    ),
    "typing error": (lambda: CE(Z, Y, **{"label_smoothin": 0.1}), r"Did you mean `label_smoothing`\?"),
    "weights of rows": (lambda: CE(Z, Y, class_weights=jnp.ones(3)), r"Weights of rows go to jaxloss\.mean\("),
    "mask in a column": (lambda: CE(Z, Y, where=KEEP[:, None]), r"Drop the last axis with where\[\.\.\., 0\]"),
    "no alpha": (
        lambda: jaxloss.sigmoid_focal_loss(Z, Z, alpha=-1),
        r"`alpha` must be in \[0, 1\] \(for no weight of the two labels leave it out\); got -1",
    ),
}


@pytest.mark.parametrize("mistake", NAMED)
def test_mistakes_are_named_with_what_to_do(mistake):
    call, message = NAMED[mistake]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_ids_over_one_class_name_the_sigmoid_losses(rng):
    labels = jnp.array([0, 1, 1, 0], jnp.int32)
    message = checked(CE)(rng.normal(size=(4, 1)).astype(np.float32), labels)
    assert "got 1. For binary labels use a sigmoid loss, of logits without that axis" in message
