"""Pictures of the documentation, drawn with the library: one style, legible on a phone, safe for colour-blind eyes.

Importing this module sets matplotlib's style, and SVG output in a notebook. A picture is a function that returns its
figure; end the cell's line with a semicolon, or the notebook shows it twice. `curves("focal")` draws the loss and the
size of its gradient for one of `FAMILIES`; the functions below it draw what is not a family of curves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import jaxloss

BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY, GREY = "#AA4499", "#E69F00", "#56B4E9", "#666666"
COLORS = (BLACK, BLUE, VERMILLION, GREEN, PURPLE, ORANGE)  # of Okabe and Ito, the purple darkened for thin lines
DASHES = ("-", (0, (6, 2)), (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1.2)), (0, (8, 1.5, 1, 1.5, 1, 1.5)), (0, (3, 1)))
WIDTH = 6.0  # inches, of every figure: 576 px at its natural size, and still 9 px letters on a phone
Curve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From margins to losses and their derivatives by the margin."""


def use_style() -> None:
    """Sets matplotlib's style; in a notebook, also SVG with a white margin, which a dark page needs."""
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.2),
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.labelsize": 11,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10.5,
            "legend.frameon": False,
            "legend.handlelength": 2.4,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.8,
            "lines.linewidth": 2.0,
            "axes.prop_cycle": plt.cycler(color=COLORS, linestyle=DASHES),
            "svg.hashsalt": "jaxloss",  # the same picture, the same bytes
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if plt.get_backend().endswith("inline"):
        set_matplotlib_formats("svg", bbox_inches="tight", pad_inches=0.15, facecolor="white", metadata={"Date": None})


# Curves: a loss and its gradient by the margin m = z_y - z_other, the log-odds of the truth for two classes.


def of_two_classes(loss: Callable[..., jax.Array], **options) -> Curve:
    """A loss of a row of logits (m, 0) with label 0."""

    def curve(margins):
        logits = jnp.stack([jnp.asarray(margins), jnp.zeros(len(margins))], axis=-1)
        losses, gradients = jaxloss.per_example_value_and_grad(partial(loss, **options))(
            logits, jnp.zeros(len(margins), jnp.int32)
        )
        return np.asarray(losses), np.asarray(gradients[:, 0])

    return curve


def of_one_logit(loss: Callable[..., jax.Array], label: int = 1, **options) -> Curve:
    """A loss by element: of the logit m with label 1, or of the logit -m with label 0."""
    sign = 1.0 if label else -1.0

    def curve(margins):
        labels = jnp.full(len(margins), label)
        losses, gradients = jaxloss.per_example_value_and_grad(partial(loss, **options))(sign * margins, labels)
        return np.asarray(losses), sign * np.asarray(gradients)

    return curve


def of_a_relevant_label(loss: Callable[..., jax.Array], others: int = 1, **options) -> Curve:
    """A ranking loss of one relevant label of score m beside irrelevant ones of score 0."""

    def curve(margins):
        logits = jnp.zeros((len(margins), 1 + others)).at[:, 0].set(margins)
        labels = jnp.zeros((len(margins), 1 + others)).at[:, 0].set(1)
        losses, gradients = jaxloss.per_example_value_and_grad(partial(loss, **options))(logits, labels)
        return np.asarray(losses), np.asarray(gradients[:, 0])

    return curve


def of_a_student(temperature: float, teacher: float = 2.0) -> Curve:
    """Distillation: the divergence of a teacher's (2, 0) from a student's (m, 0), times the squared temperature."""

    def curve(margins):
        logits = jnp.stack([jnp.asarray(margins), jnp.zeros(len(margins))], axis=-1)
        targets = jnp.broadcast_to(jnp.array([teacher, 0.0]), logits.shape)
        loss = partial(jaxloss.softmax_kl_divergence, temperature=temperature)
        losses, gradients = jaxloss.per_example_value_and_grad(loss)(logits, targets)
        return temperature**2 * np.asarray(losses), temperature**2 * np.asarray(gradients[:, 0])

    return curve


