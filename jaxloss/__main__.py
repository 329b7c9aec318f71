"""A check of the promises on the device at hand, and the speed of three losses there: `python -m jaxloss`.

Every loss is compared with textbook formulas that NumPy evaluates on the host, in several regimes and dtypes. The error
of a value or of a gradient entry is to be at most (1 + k) (4 + d) units in the last place, d being the spread of the
row's logits and k the power of a probability in the loss (docs/measurements/numerics.md). Exit status 1 if a promise is
broken.
"""

import argparse
import functools
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from jaxloss import _check as check
from jaxloss import _speed
from jaxloss._check import CLASSES, Case, Wide, data

MANY = (32768, 2)  # classes, and rows of a regime: reductions of long rows take other paths
UNITS = """Worst errors of value and gradient in units in the last place (in eps for exact zeros), beside the most
that is promised, and the rows where they came nearest to it: unit normal, spread 20 (normal logits of that standard
deviation; right: labeled by the largest), offset 1e4 (added to every logit), masked (logits of -inf), confident."""
HEADER = ("loss", "labels", "dtype", "value", "promised", "gradient", "promised", "worst in", "")
LINE = "{:<37} {:<9} {:<8} {:>6} {:>8} {:>8} {:>8}  {:<16} {}"
VERDICT = ("BROKEN", "ok")
NUMBERS = ("value", "value_promise", "gradient", "gradient_promise")


class Outcome(NamedTuple):
    """Of a loss: what it was given, in the widest floats, and what it returned."""

    z: np.ndarray
    t: np.ndarray
    values: np.ndarray
    gradients: np.ndarray


@functools.cache
def program(case: Case) -> Callable[..., Any]:
    return jax.jit(jaxloss.per_example_value_and_grad(case.loss))


def wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64).astype(Wide)  # bfloat16 has no way to the widest floats but this


def arguments(case: Case, kind: str, dtype: str, *size: int) -> tuple[np.ndarray, np.ndarray]:
    found = data(dtype, *size)
    z = found.logits if case.link is None else case.link(found.logits)
    return z.astype(jnp.dtype(dtype)), found.labels[kind].copy()


@functools.cache
def outcome(case: Case, kind: str, dtype: str, *size: int) -> Outcome:
    z, labels = arguments(case, kind, dtype, *size)
    t = wide(data(dtype, *size).labels["one-hot"] if kind == "ids" else labels)
    return Outcome(wide(z), t, *map(np.asarray, program(case)(z, labels)))


def units(got: np.ndarray, exact: np.ndarray, scale: np.ndarray, absolute: bool = False, adds: bool = False):
    """Errors in units in the last place of `scale`; if absolute, in eps, or in the eps of an exact value above 1."""
    info = jnp.finfo(got.dtype)
    exponent = np.frexp(np.where((scale > 0) & (scale < np.inf), scale, 1))[1] - 1
    unit = np.maximum(np.abs(exact), 1) * float(info.eps) if absolute else np.ldexp(Wide(1), exponent - info.nmant)
    error = np.abs(wide(got) - exact)
    # XLA flushes subnormal numbers: a result below 16 times the least normal number may be 0; of a sum, a term below
    # the least normal number of the dtype of the computation may be left out.
    tiny, term = 16 * float(info.tiny), float(jnp.finfo(np.promote_types(got.dtype, np.float32)).tiny)
    lost = ((scale < tiny) & (error < tiny)) | (adds & (error < term))
    forgiven = (wide(got) == exact) | lost | (scale == np.inf)
    return np.where(forgiven, 0, np.where(np.isnan(error), np.inf, error / unit))


def rounded_once(bound: np.ndarray, dtype: Any, roundings: float = 0.5) -> np.ndarray:
    """A bound of a gradient that was computed in float32, in units of the half-precision dtype it is rounded to."""
    share = float(jnp.finfo(jnp.float32).eps) / float(jnp.finfo(dtype).eps)
    return bound if share >= 1 else roundings + bound * share


