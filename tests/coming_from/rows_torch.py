"""PyTorch beside jaxloss."""

import re
from typing import Any

from tests.coming_from.table import Numbers, Row, data

NAME, PAGE = "PyTorch", "pytorch.md"

CE = "softmax_cross_entropy"
BCE = "sigmoid_binary_cross_entropy"
MASKED = f"masked_loss({CE}, z, q, q != -100"
PIXEL_WEIGHTS = "weights=w[jnp.where(pixels != 255, pixels, 0)]"
WITH_LOGITS = "F.binary_cross_entropy_with_logits(z, b, pos_weight=w"
TABLES = {
    "cross-entropy mean": [
        Row("F.cross_entropy(z, y)", f"mean({CE}(z, y))"),
        Row("F.cross_entropy(z, y, weight=w)", f"mean({CE}(z, y), weights=w[y])"),
        Row("F.cross_entropy(z, y, label_smoothing=0.1)", f"mean({CE}(z, y, label_smoothing=0.1))"),
        Row(
            "F.cross_entropy(z, y, weight=w, label_smoothing=0.1)",
            f"mean({CE}(z, y, class_weights=w, label_smoothing=0.1), normalizer=w[y].sum())",
        ),
        Row("F.cross_entropy(z, q, ignore_index=-100)", f"{MASKED}).mean()"),
        Row(
            "F.cross_entropy(z, q, ignore_index=-100, weight=w)",
            f"{MASKED}, weights=w[jnp.where(q != -100, q, 0)]).mean()",
        ),
        Row(
            "F.cross_entropy(z, q, ignore_index=-100, label_smoothing=0.1)",
            f"{MASKED}, label_smoothing=0.1).mean()",
        ),
        Row(
            "F.cross_entropy(z, q, ignore_index=-100, weight=w, label_smoothing=0.1)",
            f"mean({CE}(z, q, where=q != -100, class_weights=w, label_smoothing=0.1), q != -100, "
            "normalizer=jnp.sum(w[jnp.where(q != -100, q, 0)], where=q != -100))",
        ),
        Row("nn.CrossEntropyLoss()(z, y)", f"mean({CE}(z, y))"),
        Row(
            "F.cross_entropy(images, pixels, ignore_index=255)",
            f"masked_loss({CE}, images, pixels, pixels != 255, axis=1).mean()",
            "images",
        ),
        Row(
            "F.cross_entropy(images, pixels, ignore_index=255, weight=w)",
            f"masked_loss({CE}, images, pixels, pixels != 255, axis=1, {PIXEL_WEIGHTS}).mean()",
            "images",
        ),
        Row(
            "F.cross_entropy(images, pixels, ignore_index=255, weight=w, label_smoothing=0.1)",
            f"mean({CE}(images, pixels, axis=1, where=pixels != 255, class_weights=w, label_smoothing=0.1), "
            "pixels != 255, normalizer=jnp.sum(w[jnp.where(pixels != 255, pixels, 0)], where=pixels != 255))",
            "images",
        ),
    ],
    "cross-entropy none": [
        Row('F.cross_entropy(z, y, reduction="none")', f"{CE}(z, y)"),
        Row('F.cross_entropy(z, y, weight=w, reduction="none")', f"{CE}(z, y, class_weights=w)"),
        Row('F.cross_entropy(z, y, label_smoothing=0.1, reduction="none")', f"{CE}(z, y, label_smoothing=0.1)"),
        Row(
            'F.cross_entropy(z, y, weight=w, label_smoothing=0.1, reduction="none")',
            f"{CE}(z, y, class_weights=w, label_smoothing=0.1)",
        ),
        Row('F.cross_entropy(z, q, ignore_index=-100, reduction="none")', f"{CE}(z, q, where=q != -100)"),
        Row(
            'F.cross_entropy(z, q, ignore_index=-100, weight=w, reduction="none")',
            f"{CE}(z, q, where=q != -100, class_weights=w)",
        ),
        Row(
            'F.cross_entropy(z, q, ignore_index=-100, label_smoothing=0.1, reduction="none")',
            f"{CE}(z, q, where=q != -100, label_smoothing=0.1)",
        ),
        Row(
            'F.cross_entropy(z, q, ignore_index=-100, weight=w, label_smoothing=0.1, reduction="none")',
            f"{CE}(z, q, where=q != -100, class_weights=w, label_smoothing=0.1)",
        ),
        Row('F.cross_entropy(z, y, reduction="sum")', f"{CE}(z, y).sum()"),
        Row('F.cross_entropy(z, y, weight=w, reduction="sum")', f"{CE}(z, y, class_weights=w).sum()"),
        Row(
            'F.cross_entropy(z, y, weight=w, label_smoothing=0.1, reduction="sum")',
            f"{CE}(z, y, class_weights=w, label_smoothing=0.1).sum()",
        ),
        Row(
            'F.cross_entropy(z, q, ignore_index=-100, reduction="sum")',
            f"{CE}(z, q, where=q != -100).sum()",
        ),
        Row(
            'F.cross_entropy(z, q, ignore_index=-100, weight=w, label_smoothing=0.1, reduction="sum")',
            f"{CE}(z, q, where=q != -100, class_weights=w, label_smoothing=0.1).sum()",
        ),
    ],
    "soft labels": [
        Row("F.cross_entropy(z, t)", f"mean({CE}(z, t))"),
        Row("F.cross_entropy(z, t, weight=w)", f"mean({CE}(z, t, class_weights=w))"),
        Row("F.cross_entropy(z, t, label_smoothing=0.1)", f"mean({CE}(z, t, label_smoothing=0.1))"),
        Row(
            'F.cross_entropy(z, t, weight=w, label_smoothing=0.1, reduction="none")',
            f"{CE}(z, t, class_weights=w, label_smoothing=0.1)",
        ),
        Row('F.cross_entropy(z, t, reduction="sum")', f"{CE}(z, t).sum()"),
    ],
    "log-probabilities": [
        Row("F.nll_loss(log_p, y)", "mean(negative_log_likelihood(log_p, y))", "log_p"),
        Row("F.nll_loss(log_p, y, weight=w)", "mean(negative_log_likelihood(log_p, y), weights=w[y])", "log_p"),
        Row(
            "F.nll_loss(log_p, q, ignore_index=-100)",
            "masked_loss(negative_log_likelihood, log_p, q, q != -100).mean()",
            "log_p",
        ),
        Row(
            'F.nll_loss(log_p, y, weight=w, reduction="none")',
            "negative_log_likelihood(log_p, y, class_weights=w)",
            "log_p",
        ),
        Row('nn.NLLLoss(reduction="sum")(log_p, y)', "negative_log_likelihood(log_p, y).sum()", "log_p"),
    ],
    "binary": [
        Row("F.binary_cross_entropy_with_logits(z, b)", f"mean({BCE}(z, b))"),
        Row("F.binary_cross_entropy_with_logits(z, t)", f"mean({BCE}(z, t))"),
        Row('F.binary_cross_entropy_with_logits(z, b, reduction="none")', f"{BCE}(z, b)"),
        Row('F.binary_cross_entropy_with_logits(z, b, reduction="sum")', f"{BCE}(z, b).sum()"),
        Row("F.binary_cross_entropy_with_logits(z, b, pos_weight=w)", f"mean({BCE}(z, b, pos_weight=w))"),
        Row("F.binary_cross_entropy_with_logits(z, b, weight=w)", f"mean({BCE}(z, b, class_weights=w))"),
        Row(
            "F.binary_cross_entropy_with_logits(z, b, weight=w, pos_weight=w)",
            f"mean({BCE}(z, b, class_weights=w, pos_weight=w))",
        ),
        Row(
            "F.binary_cross_entropy_with_logits(z, b, weight=v[:, None])",
            f"mean({BCE}(z, b), weights=v, normalizer=b.size)",
        ),
        Row("nn.BCEWithLogitsLoss(pos_weight=w)(z, b)", f"mean({BCE}(z, b, pos_weight=w))"),
        Row(
            f'{WITH_LOGITS}, reduction="none")[known].mean()',
            f"masked_loss({BCE}, z, b, known, pos_weight=w).mean()",
            note="a mask: over the known labels",
        ),
        Row(
            f"{WITH_LOGITS}, weight=known.float())",
            f"mean({BCE}(z, b, where=known, pos_weight=w))",
            note="a mask: over all labels",
        ),
        Row(
            "F.binary_cross_entropy_with_logits(images, marks, pos_weight=w[:, None, None])",
            f"mean({BCE}(images, marks, axis=1, pos_weight=w))",
            "images",
            "images: `pos_weight` is `[C, 1, 1]` there, `[C]` here",
        ),
        Row("F.binary_cross_entropy(r, b)", "mean(binary_cross_entropy(r, b))", "r"),
        Row("F.binary_cross_entropy(r, t)", "mean(binary_cross_entropy(r, t))", "r"),
        Row("F.binary_cross_entropy(r, b, weight=w)", "mean(binary_cross_entropy(r, b, class_weights=w))", "r"),
        Row('nn.BCELoss(reduction="none")(r, b)', "binary_cross_entropy(r, b)", "r"),
        Row("F.soft_margin_loss(z, sign)", f"mean({BCE}(z, (sign + 1) / 2))"),
        Row("F.multilabel_soft_margin_loss(z, b)", f"mean({BCE}(z, b))"),
        Row("F.multilabel_soft_margin_loss(z, b, weight=w)", f"mean({BCE}(z, b, class_weights=w))"),
        Row('F.multilabel_soft_margin_loss(z, b, reduction="none")', f"{BCE}(z, b).mean(-1)"),
        Row('nn.MultiLabelSoftMarginLoss(reduction="sum")(z, b)', f"{BCE}(z, b).mean(-1).sum()"),
    ],
    "divergence": [
        Row(
            'F.kl_div(F.log_softmax(z, 1), F.softmax(u, 1), reduction="batchmean")',
            "mean(softmax_kl_divergence(z, u))",
        ),
        Row(
            'F.kl_div(F.log_softmax(z, 1), F.log_softmax(u, 1), log_target=True, reduction="batchmean")',
            "mean(softmax_kl_divergence(z, u))",
        ),
        Row(
            '4 * F.kl_div(F.log_softmax(z / 2, 1), F.softmax(u / 2, 1), reduction="batchmean")',
            "4 * mean(softmax_kl_divergence(z, u, temperature=2.0))",
        ),
        Row(
            'F.kl_div(F.log_softmax(u, 1), F.log_softmax(z, 1), log_target=True, reduction="batchmean")',
            'mean(softmax_kl_divergence(z, u, direction="reverse"))',
        ),
        Row(
            'F.kl_div(F.log_softmax(z, 1), t, reduction="batchmean")',
            "mean(softmax_kl_divergence(z, jnp.log(t)))",
        ),
        Row(
            'F.kl_div(F.log_softmax(z, 1), t, reduction="sum")',
            "softmax_kl_divergence(z, jnp.log(t)).sum()",
        ),
        Row(
            'F.kl_div(F.log_softmax(z, 1), t, reduction="none").sum(1)',
            "softmax_kl_divergence(z, jnp.log(t))",
        ),
        Row("nn.KLDivLoss()(F.log_softmax(z, 1), t)", "mean(softmax_kl_divergence(z, jnp.log(t))) / z.shape[-1]"),
    ],
    "linear": [
        Row(
            "F.linear_cross_entropy(h, kernel, y)",
            f"linear_loss({CE}, h, kernel, y, axis=0).mean()",
            "kernel",
        ),
        Row(
            "F.linear_cross_entropy(h, kernel, q, linear_bias=w, ignore_index=-100)",
            f"linear_loss({CE}, h, kernel, q, axis=0, bias=w, where=q != -100).mean()",
            "h",
        ),
        Row(
            "F.linear_cross_entropy(h, kernel, y, weight=w)",
            f"linear_loss({CE}, h, kernel, y, axis=0, weights=w[y]).mean()",
            "h",
        ),
        Row(
            'F.linear_cross_entropy(h, kernel, y, label_smoothing=0.1, reduction="sum")',
            f"linear_loss(partial({CE}, label_smoothing=0.1), h, kernel, y, axis=0).total",
            "kernel",
        ),
    ],
    "margin": [
        Row(
            "F.multilabel_margin_loss(z, ids)",
            'mean(pairwise_ranking_loss(z, b, surrogate="hinge") * b.sum(-1) * (1 - b).sum(-1)) / b.shape[-1]',
            note="`ids`: relevant labels of each row, ended by -1; `b` the same as multi-hot",
        ),
        Row(
            'F.multilabel_margin_loss(z, ids, reduction="none")',
            'pairwise_ranking_loss(z, b, surrogate="hinge") * b.sum(-1) * (1 - b).sum(-1) / b.shape[-1]',
        ),
        Row(
            "F.multi_margin_loss(z, y)",
            'mean(pairwise_ranking_loss(z, y, surrogate="hinge")) * (z.shape[-1] - 1) / z.shape[-1]',
            note="a mean over the wrong classes here, over all there",
        ),
        Row(
            "F.multi_margin_loss(z, y, margin=0.5, weight=w)",
            '0.5 * mean(w[y] * pairwise_ranking_loss(z / 0.5, y, surrogate="hinge")) * (z.shape[-1] - 1) / z.shape[-1]',
        ),
        Row(
            "F.multi_margin_loss(z, y, p=2)",
            "mean(squared_hinge_loss(jnp.sum(z * one_hot, -1, keepdims=True) - z, jnp.ones_like(z), "
            "where=one_hot == 0).mean(-1))",
        ),
        Row(
            "F.margin_ranking_loss(f, g, sign[:, 0], margin=1.0)",
            "mean(multiclass_hinge_loss(jnp.stack([f, g], -1), jnp.where(sign[:, 0] > 0, 0, 1)))",
            "f",
        ),
        Row(
            "F.margin_ranking_loss(f, g, sign[:, 0])",
            "mean(multiclass_hinge_loss(jnp.stack([f, g], -1), jnp.where(sign[:, 0] > 0, 0, 1), margin=0.0))",
            "f",
            "0 is the default there",
        ),
        Row("F.huber_loss(f, g)", "mean(huber_loss(f, g))", "f"),
        Row("F.huber_loss(f, g, delta=0.5)", "mean(huber_loss(f, g, 0.5))", "f"),
        Row('F.huber_loss(f, g, reduction="none")', "huber_loss(f, g)", "f"),
        Row("F.smooth_l1_loss(f, g, beta=0.5)", "mean(huber_loss(f, g, 0.5)) / 0.5", "f"),
    ],
}

