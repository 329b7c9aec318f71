"""Pictures and tables of committed measurements (bench/results), in the style of `pictures`."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown
from matplotlib.figure import Figure

import pictures

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"
SHOWN = {
    "exp": ("floor", pictures.GREY, ":"),
    "jaxloss": ("jaxloss", pictures.BLUE, "-"),
    "jaxloss linear_loss": ("linear_loss", pictures.GREEN, (0, (6, 2))),
    "optax": ("optax", pictures.VERMILLION, (0, (5, 1.5, 1, 1.5))),
    "plain JAX": ("plain JAX", pictures.PURPLE, (0, (1.5, 1.2))),
    "torch eager": ("torch", pictures.BLACK, (0, (3, 1))),
}


def cross_entropy_by_classes(file: str = "full-cpu-jax0.10.2.json") -> Figure:
    """Time and temporary memory of a step with cross-entropy of ids, for each logit, by the number of classes."""
    rows = json.loads((RESULTS / file).read_text())["rows"]
    rows = [x for x in rows if x["question"] == "dense" and x["mode"] == "gradient" and x["sweep"] == "classes"]
    rows = [x for x in rows if x["loss"] in ("cross-entropy", "floor")]
    figure, axes = plt.subplots(1, 2, figsize=(pictures.WIDTH, 3.4))
    for provider, (name, color, dashes) in SHOWN.items():
        own = sorted((x for x in rows if x["provider"] == provider), key=lambda x: x["classes"])
        for ax, column in zip(axes, ("p50", "temporary_mb"), strict=True):
            points = [(x["classes"], x[column] * 1e6 / (x["rows"] * x["classes"])) for x in own if x[column]]
            if points:
                ax.plot(*zip(*points, strict=True), color=color, linestyle=dashes, label=name, marker="o", markersize=3)
    for ax, name in zip(axes, ("time, ns for each logit", "memory, bytes for each logit"), strict=True):
        ax.set(xscale="log", xlabel="classes", ylabel=name, ylim=(0, None))
    pictures.legend(figure, axes[0])
    return figure


def losses_alone(*shapes: str, file: str = "alone-quick-h200-jax0.11.2.json") -> Markdown:
    """A line for each loss, dtype and mode that several libraries offer: milliseconds by provider."""
    result = json.loads((RESULTS / file).read_text())
    rate = max(limits["copy_bytes_per_s"] for limits in result["limits"].values())
    providers = ["jaxloss", "optax", "plain JAX", "torch eager", "torch.compile", "Liger", "entmax"]
    cases: dict[tuple, dict[str, dict]] = {}
    for row in result["rows"]:
        if row["shape"] in shapes:
            cases.setdefault((row["loss"], row["shape"], row["dtype"], row["mode"]), {})[row["provider"]] = row
    lines = ["| loss | logits | limit | " + " | ".join(providers) + " |", "|---" * (3 + len(providers)) + "|"]
    for (loss, shape, dtype, mode), found in cases.items():
        if len(found) > 1:
            limit = found["jaxloss"]["traffic"] / rate * 1e3
            times = [f"{found[name]['p50']:.2f}" if name in found else "-" for name in providers]
            lines.append(f"| {loss} | {shape} {dtype} {mode} | {limit:.2f} | " + " | ".join(times) + " |")
    return Markdown("\n".join(lines))