def of_a_difference(delta: float) -> Curve:
    def curve(differences):
        losses, gradients = jax.vmap(jax.value_and_grad(partial(jaxloss.huber_loss, delta=delta)))(
            jnp.asarray(differences)
        )
        return np.asarray(losses), np.asarray(gradients)

    return curve


def zero_one(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What one would like to count, and cannot train on: wrong or not."""
    return np.where(margins > 0, 0.0, 1.0), np.zeros_like(margins)


def _swept(constructor, loss, option, values, text, **fixed) -> dict[str, Curve]:
    return {text.format(value): constructor(loss, **{option: value}, **fixed) for value in values}


FAMILIES: dict[str, dict[str, Curve]] = {
    "cross-entropy": {
        "cross-entropy": of_two_classes(jaxloss.softmax_cross_entropy),
        "$1 - p$": of_two_classes(jaxloss.generalized_cross_entropy, q=1.0),
        "wrong or not": zero_one,
    },
    "focal": _swept(of_two_classes, jaxloss.softmax_focal_loss, "gamma", (0, 0.5, 1, 2, 5), r"$\gamma$ = {:g}"),
    "poly": _swept(of_two_classes, jaxloss.poly_loss_cross_entropy, "epsilon", (-1, 0, 1, 2, 4), r"$\epsilon$ = {:g}"),
    "generalized": _swept(of_two_classes, jaxloss.generalized_cross_entropy, "q", (0, 0.3, 0.7, 1), "q = {:g}"),
    "smoothing": _swept(
        of_two_classes, jaxloss.softmax_cross_entropy, "label_smoothing", (0, 0.05, 0.1, 0.2), "smoothing {:g}"
    ),
    "entmax": _swept(of_two_classes, jaxloss.entmax_loss, "alpha", (1, 1.25, 1.5, 2), r"$\alpha$ = {:g}"),
    "distillation": {f"T = {t:g}": of_a_student(t) for t in (1.0, 2.0, 4.0)},
    "alpha": {
        "cross-entropy": of_one_logit(jaxloss.sigmoid_binary_cross_entropy),
        r"focal, $\alpha$ = None": of_one_logit(jaxloss.sigmoid_focal_loss),
        r"$\alpha$ = 0.25, positive": of_one_logit(jaxloss.sigmoid_focal_loss, alpha=0.25),
        r"$\alpha$ = 0.25, negative": of_one_logit(jaxloss.sigmoid_focal_loss, label=0, alpha=0.25),
    },
    "pos_weight": {
        "weight 0.3": of_one_logit(jaxloss.sigmoid_binary_cross_entropy, pos_weight=0.3),
        "weight 1": of_one_logit(jaxloss.sigmoid_binary_cross_entropy),
        "weight 3": of_one_logit(jaxloss.sigmoid_binary_cross_entropy, pos_weight=3.0),
    },
    "asymmetric": {
        "cross-entropy": of_one_logit(jaxloss.sigmoid_binary_cross_entropy, label=0),
        r"$\gamma_-$ = 2, no clip": of_one_logit(jaxloss.asymmetric_loss, label=0, gamma_negative=2.0, clip=0.0),
        r"$\gamma_-$ = 4, no clip": of_one_logit(jaxloss.asymmetric_loss, label=0, clip=0.0),
        r"$\gamma_-$ = 4, clip 0.05": of_one_logit(jaxloss.asymmetric_loss, label=0),
        r"$\gamma_-$ = 4, clip 0.2": of_one_logit(jaxloss.asymmetric_loss, label=0, clip=0.2),
    },
    "margin": {
        "cross-entropy": of_one_logit(jaxloss.sigmoid_binary_cross_entropy),
        "squared hinge": of_one_logit(jaxloss.squared_hinge_loss),
        "modified Huber": of_one_logit(jaxloss.modified_huber_loss),
        "sparsemax": of_one_logit(jaxloss.sparsemax_loss),
        "soft Hamming": lambda m: _last_axis(jaxloss.soft_hamming_loss, m),
        "wrong or not": zero_one,
    },
    "ranking": {
        "pairwise, logistic": of_a_relevant_label(jaxloss.pairwise_ranking_loss),
        "pairwise, hinge": of_a_relevant_label(jaxloss.pairwise_ranking_loss, surrogate="hinge"),
        "LSEP, 20 others": of_a_relevant_label(jaxloss.log_sum_exp_pairwise_loss, others=20),
        "ZLPR, 20 others": of_a_relevant_label(jaxloss.zlpr_loss, others=20),
    },
    "huber": {rf"$\delta$ = {d:g}": of_a_difference(d) for d in (0.5, 1.0, 2.0)},
}


def _last_axis(loss, margins):
    losses, gradients = jaxloss.per_example_value_and_grad(loss)(
        jnp.asarray(margins)[:, None], jnp.ones((len(margins), 1))
    )
    return np.asarray(losses), np.asarray(gradients[:, 0])


def curves(
    family: str | Mapping[str, Curve],
    against: Sequence[str] = ("p", "margin"),
    *,
    truth: str = "the true class",
    top: float = 4.0,
    slope: float | None = None,
    span: tuple[float, float] = (-5.0, 5.0),
    margin: str = "margin $m$ (log-odds of the truth)",
) -> Figure:
    """Loss (left) and size of its gradient by the margin (right), a row for each of `against`."""
    lines = FAMILIES[family] if isinstance(family, str) else family
    grids = {
        "p": np.concatenate([np.geomspace(1e-4, 0.02, 40)[:-1], np.linspace(0.02, 0.999, 121)]),
        "margin": np.linspace(*span, 241),
    }
    labels = {"p": f"probability $p$ of {truth}", "margin": margin}
    every = [np.log(grids[name]) - np.log1p(-grids[name]) if name == "p" else grids[name] for name in against]
    ends = np.cumsum([len(part) for part in every])[:-1]
    figure, axes = plt.subplots(len(against), 2, figsize=(WIDTH, 0.55 + 2.5 * len(against)), squeeze=False)
    peak = 0.0
    for (text, curve), color, dashes in zip(lines.items(), COLORS, DASHES, strict=False):
        losses, gradients = (np.split(part, ends) for part in curve(np.concatenate(every).astype(np.float32)))
        for row, name, loss, gradient in zip(axes, against, losses, gradients, strict=True):
            row[0].plot(grids[name], loss, color=color, linestyle=dashes, label=text)
            if curve is not zero_one:
                row[1].plot(grids[name], np.abs(gradient), color=color, linestyle=dashes)
                peak = max(peak, np.abs(gradient).max())
    slope = slope or 1.08 * peak
    for row, name in zip(axes, against, strict=True):
        ends_of_axis = (0, 1) if name == "p" else span
        row[0].set(xlabel=labels[name], ylabel="loss", ylim=(-0.02 * top, top), xlim=ends_of_axis)
        row[1].set(xlabel=labels[name], ylabel="size of gradient", ylim=(-0.02 * slope, slope), xlim=ends_of_axis)
    legend(figure, axes[0, 0])
    return figure


def legend(figure: Figure, ax: Axes) -> None:
    """A legend above the panels, where it hides nothing, in as few rows as a phone can read."""
    handles, texts = ax.get_legend_handles_labels()
    longest = max(len(text.replace("\\gamma", "g").replace("\\epsilon", "e").replace("\\alpha", "a")) for text in texts)
    most = max(1, 66 // (longest + 5))
    rows = -(-len(texts) // most)
    figure.legend(handles, texts, loc="outside upper center", ncols=-(-len(texts) // rows))


# Pictures that are not a family of curves.


def _box(ax: Axes, x: float, y: float, width: float, height: float, lines: str, color: str, **text) -> None:
    style = {"boxstyle": "round,pad=0.02,rounding_size=0.12", "facecolor": color, "edgecolor": BLACK, "linewidth": 1.0}
    ax.add_patch(FancyBboxPatch((x, y), width, height, **style))
    ax.text(x + 0.08, y + height / 2, lines, va="center", ha="left", linespacing=1.35, **text)


def which_loss() -> Figure:
    """From the problem to labels, last layer, loss and prediction, as a chain of questions."""
    figure, ax = plt.subplots(figsize=(WIDTH, 7.6), layout="none")
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, 6), ylim=(0.2, 7.8))
    ax.set_axis_off()
    rows = [
        (
            "Several labels\nat once?\n(tags, findings)",
            "yes",
            "Multi-label",
            "labels: multi-hot 0/1, [N, C]\nlast layer: C logits\nloss: binary cross-entropy of each\n"
            "predict: all labels with logit > 0",
            "#e3f1fa",
        ),
        (
            "Only two\nclasses?",
            "yes",
            "Binary",
            "labels: 0 or 1, [N]\nlast layer: one logit, [N]\nloss: binary cross-entropy\npredict: 1 if logit > 0",
            "#e2f3ec",
        ),
        (
            "Do the classes\nhave an order?\n(stars, grades)",
            "yes",
            "Ordinal",
            "labels: ids 0 .. K - 1, [N]\nlast layer: one score, K - 1 cuts\nloss: cumulative likelihood\n"
            "predict: the median class",
            "#fdf1d8",
        ),
        (
            "None of these:\none of C classes",
            "",
            "Multi-class",
            "labels: ids 0 .. C - 1, [N]\nlast layer: C logits, [N, C]\nloss: softmax cross-entropy\n"
            "predict: the largest logit",
            "#f9e6dc",
        ),
    ]
    height, gap = 1.62, 0.28
    for i, (question, answer, name, lines, color) in enumerate(rows):
        y = 7.7 - (i + 1) * height - i * gap
        _box(ax, 0.08, y + 0.3, 1.75, height - 0.6, question, "white", fontsize=11.5)
        _box(ax, 2.55, y, 3.36, height, "", color)
        ax.text(2.66, y + height - 0.22, name, fontsize=12.5, fontweight="bold", va="center")
        ax.text(2.66, y + (height - 0.36) / 2, lines, fontsize=11, va="center", linespacing=1.4)
        arrow = {"arrowstyle": "-|>", "color": BLACK, "linewidth": 1.4, "mutation_scale": 14}
        ax.annotate("", (2.53, y + height / 2), (1.85, y + height / 2), arrowprops=arrow)
        ax.text(2.18, y + height / 2 + 0.06, answer, ha="center", va="bottom", fontsize=11)
        if i < len(rows) - 1:
            ax.annotate("", (0.95, y - gap + 0.3 - 0.3), (0.95, y + 0.28), arrowprops=arrow)
            ax.text(1.03, y + 0.02, "no", ha="left", va="center", fontsize=11)
    return figure


def digits_lost() -> Figure:
    """Loss and gradient by the true class's logit as its lead grows: textbook float32 against jaxloss."""
    lead = np.linspace(0, 40, 161).astype(np.float32)
    logits, labels = jnp.stack([jnp.asarray(lead), jnp.zeros(161)], -1), jnp.zeros(161, jnp.int32)

    def textbook(z, y):
        return jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, y[..., None], -1)[..., 0]

    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    styles = {"logsumexp(z) - z_y, float32": (textbook, VERMILLION, "-"), "jaxloss": (None, BLUE, (0, (6, 2)))}
    for name, (loss, color, dashes) in styles.items():
        values, slopes = jaxloss.per_example_value_and_grad(loss or jaxloss.softmax_cross_entropy)(logits, labels)
        for ax, numbers in zip(axes, (values, np.abs(slopes[:, 0])), strict=True):
            shown = np.where(np.asarray(numbers) > 0, numbers, np.nan)
            ax.semilogy(lead, shown, color=color, linestyle=dashes, label=name, linewidth=3 if loss else 2)
    for ax, name in zip(axes, ("loss", "size of gradient"), strict=True):
        ax.set(xlabel="lead of the true logit", ylabel=name, ylim=(1e-18, 3), xlim=(0, 40))
        ax.text(18, 1e-5, "0 from here on", color=VERMILLION, fontsize=10)
    legend(figure, axes[0])
    return figure


