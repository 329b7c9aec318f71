"""scikit-learn beside jaxloss."""

from typing import Any

import numpy as np

from tests.coming_from.table import Numbers, Row, data

NAME, PAGE = "scikit-learn", "scikit_learn.md"

BINARY = "multiclass_hinge_loss(jnp.stack([0 * z[:, 0], z[:, 0]], -1), b[:, 0].astype(int)"
TABLES = {
    "metrics": [
        Row("log_loss(y, p)", "mean(cross_entropy(p, y))", None),
        Row("log_loss(y, p, sample_weight=v)", "mean(cross_entropy(p, y), weights=v)", None),
        Row("log_loss(y, p, normalize=False)", "cross_entropy(p, y).sum()", None),
        Row("log_loss(b[:, 0], r[:, 0])", "mean(binary_cross_entropy(r[:, 0], b[:, 0]))", None),
        Row("log_loss(y, p)", "mean(softmax_cross_entropy(z, y))", None, "`z` being the logits of `p`: more digits"),
        Row("zero_one_loss(y, p.argmax(-1))", "mean(metrics.zero_one_loss(p.argmax(-1), y, axis=None))", None),
        Row(
            "zero_one_loss(y, p.argmax(-1), sample_weight=v)",
            "mean(metrics.zero_one_loss(p.argmax(-1), y, axis=None), weights=v)",
            None,
        ),
        Row("zero_one_loss(b, z > 0)", "mean(metrics.zero_one_loss(z > 0, b))", None),
        Row("zero_one_loss(b, z > 0, normalize=False)", "metrics.zero_one_loss(z > 0, b).sum()", None),
        Row("hamming_loss(b, z > 0)", "mean(metrics.hamming_loss(z > 0, b))", None),
        Row("hamming_loss(b, z > 0, sample_weight=v)", "mean(metrics.hamming_loss(z > 0, b), weights=v)", None),
        Row("label_ranking_loss(b, z)", "mean(metrics.label_ranking_loss(z, b))", None),
        Row(
            "label_ranking_loss(b, z, sample_weight=v)",
            "mean(metrics.label_ranking_loss(z, b), weights=v)",
            None,
        ),
        Row("hinge_loss(b[:, 0], z[:, 0])", f"mean({BINARY}))", None, "the hinge of the scores 0 and `z`"),
        Row("hinge_loss(y, z)", "mean(multiclass_hinge_loss(z, y))", None),
        Row("hinge_loss(y, z, sample_weight=v)", "mean(multiclass_hinge_loss(z, y), weights=v)", None),
    ],
    "weights": [
        Row(
            'compute_class_weight("balanced", classes=np.arange(3), y=y)',
            "balanced_class_weights(jnp.bincount(y, length=3))",
            None,
        ),
        Row(
            'compute_sample_weight("balanced", y)',
            "balanced_class_weights(jnp.bincount(y, length=3))[y]",
            None,
        ),
    ],
    "training": [
        Row('SGDClassifier(loss="log_loss")', "sigmoid_binary_cross_entropy(z[:, 0], b[:, 0])"),
        Row('SGDClassifier(loss="modified_huber")', "modified_huber_loss(z[:, 0], b[:, 0])"),
        Row('SGDClassifier(loss="squared_hinge")', "squared_hinge_loss(z[:, 0], b[:, 0])"),
        Row('SGDClassifier(loss="hinge")', f"{BINARY})", note="the hinge of the scores 0 and `z`"),
        Row('SGDClassifier(loss="perceptron")', f"{BINARY}, margin=0.0)"),
        Row(
            'SGDClassifier(loss="log_loss", class_weight={0: 0.5, 1: 2.0})',
            "sigmoid_binary_cross_entropy(z[:, 0], b[:, 0], class_weights=jnp.where(b[:, 0] > 0, 2.0, 0.5))",
        ),
    ],
}
ABSENT = {
    "`brier_score_loss`": "a mean of squares: `jnp.mean((r - b) ** 2)`",
    "`mean_pinball_loss`": "regression to quantiles",
}


def names() -> list[str]:
    """The losses of sklearn.metrics."""
    import sklearn.metrics

    return sorted(name for name in dir(sklearn.metrics) if name.endswith("_loss"))


def theirs(table: list[Row]) -> Numbers:
    """Values in float64; of the classifiers, gradients: one step of plain descent shows each."""
    import sklearn.metrics
    from sklearn.linear_model import SGDClassifier
    from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

    weights = {"compute_class_weight": compute_class_weight, "compute_sample_weight": compute_sample_weight}
    library = {**vars(sklearn.metrics), **weights, "SGDClassifier": SGDClassifier, "np": np}

    def numbers(row: Row) -> tuple[Any, Any]:
        found = eval(row.theirs, {**library, **data()})
        if not isinstance(found, SGDClassifier):
            return found, None
        gradient = np.zeros_like(data()["z"])
        gradient[:, 0] = [slope(found, z, int(b)) for z, b in zip(data()["z"][:, 0], data()["b"][:, 0], strict=True)]
        return None, gradient

    return [numbers(row) for row in table]


def slope(model: Any, score: float, label: int) -> float:
    """Derivative of a classifier's loss by the score of one example."""
    model.set_params(alpha=0, learning_rate="constant", eta0=1.0, fit_intercept=False, shuffle=False)
    model.partial_fit(np.array([[1.0]]), [label], classes=[0, 1])
    model.coef_[:] = score
    model.partial_fit(np.array([[1.0]]), [label])
    return score - model.coef_[0, 0]
