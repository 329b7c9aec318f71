"""Which curvature should trees take of a loss that is not convex? `python -m bench.boosting [--seeds N] [--out FILE]`

A leaf moves the logits by gradient over curvature. The second derivatives of focal loss and of generalized
cross-entropy vanish or turn negative, so something else has to take their place. Each candidate trains XGBoost and
LightGBM on tables that scikit-learn brings along: as they are, with rare classes, and with 20 % wrong training labels.
One thread, a few minutes, and tables in Markdown. Needs xgboost, lightgbm and scikit-learn.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import lightgbm as lgb
import numpy as np
import xgboost as xgb
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split

import jaxloss

LOSSES = {
    "cross-entropy": jaxloss.softmax_cross_entropy,
    "focal": functools.partial(jaxloss.softmax_focal_loss, gamma=2.0),
    "generalized": functools.partial(jaxloss.generalized_cross_entropy, q=0.7),
}
TABLES = {"breast cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}
CONDITIONS = ("as it is", "rare classes", "wrong labels")
FLOOR = 1e-6
# Of gradient g, diagonal of the Hessian h, probabilities p and the library's factor f.
CURVATURES = {
    "diagonal, at least 1e-6": lambda g, h, p, f: np.maximum(h, FLOOR),
    "size of the diagonal": lambda g, h, p, f: np.maximum(abs(h), FLOOR),
    "larger of diagonal and Gauss-Newton": lambda g, h, p, f: np.maximum(h, abs(g) * np.where(g < 0, p, 1 - p)) + FLOOR,
    "Gauss-Newton": lambda g, h, p, f: abs(g) * np.where(g < 0, p, 1 - p) + FLOOR,
    "Gauss-Newton, factor": lambda g, h, p, f: f * abs(g) * np.where(g < 0, p, 1 - p) + FLOOR,
    "p (1 - p)": lambda g, h, p, f: p * (1 - p) + FLOOR,
    "p (1 - p), factor": lambda g, h, p, f: f * p * (1 - p) + FLOOR,
    "size of g": lambda g, h, p, f: abs(g) + FLOOR,
}
WITHOUT_FACTOR = {name.removesuffix(", factor") for name in CURVATURES if name.endswith(", factor")}


@functools.partial(jax.jit, static_argnames="name")
def derivatives(name, logits, labels):
    _, g, h = jaxloss.per_example_value_grad_hess(LOSSES[name])(logits, labels)
    return g, h, jax.nn.softmax(logits)


def objective(name, curvature, labels, factor):
    """Of scores [rows] as the logits (0, score), or [rows, classes]."""
    ids = jnp.asarray(labels, jnp.int32)

    def gradient_and_curvature(scores, _):
        scores = np.asarray(scores, np.float32)
        logits = np.stack([np.zeros_like(scores), scores], -1) if scores.ndim == 1 else scores
        g, h, p = map(np.asarray, derivatives(name, logits, ids))
        h = CURVATURES[curvature](g, h, p, factor if scores.ndim > 1 else 1)
        return (g[:, 1].copy(), h[:, 1].copy()) if scores.ndim == 1 else (g, h)

    return gradient_and_curvature


def with_xgboost(name, curvature, train, labels, test, classes, rounds):
    settings = {"max_depth": 3, "eta": 0.3, "base_score": 0.0, "nthread": 1, "disable_default_eval_metric": True}
    settings |= {"num_class": classes} if classes > 2 else {}
    made = objective(name, curvature, labels, 2)
    model = xgb.train(settings, xgb.DMatrix(train, labels), rounds, obj=made)
    return model.predict(xgb.DMatrix(test), output_margin=True)


def with_lightgbm(name, curvature, train, labels, test, classes, rounds):
    settings = {"num_leaves": 7, "learning_rate": 0.2, "min_data_in_leaf": 5, "num_threads": 1, "verbose": -1}
    settings |= {"num_class": classes} if classes > 2 else {}
    settings["objective"] = objective(name, curvature, labels, classes / (classes - 1))
    return lgb.train(settings, lgb.Dataset(train, labels), rounds).predict(test, raw_score=True)


LIBRARIES = {"XGBoost": with_xgboost, "LightGBM": with_lightgbm}


def split(load, condition, seed):
    """Half of at most 600 rows for training, spoiled as the condition says; the other half is clean."""
    rng = np.random.default_rng(seed)
    x, y = load(return_X_y=True)
    kept = rng.permutation(len(y))[:600]
    train, test, labels, right = train_test_split(x[kept], y[kept], test_size=0.5, stratify=y[kept], random_state=seed)
    classes = y.max() + 1
    if condition == "rare classes":  # of every second class, the first in breast cancer, an eighth stays
        stays = (labels % 2 == 1) | (rng.random(len(labels)) < 1 / 8)
        for c in range(classes):  # five of each at least
            stays[np.flatnonzero(labels == c)[:5]] = True
        train, labels = train[stays], labels[stays]
    elif condition == "wrong labels":
        wrong = rng.random(len(labels)) < 0.2
        labels = np.where(wrong, (labels + rng.integers(1, classes, len(labels))) % classes, labels)
    return train, labels, test, right, classes


def judged(name, scores, right):
    """Balanced accuracy, log loss at the best temperature, and the largest score."""
    logits = jnp.stack([jnp.zeros_like(scores), scores], -1) if scores.ndim == 1 else jnp.asarray(scores)
    temperatures = jnp.geomspace(0.05, 1000, 60)
    ids = jnp.asarray(right, jnp.int32)
    losses = [float(jaxloss.softmax_cross_entropy(logits / t, ids).mean()) for t in temperatures]
    accuracy = balanced_accuracy_score(right, np.asarray(logits).argmax(-1))
    return accuracy, min(losses), float(np.abs(scores).max())


def run(seeds, rounds):
    rows = []
    for seed in range(seeds):
        for table, load in TABLES.items():
            for condition in CONDITIONS:
                *given, right, classes = split(load, condition, seed)
                for library, train in LIBRARIES.items():
                    for name in LOSSES:
                        for curvature in CURVATURES:
                            same = curvature.endswith("factor") and classes == 2
                            if same or (name == "cross-entropy" and not curvature.startswith(("p (1", "size of g"))):
                                continue
                            scores = train(name, curvature, *given, classes, rounds).astype(np.float32)
                            numbers = judged(name, scores, right)
                            rows.append((library, table, condition, name, curvature, seed, *numbers))
    return rows


def table(rows, library, name):
    """Means over tables and seeds by condition; for two classes the factor is 1. Differences are paired."""
    heads = [f"{c}: {m}" for c in CONDITIONS for m in ("accuracy", "log loss")]
    lines = [
        f"| curvature | {' | '.join(heads)} | log loss over that of size of g | largest score |",
        "|---|" + "---|" * 8,
    ]
    of = {}
    for curvature in CURVATURES:
        plain = curvature.removesuffix(", factor")
        of[curvature] = {
            (r[2], r[1], r[5]): r[6:]
            for r in rows
            if r[:5] == [library, r[1], r[2], name, plain if r[1] == "breast cancer" else curvature]
        }
    for curvature, found in of.items():
        if not found:
            continue
        cells = []
        for condition in CONDITIONS:
            numbers = np.mean([numbers for key, numbers in found.items() if key[0] == condition], 0)
            cells += [f"{x:.3f}" for x in numbers[:2]]
        more = [numbers[1] - of["size of g"][key][1] for key, numbers in found.items()]
        cells.append(f"{np.mean(more):+.3f} ± {np.std(more, ddof=1) / len(more) ** 0.5:.3f}")
        largest = max(numbers[2] for numbers in found.values())
        lines.append(f"| {curvature} | {' | '.join(cells)} | {largest:.3g} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.boosting", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="JSON of every run, made here or, if it is there, read again")
    arguments = parser.parse_args()
    start = time.process_time()
    if arguments.out and arguments.out.exists():
        rows = json.loads(arguments.out.read_text())
    else:
        rows = json.loads(json.dumps(run(arguments.seeds, arguments.rounds)))
        if arguments.out:
            arguments.out.write_text(json.dumps(rows))
    for library in LIBRARIES:
        for name in LOSSES:
            print(f"\n{library}, {name}\n\n{table(rows, library, name)}")
    print(f"\n{time.process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
