"""What do losses move, hold and launch on a TPU or a GPU that is not here? `python -m bench --target NAME`.

The questions of the benchmark and every loss on logits, compiled and not run. Logits are an input of the program and
the gradient a result, so that all that is counted is the loss's own; they have 128 MiB or more, because smaller arrays
live in the on-chip memory of a TPU. The variables that compilers need are read when JAX is imported, so each target has
a process of its own: `python -m bench.compiled NAME quick all FILE`, a row of results a line.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import jaxloss
from bench.dense import ALL, MAIN
from bench.layer import Layer, floor, jax_step
from bench.measure import FLOOR
from bench.offer import ALPHA, GAMMA, LABELS
from bench.peers import offers
from bench.sigmoid import LOSSES as SIGMOID
from bench.sparse import LOSSES as SPARSE
from bench.targets import TARGETS, Target, compile_for, measure

QUESTIONS = ["dense", "sigmoid", "linear", "sparse", "sharded", "losses"]
PROVIDERS = ("jaxloss", "optax", "plain JAX")
LARGE, SMALL = (8192, 32768), (65536, 1000)
DENSE = {"quick": [LARGE, SMALL], "full": [LARGE, SMALL, (1024, 131072), (131072, 1000)]}
ELEMENTS = (1_000_000, 80)
HEADS = {"quick": [(8192, 4096, 32768)], "full": [(8192, 4096, 32768), (32768, 4096, 128256)]}
DEVICES = 4
DISTANCES = np.abs(np.subtract.outer(*[np.arange(SMALL[1], dtype=np.float32)] * 2))

REGISTRY = {
    "softmax_cross_entropy": jaxloss.softmax_cross_entropy,
    "softmax_focal_loss": jaxloss.softmax_focal_loss,
    "softmax_focal_loss(gamma=0.5)": partial(jaxloss.softmax_focal_loss, gamma=0.5),
    "poly_loss_cross_entropy": jaxloss.poly_loss_cross_entropy,
    "generalized_cross_entropy": jaxloss.generalized_cross_entropy,
    "softmax_kl_divergence": jaxloss.softmax_kl_divergence,
    "softmax_js_divergence": jaxloss.softmax_js_divergence,
    "sigmoid_binary_cross_entropy": jaxloss.sigmoid_binary_cross_entropy,
    "sigmoid_focal_loss": partial(jaxloss.sigmoid_focal_loss, alpha=ALPHA, gamma=GAMMA),
    "sigmoid_focal_loss(gamma=0.5)": partial(jaxloss.sigmoid_focal_loss, gamma=0.5),
    "asymmetric_loss": jaxloss.asymmetric_loss,
    "modified_huber_loss": jaxloss.modified_huber_loss,
    "squared_hinge_loss": jaxloss.squared_hinge_loss,
    "sparsemax_loss": jaxloss.sparsemax_loss,
    "multiclass_sparsemax_loss": jaxloss.multiclass_sparsemax_loss,
    "entmax_loss": jaxloss.entmax_loss,
    "entmax_loss(alpha=1.25)": partial(jaxloss.entmax_loss, alpha=1.25),
    "pairwise_ranking_loss": jaxloss.pairwise_ranking_loss,
    'pairwise_ranking_loss(surrogate="hinge")': partial(jaxloss.pairwise_ranking_loss, surrogate="hinge"),
    "log_sum_exp_pairwise_loss": jaxloss.log_sum_exp_pairwise_loss,
    "zlpr_loss": jaxloss.zlpr_loss,
    "soft_hamming_loss": jaxloss.soft_hamming_loss,
    "expected_cost_loss": partial(jaxloss.expected_cost_loss, costs=DISTANCES),
    "multiclass_hinge_loss": jaxloss.multiclass_hinge_loss,
}
"""Every loss on logits, and those options that choose another formula."""
ROWS_ONLY = ("softmax_kl_divergence", "softmax_js_divergence")
SLOW = ("entmax_loss(alpha=1.25)", "pairwise_ranking_loss", 'pairwise_ranking_loss(surrogate="hinge")')
"""To compile, which takes loops and sorts: in quick by one kind of labels."""
OFFERED = {
    ("softmax_cross_entropy", "ids"): "cross-entropy",
    ("softmax_cross_entropy", "rows"): "cross-entropy, one-hot",
    ("softmax_focal_loss", "ids"): "focal",
    ("sigmoid_binary_cross_entropy", "rows"): "sigmoid cross-entropy",
    ("sigmoid_focal_loss", "rows"): "sigmoid focal",
    ("multiclass_sparsemax_loss", "ids"): "sparsemax",
    ("entmax_loss", "ids"): "entmax15",
    ("poly_loss_cross_entropy", "rows"): "poly",
    ("generalized_cross_entropy", "ids"): "generalized",
    ("softmax_kl_divergence", "rows"): "KL divergence",
    ("asymmetric_loss", "rows"): "asymmetric",
    ("sparsemax_loss", "rows"): "binary sparsemax",
    ("zlpr_loss", "rows"): "zlpr",
}
"""Losses of the registry that other providers offer, under the names of the questions."""


@dataclass(frozen=True)
class Entry:
    """A program to be compiled, what its bytes are compared with, and what it cannot do without."""

    question: str
    loss: str
    shape: str
    rows: int
    classes: int
    dtype: str
    mode: str
    provider: str
    function: Callable
    arguments: tuple
    limit: float
    """Bytes: the logits, and labels of their shape, read once; the gradient, if any, written once."""
    specs: tuple | None = None
    """On a mesh of `DEVICES` devices, with the axis "classes"; all counts are then those of one device."""

    def row(self, target: Target, **found: Any) -> dict[str, Any]:
        """A row of results."""
        logits = self.rows * self.classes * jnp.dtype(self.dtype).itemsize
        same = ("question", "loss", "shape", "rows", "classes", "dtype", "mode", "provider")
        names = {name: getattr(self, name) for name in same}
        return {"target": target.name, **names, "limit": self.limit / logits, **found}

    def compile(self, target: Target) -> dict[str, Any]:
        """A row of results; what does not compile says so."""
        share = DEVICES if self.specs else 1
        logits = self.rows * self.classes * jnp.dtype(self.dtype).itemsize / share
        row = self.row(target)
        start = time.perf_counter()
        try:
            place = target.mesh((DEVICES,), ("classes",)) if self.specs else target.devices()[0]
            found = measure(compile_for(place, self.function, *self.arguments, specs=self.specs))
        except Exception as error:  # one program that a compiler refuses is a result, not the end of the run
            row["error"] = " ".join(str(error).split())[:300]
        else:
            model = found.pop("model_seconds")
            row |= {**found, "model_ms": model and model * 1e3}
            row |= {name: found[name] / logits for name in ("bytes", "temporary")}
            row["xla_bytes"] = found["xla_bytes"] and found["xla_bytes"] / logits
        return {**row, "compile_s": round(time.perf_counter() - start, 2)}


def _like(rows: int, classes: int | None, dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows,) if classes is None else (rows, classes), dtype)


def _labels(kind: str, rows: int, classes: int, dtype: str) -> Any:
    ids = _like(rows, None, "int32")
    if kind == "ids, weights, mask":
        return ids, _like(classes, None, "float32"), _like(rows, None, "bool")
    return ids if kind == "ids" else _like(rows, classes, dtype)


def _mode(loss: Callable, mode: str) -> Callable:
    def total(z, labels):
        return jnp.sum(loss(z, labels).astype(jnp.float32))

    return {
        "forward": total,
        "gradient": jax.value_and_grad(total),
        "jvp": lambda z, labels, tangent: jax.jvp(lambda z: total(z, labels), (z,), (tangent,)),
    }[mode]


def _bytes(arrays: Any) -> int:
    """Of those of the size of the logits, or of operands of a layer."""
    return sum(prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(arrays) if len(a.shape) == 2)


def _entry(
    question: str, loss: str, shape: tuple, dtype: str, mode: str, provider: str, function: Callable, kind: str
) -> Entry:
    if provider == "plain JAX":  # as one writes it for low precision
        plain = function
        function = lambda z, labels: plain(z.astype(jnp.float32), labels)  # noqa: E731
    z, labels = _like(*shape, dtype), _labels(kind, *shape, dtype)
    given = (z, labels, z) if mode == "jvp" else (z, labels)
    limit = _bytes(given) + (_bytes(z) if mode == "gradient" else 0)
    return Entry(question, loss, str(list(shape)), *shape, dtype, mode, provider, _mode(function, mode), given, limit)


def _offered(question: str, losses: list[str], shape: tuple, dtype: str, mode: str, scale: str) -> Iterator[Entry]:
    for loss, provider, offer in offers(losses, scale, PROVIDERS):
        yield _entry(question, loss, shape, dtype, mode, provider, offer.losses[loss], LABELS[loss])


def _dense(scale: str) -> Iterator[Entry]:
    full = scale == "full"
    for dtype in ("bfloat16", "float32"):
        for shape in DENSE[scale]:
            main = (dtype, shape) == ("bfloat16", LARGE)
            yield from _offered("dense", ALL if full or main else MAIN, shape, dtype, "gradient", scale)
            for mode in ("forward", "jvp") if full or main else ():
                yield from _offered("dense", MAIN, shape, dtype, mode, scale)


def _sigmoid(scale: str) -> Iterator[Entry]:
    for dtype, mode in product(*_every(scale)):
        yield from _offered("sigmoid", SIGMOID, ELEMENTS, dtype, mode, scale)


def _sparse(scale: str) -> Iterator[Entry]:
    for dtype, mode in product(("float32", "bfloat16") if scale == "full" else ("float32",), _every(scale)[1]):
        yield from _offered("sparse", SPARSE, SMALL, dtype, mode, scale)


def _linear(scale: str) -> Iterator[Entry]:
    """Last layers; their limit are hidden states, kernel and both gradients, without any logits.

    tokamax chooses by the devices of the process: what is compiled here is its form in XLA, not its kernel for TPU.
    """
    loss, providers = "cross-entropy", (*PROVIDERS, "jaxloss linear_loss", "tokamax")
    for dtype, (rows, width, classes) in product(_every(scale)[0], HEADS[scale]):
        layer = Layer(rows, width, classes, dtype, head=True)
        given = (_labels("ids", rows, classes, dtype), _like(rows, width, dtype), _like(width, classes, dtype))
        shape = f"[{rows}, {width}] @ [{width}, {classes}]"
        limit = 2 * _bytes(given)

        def entry(loss, provider, function, common=(shape, rows, classes, dtype, "gradient"), rest=(given, limit)):
            return Entry("linear", loss, *common, provider, function, *rest)

        yield entry(FLOOR, "products", floor(layer))
        for _, provider, offer in offers([loss], scale, providers):
            yield entry(loss, provider, jax_step(layer, offer.losses[loss], offer.whole))


def _sharded(scale: str) -> Iterator[Entry]:
    """Classes over devices of an automatic mesh, labels on each."""
    rows, classes = 8192, 131072
    for loss, provider, offer in offers(MAIN if scale == "full" else MAIN[:1], scale, PROVIDERS):
        one = _entry("sharded", loss, (rows, classes), "bfloat16", "gradient", provider, offer.losses[loss], "ids")
        yield replace(one, shape=f"[{rows}, {classes} / {DEVICES}]", specs=(P(None, "classes"), P()))


def _losses(scale: str) -> Iterator[Entry]:
    """All losses with all labels; in quick those that no question has."""
    full = scale == "full"
    theirs = {(loss, p): o.losses[loss] for loss, p, o in offers(list(OFFERED.values()), scale, PROVIDERS[1:])}
    for (dtype, mode), (name, loss) in product(product(*_every(scale)), REGISTRY.items()):
        for kind in ("ids", "rows")[name in ROWS_ONLY or (name in SLOW and not full) :]:
            other_name = OFFERED.get((name, kind))
            if not full and other_name in (*ALL, *SIGMOID, *SPARSE):
                continue
            entry = partial(_entry, "losses", f"{name}, {kind}", SMALL, dtype, mode)
            yield entry("jaxloss", loss, kind)
            for provider in PROVIDERS[1:]:
                if other := theirs.get((other_name, provider)):
                    yield entry(provider, other, kind)


def _every(scale: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Dtypes and modes."""
    if scale == "full":
        return ("bfloat16", "float32"), ("gradient", "forward", "jvp")
    return ("bfloat16",), ("gradient",)


