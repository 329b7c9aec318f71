"""What does a loss alone cost on an accelerator: logits and labels in, value and gradient out?

The programs of `bench/compiled.py`, run: every loss on logits beside those of other libraries, at sizes that no cache
holds. The limit is the time that memory takes for what must move: logits, and labels of their shape, read once, the
gradient written once. On a CPU, fresh pages for the gradient would be most of what is timed; the other questions
measure there.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from os import cpu_count

import jax
import jax.numpy as jnp
from tqdm import tqdm

from bench import compiled
from bench.compiled import Entry
from bench.hlo import Program as Text
from bench.measure import Case, Program
from bench.offer import LABELS, Offer
from bench.peers import offers
from bench.peers_torch import torch_call

QUESTIONS = ("dense", "sigmoid", "sparse", "losses")
IN_TORCH = ("torch eager", "torch.compile", "Liger", "entmax")
CALLS = 10
"""At once, so that the next has been started when one ends: a call from Python takes up to 0.3 ms (H200, Linux VM)."""
MOST_CLASSES_OF_TORCH_COMPILE = 32768
"""It compiles for seconds; one shape of many classes tells enough."""


def cases(scale: str) -> Iterator[Case]:
    """All programs are compiled before the first is timed, as many at once as there are cores."""
    found = [entry for question in QUESTIONS for entry in compiled.entries(scale, question)]
    with ThreadPoolExecutor(cpu_count()) as pool:
        lowered = ((entry, jax.jit(entry.function).lower(*entry.arguments)) for entry in found)
        programs = [(entry, pool.submit(program.compile)) for entry, program in lowered]
    for _, group in groupby(programs, key=lambda pair: _same(pair[0])):
        entries = list(group)
        one = entries[0][0]
        yield Case(
            "alone",
            one.shape,
            one.rows,
            one.classes,
            one.dtype,
            one.mode,
            partial(_programs, entries, scale),
            one.limit,
            seconds=0.5 if scale == "quick" else 2,
            rounds=10,
            calls=CALLS if jax.default_backend() != "cpu" else 1,
        )


def _same(entry: Entry) -> tuple:
    return entry.question, entry.loss, entry.shape, entry.dtype, entry.mode


def _programs(entries: list[tuple[Entry, Future]], scale: str) -> list[Program]:
    one = entries[0][0]
    arguments = filled(one)
    result = []
    for entry, program in entries:
        run = program.result()
        moved = Text(run.as_text()).bytes if jax.default_backend() != "cpu" else None
        result.append(Program(entry.loss, entry.provider, partial(_call, run, arguments), run, moved=moved))
    if one.loss in LABELS and one.mode != "jvp":
        for loss, provider, offer in offers([one.loss], "full", IN_TORCH):
            if not offer.compiled or one.classes <= MOST_CLASSES_OF_TORCH_COMPILE:
                call = _torch_call(offer, loss, one.mode, arguments)
                try:
                    call()
                except Exception as error:  # of another library's compiler: the others are timed all the same
                    tqdm.write(f"skipped: {provider}, {loss} ({' '.join(str(error).split())[:200]})")
                else:
                    result.append(Program(loss, provider, call))
    return result


def _call(program: jax.stages.Compiled, arguments: tuple) -> tuple:
    found = program(*arguments)
    return found if isinstance(found, tuple) else (found, None)


def filled(entry: Entry) -> tuple:
    """Arrays for the arguments of an entry: normal logits, one-hot rows for labels of their shape."""
    z, labels, *tangent = entry.arguments
    keys = iter(jax.random.split(jax.random.key(0), 5))
    ids = jax.random.randint(next(keys), (entry.rows,), 0, entry.classes, jnp.int32)

    def label(like: jax.ShapeDtypeStruct) -> jax.Array:
        if like.dtype == jnp.int32:
            return ids
        if like.dtype == bool:
            return jax.random.uniform(next(keys), like.shape) < 0.9
        if like.ndim == 1:
            return jax.random.uniform(next(keys), like.shape, like.dtype, 0.5, 2)
        return jax.jit(lambda ids: jax.nn.one_hot(ids, entry.classes, dtype=like.dtype))(ids)

    normal = [jax.jit(lambda key, a=a: jax.random.normal(key, a.shape, a.dtype))(next(keys)) for a in (z, *tangent)]
    return normal[0], jax.tree.map(label, labels), *normal[1:]


def _torch_call(offer: Offer, loss: str, mode: str, arguments: tuple) -> Callable:
    import torch

    z, labels = jax.tree.map(lambda a: torch.from_dlpack(a), arguments)  # no copy
    labels = jax.tree.map(lambda a: a.long() if a.dtype == torch.int32 else a, labels)
    row_losses = offer.losses[loss]
    return torch_call(
        lambda z, labels: row_losses(z, labels).float().sum(), (z, labels), [z], offer.compiled, mode == "gradient"
    )
