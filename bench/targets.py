"""Programs compiled for TPUs and GPUs that are not here, by XLA's own compilers, and what can be read off them.

`libtpu` and the CUDA plugin of JAX compile on any x86-64 Linux for a device that is described to them. The bytes that a
program moves, its temporary memory, its kernels and its collectives are then facts of the compiled program; times are
not. Set `ENVIRONMENT` before JAX is imported.
"""

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

INSTALL = 'pip install "jaxloss[targets]"'


class MissingError(Exception):
    """A compiler is not installed; the message says what to install."""


@dataclass(frozen=True)
class Target:
    """A device by its peak rates (dense bfloat16 products, bytes of its memory) and what its compiler is told."""

    name: str
    platform: str
    flops_per_s: float
    bytes_per_s: float
    topology: str  # of a few devices; for a GPU the limits of the card
    source: str

    def devices(self, number: int = 1) -> np.ndarray:
        """That many devices of the target, which are only described."""
        from jax.experimental import topologies

        compiler(self.platform)
        if self.platform == "tpu":
            side = {1: "2x2", 16: "4x4"}[number]
            name = self.topology.replace("2x2", side)
            found = topologies.get_topology_desc(platform="tpu", topology_name=name)
        else:
            found = topologies.get_topology_desc(platform="cuda", topology=f"1x1x{number}", target_config=self.topology)
        return np.array(found.devices[:number])

    def mesh(self, shape: tuple[int, ...], names: tuple[str, ...], kind: AxisType = AxisType.Auto) -> Mesh:
        return Mesh(self.devices(int(np.prod(shape))).reshape(shape), names, axis_types=(kind,) * len(shape))


_GPU = """
gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
  l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: {major} }} registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""
_H100 = _GPU.format(
    cores=132, bandwidth=3352320000000, cache=52428800, clock=1.98, memory=84942979072, major=9,
    name="NVIDIA H100 80GB HBM3",
)  # fmt: skip
_B200 = _GPU.format(
    cores=148, bandwidth=8000000000000, cache=132644864, clock=1.965, memory=191514017792, major=10,
    name="NVIDIA B200",
)  # fmt: skip

_CLOUD = "https://cloud.google.com/tpu/docs/"
TARGETS = {
    target.name: target
    for target in (
        Target("tpu-v5e", "tpu", 197e12, 819e9, "v5e:2x2", _CLOUD + "v5e"),
        Target("tpu-v6e", "tpu", 918e12, 1640e9, "v6e:2x2", _CLOUD + "v6e"),
        Target("tpu-v5p", "tpu", 459e12, 2765e9, "v5p:2x2x1", _CLOUD + "v5p"),
        # A chip is two devices to JAX; its rates are halved.
        Target("tpu7x", "tpu", 2307e12 / 2, 7380e9 / 2, "tpu7x:2x2x1", _CLOUD + "tpu7x"),
        Target("h100", "cuda", 989e12, 3350e9, _H100, "NVIDIA H100 SXM datasheet, without sparsity"),
        Target("b200", "cuda", 2250e12, 8000e9, _B200, "NVIDIA HGX B200 datasheet, without sparsity"),
    )
}


def _ptxas() -> str | None:
    """The folder with bin/ptxas: of the wheel, or that of the one on the PATH."""
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    for found in (*wheels.glob("*/bin/ptxas"), shutil.which("ptxas")):
        if found is not None:
            return str(Path(found).resolve().parents[1])
    return None


def environment() -> dict[str, str]:
    """Variables of a process that compiles for devices that it has not."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    if folder := _ptxas():
        flags += f" --xla_gpu_cuda_data_dir={folder}"
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": flags.strip(),
    }