def weights_from_counts() -> Figure:
    """Class weights against the count of a class: inverse frequency, and effective numbers for some beta."""
    counts = jnp.asarray(np.round(np.geomspace(1, 10_000, 60)))
    figure, ax = plt.subplots(figsize=(WIDTH, 3.3))
    lines = {
        rf"$\beta$ = {beta:g}": jaxloss.effective_number_weights(counts, beta) for beta in (0.9, 0.99, 0.999, 0.9999)
    }
    lines = {"inverse frequency": jaxloss.balanced_class_weights(counts), **lines}
    for (name, weights), color, dashes in zip(lines.items(), COLORS, DASHES, strict=False):
        ax.loglog(counts, weights / weights[-1], color=color, linestyle=dashes, label=name)
    ax.set(xlabel="examples of the class", ylabel="weight (10,000 examples: 1)")
    legend(figure, ax)
    return figure


CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
PROJECTIONS = {"softmax": jax.nn.softmax, "1.5-entmax": jaxloss.entmax15, "sparsemax": jaxloss.sparsemax}


def simplex() -> Figure:
    """A grid of logits of three classes, and where softmax, 1.5-entmax and sparsemax put its points."""
    side = np.linspace(-2.4, 2.4, 25)
    plane = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    basis = np.array([[-1.0, 1.0, 0.0], [-1.0, -1.0, 2.0]]) / np.array([[2**0.5], [6**0.5]])  # of the plane sum z = 0
    logits = jnp.asarray(plane @ basis, jnp.float32)
    figure, axes = plt.subplots(2, 3, figsize=(WIDTH, 4.6))
    looks = {3: (SKY, "o", "3 classes"), 2: (ORANGE, "s", "2 classes"), 1: (VERMILLION, "D", "1 class")}
    for column, (name, projection) in zip(axes.T, PROJECTIONS.items(), strict=True):
        probabilities = np.asarray(projection(logits))
        support = (probabilities > 0).sum(-1)
        points = probabilities @ CORNERS
        for size, (color, marker, text) in looks.items():
            of_size = support == size
            look = {"s": 9, "color": color, "marker": marker, "edgecolors": BLACK, "linewidths": 0.25}
            column[0].scatter(*plane[of_size].T, label=text, **look)
            column[1].scatter(*points[of_size].T, zorder=3, clip_on=False, **look)
        column[1].fill(*CORNERS.T, facecolor="none", edgecolor=BLACK, linewidth=1.0)
        for (x, y), text, where in zip(CORNERS, "ABC", ("right", "left", "center"), strict=True):
            column[1].text(
                x, y + (0.06 if text == "C" else -0.1), text, ha=where, va="bottom" if text == "C" else "center"
            )
        column[0].set_title(name)
        for ax in column:
            ax.set_aspect("equal")
            ax.set_axis_off()
        column[1].set(xlim=(-0.1, 1.1), ylim=(-0.17, 1.05))
    handles = [plt.Line2D([], [], color=c, marker=m, linestyle="", markeredgecolor=BLACK) for c, m, _ in looks.values()]
    figure.legend(handles, [f"{text} above 0" for *_, text in looks.values()], loc="outside upper center", ncols=3)
    axes[0, 0].text(-0.12, 0.5, "logits", rotation=90, va="center", ha="right", transform=axes[0, 0].transAxes)
    axes[1, 0].text(-0.12, 0.5, "probabilities", rotation=90, va="center", ha="right", transform=axes[1, 0].transAxes)
    return figure


