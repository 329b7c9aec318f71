"""The speed of three losses on the device at hand, beside that of a copy."""

import functools
import statistics
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss import _check as check

SHAPES = {"cpu": (256, 32768, "float32")}
LARGE = (8192, 32768, "bfloat16")
SECONDS, TURNS = 5.0, 3
LINE = "{loss:<29} {shape} {dtype} {ms:>9.2f} ms {gb_per_s:>8.1f} GB/s {share_of_copy:>6.0%} of the rate of a copy"


def speed() -> Iterator[dict]:
    """Steps of gradient descent on the logits themselves, in place: the bytes that value and gradient have to move."""
    rows, classes, dtype = SHAPES.get(jax.devices()[0].platform, LARGE)
    ids = jnp.asarray(np.random.default_rng(2).integers(0, classes, rows), jnp.int32)

    def step(loss, z):
        value, gradient = jax.value_and_grad(lambda z: jnp.sum(loss(z, ids)))(z)
        return z - gradient, value

    steps = {"copy": (2, lambda z: (-z, None))}
    # A softmax reads its row before it can write; a sigmoid loss reads and writes once.
    for case, passes in ((check.SOFTMAX[0], 3), (check.SOFTMAX[1], 3), (check.SIGMOID[0], 2)):
        steps[str(case)] = (passes, functools.partial(step, case.loss))
    programs = {name: jax.jit(run, donate_argnums=0) for name, (_, run) in steps.items()}
    logits = jnp.sin(jnp.arange(rows * classes, dtype=jnp.float32)).astype(dtype).reshape(rows, classes)
    kept = {name: jnp.copy(logits) for name in steps}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    start = time.perf_counter()
    # The first round compiles. Several steps are queued before the host waits for them.
    while len(samples["copy"]) < 4 or (time.perf_counter() - start < SECONDS and len(samples["copy"]) < 100):
        for name, run in programs.items():
            begin, value = time.perf_counter(), None
            for _ in range(TURNS):
                kept[name], value = run(kept[name])
            jax.block_until_ready((kept[name], value))
            samples[name].append((time.perf_counter() - begin) / TURNS)
    seconds = {name: statistics.median(times[1:]) for name, times in samples.items()}
    rates = {name: steps[name][0] * kept[name].nbytes / s / 1e9 for name, s in seconds.items()}
    for name, rate in rates.items():
        shape = {"loss": name, "shape": [rows, classes], "dtype": dtype}
        yield {**shape, "ms": seconds[name] * 1e3, "gb_per_s": rate, "share_of_copy": rate / rates["copy"]}
