"""Two processes on this machine, with the classes split over both, train as one does, also after one was killed.

This file is also the program of each of them: `python test_processes.py PROCESS PORT FOLDER`.
"""

import faulthandler
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from tests import programs

ROOT = Path(__file__).parent.parent
PROCESSES, DEVICES = 2, 4  # devices of each process
CLASSES, WIDTH, BATCH, LENGTH, STEPS = 204, 16, 8, 6, 2
SPECS = {"kernel": P(None, "model"), "bias": P("model")}
SECONDS = 120  # until a process that hangs is ended
TOLERANCE = 64 * 2.0**-23  # sums of some 40 words and 204 classes, in another order


def language_model():
    """Parameters of a recurrent language model, and ids [STEPS, BATCH, LENGTH + 1], -1 where there is padding."""
    rng = np.random.default_rng(4)
    shapes = {
        "embedding": (CLASSES, WIDTH),
        "recurrent": (WIDTH, WIDTH),
        "kernel": (WIDTH, CLASSES),
        "bias": (CLASSES,),
    }
    params = {name: (0.5 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    ids = rng.integers(0, CLASSES, (STEPS, BATCH, LENGTH + 1)).astype(np.int32)
    ids[:, 0, 3:] = ids[:, 5, 5:] = -1
    return params, ids


OPTIMIZER = optax.sgd(1.0, momentum=0.9)  # Adam would hide a gradient that is wrong by a factor


def train(state, ids, **layout):
    """Parameters and moments after a step for each batch of ids, and the mean losses, probabilities and accuracies."""
    names = {"axis_name": layout["axis_name"]} if layout else {}

    def word_loss(logits, labels):
        losses = jaxloss.softmax_cross_entropy(logits, labels, label_smoothing=0.1, z_loss=1e-3, **names)
        row = jaxloss.softmax_statistics(logits, labels, **names)
        return losses, (row.probability, row.accuracy)

    def loss(params, ids):
        def cell(state, x):
            state = jnp.tanh(state @ params["recurrent"] + x)
            return state, state

        words, labels = ids[:, :-1], ids[:, 1:]
        x = jnp.take(params["embedding"], jnp.maximum(words, 0), axis=0, mode="clip").swapaxes(0, 1)
        hidden = jax.lax.scan(cell, jnp.zeros_like(x[0]), x)[1].swapaxes(0, 1)
        kernel, bias = params["kernel"], params["bias"]
        options = {"bias": bias, "where": labels >= 0, "has_aux": True, "chunk_rows": 5, **layout}
        total, parts = jaxloss.linear_loss(word_loss, hidden, kernel, labels, **options)
        return total.mean(), jax.tree.map(lambda x: jnp.sum(x) / total.weight, parts)

    def step(state, ids):
        params, moments = state
        (value, parts), gradient = jax.value_and_grad(loss, has_aux=True)(params, ids)
        updates, moments = OPTIMIZER.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), (value, parts)

    return jax.jit(lambda state, ids: jax.lax.scan(step, state, ids))(state, ids)


def work(process: int, port: int, folder: Path) -> None:
    """What each process does: its share of the same training. The first one writes the results.

    With no checkpoint in the folder, the second one is killed after the first step; with one, they go on from it.
    """
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # should the other one be gone, or the test
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, process, initialization_timeout=SECONDS)
    assert (jax.device_count(), jax.local_device_count()) == (PROCESSES * DEVICES, DEVICES)
    # Devices of both processes lie along the axis of the classes; those of the rows are of one process.
    devices = np.array(jax.devices()).reshape(PROCESSES, 2, DEVICES // 2).swapaxes(0, 1).reshape(2, -1)
    mesh = jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def place(x, spec):
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])

    params, ids = language_model()
    state, checkpoint = (params, OPTIMIZER.init(params)), folder / "checkpoint.npz"
    goes_on = checkpoint.exists()
    if goes_on:
        leaves, structure = jax.tree.flatten(state)
        with np.load(checkpoint) as saved:  # logs follow the state
            state = structure.unflatten(saved[name] for name in saved.files[: len(leaves)])
    ids = ids[1:] if goes_on else ids[:1]
    state = jax.tree.map_with_path(lambda path, x: place(np.asarray(x), SPECS.get(path[-1].key, P())), state)
    state, logs = train(state, place(ids, P(None, "data")), mesh=mesh, batch_spec="data", axis_name="model")
    assert {len(shard.data.T) for shard in state[0]["kernel"].addressable_shards} == {CLASSES // 4}
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))((state, logs))
    if process == 0:
        written = folder / "unfinished.npz"
        np.savez(written, *map(np.asarray, jax.tree.leaves(whole)))
        written.rename(folder / "results.npz" if goes_on else checkpoint)
    if not goes_on:
        while not checkpoint.exists():
            time.sleep(0.05)
        if process == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(SECONDS)  # as a step would wait for the other one
    jax.distributed.shutdown()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_all(commands: list[list[str]], env: dict[str, str], folder: Path) -> None:
    """Runs the programs beside each other until all have ended, one has failed or time is up; none is left behind."""
    logs = [folder / f"{i}.log" for i in range(len(commands))]
    started = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                started.append(subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + SECONDS
        while (codes := [process.poll() for process in started]) != [0] * len(started):
            problem = "one failed" if any(codes) else "time is up" if time.monotonic() > deadline else None
            texts = "\n".join(log.read_text()[-3000:] for log in logs)
            assert problem is None, f"{problem}; exit codes {codes}\n{texts}"
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.usefixtures("standard_promotion")
def test_classes_split_over_two_processes_of_which_one_is_killed(tmp_path):
    params, ids = language_model()
    with jax.default_device(jax.devices("cpu")[0]):
        state, logs = train((params, OPTIMIZER.init(params)), ids)
    expected = jax.tree.leaves((state, jax.tree.map(lambda x: x[1:], logs)))
    moved = [np.max(np.abs(a - b)) for a, b in zip(expected, jax.tree.leaves(params), strict=False)]
    assert min(moved) > 0.01, moved
    env = {**programs.environment(), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"  # the last counts

    def run():
        port = free_port()
        run_all([[sys.executable, __file__, str(i), str(port), str(tmp_path)] for i in range(PROCESSES)], env, tmp_path)

    with pytest.raises(AssertionError, match=r"one failed; exit codes \[None, -9\]"):
        run()
    run()
    with np.load(tmp_path / "results.npz") as found:
        assert len(found.files) == len(expected)
        for name, b in zip(found.files, expected, strict=True):
            np.testing.assert_allclose(found[name], b, rtol=TOLERANCE, atol=TOLERANCE)


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
