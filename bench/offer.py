"""What a provider offers: losses by name."""

from collections.abc import Callable
from dataclasses import dataclass

LABELS = {
    "cross-entropy": "ids",
    "cross-entropy, one-hot": "one-hot",
    "cross-entropy, one-hot of ids": "ids",
    "cross-entropy, all options": "ids, weights, mask",
    "focal": "ids",
    "sigmoid cross-entropy": "multi-hot",
    "sigmoid focal": "multi-hot",
    "sparsemax": "ids",
    "entmax15": "ids",
    "poly": "one-hot",
    "generalized": "ids",
    "KL divergence": "logits",
    "asymmetric": "multi-hot",
    "binary sparsemax": "multi-hot",
    "zlpr": "multi-hot",
}
"""The losses, with the labels that each is given. All options: class weights, smoothing, z-loss, a mask of rows."""
GAMMA, ALPHA, SMOOTHING, Z_LOSS = 2.0, 0.25, 0.1, 1e-4
EPSILON, POWER, GAMMA_NEGATIVE, CLIP = 2.0, 0.7, 4.0, 0.05
"""Of poly, generalized cross-entropy and the asymmetric loss: jaxloss's defaults."""


class AbsentError(Exception):
    """A provider cannot run here."""


@dataclass(frozen=True)
class Offer:
    losses: dict[str, Callable]
    """(logits, labels) -> losses or, if `whole`, (x, w, labels) -> their sum."""
    framework: str = "jax"
    whole: bool = False
    heads_only: bool = False
    compiled: bool = False
