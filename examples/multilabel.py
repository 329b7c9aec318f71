"""Which loss for multi-label data with unknown labels? Eight losses on binary attributes of handwritten digits.

Data: scikit-learn's 8 x 8 digits. Eight attributes of the digit are the labels, from even (half of the images) to the
perfect number (6: a tenth); nobody tells the network which digit it sees. A test set of 797 images is set aside once,
fully labelled and used only to report. Each seed draws 300 training images from the rest, hides 30 % of their labels
and starts the network somewhere else. A hidden label is NaN in the array and `where` says which are known; the script
asserts that what hidden entries hold changes no bit of any loss or gradient. The seeds share one pool of images and
one test set: their spread shows what the draw, the hiding and the start change, not what other data do. Every loss has
its default options, and all have the same learning rate and number of steps: nothing is tuned for any of them.

Scores become decisions so: a label is predicted where its logit is above 0, which is what ZLPR and the losses of single
labels mean by a logit of 0. LSEP and sparsemax compare the labels of a row and leave open how many are right. The
logits of LSEP, and the sparse probabilities that sparsemax makes of its logits, are cut at one threshold for all labels
and images: the one with the fewest errors among the known labels of the training set, in the middle of the widest gap
if several have. The others might gain from that, too: a column of the table has every method choose its threshold so.

    python examples/multilabel.py                   # tables on the terminal, figure in multilabel.png
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy import stats
from sklearn.datasets import load_digits
from tqdm import tqdm

import jaxloss
from jaxloss import metrics

ATTRIBUTES = {
    "even": {0, 2, 4, 6, 8},
    "at least 5": {5, 6, 7, 8, 9},
    "prime": {2, 3, 5, 7},
    "closed loop": {0, 6, 8, 9},  # also where the hand left it open; a 4 counts as open
    "straight strokes": {1, 4, 7},
    "same upside down": {0, 8},
    "two loops": {8},
    "perfect number": {6},
}
TABLE = np.array([[digit in digits for digits in ATTRIBUTES.values()] for digit in range(10)])  # [10, C]
C, TRAINED, TESTED, HIDDEN_SHARE = len(ATTRIBUTES), 300, 797, 0.3
RARE = TABLE.mean(0) < 0.25
UNITS, UPDATES = 32, 20  # hidden units; updates of the progress bar
OPTIMIZER = optax.adamw(1e-2, weight_decay=1e-2)
Params = dict[str, jax.Array]
State = tuple[Params, Any]  # parameters, optimizer's state


def weighted_bce(logits: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
    """Positives weigh as much as negatives, counted among the labels known."""
    positives, negatives = jnp.sum(labels, 0, where=where), jnp.sum(1 - labels, 0, where=where)
    pos_weight = jaxloss.balanced_pos_weight(positives, negatives)
    return jaxloss.sigmoid_binary_cross_entropy(logits, labels, where=where, pos_weight=pos_weight)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "BCE": jaxloss.sigmoid_binary_cross_entropy,
    "weighted BCE": weighted_bce,
    "focal": jaxloss.sigmoid_focal_loss,
    "ASL": jaxloss.asymmetric_loss,
    "LSEP": jaxloss.log_sum_exp_pairwise_loss,
    "ZLPR": jaxloss.zlpr_loss,
    "sparsemax": jaxloss.multiclass_sparsemax_loss,
    "modified Huber": jaxloss.modified_huber_loss,
}
METHODS = tuple(LOSSES)
CHOOSES = np.isin(METHODS, ("LSEP", "sparsemax"))  # their threshold on the training set
# The figures [S, M] of a table, and 1 where more is better.
HAMMING, RANKING, MACRO_F1, RARE_F1 = "Hamming loss", "label-ranking loss", "macro-F1", "F1 of rare labels"
SIGNS = {HAMMING: -1, RANKING: -1, MACRO_F1: 1, RARE_F1: 1}
Figures = dict[str, np.ndarray]


class Data(NamedTuple):
    """The training set of one seed; those of all seeds stack along a leading axis."""

    images: jax.Array  # [N, 64]
    labels: jax.Array  # [N, C], multi-hot, NaN where hidden
    known: jax.Array  # [N, C]


def digits_with_attributes(seeds: int) -> tuple[Data, np.ndarray, np.ndarray, np.ndarray]:
    """Training sets of S seeds, all their labels [S, N, C], test images [T, 64], their labels [T, C]."""
    digits = load_digits()
    images, labels = (digits.data / 16).astype(np.float32), TABLE[digits.target].astype(np.float32)
    test, pool = np.split(np.random.default_rng(0).permutation(len(images)), [TESTED])
    rngs = [np.random.default_rng([1, seed]) for seed in range(seeds)]
    rows = np.stack([rng.choice(pool, TRAINED, replace=False) for rng in rngs])
    known = np.stack([rng.random((TRAINED, C)) >= HIDDEN_SHARE for rng in rngs])
    data = Data(*map(jnp.asarray, (images[rows], np.where(known, labels[rows], np.nan), known)))
    return data, labels[rows], images[test], labels[test]


def initial_state(seeds: int) -> State:
    """One hidden layer for each seed and method [S, M], the same for all methods of a seed."""
    draws = [np.random.default_rng([2, seed]).standard_normal((64 + C, UNITS), np.float32) for seed in range(seeds)]
    hidden, output = np.split(np.repeat(np.stack(draws)[:, None], len(METHODS), axis=1), [64], axis=2)
    params = {
        "hidden": jnp.asarray(hidden * (2 / 64) ** 0.5),
        "hidden_bias": jnp.zeros((*hidden.shape[:2], UNITS)),
        "output": jnp.asarray(output.swapaxes(2, 3) * (1 / UNITS) ** 0.5),
        "output_bias": jnp.zeros((*hidden.shape[:2], C)),
    }
    return params, jax.vmap(OPTIMIZER.init)(params)


def network(params: Params, images: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(images @ params["hidden"] + params["hidden_bias"])
    return hidden @ params["output"] + params["output_bias"]


def total_loss(logits: jax.Array, labels: jax.Array, known: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum over the methods, and the loss [M] of each, from its own logits [M, N, C]."""
    losses = [loss(z, labels, where=known) for z, loss in zip(logits, LOSSES.values(), strict=True)]
    # A mean over the labels known, or over rows for losses of a row.
    means = jnp.stack([jaxloss.mean(loss, where=known if loss.ndim == 2 else None) for loss in losses])
    return means.sum(), means


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, None))
def advance(state: State, data: Data, steps: int) -> tuple[State, jax.Array]:
    """Full-batch updates of every method, and its last loss.

    The methods share no parameter: the gradient of the sum of their losses is the gradient of each.
    """

    def training_loss(params: Params) -> tuple[jax.Array, jax.Array]:
        return total_loss(jax.vmap(network, (0, None))(params, data.images), data.labels, data.known)

    def step(_, carry):
        (params, moments), _ = carry
        (_, losses), gradient = jax.value_and_grad(training_loss, has_aux=True)(params)
        updates, moments = OPTIMIZER.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), losses

    return jax.lax.fori_loop(0, steps, step, (state, jnp.zeros(len(METHODS))))


