"""Long runs of a classifier and of a last layer: `python -m tests.soak --steps 10000 --out soak.png`.

Masks, weights and options change with every step, and 1 % of the rows hold NaN and a label of -100 under the mask.
Three runs of each: one more is the same to the bit, and so is one with nothing but zeros in those rows. After the first
steps nothing is compiled, and neither arrays nor memory grow.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from tests import programs

ROWS, WIDTH, CLASSES, VOCABULARY = 256, 16, 10, 503
WARM = 20
"""Steps after which nothing new is expected."""
COMPILED = "/jax/core/compile/backend_compile_duration"


class Run(NamedTuple):
    losses: np.ndarray
    compiled: int  # programs after the first steps
    arrays: np.ndarray  # alive, at intervals
    megabytes: np.ndarray  # of the process


def settings(step: jax.Array) -> dict[str, jax.Array]:
    """Options of a step, by numbers that never come again."""
    x = jnp.float32(step)
    return {"gamma": 1 + jnp.sin(x), "label_smoothing": 0.1 + 0.1 * jnp.cos(x), "z_loss": 1e-4 * (1 + jnp.sin(2 * x))}


def batch(step: int, dtype, classes: int) -> tuple[jax.Array, ...]:
    """Inputs, ids, the mask and the weights of the rows; the mask leaves out 1 % that are spoiled, and some more."""
    rng = np.random.default_rng(step)
    x, ids = rng.normal(size=(ROWS, WIDTH)), rng.integers(0, classes, ROWS)
    x[:, 0] += ids % 5
    spoiled = rng.random(ROWS) < 0.01
    keep = ~spoiled & (rng.random(ROWS) < 0.9)
    return (
        jnp.asarray(x, dtype),
        jnp.asarray(ids, jnp.int32),
        jnp.asarray(keep),
        jnp.asarray(rng.uniform(0.5, 2, ROWS), jnp.float32),
        jnp.asarray(spoiled),
    )


def classifier(params, step, x, ids, keep, weights, spoiled, junk):
    logits = jnp.where(spoiled[:, None], junk, x @ params)
    class_weights = 1 + 0.5 * jnp.sin(jnp.arange(CLASSES) + step)
    total = jaxloss.masked_loss(
        jaxloss.softmax_focal_loss,
        logits,
        jnp.where(spoiled, -100, ids),
        keep,
        weights=weights,
        class_weights=class_weights,
        **settings(step),
    )
    return total.mean()


def last_layer(params, step, x, ids, keep, weights, spoiled, junk):
    loss = functools.partial(jaxloss.softmax_focal_loss, **settings(step))
    hidden, labels = jnp.where(spoiled[:, None], junk, x), jnp.where(spoiled, -100, ids)
    return jaxloss.linear_loss(loss, hidden, params, labels, where=keep, weights=weights, chunk_rows=60).mean()


MODELS: dict[str, tuple[Callable, int]] = {"classifier": (classifier, CLASSES), "last layer": (last_layer, VOCABULARY)}


@functools.cache
def program(model: str, dtype) -> Callable:
    """A step of descent: the new parameters, and the loss before."""

    @functools.partial(jax.jit, donate_argnums=0)
    def update(params, step, *given):
        value, gradient = jax.value_and_grad(MODELS[model][0])(params, step, *given)
        return params - (0.3 * gradient).astype(dtype), value

    return update


def run(model: str, dtype, steps: int, junk: float = np.nan, samples: int = 100) -> Run:
    classes, update = MODELS[model][1], program(model, dtype)
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_) -> None:
        compiled.append(event)

    params = jnp.asarray(np.random.default_rng(0).normal(size=(WIDTH, classes)) * 0.1, dtype)
    losses, arrays, megabytes = [], [], []
    every = max(steps // samples, 1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for step in range(steps):
            if step == WARM:
                compiled.clear()
            given = batch(step, dtype, classes)
            params, value = update(params, jnp.int32(step), *given, jnp.asarray(junk, dtype))
            # Outside of a program, numbers of Python are options, too.
            logits = given[0][:, :CLASSES].astype(jnp.float32)
            smooth = {"label_smoothing": 0.1 + 0.5 / (step + 1), "gamma": 1 + 1 / (step + 1)}
            direct = jaxloss.softmax_focal_loss(logits, given[1] % CLASSES, where=given[2], **smooth)
            losses.append((float(value), float(jaxloss.mean(direct, where=given[2]))))
            if step >= WARM and step % every == 0:
                arrays.append(len(jax.live_arrays()))
                megabytes.append(programs.resident() / 1e6)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return Run(np.array(losses), compiled.count(COMPILED), np.array(arrays), np.array(megabytes))


def problems(model: str, dtype, steps: int) -> tuple[list[str], Run]:
    """What is not as it should be in runs of a model, and the first of them."""
    first, again, clean = (run(model, dtype, steps, junk) for junk in (np.nan, np.nan, 0.0))
    tail, kind = first.losses[-10:, 0].mean(), f"{model}, {jnp.dtype(dtype).name}"
    half = len(first.megabytes) // 2
    checks = {
        "is not the same again": np.array_equal(first.losses, again.losses),
        "differs from the run without spoiled rows": np.array_equal(first.losses, clean.losses),
        "holds a loss that is not finite": np.isfinite(first.losses).all(),
        "does not learn": tail < first.losses[:10, 0].mean(),
        f"compiled {first.compiled} programs after {WARM} steps": first.compiled == 0,
        f"keeps arrays: {first.arrays}": first.arrays[-1] <= first.arrays[0],
        f"grows: {first.megabytes} MB": np.max(first.megabytes[half:]) <= first.megabytes[:half].max() + 8,
    }
    return [f"{kind} {text}" for text, right in checks.items() if not right], first


def plot(runs: dict[str, Run], steps: int, out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for name, found in runs.items():
        at = np.linspace(WARM, steps, len(found.arrays))
        mean = np.convolve(found.losses[:, 0], np.ones(WARM) / WARM, "valid")
        axes[0].plot(mean, label=name, linewidth=1)
        axes[1].plot(at, found.megabytes, label=name)
        axes[2].plot(at, found.arrays, label=name)
    for axis, title in zip(axes, ("loss", "memory of the process, MB", "arrays alive"), strict=True):
        axis.set(title=title, xlabel="step")
    axes[1].set_ylim(bottom=0)
    axes[2].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    figure.savefig(out, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="a picture of loss, memory and arrays")
    options = parser.parse_args()
    runs, found = {}, []
    for model in MODELS:
        for dtype in (jnp.float32, jnp.bfloat16):
            wrong, first = problems(model, dtype, options.steps)
            found += wrong
            name = f"{model}, {jnp.dtype(dtype).name}"
            runs[name] = first
            memory = f"{first.megabytes[0]:.0f} to {first.megabytes[-1]:.0f} MB"
            print(f"{name}: loss {first.losses[0, 0]:.4f} to {first.losses[-1, 0]:.4f}, {memory}, "
                  f"{first.arrays[0]} to {first.arrays[-1]} arrays", flush=True)  # fmt: skip
    if options.out:
        plot(runs, options.steps, options.out)
    print(*(found or ["All as it should be."]), sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
