"""How many classes should a thread of a GPU join before the row is reduced? `python -m bench.folds [--out DIR]`.

Cross-entropy of ids, the value and with its gradient, with as many parts as named (jaxloss/_core/classes.py), beside
optax. Meant for a GPU; elsewhere all forms are one.
"""

import argparse
import json
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from optax import losses

import jaxloss
from bench import report
from bench.measure import interleaved, percentiles
from jaxloss._core import classes

PARTS = (1, 2, 4, 8, 16)
SHAPES = {"cpu": [(64, 4096)], "gpu": [(8192, 32768), (4096, 128256), (65536, 1000)]}
CALLS = {"cpu": 1, "gpu": 10}


def rows(shape: tuple[int, int], dtype: str, platform: str) -> list[dict]:
    keys = jax.random.split(jax.random.key(0))
    z = jax.random.normal(keys[0], shape, dtype)
    ids = jax.random.randint(keys[1], shape[:1], 0, shape[1])
    found = []
    for mode in ("value", "gradient"):
        programs = {}
        for parts in (*PARTS, None):
            loss = losses.softmax_cross_entropy_with_integer_labels if parts is None else jaxloss.softmax_cross_entropy

            def total(z, ids, loss=loss):
                return jnp.sum(loss(z, ids).astype(jnp.float32))

            jax.clear_caches()
            with mock.patch.object(
                classes, "_parts", lambda *_, parts=parts, **__: parts if shape[1] % parts == 0 else 1
            ):
                step = total if mode == "value" else jax.value_and_grad(total)
                programs["optax" if parts is None else parts] = jax.jit(step).lower(z, ids).compile()
        calls = [lambda program=program: program(z, ids) for program in programs.values()]
        for name, times in zip(programs, interleaved(calls, 1, started=CALLS[platform]), strict=True):
            found.append({"shape": list(shape), "dtype": dtype, "mode": mode, "parts": name, **percentiles(times)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.folds", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder of the results (%(default)s)")
    out = parser.parse_args().out
    platform = "gpu" if jax.default_backend() == "gpu" else "cpu"
    found = [
        row for dtype in ("bfloat16", "float32") for shape in SHAPES[platform] for row in rows(shape, dtype, platform)
    ]
    out.mkdir(parents=True, exist_ok=True)
    name = f"folds-{platform}-jax{jax.__version__}.json"
    (out / name).write_text(json.dumps({**report.environment(), "rows": found}, indent=1) + "\n")
    print(report.table([{**row, "shape": str(row["shape"])} for row in found], {key: key for key in found[0]}))


if __name__ == "__main__":
    main()
