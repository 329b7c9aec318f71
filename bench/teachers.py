"""What a teacher of k classes costs in `linear_loss`: `python -m bench.teachers`, beside ids and all probabilities.

Temporary memory is that of the compiled program; seconds are the median of a few runs, on a machine that should do
nothing else. Labels are arguments of the program: theirs is the column of its own.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from bench.measure import interleaved

CE, KL, JS = jaxloss.softmax_cross_entropy, jaxloss.softmax_kl_divergence, jaxloss.softmax_js_divergence


def labels(rng, rows: int, size: int, k: int) -> dict:
    """Of each kind: a loss, and the labels of the same teacher."""
    u = jnp.asarray(rng.normal(size=(rows, size)) * 3, jnp.float32)
    t = jax.nn.softmax(u)
    probabilities, ids = jax.lax.top_k(t, k)
    bare, tail = (jaxloss.TopK(ids, probabilities, rest) for rest in (False, True))
    return {
        "cross-entropy, ids": (CE, ids[:, 0]),
        "cross-entropy, all probabilities": (CE, t),
        f"cross-entropy, {k} classes": (CE, bare),
        f"cross-entropy, {k} classes and a tail": (CE, tail),
        "divergence, all logits": (KL, u),
        f"divergence, {k} classes and a tail": (KL, tail),
        f"reverse, {k} classes and a tail": (partial(KL, direction="reverse"), tail),
        f"Jensen-Shannon, {k} classes": (JS, bare),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for key, default in {"rows": 1024, "width": 256, "classes": 32768, "k": 64, "seconds": 10}.items():
        parser.add_argument(f"--{key}", type=int, default=default)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(given.rows, given.width)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(given.width, given.classes)) / given.width**0.5, jnp.float32)
    names, calls, memory = [], [], []
    for name, (loss, y) in labels(rng, given.rows, given.classes, given.k).items():

        def total(hidden, kernel, y, loss=loss):
            return jaxloss.linear_loss(loss, hidden, kernel, y).mean()

        program = jax.jit(jax.value_and_grad(total, (0, 1))).lower(hidden, kernel, y).compile()
        names.append(name)
        calls.append(partial(program, hidden, kernel, y))
        memory.append((program.memory_analysis().temp_size_in_bytes, sum(x.nbytes for x in jax.tree.leaves(y))))
    times = interleaved(calls, given.seconds, 3)
    print(f"{given.rows} rows, {given.width} -> {given.classes} classes, float32, {jax.devices()[0].device_kind}\n")
    print("| loss, labels | temporary MB | labels MB | seconds |\n|---|---|---|---|")
    for name, (temporary, of_labels), samples in zip(names, memory, times, strict=True):
        print(f"| {name} | {temporary / 1e6:.1f} | {of_labels / 1e6:.1f} | {np.median(samples):.3f} |")


if __name__ == "__main__":
    main()
