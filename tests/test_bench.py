"""The benchmark: its path from case to table, JSON and plots; what it refuses and what it skips; its arithmetic."""

import json
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from jax import lax

from bench import (
    __main__,
    alone,
    compile_time,
    compiled,
    dense,
    layer,
    limits,
    linear,
    measure,
    peers,
    report,
    sharded,
    sigmoid,
    sparse,
    train_step,
)
from bench.measure import FLOOR, DisagreementError
from bench.offer import AbsentError, Offer

IN_JAX = ("jaxloss", "jaxloss linear_loss", "optax", "plain JAX")
cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Every question at a size at which only its path matters, by what needs nothing but the extra `bench`."""
    interleaved = measure.interleaved
    for module in (measure, limits):
        monkeypatch.setattr(module, "interleaved", lambda calls, seconds, rounds=2, started=1: interleaved(calls, 0, 2))
    monkeypatch.setattr(limits, "BYTES", dict.fromkeys(limits.BYTES, 2**12))
    monkeypatch.setattr(limits, "WIDTH", dict.fromkeys(limits.WIDTH, 8))
    monkeypatch.setattr(
        dense, "QUICK", [(8, 16, "float32", "gradient", dense.MAIN), (8, 4, "float32", "gradient", dense.MAIN)]
    )
    monkeypatch.setattr(linear, "QUICK", [(8, 4, 16)])
    monkeypatch.setattr(sparse, "QUICK", [(8, 16)])
    monkeypatch.setattr(sharded, "QUICK", [(8, 16, ["cross-entropy"])])
    monkeypatch.setattr(sigmoid, "ROWS", 8)
    monkeypatch.setattr(train_step, "ROWS", 8)
    monkeypatch.setattr(compile_time, "ROWS", 8)
    monkeypatch.setattr(peers, "PROVIDERS", {name: peers.PROVIDERS[name] for name in IN_JAX})
    peers.offer.cache_clear()
    yield
    peers.offer.cache_clear()


def absent():
    raise AbsentError("no such thing")


def run(tmp_path, *arguments):
    """The results of a run of the command, as read from its file."""
    __main__.main(["--page-faults", "--out", str(tmp_path), *arguments])
    [found] = tmp_path.glob("*.json")
    return json.loads(found.read_text()), found.with_suffix("")


def test_every_question_runs_to_table_json_and_plots(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "QUESTIONS", [name for name in __main__.QUESTIONS if name != "compile_time"])
    monkeypatch.setitem(peers.PROVIDERS, "Absent", absent)
    result, stem = run(tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("skipped: Absent (no such thing)") == 1
    assert stem.name == f"quick-{result['platform']}-jax{result['packages']['jax']}-page-faults"
    assert result["packages"]["optax"] == optax.__version__
    assert {row["question"] for row in result["rows"]} == set(__main__.QUESTIONS)
    assert all(rate > 0 for by_name in result["limits"].values() for rate in by_name.values())
    text = stem.with_suffix(stem.suffix + ".md").read_text()
    assert text in printed
    for row in result["rows"]:
        assert len(row["samples"]) == 2
        assert min(*row["samples"], row["to_floor"], row["to_limit"]) > 0
        assert row["temporary_mb"] >= 0
        assert (row["to_peer"] is None) == (row["loss"] == FLOOR)
        cells = [row[name] for name in ("question", "shape", "provider")]
        assert any(all(cell in line for cell in cells) for line in text.splitlines()), cells
    for name in ("time", "memory", "limit"):
        assert stem.with_name(f"{stem.name}-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_losses_alone(tmp_path, monkeypatch):
    for name, shape in {"LARGE": (8, 32), "SMALL": (8, 4), "ELEMENTS": (8, 2)}.items():
        monkeypatch.setattr(compiled, name, shape)
    monkeypatch.setattr(alone, "IN_TORCH", ("Absent",))
    monkeypatch.setitem(peers.PROVIDERS, "Absent", absent)
    monkeypatch.setattr(compiled, "DENSE", {"quick": [(8, 32)]})
    monkeypatch.setattr(compiled, "ALL", ["cross-entropy"])
    monkeypatch.setattr(compiled, "MAIN", ["cross-entropy"])
    monkeypatch.setattr(alone, "QUESTIONS", ("dense", "losses"))
    monkeypatch.setattr(compiled, "REGISTRY", {n: compiled.REGISTRY[n] for n in ("zlpr_loss", "softmax_kl_divergence")})
    result, _ = run(tmp_path, "--only", "alone")
    [ours] = [row for row in result["rows"] if row["provider"] == "jaxloss" and row["loss"] == "zlpr_loss, rows"]
    assert (ours["traffic"], ours["dtype"], ours["peer"]) == (3 * 8 * 4 * 2, "bfloat16", "plain JAX")
    assert {row["mode"] for row in result["rows"]} == {"gradient", "forward", "jvp"}


def test_eager_calls_are_compared_with_a_jitted_one():
    [case] = [case for case in compile_time.cases("quick") if case.mode == "eager"]
    assert {row["provider"] for row in case.measure()} == {"jaxloss", "optax", "plain JAX", "optax under jit"}


def wrong_value(z, ids):
    return 1.01 * cross_entropy(z, ids)


def wrong_gradient(z, ids):
    return cross_entropy(z, ids) + 0.01 * (z[:, 0] - lax.stop_gradient(z[:, 0]))


def not_a_number(z, ids):
    return cross_entropy(z, ids) * np.nan


@pytest.mark.parametrize(
    ("loss", "mode", "quantity"),
    [
        (wrong_value, "gradient", "value"),
        (wrong_value, "forward", "value"),
        (wrong_gradient, "gradient", "gradient"),
        (wrong_gradient, "jvp", "gradient"),
        (not_a_number, "gradient", "value"),
    ],
)
def test_wrong_numbers_are_refused_and_not_timed(loss, mode, quantity, monkeypatch):
    monkeypatch.setitem(peers.PROVIDERS, "Wrong", lambda: Offer({"cross-entropy": loss}))
    case = layer.case("dense", layer.Layer(8, 8, 4, mode=mode), ["cross-entropy"], "quick", ("optax", "Wrong"))
    reason = f"Wrong: cross-entropy differs from that of optax: {quantity} "
    with pytest.raises(DisagreementError, match=reason) as refusal:
        case.measure()
    assert [row["provider"] for row in refusal.value.rows] == ["exp", "optax"]


def test_a_run_goes_on_after_a_refusal_and_fails_at_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(peers.PROVIDERS, "Wrong", lambda: Offer({"focal": wrong_value}))
    cases = [layer.case("dense", layer.Layer(8, 8, 4), [loss], "quick") for loss in ("focal", "cross-entropy")]
    monkeypatch.setattr(dense, "cases", lambda _: cases)
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path, "--only", "dense")
    assert "refused: Wrong: focal differs from that of plain JAX: value" in capsys.readouterr().err
    [found] = tmp_path.glob("dense-quick-*.json")
    rows = json.loads(found.read_text())["rows"]
    assert {row["loss"] for row in rows} == {FLOOR, "cross-entropy", "focal"}
    assert "Wrong" not in {row["provider"] for row in rows}


def test_the_layers_of_models_on_accelerators(monkeypatch, capsys):
    monkeypatch.setattr(linear, "FULL", [(8, 4, 16)])
    monkeypatch.setattr(linear, "MODELS", [(8, 4, 32), (8, 4, 64)])
    monkeypatch.setattr(linear, "LARGEST", 4 * 8 * 32)
    assert [(case.classes, case.dtype) for case in linear.cases("full")] == [(16, "float32"), (16, "bfloat16")]
    with monkeypatch.context() as gpu:
        gpu.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu")])
        assert [case.classes for case in linear.cases("quick")] == [16, 16]
        cases = list(linear.cases("full"))
    assert [(case.classes, case.dtype) for case in cases] == [(32, "bfloat16")] * 2 + [(64, "bfloat16")] * 2
    monkeypatch.setattr(linear, "CHUNKS", (2, 4))
    [by_two, by_four] = cases.pop(1).measure()
    assert (by_two["provider"], by_four["sweep"]) == ("jaxloss linear_loss, 2 rows at a time", "rows of a chunk")
    cases.pop()
    monkeypatch.setitem(peers.PROVIDERS, "tokamax", absent)
    monkeypatch.setitem(peers.PROVIDERS, "Liger fused linear", absent)
    fits, too_large = ({row["provider"] for row in case.measure()} for case in cases)
    assert fits == {"products", "jaxloss linear_loss", "jaxloss", "optax", "plain JAX"}
    assert too_large == {"products", "jaxloss linear_loss"}


def out_of_memory(z, ids):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte.")


def broken(z, ids):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_what_does_not_fit_is_skipped_with_a_line(monkeypatch, capsys):
    monkeypatch.setitem(peers.PROVIDERS, "Large", lambda: Offer({"cross-entropy": out_of_memory}))
    case = layer.case("dense", layer.Layer(8, 8, 4), ["cross-entropy"], "quick", ("optax", "Large"))
    assert [row["provider"] for row in case.measure()] == ["exp", "optax"]
    assert "skipped: Large, cross-entropy of [8, 4] (out of memory)" in capsys.readouterr().out
    monkeypatch.setitem(peers.PROVIDERS, "Broken", lambda: Offer({"cross-entropy": broken}))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        layer.case("dense", layer.Layer(8, 8, 4), ["cross-entropy"], "quick", ("optax", "Broken")).measure()


FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *" pip "* | --version) ;;
    "-c "*) echo gpu ;;
    *jaxloss*) echo all is well; echo ;;
    *alone*) echo "$*"; exit 3 ;;
    *linear*) sleep 60 ;;
    *pytest*) echo 5 passed ;;
esac
"""


