"""Worst errors in units of the last place, by loss, dtype and regime: `python -m tests.accuracy` writes the table.

The promise is 4 + d units for the value and for every entry of the gradient, d being the spread of the row's logits: as
if each logit had been moved by no more than its own rounding. A loss that holds the k-th power of a probability (gamma
of focal loss, q of generalized cross-entropy) answers 1 + k times as steeply to that. A margin lowers a logit: d has it
added.
"""

import csv
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from tests import cases, oracle

KINDS = [
    *((case, kind) for case in cases.CLASSES for kind in ("ids", "one-hot")),
    *((case, "binary") for case in cases.SIGMOID),
    *((case, "multi-hot") for case in cases.RANKING),
]

ROWS = 1000


class Error(NamedTuple):
    """Worst units of the last place of a regime, and the worst ratio of them to the promise."""

    regime: str
    value: float
    label_gradient: float
    gradient: float
    ratio: float


def spread(case: cases.Case, logits: np.ndarray) -> np.ndarray:
    """Of each row; with a 0 in it where a constant added to the row changes the loss, for 0 is the other side then."""
    rows = logits if case.shift_invariant else np.concatenate([logits, np.zeros_like(logits[..., :1])], -1)
    finite = np.where(np.isfinite(rows), rows, np.nan)
    return np.nanmax(finite, -1) - np.nanmin(finite, -1)


def promise(case: cases.Case, d: np.ndarray) -> np.ndarray:
    return (1 + case.exponent) * (4 + d + abs(case.options.get("label_margins", 0)))


def size(kind: str) -> int:
    """Classes of the rows here."""
    return 8 if kind == "multi-hot" else 10


