"""How the programs of tests are compiled, and how long they are kept.

Many tests ask what a program computes, of arrays so small that compiling takes nearly all of the time. Those of the
files in `FAST` are compiled with the least effort, but where a test carries the mark `optimized`: its subject is the
program as users get it, or the rounding of that. `OPTIMIZED=1` in the environment compiles every program as users get
it.
"""

import ctypes
import gc
import os
import resource
import sys
from functools import cache

import jax
from jax._src import compiler

FAST = {
    f"test_{name}.py"
    for name in (
        "bench",
        "boosting",
        "check",
        "class_masks",
        "coming_from",
        "concurrency",
        "cost",
        "derivatives",
        "docs",
        "eager",
        "edges",
        "elementwise",
        "errors",
        "export",
        "linear",
        "linear_classes",
        "linear_platforms",
        "linear_sharding",
        "metrics",
        "misuse",
        "options",
        "peers",
        "processes",
        "properties",
        "ranking",
        "reduction",
        "second_derivatives",
        "sharding",
        "soak",
        "sparse",
        "teachers",
        "transforms",
        "values",
        "zero_weights",
    )
}
EVERYTHING = os.environ.get("OPTIMIZED", "0") != "0"
QUICK = {
    "xla_cpu_use_fusion_emitters": False,  # a third of the time: loops are written by fewer passes
    "xla_cpu_parallel_codegen_split_count": 1,  # a sixth: small programs are not cut into parts
}
"""Options of the compiler for programs of the least effort, where it has them."""
GROWTH = 400 * 2**20  # bytes that programs may take before they are let go
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # gives memory back
_options = getattr(compiler, "get_compile_options", None)
_held = 0


def fast(wanted: bool) -> None:
    """Compiles with the least effort from now on, or as users do. Programs there are keep theirs until dropped."""
    if EVERYTHING or jax.default_backend() != "cpu" or wanted == jax.config.read("jax_disable_most_optimizations"):
        return
    drop()
    jax.config.update("jax_disable_most_optimizations", wanted)
    # JAX has no setting for options of the compiler but by program: without its private function, tests are slower.
    if _options is not None and hasattr(compiler, "get_compile_options") and quick():
        compiler.get_compile_options = _quick_options if wanted else _options


@cache
def quick() -> dict[str, bool | int]:
    """Those options that this version of XLA has."""

    def known(name, value):
        try:
            jax.jit(lambda: 0.0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in QUICK.items() if known(name, value)}


def _quick_options(*args, **kwargs):
    options = _options(*args, **kwargs)
    options.env_option_overrides = [*options.env_option_overrides, *quick().items()]
    return options


def environment() -> dict[str, str]:
    """Of a process that a test starts, for the least effort there."""
    if EVERYTHING:
        return dict(os.environ)
    flags = [os.environ.get("XLA_FLAGS", ""), *(f"--{name}={str(value).lower()}" for name, value in quick().items())]
    return {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": " ".join(flags).strip()}


def drop() -> None:
    """Lets go of every program."""
    global _held
    jax.clear_caches()
    gc.collect()
    if _trim is not None:
        _trim(0)
    _held = resident()


def drop_if_grown() -> None:
    if resident() - _held > GROWTH:
        drop()


def resident() -> int:
    """Bytes of memory of this process; where the system does not say, the most that there were."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
