"""The results of a run: a table, a JSON file with every sample, and plots."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import numpy as np

import jaxloss
from bench import limits, memory, plots

COLUMNS = {
    "question": "question",
    "loss": "loss",
    "shape": "shape",
    "dtype": "dtype",
    "mode": "mode",
    "provider": "provider",
    "p20": "p20",
    "p50": "p50",
    "p80": "p80",
    "to_optax": "/ optax",
    "to_peer": "/ best peer",
    "peer": "best peer",
    "to_floor": "/ floor",
    "to_limit": "/ limit",
    "temporary_mb": "MB",
}
PACKAGES = ["jax", "jaxlib", "numpy", "optax", "torch", "triton", "entmax", "keras", "tokamax", "liger-kernel"]
PACKAGES += ["libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc"]
NOTE = "Times in ms. Ratios are of medians; limit: time of the bytes and products alone; MB: XLA's temporary memory."


def write(stem: Path, rows: list[dict], rates: dict, seconds: float) -> str:
    """Writes STEM.json, STEM.md and STEM-*.png; returns the text of STEM.md."""
    growth = fit_growth(rows)
    result = {**environment(), "seconds": round(seconds, 1), "limits": rates, "growth": growth, "rows": rows}
    packages = ", ".join(f"{name} {number}" for name, number in result["packages"].items())
    faults = [] if memory.kept or result["platform"] != "cpu" else ["Page faults of temporary buffers are timed."]
    lines = [
        f"{result['device']} ({result['processor']}, {result['cores']} cores), {result['date']}, {seconds:.0f} s",
        f"Python {result['python']}, {packages}",
        limits.describe(rates),
        *(f"growth of {name}: rows^{fit['rows']:.2f} classes^{fit['classes']:.2f}" for name, fit in growth.items()),
        *faults,
        NOTE,
    ]
    text = "\n\n".join(["\n".join(f"- {line}" for line in "\n".join(lines).splitlines()), table(rows)]) + "\n"
    save(stem, result, text)
    plots.draw(stem, rows)
    return text


def save(stem: Path, result: dict, text: str) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(stem.name + ".json").write_text(_json(result) + "\n")
    stem.with_name(stem.name + ".md").write_text(text)


def _json(result: dict) -> str:
    """An entry a line, and a line for each row of the table."""
    rows = ",\n  ".join(map(json.dumps, result["rows"]))
    entries = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in result.items() if name != "rows"]
    return "{\n " + ",\n ".join([*entries, f'"rows": [\n  {rows}\n ]']) + "\n}"


def environment() -> dict:
    device = jax.devices()[0]
    kind = {"device": device.device_kind, "platform": device.platform, "pages_kept": memory.kept}
    return {**host(), **kind}


def host() -> dict:
    """What is known without starting JAX."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {"jaxloss": jaxloss.__version__} | {name: n for name in PACKAGES if (n := _version(name))},
    }


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    found = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def table(rows: list[dict], columns: dict[str, str] = COLUMNS) -> str:
    """Rows as Markdown, in columns of one width."""
    lines = [list(columns.values()), *([_cell(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)


def fit_growth(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Exponents a, b of time ~ rows^a classes^b, by least squares on the logarithms of a sweep, for each provider."""
    result = {}
    swept = [row for row in rows if row["sweep"]]
    for provider in dict.fromkeys(row["provider"] for row in swept):
        own = [row for row in swept if row["provider"] == provider]
        features = np.log([[row["rows"], row["classes"], np.e] for row in own])
        a, b, _ = np.linalg.lstsq(features, np.log([row["p50"] for row in own]))[0]
        result[provider] = {"rows": float(a), "classes": float(b)}
    return result