@cache
def compiler(platform: str) -> None:
    """Finds the compiler of a platform, or raises `MissingError`."""
    from importlib.util import find_spec

    if sys.platform != "linux":
        raise MissingError(f"compilers for {platform} run on x86-64 Linux alone")
    if platform == "tpu":
        if find_spec("libtpu") is None:
            raise MissingError(f"no TPU compiler here: {INSTALL}")
        return
    if find_spec("jax_cuda13_plugin") is None or _ptxas() is None:
        raise MissingError(f"no CUDA compiler here: {INSTALL}")
    import jax._src.xla_bridge as bridge  # jax#23971: lowering asks for a GPU of this process

    known = bridge.canonicalize_platform
    bridge.canonicalize_platform = lambda name: "cuda" if name in ("gpu", "cuda") else known(name)


def compile_for(place: Any, function: Callable, *arguments: Any, **options: Any) -> jax.stages.Compiled:
    """`function` of arrays like `arguments`, on one device of a target, or on a mesh with specs in `options`."""
    specs = options.get("specs")
    if specs is None:
        shardings = [jax.tree.map(lambda _: SingleDeviceSharding(place), a) for a in arguments]
    else:
        shardings = [
            jax.tree.map(lambda _, s=spec: NamedSharding(place, s), a) for a, spec in zip(arguments, specs, strict=True)
        ]

    def like(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    given = [jax.tree.map(like, a, s) for a, s in zip(arguments, shardings, strict=True)]
    out = options.get("out_specs")
    out = (
        None
        if out is None
        else jax.tree.map(lambda s: NamedSharding(place, s), out, is_leaf=lambda s: isinstance(s, P))
    )
    return jax.jit(function, out_shardings=out).lower(*given).compile()


_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4,
          "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str

    @property
    def bytes(self) -> int:
        """Of the result."""
        parts = re.findall(r"([a-z]+\d+|pred)\[([\d,]*)\]", self.shape)
        return sum(_BYTES.get(t, 0) * int(np.prod([int(n) for n in d.split(",") if n] or [1])) for t, d in parts)


_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$")


def computations(text: str) -> Iterator[tuple[str, bool, list[Instruction]]]:
    """Name, whether it is the entry, and instructions of each computation of a compiled program."""
    name, entry, found = "", False, []
    for line in text.splitlines():
        if head := re.match(r"^(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name, entry, found = head[2], bool(head[1]), []
        elif line.startswith("}"):
            yield name, entry, found
        elif match := _LINE.match(line):
            operands = tuple(re.findall(r"%([\w.-]+)", match[4]))
            found.append(Instruction(match[1], match[2], match[3], operands, match[5]))


def executed(text: str) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
    """Instructions that run, with those beside them by name, and how often: bodies of loops once a turn."""
    parts = {name: instructions for name, _, instructions in computations(text)}
    (entry,) = (name for name, is_entry, _ in computations(text) if is_entry)

    def walk(name: str, times: int):
        beside = {i.name: i for i in parts[name]}
        for i in parts[name]:
            called = re.search(r"body=%?([\w.-]+)", i.rest) or (
                re.search(r"(?:to_apply|calls)=%?([\w.-]+)", i.rest) if i.kind in ("call", "async-start") else None
            )
            if called and called[1] in parts:
                turns = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', i.rest) if i.kind == "while" else None
                yield from walk(called[1], times * (int(turns[1]) if turns else 1))
            else:
                yield i, beside, times

    yield from walk(entry, 1)


def traffic(text: str) -> int:
    """Bytes that the kernels of a GPU's program read and write: their operands and results."""
    total = 0
    for i, beside, times in executed(text):
        if i.kind not in _FREE:
            total += times * (i.bytes + sum(beside[o].bytes for o in i.operands if o in beside))
    return total


def measure(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Bytes moved, temporary memory, kernels and collectives of a compiled program."""
    text = compiled.as_text()
    cost = compiled.cost_analysis() or {}
    seconds = cost.get("optimal_seconds", -1)
    run = [i for i, _, _ in executed(text)]
    return {
        "bytes": cost.get("bytes accessed") or traffic(text),
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "kernels": sum(i.kind not in _FREE for i in run),
        "products": sum(i.kind in ("dot", "custom-call") for i in run),
        "collectives": [f"{i.kind} {i.shape}" for i in run if i.kind.removesuffix("-start") in _COLLECTIVES],
        "model_seconds": seconds if seconds > 0 else None,
    }
