"""Every test runs with eight host devices, strict promotion of dtypes and ranks, and warnings as errors.

Programs of some files are compiled with the least effort (`tests/programs.py` says which, and why).
"""

import gc
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss._core import classes, platforms
from tests import jaxprs, programs, selection

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads them: a tenth of the time of lowering


@pytest.fixture
def rng():
    return np.random.default_rng(20261123)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion():
    """optax's own arithmetic needs it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


LANES = 128


def reduce_in_lanes(states, start, combine, axis):
    """Folds rows of many classes as TPUs and GPUs do: 128 parts at once, and these at the end.

    CPU folds class by class, and rounds as often: 33 units in the last place at 50,257 classes.
    """
    size = states[0].shape[axis]
    if size > 8 * LANES:
        padding = [(0, -size % LANES if k == axis else 0) for k in range(states[0].ndim)]
        padded = (jnp.pad(x, padding, constant_values=first) for x, first in zip(states, start, strict=True))
        parts = (x.reshape(*x.shape[:axis], -1, LANES, *x.shape[axis + 1 :]) for x in padded)
        states = class_by_class(tuple(parts), start, combine, axis)
    return class_by_class(states, start, combine, axis)


class_by_class = classes._reduce


@pytest.fixture(scope="module", params=["plain sums", "one read"])
def form(request):
    """Programs have the form for many classes on CPU, or that for TPU and GPU, whatever the number of classes."""
    with pytest.MonkeyPatch.context() as patch:
        jax.clear_caches()
        patch.setattr(platforms, "FEW", 0)
        if request.param == "one read":
            jaxprs.choose(patch, "tpu")
            patch.setattr(classes, "_reduce", reduce_in_lanes)
        yield
    jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def no_program_outlives_its_module():
    yield
    programs.fast(False)
    programs.drop()


def pytest_runtest_setup(item):
    """Before any fixture: how to compile is the test's, and what it compiled may have to go."""
    programs.fast(item.path.name in programs.FAST and item.get_closest_marker("optimized") is None)
    programs.drop_if_grown()


def pytest_collection_finish():
    """What is there now stays: there is no use in looking for garbage in it, again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of a file share programs: they run in one process."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config, items):
    named = any("::" in argument for argument in config.args)
    kept = selection.chosen(items, selection.EXHAUSTIVE or named)
    left = {id(item) for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in left])
    items[:] = kept
    selection.mark_smoke(items)