@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("timeout")), reason="needs bash and timeout")
def test_parts_on_a_lent_device_that_fail_or_take_too_long(tmp_path):
    fake, out = tmp_path / "python", tmp_path / "results"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    settings = {"PYTHON": str(fake), "PARTS": "check:9 alone:9 linear:1 tests:9"}
    script = ["bash", str(Path(__file__).parent.parent / "bench" / "device.sh"), str(out)]
    done = subprocess.run(script, capture_output=True, text=True, env={**os.environ, **settings}, timeout=50)
    assert done.returncode == 1, done.stderr
    summary = [line.split() for line in (out / "summary.txt").read_text().splitlines()]
    assert [" ".join(line) for line in summary] == [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert [line[0] for line in summary[1:]] == ["check", "alone", "linear", "tests"]
    assert [line[1] for line in summary[1:]] == ["ok", "failed", "timed", "ok"]
    assert summary[1][-3:] == ["all", "is", "well"]
    assert summary[4][-2:] == ["5", "passed"]
    assert f"-m bench --only alone --device gpu --out {out}" in (out / "alone.log").read_text()
    with tarfile.open(out.with_suffix(".tar.gz")) as archive:
        assert {"results/summary.txt", "results/environment.txt", "results/tests.log"} <= set(archive.getnames())


def test_a_device_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--page-faults", "--device", "tpu"])
    assert "no tpu here" in capsys.readouterr().err


def a_row(provider, p50, loss="cross-entropy", traffic=0, flops=0, **changed):
    names = {"question": "dense", "shape": "[2, 3]", "rows": 2, "classes": 3, "dtype": "float32", "mode": "gradient"}
    row = {**names, "loss": loss, "provider": provider, "library": provider.split()[0], "p50": p50, "sweep": None}
    return {**row, "traffic": traffic, "flops": flops, **changed}


def test_ratios():
    rows = [
        a_row("exp", 2.0, FLOOR),
        a_row("jaxloss", 3.0, traffic=1e6, flops=4e6),
        a_row("jaxloss linear_loss", 1.0, traffic=3e6),
        a_row("optax", 6.0),
        a_row("plain JAX", 4.0),
        a_row("jaxloss", 5.0, "focal"),
        a_row("optax", 0.1, dtype="bfloat16"),
        a_row("optax", 0.1, mode="jvp"),
        a_row("optax", 0.1, shape="[3, 2]"),
        a_row("optax", 0.1, question="linear"),
        a_row("optax", 0.1, sweep="rows"),
    ]
    rate = {"copy_bytes_per_s": 1e9, "exp_per_s": 1.0, "product_flops_per_s": 2e9}
    measure.add_ratios(rows, {"float32": rate, "bfloat16": {**rate, "copy_bytes_per_s": 0.5e9}})
    floor, ours, linear_loss, theirs, plain, focal, other, *_ = rows
    assert [row["to_floor"] for row in rows[:6]] == [1, 1.5, 0.5, 3, 2, 2.5]
    assert (ours["to_peer"], ours["peer"], ours["to_optax"]) == (0.75, "plain JAX", 0.5)  # not linear_loss: one library
    assert (theirs["to_peer"], theirs["peer"]) == (6, "jaxloss linear_loss")
    assert (plain["to_peer"], plain["to_optax"]) == (4, pytest.approx(4 / 6))
    assert ours["to_limit"] == 1.5  # 2 ms of products, 1 ms of bytes
    assert linear_loss["to_limit"] == pytest.approx(1 / 3)  # 3 ms of bytes
    assert floor["to_peer"] is floor["to_optax"] is floor["to_limit"] is None
    assert focal["to_peer"] is focal["to_optax"] is other["to_floor"] is other["to_peer"] is None


def test_percentiles_are_in_milliseconds():
    assert measure.percentiles([0.005, 0.001, 0.002, 0.004, 0.003, 0.1]) == pytest.approx(
        {"p20": 2, "p50": 3.5, "p80": 5}
    )


def test_rounds_are_interleaved_in_changing_order(monkeypatch):
    monkeypatch.undo()
    called = []
    calls = [lambda: called.append("a"), lambda: (called.append("b"), time.sleep(0.002))]
    first, second = measure.interleaved(calls, 0, rounds=30, warm_up=2)
    rounds = {"".join(called[i : i + 2]) for i in range(0, len(called), 2)}
    assert rounds == {"ab", "ba"}
    assert len(first) == len(second) == 30
    assert np.median(first) < 0.002 <= np.min(second)


def test_growth_of_a_power_law():
    sizes = [(4, 8), (16, 8), (64, 8), (4, 32), (4, 128)]
    rows = [
        a_row(provider, factor * rows**a * classes**b, rows=rows, classes=classes, sweep="rows")
        for provider, factor, a, b in [("jaxloss", 3, 1, 0.5), ("optax", 7, 0.9, 1.1)]
        for rows, classes in sizes
    ]
    growth = report.fit_growth([*rows, a_row("optax", 1e6)])
    assert growth == {
        "jaxloss": pytest.approx({"rows": 1, "classes": 0.5}),
        "optax": pytest.approx({"rows": 0.9, "classes": 1.1}),
    }
