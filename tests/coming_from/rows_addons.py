"""TensorFlow Addons beside jaxloss: the library is no longer developed, so that its published formulas stand for it."""

from tests.coming_from.table import Numbers, Row, in_one_program

NAME, PAGE = "TensorFlow Addons", "tensorflow_addons.md"

TABLES = {
    "all": [
        Row(
            "SigmoidFocalCrossEntropy(from_logits=True)(b, z)",
            "sigmoid_focal_loss(z, b, alpha=0.25).sum(-1)",
            note="alpha 0.25 and no reduction are its defaults; a sum over the last axis, where Keras has a mean",
        ),
        Row(
            "SigmoidFocalCrossEntropy(from_logits=True, alpha=0.5, gamma=1.5)(b, z)",
            "sigmoid_focal_loss(z, b, alpha=0.5, gamma=1.5).sum(-1)",
        ),
        Row(
            "SigmoidFocalCrossEntropy()(b, jax.nn.sigmoid(z))",
            "sigmoid_focal_loss(z, b, alpha=0.25).sum(-1)",
            note="drop the sigmoid",
        ),
        Row(
            "SigmoidFocalCrossEntropy(from_logits=True, alpha=None)(b, z)",
            "sigmoid_focal_loss(z, b).sum(-1)",
        ),
        Row("SparsemaxLoss()(one_hot, z)", "mean(multiclass_sparsemax_loss(z, y))"),
        Row("sparsemax(z)", "sparsemax(z)", note="`tfa.activations.sparsemax`"),
    ],
}
ABSENT = {
    "`PinballLoss`": "regression to quantiles",
    "`WeightedKappaLoss`": "the logarithm of a ratio over a whole batch; what it divides is the sum of "
    "`expected_cost_loss` with the squares (or distances) of class numbers as costs",
    "`ContrastiveLoss`, `LiftedStructLoss`, `NpairsLoss`, `NpairsMultilabelLoss`, `TripletHardLoss`, "
    "`TripletSemiHardLoss`": "losses of embeddings, not of scores of classes",
    "`GIoULoss`": "of boxes, not of classes",
}


def names() -> list[str]:
    """The losses of tfa.losses, release 0.23, its last."""
    return [
        "ContrastiveLoss",
        "GIoULoss",
        "LiftedStructLoss",
        "NpairsLoss",
        "NpairsMultilabelLoss",
        "PinballLoss",
        "SigmoidFocalCrossEntropy",
        "SparsemaxLoss",
        "TripletHardLoss",
        "TripletSemiHardLoss",
        "WeightedKappaLoss",
    ]


def theirs(table: list[Row]) -> Numbers:
    """Values and gradients in float32, from the formulas."""
    import jax
    import jax.numpy as jnp

    def sigmoid_focal(from_logits=False, alpha=0.25, gamma=2.0):
        def loss(y_true, y_pred):
            p = jax.nn.sigmoid(y_pred) if from_logits else y_pred
            p_t = y_true * p + (1 - y_true) * (1 - p)
            balance = 1.0 if alpha is None else y_true * alpha + (1 - y_true) * (1 - alpha)
            return jnp.sum(balance * (1 - p_t) ** gamma * -jnp.log(p_t), -1)  # for labels of 0 and 1

        return loss

    def sparsemax(z):
        # Martins and Astudillo (2016), algorithm 1.
        ordered = -jnp.sort(-z)
        sums, k = jnp.cumsum(ordered, -1), jnp.arange(1, z.shape[-1] + 1)
        size = jnp.sum(1 + k * ordered > sums, -1, keepdims=True)
        threshold = (jnp.take_along_axis(sums, size - 1, -1) - 1) / size
        return jnp.maximum(z - threshold, 0)

    def sparsemax_loss():
        def loss(y_true, z):
            p = sparsemax(z)
            return jnp.mean(jnp.sum(jnp.where(p > 0, p * (z - p / 2), 0) + y_true * (y_true / 2 - z), -1))

        return loss

    library = {"SigmoidFocalCrossEntropy": sigmoid_focal, "SparsemaxLoss": sparsemax_loss, "sparsemax": sparsemax}
    return in_one_program([(row.theirs, row.by) for row in table], library)
