"""Which loss for imbalanced classes? Cross-entropy and focal loss, plain and with class weights, on long-tailed digits.

Data: scikit-learn's 8 x 8 digits. A test set of 74 images of every digit is set aside once and used only to report.
From the rest, each seed draws its own training set of 250 images, from 100 of the most frequent digit down to 1 of the
rarest in equal ratios. The seed also says which digit is how rare, and where the network starts. Classes are numbered
by frequency: class 0 is the most frequent one of every seed, whichever digit that is. The seeds share one pool of
images and one test set: their spread shows what the rare digits, the draw and the start change, not what other data do.

Every loss here is `softmax_focal_loss` with two traced numbers: gamma (0 is cross-entropy) and the exponent of balanced
class weights (0 is unweighted). So one train step serves all of them, and `jax.vmap` trains all of them at once.

    python examples/imbalanced_digits.py            # tables on the terminal, figure in imbalanced_digits.png
"""

import argparse
import itertools
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

C = 10
# The rarest digit has 174 images: 100 for the head of a 100:1 tail leave 74 of every digit to test on.
HEAD, RATIO = 100, 100
COUNTS = np.round(HEAD * RATIO ** (-np.arange(C) / (C - 1))).astype(int)
LABELS = np.repeat(np.arange(C), COUNTS)  # of every training set
FOLDS, HIDDEN, EVALUATIONS = 5, 32, 20
OPTIMIZER = optax.adamw(1e-2, weight_decay=1e-2)
GAMMAS, EXPONENTS = (0.0, 0.5, 1.0, 2.0), (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
GRID = np.array(list(itertools.product(GAMMAS, EXPONENTS)))
FIXED = {"cross-entropy": (0.0, 0.0), "weighted CE": (0.0, 1.0), "focal": (2.0, 0.0), "weighted focal": (2.0, 1.0)}
CHOSEN = "chosen by CV"
METHODS = (*FIXED, CHOSEN)
STYLES = (("#000000", "o-"), ("#0072B2", "s--"), ("#E69F00", "^-"), ("#D55E00", "v--"), ("#009E73", "D:"))
State = tuple[dict[str, jax.Array], Any]  # parameters, optimizer's state


class Run(NamedTuple):
    """What tells one training from another; runs stack along a leading axis."""

    images: jax.Array  # [N, 64], in the order of LABELS
    kept: jax.Array  # [N], rows to train on
    gamma: jax.Array
    class_weights: jax.Array  # [C]


def long_tailed_digits(seeds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training images [S, N, 64] for each of S seeds, test images [M, 64], their classes as each seed counts [S, M]."""
    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    shuffled = np.random.default_rng(0).permutation(len(images))
    by_digit = [shuffled[digits.target[shuffled] == digit] for digit in range(C)]
    tested = min(map(len, by_digit)) - HEAD
    test = np.concatenate([rows[:tested] for rows in by_digit])
    train, test_labels = [], []
    for seed in range(seeds):
        rng = np.random.default_rng([1, seed])
        by_frequency = rng.permutation(C)
        drawn = [rng.choice(by_digit[d][tested:], n, replace=False) for d, n in zip(by_frequency, COUNTS, strict=True)]
        train.append(images[np.concatenate(drawn)])
        test_labels.append(np.argsort(by_frequency)[digits.target[test]])
    return np.stack(train), images[test], np.stack(test_labels)


def make_runs(images: np.ndarray, kept: np.ndarray, gamma: np.ndarray, exponent: np.ndarray) -> Run:
    """R runs from images [R, N, 64], masks [R, N], gammas and exponents [R]; the weights count the rows kept."""
    counts = kept.astype(np.float32) @ np.eye(C, dtype=np.float32)[LABELS]
    weights = jax.vmap(jaxloss.balanced_class_weights)(counts) ** exponent.astype(np.float32)[:, None]
    return Run(jnp.asarray(images), jnp.asarray(kept), jnp.asarray(gamma, jnp.float32), weights)


def initial_state(seed: np.ndarray) -> State:
    """One hidden layer for each run [R], the same for all runs of a seed."""
    draws = [np.random.default_rng([2, s]).standard_normal((64 + C, HIDDEN), np.float32) for s in range(max(seed) + 1)]
    hidden, output = np.split(np.stack(draws)[seed], [64], axis=1)
    params = {
        "hidden": jnp.asarray(hidden * (2 / 64) ** 0.5),
        "hidden_bias": jnp.zeros((len(seed), HIDDEN)),
        "output": jnp.asarray(output.swapaxes(1, 2) * (1 / HIDDEN) ** 0.5),
        "output_bias": jnp.zeros((len(seed), C)),
    }
    return params, jax.vmap(OPTIMIZER.init)(params)


def network(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(images @ params["hidden"] + params["hidden_bias"])
    return hidden @ params["output"] + params["output_bias"]


def training_loss(params: dict[str, jax.Array], run: Run) -> jax.Array:
    logits = network(params, run.images)
    losses = jaxloss.softmax_focal_loss(logits, LABELS, gamma=run.gamma, class_weights=run.class_weights)
    return jaxloss.mean(losses, where=run.kept)


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, None))
def advance(state: State, run: Run, steps: int) -> tuple[State, jax.Array]:
    """Full-batch updates of every run, and the last losses; another number of steps does not compile again."""

    def step(_, carry):
        (params, moments), _ = carry
        loss, gradient = jax.value_and_grad(training_loss)(params, run)
        updates, moments = OPTIMIZER.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    return jax.lax.fori_loop(0, steps, step, (state, jnp.zeros(())))


@jax.jit
@jax.vmap
def predict(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    return jnp.argmax(network(params, images), axis=-1)


def train(title: str, runs: Run, seed: np.ndarray, steps: int, images: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Trains all runs at once. Returns steps done [E] and the classes predicted then for `images` [R, M, 64]."""
    state = initial_state(seed)
    done = np.unique(np.linspace(0, steps, EVALUATIONS + 1).astype(int))
    predictions = [predict(state[0], images)]
    with tqdm(total=steps, desc=f"{title}, {len(seed)} trainings", unit="step") as bar:
        for length in np.diff(done):
            state, losses = advance(state, runs, int(length))
            predictions.append(predict(state[0], images))
            bar.set_postfix(mean_loss=f"{losses.mean():.4f}", refresh=False)
            bar.update(length)
    return done, np.stack(predictions)


def cross_validate(images: np.ndarray, steps: int) -> np.ndarray:
    """Balanced accuracy [grid, S] on held-out rows: one vmapped training of grid x folds x seeds.

    Rows are dealt to folds in order of class, so a class with fewer rows than folds has one row in each of some folds;
    recalls are therefore taken over all folds together. The only row of the rarest class is never held out: no fold
    could both learn and score that class, and the score leaves it out.
    """
    folds = np.where(COUNTS[LABELS] > 1, np.arange(len(LABELS)) % FOLDS, -1)
    shape = (len(GRID), FOLDS, len(images))
    setting, fold, seed = np.indices(shape).reshape(3, -1)
    runs = make_runs(images[seed], folds != fold[:, None], *GRID[setting].T)
    predicted = train("cross-validation", runs, seed, steps, runs.images)[1][-1].reshape(*shape, -1)
    scored = np.flatnonzero(folds >= 0)
    correct = predicted[:, folds[scored], :, scored] == LABELS[scored, None, None]  # [scored rows, grid, S]
    return np.mean([correct[LABELS[scored] == c].mean(0) for c in np.unique(LABELS[scored])], axis=0)


def confusion(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Counts [..., C, C] of (true class, predicted class)."""
    one_hot = np.eye(C)
    return np.swapaxes(one_hot[labels], -1, -2) @ one_hot[predictions]


def recall(matrix: np.ndarray) -> np.ndarray:
    """Recall of each class [..., C]; balanced accuracy is its mean."""
    return np.diagonal(matrix, axis1=-2, axis2=-1) / matrix.sum(-1)


def macro_f1(matrix: np.ndarray) -> np.ndarray:
    return np.mean(2 * np.diagonal(matrix, axis1=-2, axis2=-1) / (matrix.sum(-1) + matrix.sum(-2)), axis=-1)


def standard_error(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.std(axis, ddof=1) / values.shape[axis] ** 0.5


def print_grid(scores: np.ndarray, picks: np.ndarray) -> None:
    print("\nCross-validation: balanced accuracy on held-out rows, mean over seeds (seeds that chose the setting)")
    print(f"{'gamma':>7} |" + "".join(f"{f'weights^{e:g}':>16}" for e in EXPONENTS))
    cells = [f"{score:>10.3f} {f'({n})' if n else '':<5}" for score, n in zip(scores.mean(-1), picks, strict=True)]
    for gamma, row in zip(GAMMAS, np.reshape(cells, (len(GAMMAS), -1)), strict=True):
        print(f"{gamma:>7g} |" + "".join(row).rstrip())


def print_table(matrices: np.ndarray) -> None:
    """Rows: recall of each class, macro-F1, balanced accuracy. Columns: methods. `matrices` is [methods, S, C, C]."""
    recalls = recall(matrices)
    rows = {f"recall, n = {count}": recalls[..., c] for c, count in enumerate(COUNTS)}
    rows |= {"macro-F1": macro_f1(matrices), "balanced accuracy": recalls.mean(-1)}
    print(f"\nTest set, mean ± standard deviation over {matrices.shape[1]} seeds; n is the class's count in training")
    print(
        "(weighted: by balanced class weights; focal: gamma = 2; chosen by CV: what each seed chose on the grid above)"
    )
    print(f"{'':>17} |" + "".join(f"{name:>16}" for name in METHODS))
    for name, values in rows.items():
        print(f"{name:>17} |" + "".join(f"{f'{v.mean():.3f} ± {v.std(ddof=1):.3f}':>16}" for v in values))


def print_findings(recalls: np.ndarray, scores: np.ndarray, picks: np.ndarray) -> None:
    """What the numbers say; differences are paired by seed. `recalls` is [methods, S, C]."""
    best = METHODS[np.argmax(recalls[: len(FIXED)].mean((1, 2)))]
    pairs = [("weighted CE", "cross-entropy"), ("focal", "cross-entropy"), ("weighted focal", "weighted CE")]
    pairs += [(CHOSEN, "cross-entropy"), (CHOSEN, best)]
    critical = stats.t.ppf(0.975, picks.sum() - 1)
    print("\nDifferences of test recall, mean ± standard error over seeds; clear: the 95 % t-interval leaves out 0")
    print(f"{'':>31} |{'all classes':>17}{'3 most frequent':>17}{'3 rarest':>17}")
    for one, other in dict.fromkeys(pairs):
        difference = recalls[METHODS.index(one)] - recalls[METHODS.index(other)]
        parts = [difference.mean(-1), difference[:, :3].mean(-1), difference[:, -3:].mean(-1)]
        cells = "".join(f"{f'{p.mean():+.3f} ± {standard_error(p):.3f}':>17}" for p in parts)
        clear = abs(parts[0].mean()) > critical * standard_error(parts[0])
        verdict = ("clearly better" if parts[0].mean() > 0 else "clearly worse") if clear else "no clear difference"
        print(f"{f'{one} - {other}':>31} |{cells}   {verdict}")
    gamma, exponent = GRID[np.argmax(scores.mean(-1))]
    edge = ", at the edge of the grid" if gamma == GAMMAS[-1] or exponent == EXPONENTS[-1] else ""
    edge = edge or (" (gamma cannot be smaller)" if gamma == 0 else "")
    print(f"Clear or not is judged over all classes. {best} is the best fixed loss in hindsight, on the test set.")
    print(f"Cross-validation chose {np.sum(picks > 0)} different settings for the {picks.sum()} seeds;")
    print(f"its mean is highest for gamma = {gamma:g} and class weights to the power {exponent:g}{edge}.")


def paired(recalls: np.ndarray) -> dict[str, np.ndarray]:
    """Differences [S] of test balanced accuracy from cross-entropy, seed by seed; `recalls` is [methods, S, C]."""
    accuracy = recalls.mean(-1)
    return {name: accuracy[m] - accuracy[0] for m, name in enumerate(METHODS) if m}


def draw(done: np.ndarray, recalls: np.ndarray, scores: np.ndarray, picks: np.ndarray) -> Figure:
    """Recall by class, paired differences, test balanced accuracy by steps, grid; `recalls` is [E, methods, S, C]."""
    figure, ((left, right), (below, corner)) = plt.subplots(2, 2, figsize=(13, 9.5), layout="constrained")
    accuracy, seeds = recalls.mean(-1), picks.sum()
    for m, (name, (color, style)) in enumerate(zip(METHODS, STYLES, strict=True)):
        place, final = np.arange(C) + 0.13 * (m - 2), recalls[-1, m]  # side by side, for the error bars
        bars = {"elinewidth": 1, "linewidth": 1.2, "markersize": 5}
        left.errorbar(place, final.mean(0), final.std(0, ddof=1), fmt=style, color=color, label=name, **bars)
        mean, spread = accuracy[:, m].mean(-1), accuracy[:, m].std(-1, ddof=1)
        below.plot(done, mean, style, color=color, linewidth=1.5, markersize=4)
        below.fill_between(done, mean - spread, mean + spread, color=color, alpha=0.12, linewidth=0)
    left.set(xlabel="images of the class in the training set", ylabel="recall (fraction of the class's test images)")
    left.set(title="Recall by class frequency", xticks=range(C), xticklabels=COUNTS, yticks=np.linspace(0, 1, 6))
    below.set(xlabel="training steps (full batch)", ylabel="balanced accuracy (mean recall, test set)", ylim=(0, 1))
    below.set_title("Training curves: test accuracy, because the losses differ in scale")

    critical = stats.t.ppf(0.975, seeds - 1)
    for row, (difference, (color, style)) in enumerate(zip(paired(recalls[-1]).values(), STYLES[1:], strict=True)):
        right.plot(difference, np.full(seeds, row + 0.18), "o", color=color, alpha=0.35, markersize=5)
        half = critical * standard_error(difference)
        right.errorbar(difference.mean(), row - 0.08, xerr=half, fmt=style[0], color=color, capsize=4, markersize=7)
    right.axvline(0, color="black", linewidth=1)
    right.set(
        yticks=range(len(METHODS) - 1), yticklabels=METHODS[1:], xlabel="balanced accuracy less that of cross-entropy"
    )
    right.set(title="Differences paired by seed (light), mean and 95 % t-interval", ylim=(len(METHODS) - 1.5, -0.5))
    for axes in (left, right, below):
        axes.grid(alpha=0.3)

    means = scores.mean(-1).reshape(len(GAMMAS), -1)
    picture = corner.imshow(means, cmap="cividis", aspect="auto")
    for (row, column), score in np.ndenumerate(means):
        chosen = picks.reshape(means.shape)[row, column]
        color = "white" if picture.norm(score) < 0.6 else "black"
        corner.text(column, row, f"{score:.3f}" + f"\n({chosen})" * bool(chosen), color=color, ha="center", va="center")
    corner.set(xlabel="exponent of the balanced class weights", ylabel="gamma of the focal loss")
    corner.set(xticks=range(len(EXPONENTS)), xticklabels=EXPONENTS, yticks=range(len(GAMMAS)), yticklabels=GAMMAS)
    corner.set_title("Cross-validation on the training set\n(in brackets: seeds that chose the setting)")
    figure.colorbar(picture, label="balanced accuracy on held-out rows")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), frameon=False)
    title = f"Losses on digits made imbalanced {RATIO}:1, {len(LABELS)} training images: means over {seeds} seeds"
    figure.suptitle(f"{title}, with bars and bands of one standard deviation")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares losses on long-tailed digits.")
    parser.add_argument("--seeds", type=int, default=8, help="training sets, each with its own rare digits and start")
    parser.add_argument("--steps", type=int, default=300, help="full-batch updates of every training")
    parser.add_argument("--out", type=Path, default=Path("imbalanced_digits.png"), help="where the figure goes (PNG)")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 20 steps: does it run?")
    options = parser.parse_args()
    seeds, steps = (2, 20) if options.quick else (options.seeds, options.steps)
    if seeds < 2 or steps < 1:
        parser.error("--seeds must be at least 2 (for standard deviations) and --steps at least 1")
    plt.switch_backend("Agg")

    train_images, test_images, test_labels = long_tailed_digits(seeds)
    scores = cross_validate(train_images, steps)
    chosen = np.argmax(scores, axis=0)  # ties go to the smaller gamma, then to the smaller exponent
    picks = np.bincount(chosen, minlength=len(GRID))
    print_grid(scores, picks)

    settings = np.concatenate([np.repeat(list(FIXED.values()), seeds, axis=0), GRID[chosen]])
    seed = np.tile(np.arange(seeds), len(METHODS))
    runs = make_runs(train_images[seed], np.ones((len(seed), len(LABELS)), bool), *settings.T)
    every_test = jnp.broadcast_to(test_images, (len(seed), *test_images.shape))
    done, predictions = train("all training data", runs, seed, steps, every_test)
    matrices = confusion(test_labels, predictions.reshape(len(done), len(METHODS), seeds, -1))
    print_table(matrices[-1])
    print_findings(recall(matrices[-1]), scores, picks)
    draw(done, recall(matrices), scores, picks).savefig(options.out, dpi=110)
    print(f"Figure: {options.out}")


if __name__ == "__main__":
    main()
