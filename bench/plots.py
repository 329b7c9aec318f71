"""Plots: time and memory against the number of classes, and the share of the machine's limit."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

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
        _shares(limited, stem.with_name(f"{stem.name}-limit.png"))


def _nanoseconds(row: dict) -> float:
    return row["p50"] * 1e6


def _bytes(row: dict) -> float:
    return (row["temporary_mb"] or 0) * 1e6


def _figure(across: int, down: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * across + 2, height * down + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel())


def _finish(figure: Figure, axes: list[Axes], title: str, path: Path) -> None:
    handles = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)


def _against_classes(rows: list[dict], quantity: Callable, unit: str, title: str, path: Path) -> None:
    """A panel for each loss and dtype with several sizes; of cross-entropy the sweep, where there is one."""
    panels = {}
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        for loss in dict.fromkeys(row["loss"] for row in rows if row["loss"] != FLOOR):
            own = [row for row in rows if row["dtype"] == dtype and row["loss"] in (loss, FLOOR) and quantity(row)]
            shown = [row for row in own if row["sweep"] == "classes" and loss == "cross-entropy"]
            shown = shown or [row for row in own if not row["sweep"]]
            sizes = {row["classes"] for row in shown if row["loss"] == loss}
            if len(sizes) > 1:
                panels[f"{loss}, {dtype}"] = [row for row in shown if row["classes"] in sizes]
    if not panels:
        return
    across = min(len(panels), 5)
    figure, axes = _figure(across, -(-len(panels) // across), 3.4, 3)
    for axis, (name, shown) in zip(axes, panels.items(), strict=False):
        for provider in dict.fromkeys(row["provider"] for row in shown):
            own = [row for row in shown if row["provider"] == provider]
            points = sorted((row["classes"], quantity(row) / (row["rows"] * row["classes"])) for row in own)
            axis.plot(*zip(*points, strict=True), label=_label(provider), **_style(provider))
        axis.set(xscale="log", yscale="log", xlabel="classes", ylabel=unit)
        axis.label_outer()
        axis.set_title(name, fontsize=10)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    _finish(figure, axes, title, path)


def _shares(rows: list[dict], path: Path) -> None:
    """A line for each case, with the main loss of its question."""
    shown = [row for row in rows if row["loss"] in (*SHARES, FLOOR) and not row["sweep"]]
    of = [row["loss"] if row["question"] == "alone" else row["question"] for row in shown]
    names = [f"{name} {row['shape']} {row['dtype']}" for name, row in zip(of, shown, strict=True)]
    cases = list(dict.fromkeys(names))[::-1]
    figure, [axis] = _figure(1, 1, 8, 0.35 * len(cases) + 1)
    for provider in dict.fromkeys(row["provider"] for row in shown):
        points = [
            (100 / row["to_limit"], cases.index(name))
            for row, name in zip(shown, names, strict=True)
            if row["provider"] == provider
        ]
        label, style = _label(provider), {**_style(provider), "linestyle": "", "alpha": 0.8}
        axis.plot(*zip(*points, strict=True), label=label, **style)
    axis.axvline(100, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="share of the limit, %", ylim=(-0.6, len(cases) - 0.4))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks(range(len(cases)), cases, fontsize=8)
    axis.grid(alpha=0.3, which="both")
    _finish(figure, [axis], "Time that bytes and products alone would take, of the time taken", path)


def _style(provider: str) -> dict:
    colour = COLOURS.get(provider)
    return {"color": colour or "black", "marker": "o" if colour else "x", "linestyle": "-" if colour else ":"}


def _label(provider: str) -> str:
    return provider if provider in COLOURS else "floor"


def draw_compiled(path: Path, rows: list[dict]) -> None:
    """A panel for each target, a line for each loss: the bytes of value and gradient by provider, beside the limit."""
    questions = ("dense", "sigmoid", "sparse", "losses")
    shown = [row for row in rows if row["question"] in questions and row["mode"] == "gradient" and "bytes" in row]
    first = {}  # of each loss, its first shape and dtype
    for row in shown:
        first.setdefault((row["question"], row["loss"]), (row["shape"], row["dtype"]))
    shown = [row for row in shown if first[row["question"], row["loss"]] == (row["shape"], row["dtype"])]
    if not shown:
        return
    names = [
        f"{loss}, {shape.replace(' ', '')}{'' if dtype == 'bfloat16' else f' {dtype}'}"
        for (_, loss), (shape, dtype) in first.items()
    ]
    places = {key: len(first) - 1 - number for number, key in enumerate(first)}
    targets = list(dict.fromkeys(row["target"] for row in shown))
    figure, axes = _figure(len(targets), 1, 4 if len(targets) > 1 else 7, 0.2 * len(first) + 0.8)
    for axis, target in zip(axes, targets, strict=True):
        own = [row for row in shown if row["target"] == target]
        limits = {places[row["question"], row["loss"]]: row["limit"] for row in own}
        axis.vlines(
            limits.values(), [y - 0.45 for y in limits], [y + 0.45 for y in limits], color="black", label="limit"
        )
        providers = list(dict.fromkeys(row["provider"] for row in own))
        for number, provider in enumerate(providers):  # one below the other, since many are equal
            below = 0.28 * (number - (len(providers) - 1) / 2)
            points = [(r["bytes"], places[r["question"], r["loss"]] - below) for r in own if r["provider"] == provider]
            axis.plot(
                *zip(*points, strict=True), label=provider, **_style(provider) | {"linestyle": "", "markersize": 4}
            )
        axis.set(xscale="log", xlabel="bytes moved / bytes of the logits", ylim=(-0.7, len(first) - 0.3))
        axis.set_title(target, fontsize=10)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.tick_params(axis="x", labelrotation=90)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(first)), names[::-1], fontsize=7)
    _finish(figure, axes, "Bytes moved by value and gradient, compiled and not run; bfloat16 unless said", path)
