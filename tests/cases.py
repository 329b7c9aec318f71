"""The registry: every loss with its oracle. A property is tested once, over all of them."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests import oracle


class SoftmaxCase(NamedTuple):
    """A loss of one class among C; `parameter` names the option of its scalar function."""

    name: str
    loss: Callable
    phi: oracle.Phi
    parameter: str | None = None
    value: float | None = None

    @property
    def exponent(self) -> float:
        """Of the power of a probability that the loss holds."""
        return (self.value or 0) if self.parameter in ("gamma", "q") else 0

    @property
    def call(self) -> Callable:
        """The loss with its parameter set."""
        return partial(self.loss, **({self.parameter: self.value} if self.parameter else {}))


SOFTMAX = [
    SoftmaxCase("cross_entropy", jaxloss.softmax_cross_entropy, oracle.cross_entropy),
    SoftmaxCase("integer_labels", jaxloss.softmax_cross_entropy_with_integer_labels, oracle.cross_entropy),
    SoftmaxCase("focal_half", jaxloss.softmax_focal_loss, oracle.focal, "gamma", 0.5),
    SoftmaxCase("focal_2", jaxloss.softmax_focal_loss, oracle.focal, "gamma", 2.0),
    SoftmaxCase("poly", jaxloss.poly_loss_cross_entropy, oracle.poly, "epsilon", 2.0),
    SoftmaxCase("generalized", jaxloss.generalized_cross_entropy, oracle.generalized_cross_entropy, "q", 0.7),
]


class SigmoidCase(NamedTuple):
    """An elementwise loss with the options that its oracle takes, too."""

    name: str
    loss: Callable
    options: dict
    oracle: Callable = oracle.sigmoid_element

    @property
    def exact(self) -> Callable:
        """The oracle's loss and derivative, of logit and label."""
        return partial(self.oracle, **self.options)

    @property
    def exponent(self) -> float:
        """Of the power of a probability that the loss holds."""
        return max(value for key, value in [*self.options.items(), ("gamma", 0)] if "gamma" in key)

    @property
    def call(self) -> Callable:
        return partial(self.loss, **self.options)


SIGMOID = [
    SigmoidCase("binary", jaxloss.sigmoid_binary_cross_entropy, {}),
    SigmoidCase("binary_pos_weight", jaxloss.sigmoid_binary_cross_entropy, {"pos_weight": 3.0}),
    SigmoidCase("binary_focal_half", jaxloss.sigmoid_focal_loss, {"gamma": 0.5}),
    SigmoidCase("binary_focal_2", jaxloss.sigmoid_focal_loss, {"gamma": 2.0, "alpha": 0.25}),
    SigmoidCase(
        "asymmetric",
        jaxloss.asymmetric_loss,
        {"gamma_positive": 1.0, "gamma_negative": 4.0, "clip": 0.0},
        oracle.asymmetric_element,
    ),
    SigmoidCase("modified_huber", jaxloss.modified_huber_loss, {}, oracle.modified_huber_element),
    SigmoidCase("squared_hinge", jaxloss.squared_hinge_loss, {}, oracle.squared_hinge_element),
]

softmax_cases = pytest.mark.parametrize("case", SOFTMAX, ids=lambda case: case.name)
sigmoid_cases = pytest.mark.parametrize("case", SIGMOID, ids=lambda case: case.name)
all_cases = pytest.mark.parametrize("case", [*SOFTMAX, *SIGMOID], ids=lambda case: case.name)


def logits_for(case, rng, rows: int = 6, size: int = 5, scale: float = 3.0) -> jax.Array:
    """Logits [rows, size] for either kind of case."""
    return jnp.asarray(rng.normal(size=(rows, size)) * scale, jnp.float32)


def labels_for(case, rng, kind: str = "ids", rows: int = 6, size: int = 5) -> jax.Array:
    """Labels of a kind: "ids", "onehot" (the same ids), "soft" or, for sigmoid losses, "multihot"."""
    ids = rng.integers(0, size, rows)
    if kind == "ids":
        return jnp.asarray(ids, jnp.int32)
    if kind == "onehot":
        return jnp.asarray(np.eye(size)[ids], jnp.float32)
    if kind == "multihot":
        return jnp.asarray(rng.integers(0, 2, (rows, size)), jnp.int32)
    return jnp.asarray(rng.dirichlet(np.ones(size), rows), jnp.float32)


def structured_rows(rng, size: int = 10, rows: int = 4) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and ids by regime: what training meets, and what breaks peers."""
    normal = rng.normal(size=(rows, size)).astype(np.float32)
    ids = rng.integers(0, size, rows)
    best = normal.argmax(1)
    huge = normal.copy()
    huge[:, 0] = 1e5
    masked = normal.copy()
    masked[:, 1::2] = -np.inf
    tied = np.repeat(np.round(normal[:, :1] * 4), size, 1).astype(np.float32)
    two_tied = normal.copy()
    two_tied[:, 0] = two_tied[:, 1] = 8.0
    return {
        "unit": (normal, ids),
        "spread 20, any label": (normal * 20, ids),
        "spread 20, right": (normal * 20, best),
        "spread 80, right": (normal * 80, best),
        "offset 1e4": (np.round(normal * 64) / 64 + np.float32(1e4), ids),
        "offset 1e6": (np.round(normal * 8) / 8 + np.float32(1e6), best),
        "all tied": (tied, ids),
        "two tied at the top": (two_tied, np.zeros(rows, int)),
        "one huge, right": (huge, np.zeros(rows, int)),
        "one huge, wrong": (huge, np.ones(rows, int)),
        "masked": (masked, np.zeros(rows, int)),
    }
