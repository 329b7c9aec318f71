"""Every test runs with eight host devices, strict promotion of dtypes and ranks, and warnings as errors."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss._core import classes, platforms
from tests import cases, jaxprs

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


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


def pytest_collection_modifyitems(config, items):
    """One read is a form of what sums over a softmax: other losses are not run twice."""
    softmax = {*cases.SOFTMAX, *(case for case in cases.RANKING if case.name in ("lsep", "zlpr"))}

    def kept(item) -> bool:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        return given.get("form") != "one read" or given.get("case") in {None, *softmax}

    config.hook.pytest_deselected(items=[item for item in items if not kept(item)])
    items[:] = [item for item in items if kept(item)]
