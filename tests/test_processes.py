"""Several processes: two on this machine, with the classes split over both, train as one does.

This file is also the program of each of them: `python test_processes.py PROCESS PORT OUT`.
"""

import faulthandler
import os
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


def train(params, ids, **layout):
    """Parameters after a step for each batch of ids, and the mean losses, probabilities and accuracies."""
    optimizer = optax.sgd(1.0, momentum=0.9)  # Adam would hide a gradient that is wrong by a factor
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
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), (value, parts)

    @jax.jit
    def steps(params, ids):
        (params, _), logs = jax.lax.scan(step, (params, optimizer.init(params)), ids)
        return params, logs

    return steps(params, ids)


def work(process: int, port: int, out: str) -> None:
    """What each process does: its share of the same training. The first one writes the results."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # should the other one be gone, or the test
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, process, initialization_timeout=SECONDS)
    assert (jax.device_count(), jax.local_device_count()) == (PROCESSES * DEVICES, DEVICES)
    # Devices of both processes lie along the axis of the classes; those of the rows are of one process.
    devices = np.array(jax.devices()).reshape(PROCESSES, 2, DEVICES // 2).swapaxes(0, 1).reshape(2, -1)
    mesh = jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def place(x, spec):
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])

    params, ids = language_model()
    params = {name: place(x, SPECS.get(name, P())) for name, x in params.items()}
    params, logs = train(params, place(ids, P(None, "data")), mesh=mesh, batch_spec="data", axis_name="model")
    assert {len(shard.data.T) for shard in params["kernel"].addressable_shards} == {CLASSES // 4}
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))((params, logs))
    if process == 0:
        np.savez(out, *map(np.asarray, jax.tree.leaves(whole)))
    jax.distributed.shutdown()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_all(commands: list[list[str]], env: dict[str, str], folder: Path) -> None:
    """Runs the programs beside each other until all have ended, one has failed or time is up; none is left behind."""
    logs = [folder / f"{i}.log" for i in range(len(commands))]
    programs = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                programs.append(subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + SECONDS
        while (codes := [program.poll() for program in programs]) != [0] * len(programs):
            problem = "one failed" if any(codes) else "time is up" if time.monotonic() > deadline else None
            texts = "\n".join(log.read_text()[-3000:] for log in logs)
            assert problem is None, f"{problem}; exit codes {codes}\n{texts}"
            time.sleep(0.05)
    finally:
        for program in programs:
            program.kill()
            program.wait()


@pytest.mark.usefixtures("standard_promotion")
def test_classes_split_over_two_processes(tmp_path):
    params, ids = language_model()
    with jax.default_device(jax.devices("cpu")[0]):
        expected = jax.tree.leaves(train(params, ids))
    moved = [np.max(np.abs(a - b)) for a, b in zip(expected, jax.tree.leaves(params), strict=False)]
    assert min(moved) > 0.01, moved
    out, port = tmp_path / "results.npz", free_port()
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parent.parent)}
    run_all([[sys.executable, __file__, str(i), str(port), str(out)] for i in range(PROCESSES)], env, tmp_path)
    with np.load(out) as found:
        assert len(found.files) == len(expected)
        for name, b in zip(found.files, expected, strict=True):
            np.testing.assert_allclose(found[name], b, rtol=TOLERANCE, atol=TOLERANCE)


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
