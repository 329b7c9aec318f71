"""torchvision and timm beside jaxloss."""

from typing import Any

from tests.coming_from import rows_torch
from tests.coming_from.table import Numbers, Row

NAME, PAGE = "torchvision, timm", "torchvision.md"

BCE = "sigmoid_binary_cross_entropy"
ASYMMETRIC = "asymmetric_loss(z, b, gamma_positive=1.0"
TABLES = {
    "focal": [
        Row("sigmoid_focal_loss(z, b)", "sigmoid_focal_loss(z, b, alpha=0.25)"),
        Row("sigmoid_focal_loss(z, b, alpha=-1)", "sigmoid_focal_loss(z, b)"),
        Row("sigmoid_focal_loss(z, b, alpha=0.5, gamma=1.5)", "sigmoid_focal_loss(z, b, alpha=0.5, gamma=1.5)"),
        Row("sigmoid_focal_loss(z, t)", "sigmoid_focal_loss(z, t, alpha=0.25)"),
        Row('sigmoid_focal_loss(z, b, reduction="mean")', "mean(sigmoid_focal_loss(z, b, alpha=0.25))"),
        Row(
            'sigmoid_focal_loss(z, b, reduction="sum") / max(1, b.sum())',
            "mean(sigmoid_focal_loss(z, b, alpha=0.25), normalizer=jnp.maximum(1, b.sum()))",
            note="detection: over the number of positives",
        ),
    ],
    "asymmetric": [
        Row("AsymmetricLossMultiLabel()(z, b)", f"mean({ASYMMETRIC}).sum(-1))"),
        Row(
            'AsymmetricLossMultiLabel(reduction="sum")(z, b)',
            f"{ASYMMETRIC}).sum()",
            note="the reduction of the paper's code",
        ),
        Row('AsymmetricLossMultiLabel(reduction="none")(z, b)', f"{ASYMMETRIC})"),
        Row(
            'AsymmetricLossMultiLabel(gamma_neg=2, gamma_pos=0, clip=0.0, reduction="mean")(z, b)',
            "mean(asymmetric_loss(z, b, gamma_negative=2.0, clip=0.0))",
        ),
        Row(
            "AsymmetricLossMultiLabel(weight=w)(z, b)",
            f"mean({ASYMMETRIC}, class_weights=w).sum(-1))",
        ),
    ],
    "cross-entropy": [
        Row(
            "LabelSmoothingCrossEntropy(smoothing=0.1)(z, y)",
            "mean(softmax_cross_entropy(z, y, label_smoothing=0.1))",
        ),
        Row("SoftTargetCrossEntropy()(z, t)", "mean(softmax_cross_entropy(z, t))", note="mixup"),
        Row(
            "BinaryCrossEntropy(smoothing=0.1)(z, y)",
            f"mean({BCE}(z, 0.9 * one_hot + 0.1 / z.shape[-1]))",
            note="ids are smoothed as for a softmax, not toward 1/2",
        ),
        Row("BinaryCrossEntropy(smoothing=0.0)(z, y)", f"mean({BCE}(z, y))", note="ids are labels here, too"),
        Row("BinaryCrossEntropy(smoothing=0.1)(z, b)", f"mean({BCE}(z, b))", note="not smoothed there"),
        Row(
            "BinaryCrossEntropy(smoothing=0.1, smooth_dense=True)(z, b)",
            f"mean({BCE}(z, b, label_smoothing=0.1))",
        ),
        Row("BinaryCrossEntropy(target_threshold=0.4)(z, t)", f"mean({BCE}(z, t > 0.4))"),
        Row("BinaryCrossEntropy(sum_classes=True)(z, b)", f"mean({BCE}(z, b).sum(-1))"),
        Row("BinaryCrossEntropy(pos_weight=w)(z, b)", f"mean({BCE}(z, b, pos_weight=w))"),
    ],
    "other": [
        Row("ZlprLoss()(z, b)", "mean(zlpr_loss(z, b))"),
        Row("PolyCrossEntropy(epsilon=1.5, smoothing=0.0)(z, y)", "mean(poly_loss_cross_entropy(z, y, epsilon=1.5))"),
        Row(
            "PolyCrossEntropy(epsilon=1.5, smoothing=0.1)(z, y)",
            "mean(poly_loss_cross_entropy(z, y, epsilon=1.5, label_smoothing=0.1))",
        ),
        Row(
            "PolyBinaryCrossEntropy(epsilon=1.5, gamma=0, alpha=None)(z, b)",
            "mean(poly_loss_cross_entropy(jnp.stack([0 * z, z], -1), b.astype(int), epsilon=1.5))",
            note="of the two logits 0 and `z`",
        ),
        Row(
            "PolyBinaryCrossEntropy(epsilon=1.5, gamma=2, alpha=0.25)(z, b)",
            "mean(softmax_focal_loss(jnp.stack([0 * z, z], -1), b.astype(int), gamma=2.0, epsilon=1.5, "
            "class_weights=jnp.array([0.75, 0.25])))",
            note="`alpha` and 1 - `alpha` are class weights",
        ),
    ],
}
ABSENT = {
    "`AsymmetricLossSingleLabel`": "of class ids, not of the paper's formula; `softmax_focal_loss` is the focal loss "
    "of one class of C",
    "`DistributionBalancedLoss`": "weights and biases from the counts of a data set, around a focal loss",
    "`TwoWayLoss`": "of a whole batch; at temperatures of 1, `log_sum_exp_pairwise_loss` is the half of it that "
    "ranks the labels of a row",
    "`JsdCrossEntropy`": "cross-entropy and a divergence of several augmentations: add `softmax_cross_entropy` and "
    "`softmax_kl_divergence` up",
    "`disable_torch_grad_focal_loss=True`": "a gradient that is not that of the loss",
    "`giou_loss`, `distance_box_iou_loss`, `diou_loss`, `complete_box_iou_loss`, `ciou_loss`, "
    "`generalized_box_iou_loss`": "losses of boxes, not of classes",
}


def modules() -> Any:
    import timm.loss
    import torchvision.ops

    return torchvision.ops, timm.loss


def names() -> list[str]:
    """The losses of torchvision.ops and timm.loss."""
    ops, timm = modules()
    classes = [x for x in dir(timm) if x[0].isupper() and not x.isupper()]
    functions = [x for x in dir(ops) if x.endswith("_loss") and callable(getattr(ops, x))]
    return sorted(functions + classes)


def versions() -> dict[str, str]:
    import timm
    import torchvision

    return {"timm": timm.__version__, "torchvision": torchvision.__version__.split("+")[0]}


def theirs(table: list[Row]) -> Numbers:
    """Values and gradients: of torchvision in float64, of timm's asymmetric loss in the float32 that it computes in."""
    ops, timm = modules()
    return rows_torch.evaluated(table, {"sigmoid_focal_loss": ops.sigmoid_focal_loss, **vars(timm)})
