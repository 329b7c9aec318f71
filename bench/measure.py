"""Interleaved timing: every provider once per round, so that a slow moment of the machine hits all of them."""

import time
from collections.abc import Callable, Iterator

import jax
import numpy as np


def interleaved(programs: dict[str, Callable[[], object]], seconds: float, warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds of every call, by provider, in rounds until `seconds` have passed (five rounds at least)."""
    samples: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(warm_up):
        for program in programs.values():
            jax.block_until_ready(program())
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(next(iter(samples.values()))) < 5:
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program())
            samples[name].append(time.perf_counter() - begin)
    return samples


def result_rows(
    question: str,
    shape: str,
    dtype: str,
    samples: dict[str, list[float]],
    programs: dict[str, jax.stages.Compiled],
    floor: str,
    peer: Callable[[str], str],
) -> Iterator[dict]:
    """A row of results by provider; `peer` names the one that it is compared with; `programs` are those of XLA."""
    medians = {name: float(np.median(times)) for name, times in samples.items()}
    for name, times in samples.items():
        program = programs.get(name)
        yield {
            "question": question,
            "provider": name,
            "shape": shape,
            "dtype": dtype,
            **percentiles(times),
            "to_optax": medians[name] / medians[peer(name)],
            "to_floor": medians[name] / medians[floor],
            "temporary_mb": program.memory_analysis().temp_size_in_bytes / 1e6 if program else "-",
            "samples": times,
        }


def percentiles(samples: list[float]) -> dict[str, float]:
    """p20, p50 and p80 in milliseconds."""
    return {f"p{p}": float(np.percentile(samples, p) * 1e3) for p in (20, 50, 80)}