def assert_hidden_labels_have_no_effect(data: Data, truth: np.ndarray, seeds: int) -> int:
    """Whatever hidden entries hold: losses and gradients are the same, bit for bit. Returns the numbers compared.

    These are the losses, the parameters after one update, and AdamW's moments: the gradient and its square, scaled.
    """

    def one_update(hidden: np.ndarray | float) -> list[jax.Array]:
        labels = jnp.where(data.known, truth, hidden)
        return jax.tree.leaves(advance(initial_state(seeds), data._replace(labels=labels), 1))

    expected = one_update(np.nan)
    assert all(np.isfinite(array).all() for array in expected)
    for hidden in (np.inf, -1.0, truth, 1 - truth):
        pairs = zip(expected, one_update(hidden), strict=True)
        assert all(one.tobytes() == other.tobytes() for one, other in pairs)
    return sum(array.size for array in expected)


def train(data: Data, seeds: int, steps: int) -> Params:
    """Trains all methods from all seeds at once."""
    state = initial_state(seeds)
    lengths = np.diff(np.unique(np.linspace(0, steps, UPDATES + 1).astype(int)))
    with tqdm(total=steps, desc=f"{len(METHODS)} losses x {seeds} seeds", unit="step") as bar:
        for length in lengths:
            state, losses = advance(state, data, int(length))
            bar.set_postfix(BCE=f"{losses[:, 0].mean():.4f}", refresh=False)
            bar.update(length)
    return state[0]


@jax.jit
@jax.vmap
def predict(params: Params, images: jax.Array) -> jax.Array:
    """Logits [S, M, N, C] of images [S, N, 64]."""
    return jax.vmap(network, (0, None))(params, images)


