"""Random valid calls of the losses, for tests/test_properties.py; `JAXLOSS_FUZZ=2000` draws 2000 for each property.

What programs are compiled for comes from a short list, so that they are met again; what they compute on is free. In the
short profile each loss has one number of classes and, beside float32, one dtype; and its options are absent, all there
as arrays, or all there as numbers.
"""

import os
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests import cases, selection

LONG = int(os.environ.get("JAXLOSS_FUZZ", "0"))
ROWS = 4
SIZES = (2, 3, 5) + ((1, 9, 257) if LONG else ())
HALVES = (jnp.bfloat16, jnp.float16)


def few(of) -> tuple[cases.Case, ...]:
    """For what the core does for every loss alike: the short profile draws from one of each kind of formula."""
    return tuple(case for case in of if LONG or case.name in selection.THIN_CASES)


def sizes(case: cases.Case) -> tuple[int, ...]:
    return SIZES if LONG else (SIZES[cases.ALL.index(case) % len(SIZES)],)


def dtypes_of(case: cases.Case, allowed) -> tuple:
    if LONG or len(allowed) == 1:
        return allowed
    half = HALVES[cases.ALL.index(case) % 2]
    return (jnp.float32, jnp.float32, half if half in allowed else jnp.bfloat16)


def examples(count: int = 8):
    """The short profile draws the same calls each time, the long one others."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(
        max_examples=LONG or count, derandomize=not LONG, deadline=None, database=None, suppress_health_check=slow
    )


def _impossible(rng, size):
    z = rng.normal(size=size) * 3
    z[rng.random(size) < 0.4] = -np.inf
    z[rng.integers(size)] = 1.5
    return z


REGIMES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "spread": lambda rng, size: rng.normal(size=size) * 20,
    "far": lambda rng, size: rng.normal(size=size) * 70,
    "tied": lambda rng, size: np.full(size, np.round(rng.normal() * 4)),
    "tied at the top": lambda rng, size: np.minimum(rng.normal(size=size) * 5, 1.0),
    "offset": lambda rng, size: np.round(rng.normal(size=size) * 64) / 64 + 1024,
    "one huge": lambda rng, size: np.where(np.arange(size) == rng.integers(size), 3e4, rng.normal(size=size)),
    "one lost": lambda rng, size: np.where(np.arange(size) == rng.integers(size), -3e4, rng.normal(size=size)),
    "subnormal": lambda rng, size: rng.normal(size=size) * 1e-39,
    "zeros": lambda rng, size: rng.choice([0.0, -0.0], size=size),
    "impossible": _impossible,
}
FINITE = tuple(regime for regime in REGIMES if regime != "impossible")
TAME = ("normal", "tied", "zeros")


@dataclass(frozen=True, eq=False)
class Call:
    """A loss with what it is called with: rows [ROWS, size], whose classes come last."""

    case: cases.Case
    regimes: tuple[str, ...]
    kind: str  # of the labels: "ids", "onehot", "soft" or "multihot"
    dtype: Any
    logits: Any
    labels: Any
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        given = {key: np.asarray(x).tolist() for key, x in self.options.items()}
        return (
            f"{self.case.name}: {self.kind} {self.regimes} {jnp.dtype(self.dtype).name} {given}\n"
            f"logits {np.asarray(self.logits, float).tolist()}\nlabels {np.asarray(self.labels).tolist()}"
        )

    @property
    def size(self) -> int:
        return self.logits.shape[-1]

    @property
    def rng(self):
        return np.random.default_rng(self.seed)

    @property
    def shares(self) -> np.ndarray:
        """The labels as rows."""
        labels = np.asarray(self.labels)
        return np.eye(self.size)[labels] if self.kind == "ids" else labels.astype(float)

    def of(self, kind: str) -> "Call":
        """The same with hard labels in the other kind."""
        labels = self.shares.argmax(-1).astype(np.int32) if kind == "ids" else self.shares.astype(np.float32)
        return replace(self, kind=kind, labels=labels)


def impossible(case: cases.Case) -> float:
    """What says that a class cannot be."""
    return 0.0 if case.name in ("probabilities", "binary_probabilities") else -np.inf


@st.composite
def calls(draw, of=tuple(cases.ALL), kinds=("ids", "onehot", "soft"), regimes=None, dtypes=None, options=False) -> Call:
    case = draw(st.sampled_from(of))
    alone = case.element and "soft" in kinds  # ids say nothing of a single class
    size = draw(st.sampled_from([size for size in sizes(case) if size > 1 or alone]))
    dtype = draw(st.sampled_from(dtypes_of(case, dtypes or (jnp.float32, jnp.float32, *HALVES))))
    kind = draw(st.sampled_from(kinds))
    kind = "onehot" if kind == "ids" and size == 1 else kind
    kind = "multihot" if kind == "soft" and not case.soft else kind
    allowed = TAME if case in cases.PROBABILITIES else FINITE if case in cases.RANKING else tuple(REGIMES)
    if case.name == "multiclass_hinge":  # XLA flushes subnormal numbers, and ties have a slope of their own
        allowed = tuple(regime for regime in allowed if regime != "subnormal")
    allowed = tuple(regime for regime in regimes or allowed if regime in allowed)
    names = tuple(draw(st.lists(st.sampled_from(allowed), min_size=ROWS, max_size=ROWS)))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    rows = np.stack([REGIMES[name](rng, size) for name in names])
    logits = np.asarray(case.link(rows.astype(np.float32))).astype(dtype)
    likely = np.asarray(logits, np.float32) > impossible(case)
    if kind in ("ids", "onehot"):
        ids = np.array([rng.choice(np.flatnonzero(row)) for row in likely])
        labels = ids.astype(np.int32) if kind == "ids" else np.eye(size, dtype=np.float32)[ids]
    elif kind == "multihot" or (case.element and rng.random() < 0.5):
        labels = rng.integers(0, 2, rows.shape).astype(np.float32) * likely
    else:
        share = rng.dirichlet(np.full(size, 0.5), ROWS) * likely
        labels = (share / share.sum(-1, keepdims=True)).astype(np.float32)
    call = Call(case, names, kind, dtype, logits, labels, seed)
    return replace(call, options=_options(call, draw)) if options else call


def _options(call: Call, draw) -> dict[str, Any]:
    """Any of the options that the loss has, as numbers, traced scalars or one of each class."""
    rng, found = call.rng, {}
    drawn = {
        "class_weights": rng.uniform(0.25, 4, call.size).astype(np.float32),
        "label_margins": rng.uniform(-1, 2, call.size).astype(np.float32),
        "label_smoothing": np.float32(rng.uniform(0.01, 0.9)),
        "z_loss": np.float32(rng.uniform(1e-4, 0.5)),
    }
    given = {key: value for key, value in call.case.takes(**drawn).items() if key not in call.case.options}
    if not LONG:
        form = draw(st.sampled_from(["none", "arrays", "numbers"]))
        return {} if form == "none" else {key: _number(x) if form == "numbers" else x for key, x in given.items()}
    for key, value in given.items():
        if draw(st.booleans()):
            found[key] = _number(value) if draw(st.booleans()) else value
    return found


def _number(value):
    return value if np.ndim(value) else float(value)


@st.composite
def masks(draw, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(shape) < draw(st.sampled_from([0.2, 0.6, 0.9]))