ABSENT = {
    "`HingeEmbeddingLoss`, `CosineEmbeddingLoss`, `TripletMarginLoss`, `TripletMarginWithDistanceLoss`": "losses of "
    "distances between embeddings, not of scores of classes",
    "`AdaptiveLogSoftmaxWithLoss`": "a layer with parameters of its own; `linear_loss` keeps the memory of many "
    "classes low with the exact softmax",
    "`CTCLoss`": "a loss of sequences: `optax.losses.ctc_loss`",
    "`L1Loss`, `MSELoss`, `GaussianNLLLoss`, `PoissonNLLLoss`": "regression; `huber_loss` is here for its use on "
    "scores",
}


def names() -> list[str]:
    """The losses of torch.nn and torch.nn.functional."""
    import torch

    functions = [name for name in dir(torch.nn.functional) if re.search("loss|entropy|kl_div", name)]
    return sorted([name for name in dir(torch.nn) if name.endswith("Loss")] + functions)


def versions() -> dict[str, str]:
    import torch

    return {"torch": torch.__version__.split("+")[0]}


def theirs(table: list[Row]) -> Numbers:
    """Values and gradients in float64."""
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch import nn

    return evaluated(table, {"torch": torch, "F": F, "nn": nn})


def evaluated(table: list[Row], library: dict[str, Any]) -> Numbers:
    """Values and gradients in float64 of expressions of torch."""
    import torch

    def derivatives(row: Row) -> tuple[Any, Any]:
        given = {key: torch.tensor(x) for key, x in data().items()}
        by = given[row.by].requires_grad_()
        value = eval(row.theirs, {**library, **given})
        (gradient,) = torch.autograd.grad(value.sum(), by)
        return value.detach().numpy(), gradient.numpy()

    return [derivatives(row) for row in table]