def decision_scores(logits: jax.Array) -> jax.Array:
    """What is compared with a threshold: logits [S, M, N, C], and for sparsemax its probabilities."""
    place = METHODS.index("sparsemax")
    return logits.at[:, place].set(jaxloss.sparsemax(logits[:, place]))


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the fewest errors for 0/1 labels [K]: in the middle of a gap, of equals the widest."""
    order = np.argsort(scores)
    scores, gaps = scores[order], np.diff(scores[order])
    # Predicting the first k negative makes errors of the positives among them; beyond, of the negatives.
    errors = np.where(gaps > 0, np.cumsum(2 * labels[order] - 1)[:-1], np.inf)  # less the number of negatives
    k = np.lexsort((-gaps, errors))[0]
    return (scores[k] + scores[k + 1]) / 2


def choose_thresholds(logits: jax.Array, data: Data) -> np.ndarray:
    """Thresholds [S, M] from the known labels of the training sets."""
    arrays = zip(*map(np.asarray, (decision_scores(logits), data.labels, data.known)), strict=True)
    return np.array([[best_threshold(z[known], t[known]) for z in scores] for scores, t, known in arrays])


def evaluate(logits: jax.Array, labels: np.ndarray, thresholds: np.ndarray) -> tuple[Figures, np.ndarray]:
    """The figures [S, M] of logits [S, M, T, C], and F1 of each label [S, M, C]."""
    predictions = decision_scores(logits) > thresholds[..., None, None]
    truth = jnp.broadcast_to(labels, logits.shape)
    hamming = metrics.hamming_loss(predictions, truth).mean((2, 3))
    ranking = metrics.label_ranking_loss(logits, truth).mean(2)
    by_label = np.asarray(2 * (predictions * truth).sum(2) / (predictions.sum(2) + truth.sum(2)))
    values = (np.asarray(hamming), np.asarray(ranking), by_label.mean(-1), by_label[..., RARE].mean(-1))
    return dict(zip(SIGNS, values, strict=True)), by_label


def clear_sign(differences: np.ndarray) -> np.ndarray:
    """Sign of the mean over seeds (first axis) where its 95 % t-interval leaves out 0, else 0."""
    mean, error = differences.mean(0), differences.std(0, ddof=1) / len(differences) ** 0.5
    return np.sign(mean) * (abs(mean) > stats.t.ppf(0.975, len(differences) - 1) * error)


def print_table(figures: Figures, choosing: Figures, thresholds: np.ndarray) -> None:
    columns = {**figures, "threshold": thresholds, "Hamming if chosen": choosing[HAMMING]}
    print(f"\nTest set, mean ± standard deviation over {len(thresholds)} seeds (rare labels: the {RARE.sum()} rarest;")
    print("Hamming if chosen: if every method chooses its threshold on the training set)")
    print(f"{'':>14} |" + "".join(f"{name:>19}" for name in columns))
    for m, method in enumerate(METHODS):
        cells = {name: f"{v[:, m].mean():.3f} ± {v[:, m].std(ddof=1):.3f}" for name, v in columns.items()}
        cells["threshold"] = cells["threshold"] if CHOOSES[m] else "0"
        print(f"{method:>14} |" + "".join(f"{cell:>19}" for cell in cells.values()))


def print_findings(figures: Figures, choosing: Figures) -> None:
    """What the numbers say; differences are paired by seed."""
    print(f"\nDifferences from {METHODS[0]} on the test set, paired by seed, mean ± standard error")
    print(f"{'':>14} |" + "".join(f"{name:>19}" for name in figures))
    for m, method in enumerate(METHODS[1:], 1):
        differences = [values[:, m] - values[:, 0] for values in figures.values()]
        cells = [f"{d.mean():+.3f} ± {d.std(ddof=1) / len(d) ** 0.5:.3f}" for d in differences]
        print(f"{method:>14} |" + "".join(f"{cell:>19}" for cell in cells))
    print("\nClear differences: the 95 % t-interval over seeds, each on its own, leaves out 0")
    for m, method in enumerate(METHODS[1:], 1):
        found = {1: [], 0: [], -1: []}
        for name, values in figures.items():
            difference = values[:, m] - values[:, 0]
            found[int(SIGNS[name] * clear_sign(difference))].append(f"{name} ({difference.mean():+.3f})")
        better, worse = (", ".join(found[sign]) or "nothing" for sign in (1, -1))
        print(f"{method}: better than {METHODS[0]} in {better}; worse in {worse}")
    for name, values in figures.items():
        order = np.argsort(-SIGNS[name] * values.mean(0), kind="stable")
        behind = clear_sign(values - values[:, order[:1]]) != 0
        near = ", ".join(METHODS[m] for m in order[1:] if not behind[m]) or "none"
        print(f"{name}: best is {METHODS[order[0]]}; not clearly behind it: {near}; last is {METHODS[order[-1]]}")
    change = choosing[HAMMING] - figures[HAMMING]
    changes = [f"{METHODS[m]} ({change[:, m].mean():+.3f})" for m in np.flatnonzero(clear_sign(change))]
    print(f"A chosen threshold in place of 0 changes the Hamming loss of: {', '.join(changes) or 'none'}")


def draw(figures: Figures, choosing: Figures, by_label: np.ndarray) -> Figure:
    """Differences from BCE, paired by seed, and F1 of each label; `by_label` is [S, M, C]."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained", sharey=True)
    every, given = np.arange(len(METHODS)), np.flatnonzero(~CHOOSES)
    critical = stats.t.ppf(0.975, len(by_label) - 1)
    at_zero = figures, given, -0.14, {"fmt": "o", "color": "#0072B2", "label": "cut at 0"}
    chosen = choosing, every, 0.14, {"fmt": "D", "color": "#D55E00", "label": "threshold chosen on the training set"}
    scores = figures, every, 0, {"fmt": "s", "color": "black", "label": "order of the scores, no threshold"}
    panels = {HAMMING: (at_zero, chosen), RANKING: (scores,), MACRO_F1: (at_zero, chosen)}
    for axis, (name, series) in zip(axes.flat, panels.items(), strict=False):
        base = figures[name][:, :1]
        for source, rows, shift, style in series:
            difference = source[name][:, rows] - base
            half = critical * difference.std(0, ddof=1) / len(base) ** 0.5
            axis.errorbar(difference.mean(0), rows + shift, xerr=half, markersize=5, capsize=3, **style)
        axis.axvline(0, color="black", linewidth=1)
        better = "more" if SIGNS[name] > 0 else "less"
        axis.set(title=f"{name[0].upper()}{name[1:]} ({better} is better; BCE: {base.mean():.3f})")
        axis.set_xlabel("difference from BCE" + " cut at 0" * (len(series) > 1))
        axis.locator_params(axis="x", nbins=6)
        axis.grid(alpha=0.3)
    heat, means = axes[1, 1], by_label.mean(0)
    picture = heat.imshow(means, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(means):
        color = "white" if picture.norm(value) < 0.5 else "black"
        heat.text(column, row, f"{value:.2f}", color=color, ha="center", va="center")
    names = [name.replace(" ", "\n") + f"\n{share:.0%}" for name, share in zip(ATTRIBUTES, TABLE.mean(0), strict=True)]
    heat.set_xticks(range(C), names)
    heat.set(title="F1 of each label (cut at 0; LSEP, sparsemax: threshold chosen)", yticks=every, yticklabels=METHODS)
    heat.set_xlabel("label and share of the digits that have it")
    handles = [handle for axis in axes[0] for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    title = f"Multi-label losses, {TRAINED} training images with {HIDDEN_SHARE:.0%} of the labels hidden, test set"
    figure.suptitle(f"{title}:\ndifferences paired by seed, means over {len(by_label)} seeds and 95 % t-intervals")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares losses on multi-label data with hidden labels.")
    parser.add_argument("--seeds", type=int, default=16, help="training sets, with their own hidden labels and starts")
    parser.add_argument("--steps", type=int, default=300, help="full-batch updates of every training")
    parser.add_argument("--out", type=Path, default=Path("multilabel.png"), help="where the figure goes (PNG)")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 20 steps: does it run?")
    options = parser.parse_args()
    seeds, steps = (2, 20) if options.quick else (options.seeds, options.steps)
    if seeds < 2 or steps < 1:
        parser.error("--seeds must be at least 2 (for standard deviations) and --steps at least 1")
    plt.switch_backend("Agg")

    data, truth, test_images, test_labels = digits_with_attributes(seeds)
    positives = zip(ATTRIBUTES, (truth * data.known).sum(1).mean(0), strict=True)
    print("Labels and their known positives:", ", ".join(f"{name} {count:.0f}" for name, count in positives))
    compared = assert_hidden_labels_have_no_effect(data, truth, seeds)
    print(f"{np.mean(~data.known):.1%} of the labels are hidden. With NaN, inf, -1, the truth or its opposite there,")
    print(f"all {compared} losses, entries of gradients and updated parameters are the same, bit for bit.")

    params = train(data, seeds, steps)
    logits = predict(params, data.images)
    thresholds = choose_thresholds(logits, data)
    test_logits = predict(params, jnp.broadcast_to(test_images, (seeds, *test_images.shape)))
    choosing = evaluate(test_logits, test_labels, thresholds)[0]
    figures, by_label = evaluate(test_logits, test_labels, np.where(CHOOSES, thresholds, 0))
    print_table(figures, choosing, thresholds)
    print_findings(figures, choosing)
    draw(figures, choosing, by_label).savefig(options.out, dpi=110)
    print(f"Figure: {options.out}")


if __name__ == "__main__":
    main()
