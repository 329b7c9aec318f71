"""Promise 10: what losses move and hold on a TPU and a GPU, by the compilers of these, which run without the devices.

Bounds are in bytes of the logits, labels of their shape having the same dtype: a value reads logits (and labels), a
gradient reads them once more and is written; a softmax loss of distributions other than cross-entropy needs the row's
statistics first. A twentieth is for statistics of rows.
"""

import json
import os
import subprocess
import sys

import pytest

from bench.targets import TARGETS, MissingError, environment, find_compiler
from tests import cases

READS = {  # family -> labels -> (value, gradient)
    "softmax": {"ids": (1, 3), "soft": (2, 5)},
    "softmax, other functions": {"ids": (1, 3), "soft": (3, 6)},
    "softmax, other functions, smoothing": {"ids": (2, 4)},
    "sigmoid": {"ids": (1, 2), "soft": (2, 3)},
}
SLACK = 0.12


def expected(family: str, name: str, kind: str) -> tuple[int, int] | None:
    case = name.split(",")[0]
    if name == "kl":
        return 4, 7  # two arrays of logits, each with statistics of its own
    if family == "softmax" and case not in ("cross_entropy", "integer_labels"):
        family += ", other functions" + (", smoothing" if "smoothing" in name else "")
    return READS[family][kind] if family in READS else None


@pytest.fixture(scope="module", params=["tpu-v5e", "h100"])
def rows(request):
    """What each program moves and holds."""
    try:
        find_compiler(TARGETS[request.param].platform)
    except MissingError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "tests.compiled", request.param]
    done = subprocess.run(command, env={**os.environ, **environment()}, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_bytes_moved_and_held(rows):
    broken, seen = [], 0
    for family, name, kind, mode, moved, held in rows:
        bound = expected(family, name, kind)
        if bound is None:
            continue
        seen += 1
        most = bound[mode == "gradient"] + SLACK
        if moved > most or held > 0.1:
            broken.append(f"{name} of {kind}, {mode}: moves {moved:.2f} (at most {most}), holds {held:.2f}")
    assert seen > 4 * len([*cases.SOFTMAX, *cases.SIGMOID])
    assert not broken, "\n".join(broken)
