"""Compiles for targets, each in a process of its own, and writes what came: a table, a JSON file and a plot.

`python -m bench.compiled_report RESULTS.json ...` puts the table of
docs/measurements/compiled.md together from such files.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax

from bench import plots, report
from bench.targets import TARGETS, environment, find_compiler

COLUMNS = {
    "target": "target",
    "question": "question",
    "loss": "loss",
    "shape": "shape",
    "dtype": "dtype",
    "mode": "mode",
    "provider": "provider",
    "bytes": "bytes",
    "limit": "limit",
    "temporary": "temporary",
    "kernels": "kernels",
    "sent": "collectives",
    "model_ms": "model, ms",
    "error": "does not compile",
}
NOTE = (
    "Compiled, not run. Bytes, limit and temporary memory are over the bytes of the logits; limit: logits, and labels "
    "of their shape, read once and the gradient written once (linear: hidden states, kernel and both gradients); "
    "kernels: launches; model: the TPU compiler's own estimate of the time, where it has one and nothing loops."
)
DOCS = Path(__file__).parents[1] / "docs" / "measurements" / "compiled.md"
BEGIN, END = "<!-- compiled: made by python -m bench.compiled_report -->\n", "<!-- compiled: end -->\n"
SHOWN = ("jaxloss", "optax", "plain JAX")


def run(target: str, scale: str, only: str | None, out: Path) -> str:
    """Results of one target or of all; returns the text of the table. Raises `MissingError` before any work."""
    names = list(TARGETS) if target == "all" else [target]
    for platform in dict.fromkeys(TARGETS[name].platform for name in names):
        find_compiler(platform)
    start = time.perf_counter()
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in names:
                file = Path(folder) / name
                try:
                    _compile([name, scale, only or "all", str(file)])
                finally:  # what was compiled is kept, whatever happens
                    lines = file.read_text().splitlines() if file.exists() else []
                    rows += sorted(map(json.loads, lines), key=lambda row: row.pop("number"))
        finally:
            stem = out / "-".join(filter(None, ["targets", target, only, scale, f"jax{jax.__version__}"]))
            text = write(stem, names, rows, time.perf_counter() - start)
    return text


def _compile(arguments: list[str]) -> None:
    """In a process of its own, and on in another where a compiler dies: each after the second is a program less."""
    for deaths in itertools.count():
        command = [sys.executable, "-m", "bench.compiled", *arguments, str(deaths)]
        ended = subprocess.run(command, env={**os.environ, **environment()}).returncode
        if ended >= 0:
            if ended:
                raise subprocess.CalledProcessError(ended, command)
            return


def write(stem: Path, names: list[str], rows: list[dict], seconds: float) -> str:
    """Writes STEM.json, STEM.md and STEM.png; returns the text of STEM.md."""
    described = {n: {"bytes_per_s": TARGETS[n].bytes_per_s, "flops_per_s": TARGETS[n].flops_per_s} for n in names}
    result = {**report.host(), "seconds": round(seconds, 1), "targets": described, "rows": rows}
    packages = ", ".join(f"{name} {number}" for name, number in result["packages"].items())
    lines = [
        f"{', '.join(names)}, {result['date']}, {seconds:.0f} s on {result['cores']} cores",
        f"Python {result['python']}, {packages}",
        NOTE,
    ]
    text = "\n\n".join(["\n".join(f"- {line}" for line in lines), report.table(list(map(_shown, rows)), COLUMNS)])
    report.save(stem, result, text + "\n")
    plots.draw_compiled(stem.with_name(stem.name + ".png"), rows)
    return text + "\n"


def _shown(row: dict) -> dict:
    """With all columns, and the collectives by their number."""
    kinds = Counter(each.split()[0].removesuffix("-start") for each in row.get("collectives", ()))
    sent = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return {**dict.fromkeys(COLUMNS), **row, "sent": sent or None}


def summary(rows: list[dict]) -> str:
    """A line for each loss, shape, dtype and mode; a column for each target, with all providers in their order."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    names = ("question", "loss", "shape", "dtype", "mode")
    found = {(*(row[name] for name in names), row["target"], row["provider"]): row for row in rows}
    keys = [key for key in dict.fromkeys(k[:-2] for k in found) if key[0] not in ("linear", "sharded")]
    columns = {"loss": "loss", "case": "logits", "limit": "limit"} | {t: t for t in targets}
    columns |= {(t, "model"): f"{t}, ms" for t in targets if TARGETS[t].platform == "tpu"}
    lines = []
    for key in keys:
        line: dict = dict.fromkeys(columns) | {"loss": key[1], "case": " ".join(key[2:])}
        for target in targets:
            own = [found.get((*key, target, p)) for p in SHOWN]
            line[target] = _joined([row and _amount(row) for row in own])
            line["limit"] = next((f"{row['limit']:.1f}" for row in own if row), line["limit"])
            line[target, "model"] = _joined([row and row.get("model_ms") and f"{row['model_ms']:.2f}" for row in own])
        lines.append(line)
    return report.table(lines, columns) + "\n"


def _joined(cells: list[str | None]) -> str:
    """In the order of the providers, a dash for what is not offered, without dashes at the end."""
    while len(cells) > 1 and not cells[-1]:
        cells = cells[:-1]
    return " / ".join(cell or "-" for cell in cells)


def _amount(row: dict) -> str:
    """Bytes, and in brackets temporary memory, where there is any to speak of."""
    if "error" in row:
        return "does not compile"
    digits = 1 if row["bytes"] < 99.95 else 0
    held = f" ({row['temporary']:.{digits}f})" if row["temporary"] >= 0.05 else ""
    return f"{row['bytes']:.{digits}f}{held}"


def main(files: list[str]) -> None:
    rows = [row for file in files for row in json.loads(Path(file).read_text())["rows"]]
    before, rest = DOCS.read_text().split(BEGIN)
    _, after = rest.split(END)
    DOCS.write_text(f"{before}{BEGIN}\n{summary(rows)}\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
