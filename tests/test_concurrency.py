"""Threads that trace at the same time, processes that import, and what is copied and saved."""

import copy
import functools
import inspect
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests import cases

ROOT = Path(__file__).parent.parent
FUNCTIONS = [name for name in jaxloss.__all__ if inspect.isfunction(getattr(jaxloss, name))]


def test_threads_trace_and_call_at_the_same_time(rng):
    """Each of its own shapes, so that each is compiled while others are; then all of one."""
    losses = [case for case in cases.SOFTMAX if case.name in ("cross_entropy", "focal_2", "generalized")]

    def work(i: int):
        case, rows = losses[i % len(losses)], 3 + i % 2
        z, ids = np.sin(np.arange(rows * 5, dtype=np.float32).reshape(rows, 5)), np.arange(rows)
        run = jaxloss.per_example_value_and_grad(case.call)
        traced = jax.jit(run)(z, ids)
        return [np.asarray(x) for x in (*run(z, ids), *traced)]

    jax.clear_caches()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, [*range(6), *range(6)]))
    for a, b in zip(found[:6], found[6:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    for i, got in enumerate(found[:6]):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), got[:2], got[2:])
        jax.tree.map(np.testing.assert_array_equal, got, work(i))


LOADER = """
import multiprocessing, sys

import numpy as np
import jax
import jaxloss
from jax._src import xla_bridge


def load(i):
    # A worker that loads data names jaxloss and its functions, and computes with NumPy alone.
    import jaxloss
    assert callable(jaxloss.softmax_cross_entropy)
    return np.full(3, i)


if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        batches = pool.map(load, range(4))
    assert not xla_bridge.backends_are_initialized()
    loss = jaxloss.softmax_cross_entropy(np.zeros((4, 10), np.float32), np.array([b[0] for b in batches]))
    assert np.allclose(loss, np.log(10)), loss
"""


@pytest.mark.parametrize("method", [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()])
def test_workers_that_load_data_import_it_without_a_backend(method, tmp_path):
    """The import starts no backend, after which a fork of the process would hang."""
    program = tmp_path / "loader.py"
    program.write_text(LOADER)
    env = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": ""}
    subprocess.run([sys.executable, "-W", "error", str(program), method], check=True, timeout=120, env=env)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_and_partials_of_it_can_be_pickled(name):
    function = getattr(jaxloss, name)
    assert pickle.loads(pickle.dumps(function)) is function
    made = functools.partial(function, where=None)
    copied = pickle.loads(pickle.dumps(made))
    assert (copied.func, copied.keywords) == (made.func, made.keywords)
    assert copy.deepcopy(made).func is function


def test_a_sum_survives_copies_and_checkpoints(tmp_path):
    """With what it was rounded by, which two fields hold."""
    total = jaxloss.LossSum(jnp.float32(2**24), jnp.float32(2**24)) + jaxloss.LossSum.of(jnp.ones(3))
    assert total.weight_rest + total.total_rest != 0
    leaves, structure = jax.tree.flatten(total)
    np.savez(tmp_path / "sum.npz", *leaves)
    with np.load(tmp_path / "sum.npz") as saved:
        restored = structure.unflatten(saved[name] for name in saved.files)
    found = [pickle.loads(pickle.dumps(total)), copy.deepcopy(total), restored]
    for x in found:
        jax.tree.map(np.testing.assert_array_equal, x, total)
        assert x.mean() == total.mean()


def test_a_sum_survives_orbax(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint", reason="needs orbax-checkpoint")
    total = jaxloss.LossSum(jnp.float32(2**24), jnp.float32(2**24)) + jaxloss.LossSum.of(jnp.ones(3))
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "sum", total)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "sum", total)
    assert isinstance(restored, jaxloss.LossSum)
    jax.tree.map(np.testing.assert_array_equal, restored, total)
