"""Plots: time and memory against the number of classes, and the share of the machine's limit."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.measure import FLOOR
from bench.peers import PROVIDERS

COLOURS = dict(zip(PROVIDERS, [f"C{i}" for i in (0, 9, 1, 2, 8, 4, 3, 6, 5, 7, 7)], strict=True))
SHARES = ("cross-entropy", "sigmoid cross-entropy", "sparsemax")


def draw(stem: Path, rows: list[dict]) -> None:
    """Writes STEM-time.png, STEM-memory.png and STEM-limit.png, those of which there is something to show."""
    dense = [row for row in rows if row["question"] == "dense" and row["mode"] == "gradient"]
    if dense:
        title = "Value and gradient of a loss inside a step, against the number of classes"
        _against_classes(dense, _nanoseconds, "ns per logit", title, stem.with_name(f"{stem.name}-time.png"))
        title = "Temporary memory of the same steps"
        _against_classes(dense, _bytes, "bytes per logit", title, stem.with_name(f"{stem.name}-memory.png"))
    limited = [row for row in rows if row["to_limit"] and row["mode"] in ("gradient", "train step")]
    if limited:
        _shares(limited, stem)


def _nanoseconds(row: dict) -> float:
    return row["p50"] * 1e6


def _bytes(row: dict) -> float:
    return (row["temporary_mb"] or 0) * 1e6


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    across = min(3, count)
    down = -(-count // across)
    figure = Figure(figsize=(width * across + 2, height * down + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, list(axes[:count])


def _finish(figure: Figure, axes: list[Axes], title: str, path: Path) -> None:
    handles = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _against_classes(rows: list[dict], quantity: Callable, unit: str, title: str, path: Path) -> None:
    """A panel for each loss and dtype; of a sweep, where there is one."""
    panels = dict.fromkeys((row["loss"], row["dtype"]) for row in rows if row["loss"] != FLOOR)
    figure, axes = _panels(len(panels), 3.6, 3)
    for axis, (loss, dtype) in zip(axes, panels, strict=True):
        of_dtype = [row for row in rows if row["dtype"] == dtype and quantity(row)]
        swept = [row for row in of_dtype if row["sweep"] == "classes" and loss == "cross-entropy"]
        shown = swept or [row for row in of_dtype if not row["sweep"]]
        sizes = {(row["rows"], row["classes"]) for row in shown if row["loss"] == loss}
        for provider in dict.fromkeys(row["provider"] for row in shown):
            points = sorted(
                (row["classes"], quantity(row) / (row["rows"] * row["classes"]))
                for row in shown
                if row["provider"] == provider
                and row["loss"] in (loss, FLOOR)
                and (row["rows"], row["classes"]) in sizes
            )
            if points:
                axis.plot(*zip(*points, strict=True), label=_label(provider), **_style(provider))
        axis.set(xscale="log", yscale="log", title=f"{loss}, {dtype}", xlabel="classes", ylabel=unit)
        axis.grid(alpha=0.3, which="both")
    _finish(figure, axes, title, path)


def _shares(rows: list[dict], stem: Path) -> None:
    """A panel for each question, a line for each case."""
    shown = [row for row in rows if row["loss"] in (*SHARES, FLOOR) and not row["sweep"]]
    questions = list(dict.fromkeys(row["question"] for row in shown))
    figure, axes = _panels(len(questions), 4.6, 3)
    for axis, question in zip(axes, questions, strict=True):
        own = [row for row in shown if row["question"] == question]
        cases = list(dict.fromkeys(f"{row['shape']}\n{row['dtype']}" for row in own))[::-1]
        for provider in dict.fromkeys(row["provider"] for row in own):
            points = [
                (100 / row["to_limit"], cases.index(f"{row['shape']}\n{row['dtype']}"))
                for row in own
                if row["provider"] == provider
            ]
            style = {**_style(provider), "linestyle": ""}
            axis.plot(*zip(*points, strict=True), label=_label(provider), **style)
        axis.axvline(100, color="black", linewidth=0.8)
        axis.set(xscale="log", title=question, xlabel="share of the limit, %", ylim=(-0.6, len(cases) - 0.4))
        axis.set_yticks(range(len(cases)), cases, fontsize=8)
        axis.grid(alpha=0.3, which="both")
    _finish(figure, axes, "Time that the limit allows / time taken", stem.with_name(f"{stem.name}-limit.png"))


def _style(provider: str) -> dict:
    colour = COLOURS.get(provider)
    return {"color": colour or "black", "marker": "o" if colour else "x", "linestyle": "-" if colour else ":"}


def _label(provider: str) -> str:
    return provider if provider in COLOURS else "floor"
