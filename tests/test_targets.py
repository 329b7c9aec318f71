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
    "hinge": {"ids": (1, 3), "soft": (3, 8)},
    # The table's rows of ids are read where they are used. A distribution's product with it is stored, in float32. The
    # gradient needs a mean of differences to the expected cost, which has to be known before.
    "costs": {"ids": (1, 4.1), "soft": (6, 13)},
}
SLACK = 0.12
LOOPS = {  # on GPU [65536, 1000]: Newton steps of as many reads; blocks of 32 labels; sorts
    "sparsemax": 28,
    "entmax15": 22,
    "entmax": 34,
    "logistic": 750,
    "hinge": 54,
    "lsep": 10.5,
    "zlpr": 9.5,
    "hamming": 3.1,
}
HELD = {
    "entmax": 2.1,
    "logistic": 15,
    "hinge": 11.5,
    "lsep": 1.1,
    "costs, soft": 2.1,
}  # of the bytes of bfloat16 logits; a sort's operands


def most(family: str, name: str, kind: str, mode: str) -> float:
    """The bound on the bytes moved."""
    case = name.split(",")[0]
    if case in LOOPS:
        return LOOPS[case]
    if name in ("kl", "js"):
        return (4, 7)[mode == "gradient"] + SLACK  # two arrays of logits, each with statistics of its own
    if family == "softmax" and case != "cross_entropy":
        family += ", other functions" + (", smoothing" if "smoothing" in name else "")
    return READS[family][kind][mode == "gradient"] + SLACK


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
    broken = [
        f"{name} of {kind}, {mode}: moves {moved:.2f}, holds {held:.2f}"
        for family, name, kind, mode, moved, held in rows
        if moved > most(family, name, kind, mode) or held > HELD.get(name, 0.1)
    ]
    assert len(rows) > 4 * len([*cases.SOFTMAX, *cases.SIGMOID])
    assert not broken, "\n".join(broken)