def two_class_probabilities() -> Figure:
    """Probability of the first of two classes by its lead, for entmax of several orders."""
    lead = np.linspace(-3.5, 3.5, 281)
    logits = jnp.stack([jnp.asarray(lead), jnp.zeros(len(lead))], -1)
    figure, ax = plt.subplots(figsize=(WIDTH, 3.2))
    orders = {1.0: " (softmax)", 1.25: "", 1.5: "", 2.0: " (sparsemax)"}
    for (alpha, note), color, dashes in zip(orders.items(), COLORS, DASHES, strict=False):
        p = jaxloss.entmax(logits, alpha=jnp.float32(alpha))[:, 0]
        ax.plot(lead, p, color=color, linestyle=dashes, label=rf"$\alpha$ = {alpha:g}{note}")
    ax.set(xlabel="$z_1 - z_2$", ylabel="probability of class 1", xlim=(-3.5, 3.5))
    legend(figure, ax)
    return figure


def best_answers(losses: Mapping[str, Callable[..., jax.Array]]) -> Figure:
    """The probability that minimizes the expected loss of one logit, by the probability of a positive."""
    logits = jnp.linspace(-9, 9, 1801)
    truth = np.linspace(0.005, 0.995, 199)
    figure, ax = plt.subplots(figsize=(WIDTH, 4.0))
    for (name, loss), color, dashes in zip(losses.items(), COLORS, DASHES, strict=False):
        positive, negative = (np.asarray(loss(logits, jnp.full(len(logits), t))) for t in (1, 0))
        best = np.argmin(truth[:, None] * positive + (1 - truth[:, None]) * negative, axis=1)
        ax.plot(truth, jax.nn.sigmoid(logits[best]), color=color, linestyle=dashes, label=name)
    ax.set(xlabel="true probability", ylabel="best answer", xlim=(0, 1), ylim=(0, 1))
    legend(figure, ax)
    return figure


