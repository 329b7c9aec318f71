"""A language model with 24,000 classes that never holds its logits, trained on the source code of Python's library.

Data: the standard library of the Python that runs this, cut before every `def` and `class`. A word is an identifier
with the blank before it, a run of punctuation, or a line break with the indentation after it; the vocabulary is the
24,000 most frequent words of the training files, and all others count as one more, "unknown". Every 20th file is held
out. Pieces are cut and padded to 64 words. Padding comes last, where causal attention does not see it, has label -1,
and is left out of the loss by `where`.

The model is a causal transformer whose embedding table is its last layer, too ("tied"; [classes, width], axis=0), and
whose last bias starts at the logarithms of the words' frequencies. It starts as the unigram model, which knows how
frequent words are and nothing else, so what it gains over that baseline is what it learns from context.

`jaxloss.linear_loss` finds the loss and the gradients of the last layer a few rows at a time. In the same pass it hands
out what one logs: log-probability, z-loss and accuracy of each word. A step adds up the gradients of two microbatches,
which hold different numbers of words: `LossSum` keeps the sums, and the script asserts that the gradient is that of the
whole batch. Then it measures what the logits cost: time and memory of the last layer, with and without them.

    python examples/language_model.py               # figures on the terminal, curves in language_model.png
"""

import argparse
import collections
import re
import sysconfig
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator
from tqdm import tqdm

import jaxloss

WORDS, LENGTH, UNKNOWN, PADDING = 24_000, 64, 0, -1
WIDTH, HEADS, LAYERS = 128, 4, 2
MICROBATCHES, SEQUENCES = 2, 16  # of a step; of a microbatch
ROWS = MICROBATCHES * SEQUENCES * LENGTH  # words of a step, with padding
CHUNK_ROWS = 256  # of the 1024 of a microbatch; by default `linear_loss` does not split so few
Z_LOSS = 1e-4
EVALUATIONS, HELD_OUT = 10, 128  # how often, and on how many sequences, the loss is taken on files held out
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data", "lib2to3", "__pycache__"}
Params = dict[str, Any]


def library_pieces(limit: int | None = None) -> tuple[list[list[str]], list[list[str]]]:
    """Words of the functions and classes of the standard library, or of `limit` files: to train on, and held out."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(root.rglob("*.py")) if not SKIPPED.intersection(path.relative_to(root).parts)]
    parts = ([], [])
    for number, path in enumerate(files[:limit]):
        text = path.read_text(encoding="utf-8", errors="replace")
        for piece in re.split(r"\n(?=(?:    )?(?:async def|def|class) )", text):
            parts[number % 20 == 0].append(re.findall(r"\n\s*| ?\w+| ?[^\w\s]+|\s+", piece))
    return parts


def sequences(pieces: list[list[str]], ids: dict[str, int]) -> np.ndarray:
    """Ids [N, LENGTH + 1]; the last word of a sequence is the first of the next of the same piece."""
    rows = []
    for piece in pieces:
        known = [ids.get(word, UNKNOWN) for word in piece]
        for start in range(0, len(known) - 1, LENGTH):
            row = known[start : start + LENGTH + 1]
            rows.append(row + [PADDING] * (LENGTH + 1 - len(row)))
    return np.array(rows, np.int32)


def unigram_log_probabilities(train: np.ndarray, classes: int) -> np.ndarray:
    counts = np.bincount(train[train != PADDING], minlength=classes) + 1  # as if each had been seen once more
    return np.log(counts / counts.sum()).astype(np.float32)


def initial_params(bias: np.ndarray) -> Params:
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(scale))

    fan_in, last = WIDTH**-0.5, (2 * LAYERS) ** -0.5
    blocks = [
        {
            "query_key_value": normal(WIDTH, 3 * WIDTH, scale=fan_in),
            "attended": normal(WIDTH, WIDTH, scale=fan_in * last),
            "up": normal(WIDTH, 4 * WIDTH, scale=fan_in),
            "down": normal(4 * WIDTH, WIDTH, scale=fan_in * last / 2),
        }
        for _ in range(LAYERS)
    ]
    embedding = normal(len(bias), WIDTH, scale=0.02)
    return {"embedding": embedding, "position": normal(LENGTH, WIDTH, scale=0.2), "blocks": blocks, "bias": bias}


def normalize(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def hidden_states(params: Params, ids: jax.Array) -> jax.Array:
    """Hidden states [B, LENGTH, WIDTH] of the transformer for ids [B, LENGTH]; each sees the words up to its own."""
    x = params["embedding"][jnp.maximum(ids, 0)] * WIDTH**0.5 + params["position"]
    for block in params["blocks"]:
        heads = (normalize(x) @ block["query_key_value"]).reshape(*ids.shape, 3 * HEADS, -1)
        attended = jax.nn.dot_product_attention(*jnp.split(heads, 3, axis=2), is_causal=True)
        x += attended.reshape(x.shape) @ block["attended"]
        x += jax.nn.gelu(normalize(x) @ block["up"]) @ block["down"]
    return normalize(x)


def word_loss(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of each row, and what to log of it: `linear_loss` calls this with the logits of a chunk of rows."""
    row = jaxloss.softmax_statistics(logits, labels)
    parts = {
        "log-probability": -row.negative_log_probability,
        "z-loss": Z_LOSS * row.logsumexp**2,
        "accuracy": row.accuracy,
    }
    return jaxloss.softmax_cross_entropy(logits, labels, z_loss=Z_LOSS), parts


