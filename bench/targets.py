"""Programs compiled for TPUs and GPUs that are not here, by XLA's own compilers, and what can be read off them.

`libtpu` and the CUDA plugin of JAX compile on any x86-64 Linux for a device that is described to them. The bytes that a
program moves, its temporary memory, its kernels and its collectives are then facts of the compiled program; times are
not. The variables of `environment()` must be set before JAX is imported.
"""

import os
import platform as machine
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from bench.hlo import Program

INSTALL = 'pip install "jaxloss[targets]", or in a clone pip install ".[targets]"'


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
        """That many devices of the target, up to 16, which are only described."""
        find_compiler(self.platform)
        return np.array(_described(self, "4x4" if number > 4 else "2x2", number)[:number])

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


@cache
def _described(target: Target, side: str, number: int) -> list:
    from jax.experimental import topologies

    if target.platform == "tpu":
        name = target.topology.replace("2x2", side)
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    _answer_for_gpus()
    name = f"1x1x{number}"
    return topologies.get_topology_desc(platform="cuda", topology=name, target_config=target.topology).devices


@cache
def _answer_for_gpus() -> None:
    """Lowering for a GPU asks for the GPU of this process (jax#23971, open); this lets it go on without."""
    import jax._src.xla_bridge as bridge

    known = bridge.canonicalize_platform
    bridge.canonicalize_platform = lambda name: "cuda" if name in ("gpu", "cuda") else known(name)


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
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # or a second process that compiles for TPUs is refused
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": flags.strip(),
    }


def find_compiler(platform: str) -> None:
    """Raises `MissingError` where the compiler of a platform is not installed."""
    if sys.platform != "linux" or machine.machine() != "x86_64":
        raise MissingError(f"the compilers for {platform} run on x86-64 Linux alone")
    if platform == "tpu":
        found = find_spec("libtpu") is not None
    else:
        found = find_spec("jax_cuda13_plugin") is not None and _ptxas() is not None
    if not found:
        raise MissingError(f"no compiler for {platform} here: {INSTALL}")


def compile_for(
    place: Any, function: Callable, *arguments: Any, specs: tuple | None = None, out_specs: Any = None
) -> jax.stages.Compiled:
    """`function` of arrays like `arguments`, for one device of a target, or for a mesh of them with a spec for each."""

    def like(argument, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), argument)

    if specs is None:
        given = [like(a, SingleDeviceSharding(place)) for a in arguments]
    else:
        given = [like(a, NamedSharding(place, spec)) for a, spec in zip(arguments, specs, strict=True)]
    out = jax.tree.map(lambda s: NamedSharding(place, s), out_specs, is_leaf=lambda s: isinstance(s, P))
    return jax.jit(function, out_shardings=out).lower(*given).compile()


def measure(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Bytes moved, temporary memory, kernels and collectives of a compiled program."""
    program = Program(compiled.as_text())
    cost = compiled.cost_analysis() or {}
    seconds = cost.get("optimal_seconds", -1)  # of TPUs; below 0 where the compiler has no estimate for a part
    return {
        "bytes": program.bytes,
        "xla_bytes": cost.get("bytes accessed"),
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "kernels": program.kernels,
        "products": program.products,
        "collectives": program.collectives,
        "model_seconds": seconds if seconds > 0 and not program.loops else None,  # it takes a loop's body once
        "uncounted_loops": len(program.endless),
    }
