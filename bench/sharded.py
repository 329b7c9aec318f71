"""What does cross-entropy cost where the classes are sharded over eight devices?

Under `jax.jit`, with the kernel's columns sharded and the rows on every device, as the last layer of a model is.
Virtual devices of a CPU show what is computed twice and what is sent, not how fast a network is. They are set up when
JAX starts, so the question then runs in a child process: `python -m bench.sharded quick`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from tqdm import tqdm

from bench import memory
from bench.layer import Layer, case
from bench.measure import Case

DEVICES = 8
QUICK = [(1024, 32768, ["cross-entropy"])]
FULL = [(1024, 32768, ["cross-entropy", "focal"]), (256, 131072, ["cross-entropy", "focal"])]


@dataclass(frozen=True)
class Child:
    """All cases, measured in a process that has the devices."""

    scale: str

    def measure(self) -> list[dict]:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "bench.sharded", self.scale, *(["keep"] if memory.kept else [])]
        return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def cases(scale: str) -> Iterator[Case | Child]:
    if jax.device_count() > 1:
        yield from _here(scale)
    elif jax.devices()[0].platform == "cpu":
        yield Child(scale)
    else:
        tqdm.write("skipped: sharded (one device)")


def _here(scale: str) -> Iterator[Case]:
    only = ("jaxloss", "optax", "plain JAX")
    for rows, classes, losses in FULL if scale == "full" else QUICK:
        layer = Layer(rows, 8, classes, sharded=True)
        yield case("sharded", layer, losses, scale, only, seconds=5 if scale == "full" else 2)


if __name__ == "__main__":
    if "keep" in sys.argv:
        memory.keep_pages()
    print(json.dumps([row for each in _here(sys.argv[1]) for row in each.measure()]))
