"""Runs the benchmarks: `python -m bench [--quick] [--only NAME] [--out DIR]`."""

import argparse
import importlib
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jax
from tqdm import tqdm

QUESTIONS = ["dense", "linear"]
COLUMNS = ["question", "shape", "dtype", "provider", "p20", "p50", "p80", "to_optax", "to_floor", "temporary_mb"]


def table(rows: list[dict]) -> str:
    """Rows as Markdown, milliseconds and ratios of medians."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [f"{row[c]:.2f}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer seconds a shape")
    parser.add_argument("--only", choices=QUESTIONS, help="one question")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder for JSON and table")
    arguments = parser.parse_args()

    rows = []
    for question in [arguments.only] if arguments.only else QUESTIONS:
        rows += tqdm(importlib.import_module(f"bench.{question}").run(arguments.quick), desc=question)
    device = jax.devices()[0]
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "jaxlib", "optax")},
        "rows": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / "-".join(filter(None, [arguments.only, device.platform, f"jax{result['jax']}"]))
    stem.with_name(stem.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
    heading = f"{device.device_kind}, jax {result['jax']}, optax {result['optax']}, {result['date']}; times in ms\n\n"
    stem.with_name(stem.name + ".md").write_text(heading + table(rows) + "\n")
    print(heading + table(rows))


if __name__ == "__main__":
    main()