def total_loss(params: Params, ids: jax.Array) -> tuple[jax.Array, tuple[jaxloss.LossSum, dict[str, jax.Array]]]:
    """Sum over the words of ids [B, LENGTH + 1], with it the number of words, and the sums of the parts to log."""
    labels = ids[:, 1:]
    loss, parts = jaxloss.linear_loss(
        word_loss,
        hidden_states(params, ids[:, :-1]),
        params["embedding"],
        labels,
        axis=0,
        bias=params["bias"],
        where=labels != PADDING,
        has_aux=True,
        chunk_rows=CHUNK_ROWS,
    )
    return loss.total, (loss, jax.tree.map(jnp.sum, parts))  # parts are 0 where there is padding


def mean_gradient(params: Params, microbatches: jax.Array) -> tuple[Params, dict[str, jax.Array]]:
    """Gradient of the mean loss over all words of ids [microbatches, B, LENGTH + 1], and means of the parts."""

    def add(gradient, ids):
        (_, found), more = jax.value_and_grad(total_loss, has_aux=True)(params, ids)
        return jax.tree.map(jnp.add, gradient, more), found

    gradient, found = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), microbatches)
    loss, parts = jax.tree.map(lambda x: jnp.sum(x, 0), found)  # a LossSum is a tree: its sums add up
    # Divide once: the microbatches' own means count a word more in the one that has fewer of them.
    gradient, parts = jax.tree.map(lambda x: x / loss.weight, (gradient, parts))
    return gradient, {"loss": loss.mean(), **parts}


def assert_accumulation_is_exact(params: Params, microbatches: np.ndarray) -> float:
    """The gradient of the microbatches is that of one batch. Returns the largest difference, relative to an array's."""
    whole = microbatches.reshape(1, -1, LENGTH + 1)
    (one, _), (other, _) = (jax.jit(mean_gradient)(params, ids) for ids in (microbatches, whole))
    errors = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))), one, other)
    # The same terms, added up in another order: as many roundings as words, of either sign.
    assert max(jax.tree.leaves(errors)) < ROWS**0.5 * 2**-23, errors
    return max(jax.tree.leaves(errors))


@jax.jit
def held_out_sum(params: Params, ids: jax.Array) -> jaxloss.LossSum:
    labels, hidden = ids[:, 1:], hidden_states(params, ids[:, :-1])
    loss, table = jaxloss.softmax_cross_entropy, params["embedding"]
    return jaxloss.linear_loss(loss, hidden, table, labels, axis=0, bias=params["bias"], where=labels != PADDING)


