"""Every test runs with eight host devices, strict promotion of dtypes and ranks, and warnings as errors."""

import os
from types import SimpleNamespace

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxloss._core import classes, platforms

collect_ignore = ["data_keras.py", "data_torch.py"]  # they import what the tests do not need

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


@pytest.fixture(scope="module", params=["cpu", "accelerator"])
def form(request):
    """Programs are lowered for CPU in the form of CPU, and in that of TPU and GPU."""
    if request.param == "cpu":
        yield
        return
    forms = SimpleNamespace(
        platform_dependent=lambda *arguments, cpu, default: default(*arguments),
        optimization_barrier=lax.optimization_barrier,
    )
    with pytest.MonkeyPatch.context() as patch:
        jax.clear_caches()
        patch.setattr(platforms, "lax", forms)
        patch.setattr(classes, "_reduce", reduce_in_lanes)
        yield
    jax.clear_caches()
