"""Cases and programs, the check that programs agree, and interleaved timing.

Every program of a case runs once per round, so that a slow moment of the machine hits all of them, and in another order
each time, since the program before leaves its traces in caches and in memory.
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

FLOOR = "floor"
REFERENCES = ("optax", "plain JAX", "torch eager")
TOLERANCE = {"float32": 2e-4, "bfloat16": 5e-2}
"""Of the largest entry: sums of up to 1e5 rows in another order; peers that round every step to bfloat16."""
MOST_ROUNDS = 300
COMPARED = 2**24


class DisagreementError(Exception):
    """Providers compute other numbers than the reference of the same loss; they are not timed, but the others are."""

    def __init__(self, reasons: list[str], rows: list[dict]):
        super().__init__("\n".join(reasons))
        self.rows = rows


@dataclass(frozen=True)
class Program:
    """What a provider runs for a loss; providers of one library start with the same word."""

    loss: str
    provider: str
    call: Callable[[], Any]
    """Returns (value, gradient or None), which may still be computed: `wait` waits for them."""
    compiled: jax.stages.Compiled | None = None
    label_bytes: int = 0
    moved: float | None = None
    """Bytes that its kernels read and write, counted in the compiled program."""

    @property
    def library(self) -> str:
        return self.provider.split(maxsplit=1)[0]


@dataclass(frozen=True)
class Case:
    """Programs to be timed against each other, built when the case is reached."""

    question: str
    shape: str
    rows: int
    classes: int
    dtype: str
    mode: str
    build: Callable[[], list[Program]]
    traffic: float = 0
    """Bytes that memory must move beside the labels, and `flops` of products: what the limit is computed from."""
    flops: float = 0
    seconds: float = 2
    rounds: int = 5
    """At least."""
    calls: int = 1
    """Started one after the other before the last is waited for; a sample is the time of one."""
    sweep: str | None = None

    def measure(self) -> list[dict]:
        """A row of results for each program. Raises `DisagreementError` with those of programs that agree."""
        programs = self.build()
        refused = disagreements(programs, self.dtype)
        programs = [p for n, p in enumerate(programs) if n not in refused]
        samples = interleaved([p.call for p in programs], self.seconds, self.rounds, started=self.calls)
        same = ("question", "shape", "rows", "classes", "dtype", "mode", "flops", "sweep")
        rows = [
            {
                **{name: getattr(self, name) for name in same},
                "traffic": self.traffic + program.label_bytes,
                "loss": program.loss,
                "provider": program.provider,
                "library": program.library,
                **percentiles(times),
                "temporary_mb": _temporary_mb(program.compiled),
                "moved": program.moved,
                "samples": [float(f"{t:.4g}") for t in times],
            }
            for program, times in zip(programs, samples, strict=True)
        ]
        if refused:
            raise DisagreementError([f"{reason} ({self.shape}, {self.dtype})" for reason in refused.values()], rows)
        return rows


def disagreements(programs: list[Program], dtype: str) -> dict[int, str]:
    """Those programs, by their place, whose value or gradient differs from those of the reference of the same loss."""
    found = {}
    for loss in dict.fromkeys(p.loss for p in programs if p.loss != FLOOR):
        same = {p.provider: n for n, p in enumerate(programs) if p.loss == loss}
        reference = next((name for name in REFERENCES if name in same), next(iter(same)))
        expected = _numbers(programs[same.pop(reference)].call())
        for name, place in same.items():
            difference = _difference(_numbers(programs[place].call()), expected, TOLERANCE[dtype])
            if difference:
                found[place] = f"{name}: {loss} differs from that of {reference}: {difference}"
    return found


def _difference(got: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> str | None:
    if len(got) != len(expected):
        return f"{len(got)} results for {len(expected)}"
    for quantity, a, b in zip(["value", *["gradient"] * len(got)], got, expected, strict=False):
        worst = np.max(np.abs(a - b)) / (np.max(np.abs(b)) or 1) if a.shape == b.shape else np.inf
        if not worst <= tolerance:
            return f"{quantity} by {worst:.2g} of its largest entry, more than {tolerance:g}"
    return None


def _numbers(result: Any) -> list[np.ndarray]:
    """Value and gradients in float32, of JAX or torch, on the host; of large ones the first `COMPARED` entries."""
    leaves = jax.tree.leaves(result)
    leaves = [x.reshape(-1)[:COMPARED] if math.prod(x.shape) > COMPARED else x for x in leaves]
    return [np.asarray(x.detach().float().cpu() if hasattr(x, "detach") else x, np.float32) for x in leaves]


def wait(result: Any) -> None:
    jax.block_until_ready(result)
    if any(getattr(x, "is_cuda", False) for x in jax.tree.leaves(result)):
        import torch

        torch.cuda.synchronize()


def interleaved(
    calls: list[Callable[[], Any]], seconds: float, rounds: int = 5, warm_up: int = 1, started: int = 1
) -> list[list[float]]:
    """Seconds of every call, in rounds until `seconds` have passed, from `rounds` to `MOST_ROUNDS` of them."""
    samples: list[list[float]] = [[] for _ in calls]
    turns, order = list(zip(calls, samples, strict=True)), random.Random(0)
    for _ in range(warm_up):
        for call in calls:
            wait(call())
    start = time.perf_counter()
    while len(samples[0]) < rounds or (time.perf_counter() - start < seconds and len(samples[0]) < MOST_ROUNDS):
        order.shuffle(turns)
        for call, times in turns:
            begin = time.perf_counter()
            for _ in range(started - 1):
                call()
            wait(call())
            times.append((time.perf_counter() - begin) / started)
    return samples


def percentiles(samples: list[float]) -> dict[str, float]:
    """p20, p50 and p80 in milliseconds."""
    return {f"p{p}": float(np.percentile(samples, p) * 1e3) for p in (20, 50, 80)}


def _temporary_mb(compiled: jax.stages.Compiled | None) -> float | None:
    analysis = compiled.memory_analysis() if compiled else None
    return analysis.temp_size_in_bytes / 1e6 if analysis else None


def add_ratios(rows: list[dict], rates: dict[str, dict[str, float]]) -> None:
    """Adds what each median is compared with: optax, the best other library, the floor, and the machine's limit."""
    for row in rows:
        beside = [r for r in rows if all(r[k] == row[k] for k in ("question", "shape", "dtype", "mode", "sweep"))]
        peers = [r for r in beside if r["loss"] == row["loss"] != FLOOR and r["library"] != row["library"]]
        best = min(peers, key=lambda r: r["p50"], default=None)
        row["peer"] = best and best["provider"]
        row["to_peer"] = best and row["p50"] / best["p50"]
        row["to_optax"] = _ratio(row, [r for r in beside if r["loss"] == row["loss"] and r["provider"] == "optax"])
        row["to_floor"] = _ratio(row, [r for r in beside if r["loss"] == FLOOR])
        rate = rates[row["dtype"]]
        copy = max(r["copy_bytes_per_s"] for r in rates.values())  # of bytes, whatever they mean
        limit = max(row["traffic"] / copy, row["flops"] / rate["product_flops_per_s"])
        row["to_limit"] = row["p50"] / (limit * 1e3) if limit else None


def _ratio(row: dict, others: list[dict]) -> float | None:
    return row["p50"] / others[0]["p50"] if others else None
