"""Keras 3 beside jaxloss."""

import os
from typing import Any

from tests.coming_from.table import Numbers, Row, data, derived

NAME, PAGE = "Keras", "keras.md"

CE, BCE = "softmax_cross_entropy", "sigmoid_binary_cross_entropy"
HINGE = "multiclass_hinge_loss(jnp.stack([0 * z, z], -1), b.astype(int))"
SPARSE = "SparseCategoricalCrossentropy(from_logits=True"
CATEGORICAL = "CategoricalCrossentropy(from_logits=True"
BINARY = "BinaryCrossentropy(from_logits=True"
FOCAL = "CategoricalFocalCrossentropy(from_logits=True"
MEAN = 'reduction="mean_with_sample_weight"'
ROW = "p / p.sum(-1, keepdims=True)"
CLIPPED = "jnp.clip({}, 1e-7, 1 - 1e-7)"
TABLES = {
    "classes": [
        Row(f"{SPARSE})(y, z)", f"mean({CE}(z, y))"),
        Row("SparseCategoricalCrossentropy()(y, ops.softmax(z))", f"mean({CE}(z, y))", note="drop the softmax"),
        Row("SparseCategoricalCrossentropy()(y, p)", f"mean(cross_entropy({ROW}, y))", "p"),
        Row(f"{SPARSE}, ignore_class=-100)(q, z)", f"masked_loss({CE}, z, q, q != -100).mean()"),
        Row(f"{CATEGORICAL})(t, z)", f"mean({CE}(z, t))"),
        Row(f"{CATEGORICAL}, label_smoothing=0.1)(t, z)", f"mean({CE}(z, t, label_smoothing=0.1))"),
        Row("CategoricalCrossentropy()(t, ops.softmax(z))", f"mean({CE}(z, t))", note="drop the softmax"),
        Row("CategoricalCrossentropy()(t, p)", f"mean(cross_entropy({ROW}, t))", "p"),
        Row(
            "CategoricalCrossentropy(label_smoothing=0.1)(t, p)",
            f"mean(cross_entropy({ROW}, t, label_smoothing=0.1))",
            "p",
        ),
        Row(f"{FOCAL})(one_hot, z)", "mean(softmax_focal_loss(z, one_hot, class_weights=0.25))"),
        Row(
            f"{FOCAL}, alpha=[0.5, 1.0, 2.0], gamma=1.5)(one_hot, z)",
            "mean(softmax_focal_loss(z, one_hot, gamma=1.5, class_weights=jnp.array([0.5, 1.0, 2.0])))",
        ),
        Row(
            f"{FOCAL}, alpha=1.0, label_smoothing=0.1)(one_hot, z)",
            "mean(softmax_focal_loss(z, one_hot, label_smoothing=0.1))",
        ),
        Row(
            "CategoricalFocalCrossentropy(alpha=[0.5, 1.0, 2.0])(one_hot, ops.softmax(z))",
            "mean(softmax_focal_loss(z, one_hot, class_weights=jnp.array([0.5, 1.0, 2.0])))",
            note="drop the softmax",
        ),
        Row(
            "CategoricalFocalCrossentropy(alpha=[0.5, 1.0, 2.0])(one_hot, p)",
            "mean(softmax_focal_loss(jnp.log(p), one_hot, class_weights=jnp.array([0.5, 1.0, 2.0])))",
            "p",
        ),
        Row(
            f"{FOCAL})(one_hot, 10 * z)",
            f"mean(softmax_focal_loss(jnp.log({CLIPPED.format('jax.nn.softmax(10 * z)')}), one_hot, "
            "class_weights=0.25))",
            note="confident logits, with Keras' clip",
        ),
        Row(
            "CategoricalGeneralizedCrossEntropy(q=0.7)(y, ops.softmax(z))",
            "mean(generalized_cross_entropy(z, y, q=0.7))",
            note="drop the softmax",
        ),
        Row(
            "KLDivergence()(t, ops.softmax(z))",
            "mean(softmax_kl_divergence(z, jnp.log(t)))",
            note="drop the softmax",
        ),
        Row(
            "CategoricalHinge()(one_hot, z)",
            "mean(multiclass_hinge_loss(jnp.concatenate([z, 0 * z[:, :1]], -1), y))",
            note="Keras has a score of 0 among the others",
        ),
    ],
    "binary": [
        Row(f"{BINARY})(b, z)", f"mean({BCE}(z, b))"),
        Row(f"{BINARY}, label_smoothing=0.1)(b, z)", f"mean({BCE}(z, b, label_smoothing=0.1))"),
        Row(f'{BINARY}, reduction="none")(b, z)', f"{BCE}(z, b).mean(-1)"),
        Row("BinaryCrossentropy()(b, ops.sigmoid(z))", f"mean({BCE}(z, b))", note="drop the sigmoid"),
        Row("BinaryCrossentropy(from_logits=False)(b, r)", "mean(binary_cross_entropy(r, b))", "r"),
        Row(
            "BinaryCrossentropy()(b, e)",
            f"mean(binary_cross_entropy({CLIPPED.format('e')}, b))",
            "e",
            "probabilities of 0, with Keras' clip",
        ),
        Row(
            "BinaryCrossentropy(label_smoothing=0.1)(b, r)",
            "mean(binary_cross_entropy(r, b, label_smoothing=0.1))",
            "r",
        ),
        Row("BinaryFocalCrossentropy(from_logits=True)(b, z)", "mean(sigmoid_focal_loss(z, b))"),
        Row(
            "BinaryFocalCrossentropy(from_logits=True, gamma=1.5, label_smoothing=0.1)(b, z)",
            "mean(sigmoid_focal_loss(z, b, gamma=1.5, label_smoothing=0.1))",
        ),
        Row(
            "BinaryFocalCrossentropy(from_logits=True, apply_class_balancing=True)(b, z)",
            "mean(sigmoid_focal_loss(z, b, alpha=0.25))",
        ),
        Row(
            "BinaryFocalCrossentropy()(b, ops.sigmoid(z))",
            "mean(sigmoid_focal_loss(z, b))",
            note="drop the sigmoid",
        ),
        Row(
            "BinaryFocalCrossentropy()(b, r)",
            "mean(sigmoid_focal_loss(jax.scipy.special.logit(r), b))",
            "r",
        ),
        Row("Hinge()(b, z)", f"mean({HINGE})", note="labels 0 and 1; the hinge of the scores 0 and `z`"),
        Row("SquaredHinge()(b, z)", "mean(squared_hinge_loss(z, b))", note="labels 0 and 1"),
        Row("SquaredHinge()(sign, z)", "mean(squared_hinge_loss(z, (sign + 1) / 2))", note="labels -1 and 1"),
        Row("Huber(delta=0.5)(u, z)", "mean(huber_loss(z, u, 0.5))"),
    ],
    "sample weights": [
        Row(
            f"{SPARSE})(y, z, sample_weight=v)",
            f"mean({CE}(z, y), weights=v, normalizer=len(y))",
            note="the default",
        ),
        Row(f"{SPARSE}, {MEAN})(y, z, sample_weight=v)", f"mean({CE}(z, y), weights=v)"),
        Row(
            f"{SPARSE}, ignore_class=-100)(q, z, sample_weight=v)",
            f"mean({CE}(z, q, where=q != -100), weights=v, normalizer=jnp.sum(q != -100))",
        ),
        Row(
            f"{SPARSE}, ignore_class=-100, {MEAN})(q, z, sample_weight=v)",
            f"masked_loss({CE}, z, q, q != -100, weights=v).mean()",
        ),
        Row(f'{SPARSE}, reduction="sum")(y, z, sample_weight=v)', f"jnp.sum(v * {CE}(z, y))"),
        Row(f'{SPARSE}, reduction="none")(y, z, sample_weight=v)', f"v * {CE}(z, y)"),
        Row(f'{SPARSE}, reduction="none")(y, z)', f"{CE}(z, y)"),
        Row(f'{SPARSE}, reduction="sum")(y, z)', f"{CE}(z, y).sum()"),
        Row(
            f"{BINARY})(b, z, sample_weight=v)",
            f"mean({BCE}(z, b).mean(-1), weights=v, normalizer=len(b))",
            note="the default",
        ),
        Row(f"{BINARY}, {MEAN})(b, z, sample_weight=v)", f"mean({BCE}(z, b), weights=v)"),
        Row(f'{BINARY}, reduction="sum")(b, z, sample_weight=v)', f"jnp.sum(v * {BCE}(z, b).mean(-1))"),
        Row(f'{BINARY}, reduction="none")(b, z, sample_weight=v)', f"v * {BCE}(z, b).mean(-1)"),
    ],
    "class weights": [
        Row(
            f"{SPARSE})(y, z, sample_weight=ops.take(w, y))",
            f"mean({CE}(z, y, class_weights=w))",
            note="`fit(class_weight={0: 0.5, 1: 1.0, 2: 2.0})`",
        ),
        Row(
            f"{CATEGORICAL})(one_hot, z, sample_weight=ops.take(w, ops.argmax(one_hot, -1)))",
            f"mean({CE}(z, one_hot, class_weights=w))",
            note="the same of one-hot labels",
        ),
    ],
}
ABSENT = {
    "`Dice`, `Tversky`": "ratios over a whole batch or image, not losses of an example; "
    "`optax.losses.dice_loss` has both (by its weights of false positives and negatives)",
    "`Circle`, `CosineSimilarity`": "losses of embeddings, not of scores of classes",
    "`CTC`": "a loss of sequences: `optax.losses.ctc_loss`",
    "`LogCosh`, `MeanAbsoluteError`, `MeanAbsolutePercentageError`, `MeanSquaredError`, `MeanSquaredLogarithmicError`, "
    "`Poisson`": "regression; `huber_loss` is here for its use on scores",
}


def library() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    return keras


def names() -> list[str]:
    """The losses of keras.losses."""
    found = library().losses
    return sorted(x for x in dir(found) if x[0].isupper() and x != "Loss")


def versions() -> dict[str, str]:
    return {"keras": library().__version__}


def theirs(table: list[Row]) -> Numbers:
    """Values and gradients in float64, on the JAX backend."""
    import jax
    import jax.numpy as jnp

    keras = library()
    floats = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        with jax.enable_x64(True):
            given = {key: jnp.asarray(x) for key, x in data().items()}
            names = {**vars(keras.losses), "ops": keras.ops, **given}
            return [derived(row.theirs, names, row.by) for row in table]
    finally:
        keras.config.set_floatx(floats)