def batches(train: np.ndarray, steps: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(1)
    for _ in range(steps):
        yield train[rng.choice(len(train), MICROBATCHES * SEQUENCES)].reshape(MICROBATCHES, SEQUENCES, LENGTH + 1)


def train_model(params: Params, train: np.ndarray, held: np.ndarray, steps: int) -> tuple[Params, list, list]:
    """Returns the parameters, the log of every step, and (steps done, loss on the files held out) now and then."""
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 3e-3, steps // 10 + 1, steps + 1), b2=0.98)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, microbatches):
        gradient, log = mean_gradient(params, microbatches)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, log

    params = jax.tree.map(jnp.array, params)  # a copy, because `step` reuses its memory
    state, logs = optimizer.init(params), []
    curve = [(0, float(held_out_sum(params, held).mean()))]
    due = set(np.linspace(0, steps, EVALUATIONS + 1).astype(int))
    with tqdm(batches(train, steps), total=steps, unit="step") as bar:
        for done, microbatches in enumerate(bar, 1):
            params, state, log = step(params, state, microbatches)
            logs.append(log)
            if done in due:
                curve.append((done, float(held_out_sum(params, held).mean())))
            bar.set_postfix({name: f"{value:.3g}" for name, value in log.items()}, refresh=False)
    return params, jax.device_get(logs), curve


def last_layer(chunk_rows: int | None) -> Callable[..., jax.Array]:
    """Mean loss of the last layer alone: from its logits, or without them."""

    def dense(hidden, table, bias, labels):
        losses = jaxloss.softmax_cross_entropy(hidden @ table.T + bias, labels, z_loss=Z_LOSS)
        return jaxloss.mean(losses)

    def chunked(hidden, table, bias, labels):
        loss = partial(jaxloss.softmax_cross_entropy, z_loss=Z_LOSS)
        return jaxloss.linear_loss(loss, hidden, table, labels, axis=0, bias=bias, chunk_rows=chunk_rows).mean()

    return chunked if chunk_rows else dense


def measure_last_layer(params: Params, ids: np.ndarray, runs: int = 3) -> dict[str, tuple[float, float]]:
    """Temporary memory in MB, and the median of times in seconds, of value and gradients of the last layer."""
    labels = np.maximum(ids[:, 1:], 0).reshape(-1)
    hidden = jax.jit(hidden_states)(params, ids[:, :-1]).reshape(-1, WIDTH)
    arguments = hidden, params["embedding"], params["bias"], labels
    chunks = {"with all logits": None, **{f"{n} rows at a time": n for n in (1024, CHUNK_ROWS)}}
    programs = {
        name: jax.jit(jax.value_and_grad(last_layer(n), (0, 1, 2))).lower(*arguments).compile()
        for name, n in chunks.items()
    }
    (expected, gradients), *others = (program(*arguments) for program in programs.values())
    for value, found in others:
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for a, b in zip(found, gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(b))))
    times = {name: [] for name in programs}
    for _ in range(runs):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(time.perf_counter() - start)
    return {
        name: (program.memory_analysis().temp_size_in_bytes / 1e6, float(np.median(times[name])))
        for name, program in programs.items()
    }


