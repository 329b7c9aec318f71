"""The benchmark: its path from case to table, JSON and plots; what it refuses and what it skips; its arithmetic."""

import json
import time

import numpy as np
import optax
import pytest
from jax import lax

from bench import (
    __main__,
    compile_time,
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
        monkeypatch.setattr(module, "interleaved", lambda calls, seconds, rounds=2: interleaved(calls, 0, 2))
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
def test_wrong_numbers_are_refused_before_any_timing(loss, mode, quantity, monkeypatch):
    monkeypatch.setitem(peers.PROVIDERS, "Wrong", lambda: Offer({"cross-entropy": loss}))
    monkeypatch.setattr(measure, "interleaved", lambda *_: pytest.fail("timed"))
    case = layer.case("dense", layer.Layer(8, 8, 4, mode=mode), ["cross-entropy"], "quick", ("optax", "Wrong"))
    with pytest.raises(DisagreementError, match=f"Wrong: {quantity} of cross-entropy .* differs from that of optax by"):
        case.measure()


def test_what_was_measured_before_a_refusal_is_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(peers.PROVIDERS, "Wrong", lambda: Offer({"focal": wrong_value}))
    cases = [layer.case("dense", layer.Layer(8, 8, 4), [loss], "quick") for loss in ("cross-entropy", "focal")]
    monkeypatch.setattr(dense, "cases", lambda _: cases)
    with pytest.raises(DisagreementError, match="Wrong: value of focal"):
        run(tmp_path, "--only", "dense")
    [found] = tmp_path.glob("dense-quick-*.json")
    assert {row["loss"] for row in json.loads(found.read_text())["rows"]} == {FLOOR, "cross-entropy"}


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
