"""What does the last layer of a language model cost, with its logits and without, against its matrix products alone?

Value and gradients by hidden states and kernel, which every provider writes. On accelerators, `--full` takes the layers
of models of today, leaves out those whose logits do not fit, and goes through the rows of a chunk of `linear_loss`.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax

from bench.layer import Layer, case, jax_program, jax_step
from bench.measure import Case, Program
from bench.peers_jax import linear_loss_offer

QUICK = [(1024, 256, 32000)]
FULL = [(4096, 512, 32000)]
MODELS = [(32768, 4096, 128256), (32768, 2048, 262144)]
"""Rows, width and classes: the layer of an 8B model with 128 k tokens, and of a small one with 256 k."""
HEADS = ("jaxloss linear_loss", "tokamax", "Liger fused linear")
WITH_LOGITS = ("jaxloss", "optax", "plain JAX")
CHUNKS = (256, 512, 1024, 2048, 4096, 8192)
LARGEST = 24e9
"""Bytes of float32 logits: with their gradient and a temporary of that size they are in 80 GB."""


def cases(scale: str) -> Iterator[Case]:
    full = scale == "full"
    models = full and jax.devices()[0].platform != "cpu"
    for rows, width, classes in MODELS if models else FULL if full else QUICK:
        for dtype in ("bfloat16",) if models else ("float32", "bfloat16"):
            layer = Layer(rows, width, classes, dtype, head=True)
            fits = 4 * rows * classes <= LARGEST
            only = HEADS + (WITH_LOGITS if fits else ()) if models else ()
            one = case("linear", layer, ["cross-entropy"], scale, only, seconds=10 if models else 30 if full else 4)
            yield one
            if models:
                yield replace(one, sweep="rows of a chunk", build=partial(_by_chunk_rows, layer))


def _by_chunk_rows(layer: Layer) -> list[Program]:
    labels = layer.labels("ids")
    result = []
    for rows in CHUNKS:
        step = jax_step(layer, linear_loss_offer(rows).losses["cross-entropy"], True)
        result += jax_program(layer, "cross-entropy", f"jaxloss linear_loss, {rows} rows at a time", step, labels)
    return result