def reliability(
    forecasts: Mapping[str, tuple[np.ndarray, np.ndarray]],
    bins: int = 10,
    xlabel: str = "confidence",
    ylabel: str = "share that was right",
) -> Figure:
    """Reliability diagram: share of right answers against the confidence, in bins of equal width.

    `forecasts` has a name for each pair of confidences [N] and of whether they were right [N]. The size of a point
    says how many examples its bin holds; bins of fewer than five are left out.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 4.2))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle="-", label="calibrated")
    for (name, (confidence, right)), color, dashes, marker in zip(
        forecasts.items(), COLORS[1:], DASHES[1:], "osD^v", strict=False
    ):
        place = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
        count = np.bincount(place, minlength=bins)
        kept = count >= 5
        x = np.bincount(place, confidence, bins)[kept] / count[kept]
        y = np.bincount(place, right, bins)[kept] / count[kept]
        ax.plot(x, y, color=color, linestyle=dashes, label=name, marker=marker, markersize=0.1, zorder=2)
        ax.scatter(x, y, s=20 + 160 * count[kept] / count.max(), color=color, marker=marker, alpha=0.75, zorder=3)
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    legend(figure, ax)
    return figure


def recall_by_class(recalls: Mapping[str, np.ndarray], classes: Sequence[object], xlabel: str = "class") -> Figure:
    """Recall of each class, a group of points for each class and a mark for each method."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.4))
    place = np.arange(len(classes))
    step = 0.7 / max(len(recalls), 1)
    for i, ((name, recall), color, marker) in enumerate(zip(recalls.items(), COLORS, "osD^vP", strict=False)):
        x = place + (i - (len(recalls) - 1) / 2) * step
        ax.vlines(x, 0, recall, color=color, linewidth=2.4, alpha=0.45)
        ax.plot(x, recall, marker, color=color, label=name, markersize=6)
    ax.set(xlabel=xlabel, ylabel="recall", ylim=(0, 1.03), xticks=place, xticklabels=list(map(str, classes)))
    ax.grid(visible=False, axis="x")
    legend(figure, ax)
    return figure


use_style()
