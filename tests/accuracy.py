"""Worst errors in units of the last place, by loss, dtype and regime: `python -m tests.accuracy` writes the table.

The promise is 4 + d units for the value and for every entry of the gradient, d being the spread of the row's logits: as
if each logit had been moved by no more than its own rounding. A loss that holds the k-th power of a probability (gamma
of focal loss, q of generalized cross-entropy) answers 1 + k times as steeply to that.
"""

import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from tests import cases, oracle


class Error(NamedTuple):
    """Worst units of the last place of a regime, and the worst ratio of them to the promise."""

    regime: str
    value: float
    label_gradient: float
    gradient: float
    ratio: float


def spread(logits: np.ndarray) -> np.ndarray:
    finite = np.where(np.isfinite(logits), logits, np.nan)
    return np.nanmax(finite, -1) - np.nanmin(finite, -1)


def promise(case, d: np.ndarray) -> np.ndarray:
    return (1 + case.exponent) * (4 + d)


def softmax_errors(case: cases.SoftmaxCase, dtype, onehot: bool = False, size: int = 10, rows: int = 4) -> Iterator:
    """Errors of a softmax loss in every regime, for ids or their one-hot rows."""
    for regime, (logits, ids) in cases.structured_rows(np.random.default_rng(7), size, rows).items():
        z = jnp.asarray(logits, dtype)
        labels = jnp.asarray(np.eye(size)[ids] if onehot else ids, jnp.float32 if onehot else jnp.int32)
        values, gradients = jaxloss.per_example_value_and_grad(case.call)(z, labels)
        out = np.float64 if dtype == jnp.float64 else np.float32
        exact_values, worst, worst_label, ratio = [], 0.0, 0.0, 0.0
        for row, label, gradient in zip(np.asarray(z, np.float64), ids, np.asarray(gradients, np.float64), strict=True):
            u = oracle.shares(label, size)
            value, exact, _ = oracle.softmax_row(row, u, case.phi, case.value)
            exact_values.append(value)
            errors = oracle.ulp_error(gradient, exact, dtype)
            worst, worst_label = max(worst, errors.max()), max(worst_label, errors[label])
            ratio = max(ratio, errors.max() / promise(case, spread(row)))
        value_errors = oracle.ulp_error(values, exact_values, out)
        ratio = max(ratio, (value_errors / promise(case, spread(np.asarray(z, np.float64)))).max())
        yield Error(regime, value_errors.max(), worst_label, worst, ratio)


def sigmoid_errors(case: cases.SigmoidCase, dtype) -> Iterator:
    """Errors of a sigmoid loss over logits of either sign and every size."""
    magnitudes = {"below 1": (0, 1), "1 to 10": (1, 10), "10 to 40": (10, 40), "40 to 86": (40, 86)}
    rng = np.random.default_rng(8)
    for regime, (low, high) in magnitudes.items():
        z = jnp.asarray(rng.uniform(low, high, 120) * rng.choice([-1, 1], 120), dtype)
        t = rng.integers(0, 2, 120)
        values, gradients = jaxloss.per_example_value_and_grad(case.call)(z, jnp.asarray(t))
        exact = [case.exact(a, b) for a, b in zip(np.asarray(z, np.float64), t, strict=True)]
        out = np.float64 if dtype == jnp.float64 else np.float32
        value = oracle.ulp_error(values, [e[0] for e in exact], out)
        gradient = oracle.ulp_error(gradients, [e[1] for e in exact], dtype)
        ratio = (np.maximum(value, gradient) / promise(case, np.abs(np.asarray(z, np.float64)))).max()
        yield Error(regime, value.max(), gradient.max(), gradient.max(), ratio)


def table() -> str:
    """The whole table as Markdown."""
    lines = [
        "# Accuracy",
        "",
        "Worst errors in units of the last place of the exact result (mpmath, 250 digits), made by",
        f"`python -m tests.accuracy` on {platform.machine()} CPU with jax {jax.__version__}, Python "
        f"{platform.python_version()}.",
        "",
        "The promise is (1 + k) (4 + d): d is the spread of a row's logits, k the power of a probability that the",
        "loss holds (gamma, q), else 0. It says that results are as exact as if each logit had been moved by no more",
        "than its own rounding. `share` is the worst error as a share of the promise. Values of half-precision logits",
        "are float32, gradients are rounded once to the dtype of the logits.",
        "",
        "| loss | labels | dtype | regime | value | label's gradient | any gradient | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dtype in ("float32", "bfloat16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            for case in cases.SOFTMAX:
                for onehot in (False, True):
                    for e in softmax_errors(case, jnp.dtype(dtype), onehot):
                        lines.append(_row(case, "one-hot" if onehot else "ids", dtype, e))
            for case in cases.SIGMOID:
                for e in sigmoid_errors(case, jnp.dtype(dtype)):
                    lines.append(_row(case, "binary", dtype, e))
    return "\n".join(lines) + "\n"


def _row(case, labels: str, dtype: str, e: Error) -> str:
    option = f" ({case.parameter} {case.value:g})" if getattr(case, "parameter", None) else ""
    option = option or "".join(f", {k} {v:g}" for k, v in getattr(case, "options", {}).items())
    figures = " | ".join(f"{x:.1f}" for x in (e.value, e.label_gradient, e.gradient))
    return f"| `{case.loss.__name__}`{option} | {labels} | {dtype} | {e.regime} | {figures} | {e.ratio:.2f} |"


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/accuracy.md")
    path.write_text(table())