def accuracy(case: Case, kind: str, dtype: str, *size: int) -> Iterator[dict]:
    """A result for each regime."""
    found = outcome(case, kind, dtype, *size)
    values, gradients, scale = case.formula(found.z, found.t)
    bound = case.promise(found.z)
    value_units = units(found.values, values, np.abs(values), case.absolute).reshape(len(bound), -1).max(-1)
    gradient_units = units(found.gradients, gradients, scale, case.absolute, case.adds).max(-1)
    gradient_bound = rounded_once(bound, dtype)
    types = found.values.dtype == np.promote_types(found.gradients.dtype, np.float32) and found.gradients.dtype == dtype
    regimes = data(dtype, *size).regimes
    for regime in dict.fromkeys(regimes):
        rows = np.flatnonzero(regimes == regime)
        v, g = (rows[np.argmax((e / b)[rows])] for e, b in ((value_units, bound), (gradient_units, gradient_bound)))
        name = f"{case}, {size[0]} classes" if size else str(case)
        numbers = (value_units[v], bound[v], gradient_units[g], gradient_bound[g])
        yield result((name, kind, dtype, str(regime)), numbers, types)


def result(head: tuple[str, str, str, str], numbers: Sequence[Any], types: bool = True) -> dict:
    named = dict(zip(("loss", "labels", "dtype", "regime", *NUMBERS), (*head, *map(float, numbers)), strict=True))
    share = max(numbers[0] / numbers[1], numbers[2] / numbers[3])
    return {**named, "share": float(share), "ok": bool(types and share <= 1)}


def linear(dtype: str) -> dict:
    """`linear_loss` in chunks: factors on a grid, so that the logits are exact where products are in full precision."""
    rng = np.random.default_rng(1)
    factors = [rng.integers(-6, 7, size) / 4 for size in ((24, 16), (16, 40))]
    ids = rng.integers(0, 40, 24)

    def total(*layer):
        return jaxloss.linear_loss(jaxloss.softmax_cross_entropy, *layer, chunk_rows=7, precision="highest").total

    run = jax.jit(jax.value_and_grad(total, (0, 1)))
    found, gradients = run(*(x.astype(jnp.dtype(dtype)) for x in factors), ids.astype(np.int32))
    h, w = map(wide, factors)
    losses, dz, _ = check.softmax_loss(check.cross_entropy, h @ w, wide(ids[:, None] == np.arange(40)))
    bound = 4 + np.ptp(h @ w, axis=-1).max() + 40  # a sum of n terms adds n roundings
    value = units(np.asarray(found), losses.sum(), losses.sum()).item()
    expected = (dz @ w.T, np.abs(dz) @ np.abs(w.T)), (h.T @ dz, np.abs(h.T) @ np.abs(dz))
    worst = max(units(np.asarray(g), *pair).max() for g, pair in zip(gradients, expected, strict=True))
    # Half precision rounds dz, and then what it is multiplied to.
    return result(("linear_loss", "ids", dtype, "chunks"), (value, bound, worst, rounded_once(bound, dtype, 1.5)))


def accuracies() -> Iterator[list[dict]]:
    """The results of each loss, kind of labels and dtype, regime by regime; compiled several at a time."""
    # Nothing is wide enough to check float64 where the widest floats are no wider.
    with_float64 = jax.config.read("jax_enable_x64") and np.finfo(Wide).nmant > 52
    dtypes = ["float32", "bfloat16", "float16", *(["float64"] if with_float64 else [])]
    jobs: list[tuple] = [(case, kind, dtype) for case in check.CASES for kind in case.kinds for dtype in dtypes]
    jobs += [(check.SOFTMAX[0], kind, dtype, *MANY) for kind in ("ids", "one-hot") for dtype in dtypes]

    def run(job: tuple) -> list[dict]:
        with np.errstate(all="ignore"):
            return list(accuracy(*job))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(run, jobs)
    yield from ([linear(dtype)] for dtype in dtypes)


def edges() -> Iterator[dict]:
    """A result for each promise, with the losses that break it."""
    plain = [case for case in check.CASES if not case.projects]
    invariant = [case for case in check.CASES if case.link is None and not case.zero and not case.projects]
    infinite = [case for case in check.SOFTMAX if case.name != "generalized_cross_entropy"]
    families = [check.SOFTMAX[1], check.SIGMOID[1], check.SPARSE[1], check.RANKING[2], check.PROBABILITIES[0]]
    promises: list[tuple[str, Callable[[Case], bool], list[Case]]] = [
        ("a label id out of range gives NaN, in its row alone", outside, [c for c in plain if "ids" in c.kinds]),
        ("rows left out change no bit of the others, and give 0", left_out, families),
        ("a logit of -inf has a gradient of exactly 0", excluded, [c for c in check.CASES if c.link is None]),
        ("truth on a logit of -inf: loss +inf, gradient finite", impossible, [*infinite, *check.SPARSE]),
        ("losses >= +0, gradient of the label <= 0 <= the others", signs, plain),
        ("a constant added to a row, where exact, changes no bit", shifted, invariant),
    ]
    for promised, holds, cases in promises:
        with np.errstate(all="ignore"):
            broken = [str(case) for case in cases if not holds(case)]
        yield {"promise": promised, "losses": [str(case) for case in cases], "broken": broken, "ok": not broken}