def draw(logs: list, curve: list, baselines: dict[str, float], costs: dict[str, tuple[float, float]]) -> Figure:
    """Loss by steps with the unigram model's of both data sets, and what the last layer costs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained", width_ratios=(3, 2))
    done = np.arange(1, len(logs) + 1)
    losses = [-log["log-probability"] for log in logs]
    left.plot(done, losses, color="#56B4E9", linewidth=0.8, label="training batches, before their step")
    left.plot(*zip(*curve, strict=True), "o-", color="#0072B2", label="files held out")
    for (name, baseline), color, style in zip(baselines.items(), ("#E69F00", "#D55E00"), (":", "--"), strict=True):
        left.axhline(baseline, color=color, linestyle=style, label=f"unigram model, {name}")
    left.set(xlabel="steps", ylabel="cross-entropy (nats per word)", title="Learning to predict the next word")
    left.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10), integer=True))
    left.yaxis.set_major_locator(MultipleLocator(0.5))
    left.grid(alpha=0.3)
    left.legend(frameon=False)
    memory, seconds = zip(*costs.values(), strict=True)
    bars = right.bar(list(costs), memory, color=["#D55E00", *["#0072B2"] * (len(costs) - 1)])
    right.bar_label(bars, [f"{m:.0f} MB\n{s:.2f} s" for m, s in zip(memory, seconds, strict=True)], padding=2)
    right.set(ylabel="temporary memory (MB)", ylim=(0, 1.15 * max(memory)))
    right.set_title(f"Last layer, value and gradients: {ROWS} words")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a language model on Python's library without its logits.")
    parser.add_argument("--steps", type=int, default=100, help="updates, each on 32 sequences of 64 words")
    parser.add_argument("--files", type=int, help="how many of the library's files are read; all by default")
    parser.add_argument("--out", type=Path, default=Path("language_model.png"), help="where the figure goes (PNG)")
    options = parser.parse_args()
    if options.steps < 1 or (options.files or 40) < 40:
        parser.error("--steps must be at least 1, --files at least 40")
    plt.switch_backend("Agg")

    pieces, held_pieces = library_pieces(options.files)
    frequent = collections.Counter(word for piece in pieces for word in piece).most_common(WORDS)
    ids = {word: i for i, (word, _) in enumerate(frequent, UNKNOWN + 1)}
    classes = len(ids) + 1
    train, held = sequences(pieces, ids), sequences(held_pieces, ids)
    held = held[np.random.default_rng(2).permutation(len(held))[:HELD_OUT]]
    unigram = unigram_log_probabilities(train, classes)
    labels = held[:, 1:][held[:, 1:] != PADDING]
    baselines = {
        "training files": -float(unigram[train[:, 1:][train[:, 1:] != PADDING]].mean()),
        "files held out": -float(unigram[labels].mean()),
    }
    print(f"{sum(map(len, pieces)):,} words to train on, {classes:,} classes, {len(labels):,} words held out to score;")
    print(f"of those {np.mean(labels == UNKNOWN):.1%} are unknown; {np.mean(train[:, 1:] == PADDING):.0%} is padding.")

    params = initial_params(unigram)
    error = assert_accumulation_is_exact(params, next(batches(train, 1)))
    print(f"Gradient of {MICROBATCHES} microbatches: that of the whole batch within {error:.0e} of the largest entry.")
    start = time.perf_counter()
    trained, logs, curve = train_model(params, train, held, options.steps)
    print(f"Trained on {options.steps * MICROBATCHES * SEQUENCES:,} sequences in {time.perf_counter() - start:.0f} s.")
    last = {name: np.mean([log[name] for log in logs[-10:]]) for name in logs[-1]}
    print("Last steps, mean per word: " + ", ".join(f"{name} {value:.3g}" for name, value in last.items()))
    found, unigrams = np.exp(curve[-1][1]), np.exp(baselines["files held out"])
    print(f"Perplexity on files held out: {found:.1f}; unigram model {unigrams:.1f}.")

    costs = measure_last_layer(trained, train[: MICROBATCHES * SEQUENCES])
    print(f"\nLast layer, value and gradients of {ROWS} words; the logits alone are {ROWS * classes * 4e-6:.0f} MB:")
    for name, (memory, seconds) in costs.items():
        print(f"{name:>20}: {memory:6.0f} MB of temporary memory, {seconds:5.2f} s")
    draw(logs, curve, baselines, costs).savefig(options.out, dpi=110)
    print(f"Figure: {options.out}")


if __name__ == "__main__":
    main()