def results(case: cases.Case, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradients of any number of rows, by one program that takes `ROWS` of them."""
    count = len(logits)
    logits, labels = (np.resize(x, (count + -count % ROWS, *x.shape[1:])) for x in (logits, labels))
    blocks = [slice(start, start + ROWS) for start in range(0, len(logits), ROWS)]
    found = [[np.asarray(x) for x in case.run(logits[block], labels[block])] for block in blocks]
    values, gradients = (np.concatenate(x)[:count] for x in zip(*found, strict=True))
    return values, gradients


def row_errors(case: cases.Case, dtype, kind: str = "ids") -> Iterator:
    """Errors of a loss of rows in every regime, for ids, their one-hot rows or several labels a row."""
    rng, classes, dtype = np.random.default_rng(7), size(kind), jnp.dtype(dtype)
    regimes = cases.multilabel_rows(rng, classes) if kind == "multi-hot" else cases.structured_rows(rng, classes)
    out = np.float64 if dtype == jnp.float64 else np.float32
    for regime, (logits, labels) in regimes.items():
        z = logits.astype(dtype)
        onehot = np.eye(classes)[labels] if labels.ndim == 1 else labels
        values, gradients = results(case, z, labels.astype(np.int32) if kind == "ids" else onehot.astype(np.float32))
        wide = z.astype(np.float64)
        exact = [case.row(row, label) for row, label in zip(wide, onehot, strict=True)]
        units = absolute_error if case.sparse else oracle.ulp_error
        errors = np.array([units(g, e[1], dtype) for g, e in zip(gradients, exact, strict=True)])
        value_errors = units(values, [e[0] for e in exact], out)
        ratio = np.maximum(errors.max(1), value_errors) / promise(case, spread(case, wide))
        yield Error(regime, value_errors.max(), errors[onehot > 0].max(initial=0), errors.max(), ratio.max())


def absolute_error(got, exact, dtype) -> np.ndarray:
    """|got - exact| in units of eps, or of the exact value's eps where that is above 1.

    The gradient p - t of a sparse loss L has exact zeros, near which only an absolute error means anything, and L is a
    sum of squares of p - t: an error of p changes it by that times sqrt(L).
    """
    got, exact = np.asarray(got, np.float64), np.array([float(x) for x in exact])
    return np.abs(got - exact) / (np.maximum(np.abs(exact), 1) * float(ml_dtypes.finfo(dtype).eps))


def element_errors(case: cases.Case, dtype) -> Iterator:
    """Errors of an elementwise loss over logits of either sign and every size."""
    magnitudes = {"below 1": (0, 1), "1 to 10": (1, 10), "10 to 40": (10, 40), "40 to 86": (40, 86)}
    rng, dtype = np.random.default_rng(8), jnp.dtype(dtype)
    for regime, (low, high) in magnitudes.items():
        z = (rng.uniform(low, high, 120) * rng.choice([-1, 1], 120)).astype(dtype)
        t = rng.integers(0, 2, 120)
        values, gradients = results(case, z.reshape(12, 10), t.reshape(12, 10).astype(np.float32))
        wide = z.astype(np.float64)
        exact = [case.element(a, b) for a, b in zip(wide, t, strict=True)]
        out = np.float64 if dtype == jnp.float64 else np.float32
        value = oracle.ulp_error(values, [e[0] for e in exact], out)
        gradient = oracle.ulp_error(gradients, [e[1] for e in exact], dtype)
        ratio = (np.maximum(value, gradient) / promise(case, np.abs(wide))).max()
        yield Error(regime, value.max(), gradient.max(), gradient.max(), ratio)


COLUMNS = ("loss", "labels", "dtype", "regime", "value", "label's gradient", "any gradient", "share")
FILE = Path(__file__).parents[1] / "docs" / "measurements" / "accuracy.csv"


def table() -> list[dict[str, str]]:
    """A row for each loss with its options, kind of labels, dtype and regime."""
    rows = []
    for dtype in ("float32", "bfloat16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            for case, kind in KINDS:
                found = element_errors(case, jnp.dtype(dtype)) if kind == "binary" else row_errors(case, dtype, kind)
                rows += [_row(case, kind, dtype, e) for e in found]
    return rows


def _row(case, labels: str, dtype: str, e: Error) -> dict[str, str]:
    option = "".join(f", {k} {v if isinstance(v, str) else format(v, 'g')}" for k, v in case.options.items())
    figures = (f"{x:.1f}" for x in (e.value, e.label_gradient, e.gradient))
    name = f"{case.loss.__name__}{option}"
    return dict(zip(COLUMNS, (name, labels, dtype, e.regime, *figures, f"{e.ratio:.2f}"), strict=True))


def write(rows: list[dict[str, str]], file: Path = FILE, made: str = "") -> None:
    """The table as a CSV file, and beside it the page with its summary."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    file.with_suffix(".md").write_text(PAGE.format(made=made, summary=summary(rows)))


def read(file: Path = FILE) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def summary(rows: list[dict[str, str]]) -> str:
    """By loss: the worst of all kinds of labels and regimes, as Markdown."""
    lines = [
        "| loss | value | gradient | share, float32 | share, bfloat16 | share, float64 |",
        "|---|---|---|---|---|---|",
    ]
    for loss in dict.fromkeys(row["loss"] for row in rows):
        of_loss = [row for row in rows if row["loss"] == loss]
        worst = [_worst(of_loss, "float32", x) for x in ("value", "any gradient")]
        shares = [_worst(of_loss, dtype, "share") for dtype in ("float32", "bfloat16", "float64")]
        name, comma, option = loss.partition(",")
        lines.append(f"| `{name}`{comma}{option} | " + " | ".join(worst + shares) + " |")
    return "\n".join(lines)


def _worst(rows: list[dict[str, str]], dtype: str, column: str) -> str:
    return max((row[column] for row in rows if row["dtype"] == dtype), key=float)


PAGE = """# Accuracy

Worst errors in units of the last place of the exact result (mpmath, 250 digits), made by `python -m tests.accuracy` on
{made}.

The promise is (1 + k) (4 + d): d is the spread of a row's logits (with a 0 among them, where a constant
added to the row changes the loss; more by the size of a margin), k the power of a probability that the loss holds
(gamma, q), else 0. It says that results are as exact as if each logit had been moved by no more than its own rounding.
`share` is the worst error as a share of the promise: below 1, the promise is kept. Values of half-precision logits are
float32, gradients are rounded once to the dtype of the logits. Errors of sparse losses are units of eps: their
gradients have exact zeros.

The table has the worst over all regimes (rows of unit spread, of spread 20 and 80, far from 0, tied, with one huge
logit, masked) and kinds of labels; value and gradient are those in float32.
{{download}}`The full table <accuracy.csv>` has a line for each dtype, regime and kind of labels.

{summary}
"""


if __name__ == "__main__":
    made = f"{platform.machine()} CPU with jax {jax.__version__}, Python {platform.python_version()}"
    write(table(), Path(sys.argv[1]) if len(sys.argv) > 1 else FILE, made)
