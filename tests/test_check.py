"""`python -m jaxloss`: it holds here, it says what breaks, and it counts units rightly."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import __main__ as command
from jaxloss import _check as check
from jaxloss import _speed
from tests import programs

ROOT = Path(__file__).parent.parent


def test_the_whole_check_as_a_user_runs_it(tmp_path):
    path = tmp_path / "check.json"
    line = [sys.executable, "-W", "error", "-m", "jaxloss", "--no-speed", "--json", str(path)]
    environment = {**programs.environment(), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["platform"] == "cpu"
    assert report["versions"]["jax"] == jax.__version__
    assert done.stdout.splitlines()[-1] == f"{report['checks']} of {report['checks']} checks passed."
    assert sum(text.endswith(" ok") for text in done.stdout.splitlines()) == report["passed"] == report["checks"]
    assert "BROKEN" not in done.stdout
    families = {case.name for case in check.CASES} | {"linear_loss"}
    for dtype in ("float32", "bfloat16", "float16"):
        assert {
            row["loss"].split("(")[0].split(",")[0] for row in report["accuracy"] if row["dtype"] == dtype
        } == families
    assert all(0 <= row["share"] <= 1 for row in report["accuracy"])
    assert max(row["share"] for row in report["accuracy"]) > 0.5
    assert len(report["edges"]) == 6
    assert all(edge["losses"] for edge in report["edges"])
    assert "speed" not in report


def naive(z, labels, **_):
    """What every peer computes: it loses all digits of confident rows."""
    onehot = jax.nn.one_hot(labels, z.shape[-1]) if labels.ndim == 1 else labels
    z = z.astype(jnp.float32)
    return jax.nn.logsumexp(z, axis=-1) - jnp.sum(jnp.where(onehot > 0, onehot * z, 0), axis=-1)


def clamped(z, labels, original=jaxloss.softmax_cross_entropy, **options):
    """Labels out of range become the last class."""
    ids = jnp.clip(labels, 0, z.shape[-1] - 1) if labels.ndim == 1 else labels
    return original(z, ids, **options)


def in_half_precision(z, labels, original=jaxloss.softmax_cross_entropy, **options):
    """A loss in the dtype of the logits, whose gradient is rounded twice."""
    return (1.01 * original(z, labels, **options).astype(z.dtype)).astype(jnp.float32)


@pytest.fixture
def one_case(monkeypatch):
    """Cross-entropy alone, and nothing compiled before or kept after."""
    for name in ("CASES", "SOFTMAX", "SIGMOID", "SPARSE", "RANKING", "PROBABILITIES"):
        monkeypatch.setattr(check, name, [check.SOFTMAX[0]] * 3)
    monkeypatch.setattr(check, "CASES", check.SOFTMAX[:1])
    monkeypatch.setattr(command, "MANY", (check.CLASSES, 32))  # the size of all other programs
    command.program.cache_clear()
    command.outcome.cache_clear()
    yield
    command.program.cache_clear()
    command.outcome.cache_clear()


@pytest.mark.usefixtures("one_case")
@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        (None, []),
        (naive, [["ids", "float32"], ["one-hot", "bfloat16"], ["a label id out of range"]]),
        (clamped, [["a label id out of range"]]),
        (in_half_precision, [["ids", "float32"], ["ids", "bfloat16"], ["one-hot", "float16"]]),
    ],
    ids=["none", "naive", "clamped", "half"],
)
def test_a_planted_fault_is_reported(fault, broken, monkeypatch, capsys, tmp_path):
    if fault:
        monkeypatch.setattr(jaxloss, "softmax_cross_entropy", fault)
    path = tmp_path / "check.json"
    status = command.main(["--no-speed", "--json", str(path)])
    printed, report = capsys.readouterr().out, json.loads(path.read_text())
    assert status == (1 if broken else 0)
    lines = [text for text in printed.splitlines() if "BROKEN" in text]
    assert len(lines) == report["checks"] - report["passed"]
    assert bool(lines) == bool(broken)
    for words in broken:
        assert any(all(word in text for word in words) for text in lines), words
    assert printed.splitlines()[-1] == f"{report['passed']} of {report['checks']} checks passed."


def test_speed_of_three_losses(monkeypatch, capsys, tmp_path):
    for name in ("accuracies", "edges"):
        monkeypatch.setattr(command, name, list)
    monkeypatch.setattr(_speed, "SHAPES", {"cpu": (16, 64, "float32")})
    monkeypatch.setattr(_speed, "SECONDS", 0.0)
    path = tmp_path / "check.json"
    assert command.main(["--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert capsys.readouterr().out.count("of the rate of a copy") == 4
    assert report["speed"][0]["share_of_copy"] == 1
    assert len(report["speed"]) == 4
    assert min(row["gb_per_s"] for row in report["speed"]) > 0


@pytest.mark.parametrize(
    ("dtype", "got", "exact", "expected"),
    [
        (np.float32, 1 + 2.0**-22, 1, 2),
        (np.float32, 4, 4 - 2.0**-22, 1),
        (np.float32, 0, 2e-37, 2e-37 / 2.0**-145),
        (np.float32, 0, 1e-37, 0),
        (np.float32, 3e-37, 1e-37, 2e-37 / 2.0**-146),
        (np.float32, np.nan, 1, np.inf),
        (np.float32, np.inf, np.inf, 0),
        (np.float32, np.inf, 1, np.inf),
        (jnp.bfloat16, 1, 1 + 2.0**-9, 0.25),
        (np.float64, 1 + 2.0**-52, 1, 1),
    ],
)
def test_units_in_the_last_place(dtype, got, exact, expected):
    exact = np.asarray([exact], np.longdouble)
    with np.errstate(invalid="ignore"):
        found = command.units(np.asarray([got], dtype), exact, np.abs(exact))
    np.testing.assert_allclose(found.astype(float), [expected], rtol=1e-6)


def test_half_precision_is_rounded_once():
    np.testing.assert_allclose(command.rounded_once(np.array([64.0]), "bfloat16"), [0.5 + 64 * 2.0**-16])
    np.testing.assert_array_equal(command.rounded_once(np.array([64.0]), "float32"), [64])
