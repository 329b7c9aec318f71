"""Writes tests/torch.json, what torch returns: `python -m tests.data_torch`. torch is not needed to run the tests."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812


def main() -> None:
    rng = np.random.default_rng(5)
    z = torch.tensor(rng.normal(size=(6, 4)) * 3, dtype=torch.float64)
    y = torch.tensor(rng.integers(0, 4, 6))
    soft = torch.tensor(rng.dirichlet(np.ones(4), 6))
    multi = torch.tensor(rng.integers(0, 2, (6, 4)), dtype=torch.float64)
    w = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    ignored = y.clone()
    ignored[2] = -100
    p = torch.sigmoid(z)
    log_p, log_t = z.log_softmax(1), (2 * z.flip(0)).log_softmax(1)
    reference = {
        "version": torch.__version__,
        "logits": z.tolist(),
        "ids": y.tolist(),
        "soft": soft.tolist(),
        "multi": multi.tolist(),
        "weights": w.tolist(),
        "none": F.cross_entropy(z, y, reduction="none").tolist(),
        "weight_none": F.cross_entropy(z, y, weight=w, reduction="none").tolist(),
        "weight_mean": F.cross_entropy(z, y, weight=w).item(),
        "smooth_weight_none": F.cross_entropy(z, y, weight=w, label_smoothing=0.2, reduction="none").tolist(),
        "soft_smooth_weight_none": F.cross_entropy(z, soft, weight=w, label_smoothing=0.2, reduction="none").tolist(),
        "smooth_weight_mean": F.cross_entropy(z, y, weight=w, label_smoothing=0.2).item(),
        "soft_weight_mean": F.cross_entropy(z, soft, weight=w).item(),
        "ignore_mean": F.cross_entropy(z, ignored, ignore_index=-100).item(),
        "ignore_weight_mean": F.cross_entropy(z, ignored, weight=w, ignore_index=-100).item(),
        "images": F.cross_entropy(z.T[None], y[None], reduction="none")[0].tolist(),
        "bce_pos_weight": F.binary_cross_entropy_with_logits(z, multi, pos_weight=w, reduction="none").tolist(),
        "multilabel_soft_margin": F.multilabel_soft_margin_loss(z, multi, weight=w, reduction="none").tolist(),
        "bce": F.binary_cross_entropy(p, multi, reduction="none").tolist(),
        "bce_soft": F.binary_cross_entropy(p, soft, reduction="none").tolist(),
        "nll": F.nll_loss(log_p, y, reduction="none").tolist(),
        "nll_weight_mean": F.nll_loss(log_p, y, weight=w).item(),
        "huber": F.huber_loss(z, soft, delta=0.7, reduction="none").tolist(),
        "kl": F.kl_div(log_p, log_t, log_target=True, reduction="none").sum(1).tolist(),
    }
    Path(__file__).with_name("torch.json").write_text(json.dumps(reference, indent=1) + "\n")


if __name__ == "__main__":
    main()