def same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(first, second, strict=True))


def outside(case: Case) -> bool:
    z, ids = arguments(case, "ids", "float32")
    expected = outcome(case, "ids", "float32")[2:]
    ids[:4] = [-1, -100, CLASSES, CLASSES + 7]
    found = [np.asarray(x) for x in program(case)(z, ids)]
    return all(np.isnan(x[:4]).all() for x in found) and same([x[4:] for x in found], [x[4:] for x in expected])


def left_out(case: Case) -> bool:
    run = jax.jit(lambda z, t, keep: jaxloss.per_example_value_and_grad(case.loss)(z, t, where=keep))
    z, labels = arguments(case, case.kinds[0], "float32")
    keep = np.arange(len(z)) % 3 > 0
    clean = run(z, labels, keep)
    z[~keep], labels[~keep] = np.nan, -100
    found = [np.asarray(x) for x in run(z, labels, keep)]
    return same(found, clean) and not any(x[~keep].any() for x in found)


def excluded(case: Case) -> bool:
    found = (outcome(case, kind, "float32") for kind in case.kinds)
    return not any(x.gradients[x.z == -np.inf].any() for x in found)


def impossible(case: Case) -> bool:
    z, ids = arguments(case, "ids", "float32")
    rows = data("float32").regimes == "masked"
    ids[rows] = 3
    values, gradients = map(np.asarray, program(case)(z, ids))
    return bool((values[rows] == np.inf).all() and np.isfinite(gradients[rows]).all())


def signs(case: Case) -> bool:
    found = outcome(case, case.kinds[0], "float32")
    right = found.gradients * np.where(found.t > 0, -1, 1) >= 0
    return bool(right.all() and not np.signbit(found.values).any())


def shifted(case: Case) -> bool:
    z, labels = arguments(case, case.kinds[0], "float32")
    z = np.round(np.clip(z, -8, 8) * 64) / 64
    return same(program(case)(z, labels), program(case)(z + np.float32(4096), labels))


def environment() -> dict:
    device, packages = jax.devices()[0], ("jax", "jaxlib", "numpy")
    versions = {"jaxloss": jaxloss.__version__, **{name: version(name) for name in packages}}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.device_kind,
        "platform": device.platform,
        "versions": {**versions, "Python": platform.python_version()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jaxloss", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--no-speed", action="store_true", help="check the promises alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file, too")
    options = parser.parse_args(argv)
    if options.json and (options.json.is_dir() or not options.json.parent.is_dir()):
        parser.error(f"--json: {options.json} must be a file in a folder that there is")
    report = environment()
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    print(f"{report['device']} ({report['platform']}), {versions}\n\n{UNITS}\n{LINE.format(*HEADER)}")
    checks, report["accuracy"], report["edges"] = [], [], []
    for regimes in accuracies():
        worst = max(regimes, key=lambda row: (not row["ok"], row["share"]))
        checks.append(worst["ok"])
        report["accuracy"] += regimes
        numbers = (f"{worst[name]:.1f}" for name in NUMBERS)
        cells = (worst["loss"], worst["labels"], worst["dtype"], *numbers, worst["regime"], VERDICT[worst["ok"]])
        print(LINE.format(*cells), flush=True)
    print()
    for edge in edges():
        checks.append(edge["ok"])
        report["edges"].append(edge)
        print(f"{edge['promise']:<108}", VERDICT[edge["ok"]], *edge["broken"], flush=True)
    if not options.no_speed:
        report["speed"] = list(_speed.speed())
        print("\nOne step of gradient descent on the logits, in place:")
        print(*map(_speed.LINE.format_map, report["speed"]), sep="\n")
    if options.json:
        options.json.write_text(json.dumps({**report, "checks": len(checks), "passed": sum(checks)}, indent=1) + "\n")
    print(f"\n{sum(checks)} of {len(checks)} checks passed.")
    return 0 if all(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
