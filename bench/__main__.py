"""Times losses of classification against other libraries and against what the machine allows.

`python -m bench [--quick | --full] [--only NAME] [--device cpu|gpu|tpu] [--out DIR]` ends with a table, a JSON file
with every sample, and plots. With `--target NAME` programs are compiled for a TPU or GPU that is not here, and not run.
"""

import argparse
import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from tqdm import tqdm

from bench import compiled_report, limits, memory, report
from bench.measure import DisagreementError, add_ratios
from bench.targets import TARGETS, MissingError

QUESTIONS = ["dense", "sigmoid", "linear", "sparse", "sharded", "train_step", "compile_time"]
ON_ACCELERATORS = ["alone"]
COMPILED = ["dense", "sigmoid", "linear", "sparse", "sharded", "losses"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_true", help="under two minutes on two CPU cores (the default)")
    scale.add_argument("--full", action="store_true", help="every shape, dtype and mode, and sweeps: half an hour")
    parser.add_argument("--only", choices=dict.fromkeys([*QUESTIONS, *ON_ACCELERATORS, *COMPILED]), help="one question")
    parser.add_argument("--device", choices=["cpu", "gpu", "tpu"], help="kind of device; JAX chooses if not given")
    parser.add_argument(
        "--target", choices=[*TARGETS, "all"], help="compile for a device that is not here; nothing runs"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder of the results (%(default)s)")
    parser.add_argument("--page-faults", action="store_true", help="leave the allocator as it is: see bench/memory.py")
    arguments = parser.parse_args(argv)
    scale = "full" if arguments.full else "quick"

    timed = [*QUESTIONS, *ON_ACCELERATORS]
    if arguments.only and arguments.only not in (COMPILED if arguments.target else timed):
        parser.error(f"{arguments.only} is {'timed' if arguments.target else 'compiled'} alone")
    if arguments.target:
        try:
            print(compiled_report.run(arguments.target, scale, arguments.only, arguments.out))
        except MissingError as missing:
            parser.exit(1, f"{missing}\n")
        return

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes most of a GPU from torch
    if not arguments.page_faults:
        memory.keep_pages()
    if arguments.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    platform = jax.devices()[0].platform
    if arguments.device not in (None, platform):
        parser.error(f"no {arguments.device} here: JAX has found a {platform}")

    start = time.perf_counter()
    rates = limits.measure(seconds=8 if arguments.full else 2)
    questions = [arguments.only] if arguments.only else QUESTIONS if platform == "cpu" else timed
    cases = [case for name in questions for case in importlib.import_module(f"bench.{name}").cases(scale)]
    rows: list[dict] = []
    refused: list[str] = []
    try:
        for case in tqdm(cases, desc="cases"):
            try:
                rows += case.measure()
            except DisagreementError as error:
                rows += error.rows
                refused.append(f"refused: {error}")
    finally:  # what has been measured when something fails is kept
        add_ratios(rows, rates)
        allocator = "page-faults" if arguments.page_faults else None
        stem = "-".join(filter(None, [arguments.only, scale, platform, f"jax{jax.__version__}", allocator]))
        print(report.write(arguments.out / stem, rows, rates, time.perf_counter() - start))
    if refused:
        parser.exit(1, "\n".join(refused) + "\n")


if __name__ == "__main__":
    main()