def entries(scale: str, only: str | None = None) -> Iterator[Entry]:
    by_question = [_dense, _sigmoid, _linear, _sparse, _sharded, _losses]
    for question, found in zip(QUESTIONS, by_question, strict=True):
        if only in (None, question):
            yield from found(scale)


def main(name: str, scale: str, only: str, out: str, deaths: str = "0") -> None:
    """Compiles for one target and appends rows as they come, each with its number; what is there already stays.

    A compiler that dies takes the process along. After one death programs are compiled one by one, so that after
    another the first without a row is the one that it died of.
    """
    target = TARGETS[name]
    target.devices()
    with Path(out).open("a+") as file:
        file.seek(0)
        done = {json.loads(line)["number"] for line in file}
        todo = {n: e for n, e in enumerate(entries(scale, None if only == "all" else only)) if n not in done}

        def write(number: int, row: dict) -> None:
            print(json.dumps({"number": number, **row}), file=file, flush=True)

        if int(deaths) > 1:
            number = next(iter(todo))
            write(number, todo.pop(number).row(target, error="the compiler died"))
        for number, row in tqdm(_rows(target, todo, threads=deaths == "0"), desc=name, total=len(todo)):
            write(number, row)


def _rows(target: Target, todo: dict[int, Entry], threads: bool) -> Iterator[tuple[int, dict]]:
    if not threads:
        yield from ((number, entry.compile(target)) for number, entry in todo.items())
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = {pool.submit(entry.compile, target): number for number, entry in todo.items()}
        yield from ((found[future], future.result()) for future in as_completed(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
