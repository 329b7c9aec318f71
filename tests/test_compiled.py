"""Programs compiled for devices that are not here: what is read off a program, and the path from a loss to the table.

No compiler for TPU or GPU is needed: the reader is tested on texts, the path on programs for CPU.
"""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from bench import __main__, compiled, compiled_report, targets
from bench.hlo import Program
from tests import cases

pytestmark = pytest.mark.usefixtures("standard_promotion")

FUSION = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%sum (p: bf16[8,100], q: bf16[8,100]) -> f32[8] {
  %p = bf16[8,100]{1,0} parameter(0)
  %q = bf16[8,100]{1,0} parameter(1)
  %p.1 = f32[8,100]{1,0} convert(%p)
  %q.1 = f32[8,100]{1,0} convert(%q)
  %e = f32[8,100]{1,0} multiply(%p.1, %q.1)
  %zero = f32[] constant(0)
  ROOT %r = f32[8]{0} reduce(%e, %zero), dimensions={1}, to_apply=%add
}

ENTRY %main (z: bf16[8,100], t: bf16[8,100]) -> f32[8] {
  %z = bf16[8,100]{1,0} parameter(0), metadata={op_name="z"}
  %t = bf16[8,100]{1,0} parameter(1)
  ROOT %f = f32[8]{0} fusion(%z, /*index=1*/%t), kind=kInput, calls=%sum
}
"""
GATHER = """
%take (p: f32[8,100], i: s32[8,2]) -> f32[8] {
  %p = f32[8,100]{1,0} parameter(0)
  %i = s32[8,2]{1,0} parameter(1)
  %p.1 = f32[8,100]{1,0} negate(%p)
  %g = f32[8,1,1]{2,1,0} gather(%p.1, %i), offset_dims={1,2}, slice_sizes={1,1}
  ROOT %r = f32[8]{0} bitcast(%g)
}

ENTRY %main (z: f32[8,100], i: s32[8,2]) -> f32[8] {
  %z = f32[8,100]{1,0} parameter(0)
  %i = s32[8,2]{1,0} parameter(1)
  ROOT %f = f32[8]{0} fusion(%z, %i), kind=kLoop, calls=%take
}
"""
BOTH = GATHER.replace("  %g =", "  %all = f32[8]{0} reduce(%p.1, %i), dimensions={1}, to_apply=%add\n  %g =")
TILED = """
ENTRY %main (z: f32[64,1000], i: s32[3,2]) -> f32[3] {
  %z = f32[64,1000]{1,0:T(8,128)} parameter(0)
  %i = s32[3,2]{1,0:T(2,128)} parameter(1)
  ROOT %g = f32[3]{0:T(128)} gather(%z, %i), offset_dims={}, collapsed_slice_dims={0,1}, slice_sizes={1,1}
}
"""
OFFLOADED = """
%take (p: f32[64,1000], i: s32[3,2]) -> f32[3] {
  %p = f32[64,1000]{1,0} parameter(0)
  %i = s32[3,2]{1,0} parameter(1)
  ROOT %g = f32[3]{0} gather(%p, %i), offset_dims={}, collapsed_slice_dims={0,1}, slice_sizes={1,1}
}

ENTRY %main (z: f32[64,1000], i: s32[3,2]) -> f32[3] {
  %z = f32[64,1000]{1,0} parameter(0)
  %i = s32[3,2]{1,0} parameter(1)
  %start = ((), (), (s32[1]{0:S(2)})) call-start(), async_execution_thread="sparsecore", to_apply=%take
  %update = ((f32[64,1000]{1,0}, s32[3,2]{1,0}), f32[3]{0}) call-update(%start, %z, %i)
  ROOT %done = f32[3]{0} call-done(%update)
}
"""
NESTED = """
%inner (p: f32[4,8,100]) -> f32[1,8,100] {
  %p = f32[4,8,100]{2,1,0} parameter(0)
  ROOT %s = f32[1,8,100]{2,1,0} slice(%p), slice={[1:2], [0:8], [0:100]}
}

%outer (p: f32[4,8,100]) -> f32[8,100] {
  %p = f32[4,8,100]{2,1,0} parameter(0)
  %s = f32[1,8,100]{2,1,0} fusion(%p), kind=kLoop, calls=%inner
  ROOT %r = f32[8,100]{1,0} bitcast(%s)
}

ENTRY %main (z: f32[4,8,100]) -> f32[8,100] {
  %z = f32[4,8,100]{2,1,0} parameter(0)
  ROOT %f = f32[8,100]{1,0} fusion(%z), kind=kOutput, calls=%outer
}
"""
LOOP = """
%update (p: f32[10,100], x: f32[100], i: s32[]) -> f32[10,100] {
  %p = f32[10,100]{1,0} parameter(0)
  %x = f32[100]{0} parameter(1)
  %i = s32[] parameter(2)
  %x.1 = f32[1,100]{1,0} bitcast(%x)
  %zero = s32[] constant(0)
  ROOT %d = f32[10,100]{1,0} dynamic-update-slice(%p, %x.1, %i, %zero)
}

%body (s: (s32[], f32[10,100], f32[100])) -> (s32[], f32[10,100], f32[100]) {
  %s = (s32[], f32[10,100]{1,0}, f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %p = f32[10,100]{1,0} get-tuple-element(%s), index=1
  %x = f32[100]{0} get-tuple-element(%s), index=2
  %d = f32[10,100]{1,0} fusion(%p, %x, %i), kind=kLoop, calls=%update
  ROOT %t = (s32[], f32[10,100]{1,0}, f32[100]{0}) tuple(%i, %d, %x)
}

%condition (s: (s32[], f32[10,100], f32[100])) -> pred[] {
  %s = (s32[], f32[10,100]{1,0}, f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(10)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (s: (s32[], f32[10,100], f32[100])) -> (s32[], f32[10,100], f32[100]) {
  %s = (s32[], f32[10,100]{1,0}, f32[100]{0}) parameter(0)
  ROOT %w = (s32[], f32[10,100]{1,0}, f32[100]{0}) while(%s), condition=%condition, body=%body
}
"""
NOTED = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
ON_CHIP = """
ENTRY %main (z: bf16[8,100]) -> bf16[8,100] {
  %z = bf16[8,100]{1,0:T(8,128)(2,1)} parameter(0)
  %start = (bf16[8,100]{1,0:T(8,128)(2,1)S(1)}, bf16[8,100]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%z)
  %done = bf16[8,100]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  %half = ((bf16[8,100]{1,0:T(8,128)(2,1)}), bf16[4,100]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%z), slice={}
  %half.1 = bf16[4,100]{1,0:T(8,128)(2,1)S(1)} slice-done(%half)
  %none = bf16[8,100]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %n = bf16[8,100]{1,0:T(8,128)(2,1)} negate(%done)
}
"""
MATMUL = """
%gemm (a: bf16[8,4], b: bf16[4,16]) -> f32[8,16] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[4,16]{1,0} parameter(1)
  ROOT %d = f32[8,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: bf16[8,4], b: bf16[4,16]) -> f32[8,16] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[4,16]{1,0} parameter(1)
  %f = f32[8,16]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm
  %c = (f32[8,16]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm"
  %d = f32[8,16]{1,0} get-tuple-element(%c), index=0
  %start = f32[8,16]{1,0} all-reduce-start(%d), to_apply=%add
  ROOT %r = f32[8,16]{1,0} all-reduce-done(%start)
}
"""
Z = 8 * 100
AB, R = 2 * (8 * 4 + 4 * 16), 4 * 8 * 16


@pytest.mark.parametrize(
    ("text", "moved", "kernels"),
    [
        pytest.param(FUSION, 2 * 2 * Z + 4 * 8, 1, id="operands and result of a fusion, once"),
        pytest.param(GATHER, 4 * 8 + 4 * 16 + 4 * 8, 1, id="of a gather's operand, what it takes"),
        pytest.param(TILED, 4 * 3 * 1024 + 4 * 6 + 4 * 3, 1, id="of a tiled operand, a tile for each entry"),
        pytest.param(OFFLOADED, 4 * 3 + 4 * 6 + 4 * 3, 1, id="what another core does beside the program"),
        pytest.param(BOTH, 4 * Z + 4 * 16 + 4 * 8, 1, id="all of it where something else reads it too"),
        pytest.param(NESTED, 2 * 4 * Z, 1, id="a slice, in a fusion in a fusion"),
        pytest.param(LOOP, 10 * (4 * 100 + 4 + 4 * 100), 10, id="a loop by its bound, updating in place"),
        pytest.param(NOTED, 3 * (4 * 100 + 4 + 4 * 100), 3, id="a loop by the compiler's note"),
        pytest.param(ON_CHIP, 2 * Z + Z + 2 * Z, 2, id="on-chip memory is free, an asynchronous pair counts once"),
        pytest.param(MATMUL, AB + R + AB + R + R + R, 3, id="products; scratch is not counted"),
    ],
)
def test_bytes_and_kernels_of_a_program(text, moved, kernels):
    program = Program(text)
    assert program.bytes == moved
    assert program.kernels == kernels
    assert not program.endless


def test_products_and_collectives_of_a_program():
    program = Program(MATMUL)
    assert program.products == 2
    assert program.collectives == ["all-reduce-start f32[8,16]{1,0}"]
    assert Program(FUSION).products == 0
    assert Program(FUSION).collectives == []


def test_a_loop_without_a_bound_is_taken_once_and_named():
    program = Program(LOOP.replace("direction=LT", "direction=NE"))
    assert program.endless == ["w"]
    assert program.bytes == Program(LOOP).bytes / 10
    assert program.loops == 1


def test_a_program_of_this_process_is_read():
    def f(z):
        return jnp.exp(z) * 2

    found = targets.measure(jax.jit(f).lower(jnp.zeros((8, 100))).compile())
    assert found["bytes"] == 2 * 4 * Z
    assert found["temporary"] == found["uncounted_loops"] == 0


@pytest.mark.parametrize(("name", "missing"), [("tpu-v5e", "libtpu"), ("h100", "jax_cuda13_plugin"), ("all", "libtpu")])
def test_a_compiler_that_is_not_installed(name, missing, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(targets.sys, "platform", "linux")
    monkeypatch.setattr(targets.machine, "machine", lambda: "x86_64")
    monkeypatch.setattr(targets, "find_spec", lambda module: None if module == missing else module)
    monkeypatch.setattr(targets, "_ptxas", lambda: "cuda")
    with pytest.raises(SystemExit) as exit:
        __main__.main(["--target", name, "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert exit.value.code == 1
    assert printed.err.count("\n") == 1
    assert targets.INSTALL in printed.err
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


def test_ptxas_is_part_of_the_compiler(monkeypatch):
    monkeypatch.setattr(targets.sys, "platform", "linux")
    monkeypatch.setattr(targets.machine, "machine", lambda: "x86_64")
    monkeypatch.setattr(targets, "find_spec", lambda module: module)
    monkeypatch.setattr(targets, "_ptxas", lambda: None)
    targets.find_compiler("tpu")
    with pytest.raises(targets.MissingError, match="no compiler for cuda here"):
        targets.find_compiler("cuda")


def test_another_system_is_told_so(monkeypatch):
    monkeypatch.setattr(targets.sys, "platform", "darwin")
    with pytest.raises(targets.MissingError, match="x86-64 Linux alone"):
        targets.find_compiler("tpu")


def test_what_the_message_says_to_install_exists():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert "jaxloss[targets]" in targets.INSTALL
    assert any("tpu" in line and "cuda13-local" in line for line in project["optional-dependencies"]["targets"])


def test_a_question_is_timed_or_compiled(capsys):
    for arguments in (["--only", "losses"], ["--only", "train_step", "--target", "h100"]):
        with pytest.raises(SystemExit):
            __main__.main(arguments)
    said = capsys.readouterr().err
    assert "losses is compiled alone" in said
    assert "train_step is timed alone" in said


def test_every_loss_on_logits_is_in_the_registry():
    known = {getattr(loss, "func", loss) for loss in compiled.REGISTRY.values()}
    alias = jaxloss.softmax_cross_entropy_with_integer_labels
    assert {case.loss for case in cases.LOGITS} - {alias} | {
        jaxloss.softmax_kl_divergence,
        jaxloss.softmax_js_divergence,
    } == known


@pytest.mark.parametrize(("loss", "labels"), compiled.OFFERED)
def test_providers_compute_the_same(loss, labels, rng):
    z = jnp.asarray(rng.normal(size=(6, 5)) * 3, jnp.float32)
    own = jnp.asarray(np.eye(5)[rng.integers(0, 5, 6)], jnp.float32)
    if loss == "softmax_kl_divergence":
        own = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    given = jnp.asarray(rng.integers(0, 5, 6), jnp.int32) if labels == "ids" else own
    expected = compiled.REGISTRY[loss](z, given)
    name = compiled.OFFERED[loss, labels]
    others = list(compiled.offers([name], "quick", ("optax", "plain JAX")))
    assert others
    for _, provider, offer in others:  # formulas of peers lose digits: a few hundred eps of numbers near 1
        np.testing.assert_allclose(offer.losses[name](z, given), expected, rtol=1e-4, atol=1e-4, err_msg=provider)


@pytest.fixture
def tiny(monkeypatch):
    """Small shapes, compiled for the CPUs of this process in place of a target."""
    for name, shape in {"LARGE": (8, 32), "SMALL": (16, 8), "ELEMENTS": (16, 4)}.items():
        monkeypatch.setattr(compiled, name, shape)
    monkeypatch.setattr(compiled, "DENSE", {"quick": [(8, 32)]})
    monkeypatch.setattr(compiled, "HEADS", {"quick": [(8, 4, 16)]})
    kept = ("softmax_focal_loss", "squared_hinge_loss", "softmax_kl_divergence")
    monkeypatch.setattr(compiled, "REGISTRY", {name: compiled.REGISTRY[name] for name in kept})
    monkeypatch.setattr(targets.Target, "devices", lambda self, number=1: np.array(jax.devices()[:number]))
    monkeypatch.setattr(compiled_report, "find_compiler", lambda platform: None)

    def run(command, env):
        assert env["JAX_PLATFORMS"] == "cpu"
        compiled.main(*command[3:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(compiled_report.subprocess, "run", run)
    # For threads as well, which the context of the test does not reach.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


def test_from_losses_to_table_json_and_plot(tiny, tmp_path, capsys):
    __main__.main(["--target", "tpu-v5e", "--out", str(tmp_path)])
    stem = tmp_path / f"targets-tpu-v5e-quick-jax{jax.__version__}"
    result = json.loads(stem.with_name(stem.name + ".json").read_text())
    assert {row["question"] for row in result["rows"]} == set(compiled.QUESTIONS)
    assert set(result["targets"]) == {"tpu-v5e"}
    text = stem.with_name(stem.name + ".md").read_text()
    assert text in capsys.readouterr().out
    for row in result["rows"]:
        assert "error" not in row, row
        assert row["bytes"] > 0
        assert row["temporary"] >= 0
        cells = [row[name] for name in ("target", "loss", "shape", "provider")]
        assert any(all(cell in line for cell in cells) for line in text.splitlines()), cells
    limits = {(row["loss"], row["mode"]): row["limit"] for row in result["rows"] if row["question"] == "dense"}
    assert limits["cross-entropy", "forward"] == 1
    assert limits["cross-entropy", "gradient"] == limits["cross-entropy", "jvp"] == 2
    assert limits["cross-entropy, one-hot", "gradient"] == 3
    [head] = {row["limit"] for row in result["rows"] if row["question"] == "linear"}
    assert head == 2 * (8 * 4 + 4 * 16) / (8 * 16)
    assert stem.with_name(stem.name + ".png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_compile_says_so_and_the_rest_goes_on(tiny, tmp_path, monkeypatch, capsys):
    def refuse(z, labels):
        raise ValueError("no\nway")

    monkeypatch.setitem(compiled.REGISTRY, "squared_hinge_loss", refuse)
    __main__.main(["--target", "h100", "--only", "losses", "--out", str(tmp_path)])
    [file] = tmp_path.glob("targets-h100-losses-quick-*.json")
    rows = json.loads(file.read_text())["rows"]
    assert {row.get("error") for row in rows} == {None, "no way"}
    assert "no way" in capsys.readouterr().out


def test_a_compiler_that_dies_costs_the_program_it_died_of(tiny, tmp_path, monkeypatch):
    run, sizes = compiled_report.subprocess.run, []
    fatal = "plain JAX"

    def dying(entry, target, original=compiled.Entry.compile):
        if entry.provider == fatal:
            raise SystemExit(-11)
        return original(entry, target)

    def run_to_the_end_or_death(command, **options):
        try:
            return run(command, **options)
        except SystemExit as death:
            sizes.append(len(Path(command[6]).read_text().splitlines()))
            return SimpleNamespace(returncode=death.code)

    monkeypatch.setattr(compiled.Entry, "compile", dying)
    monkeypatch.setattr(compiled_report.subprocess, "run", run_to_the_end_or_death)
    __main__.main(["--target", "h100", "--only", "sharded", "--out", str(tmp_path)])
    [file] = tmp_path.glob("*.json")
    errors = {row["provider"]: row.get("error") for row in json.loads(file.read_text())["rows"]}
    assert errors == {name: "the compiler died" if name == fatal else None for name in compiled.PROVIDERS}
    assert len(sizes) == 2


def test_another_end_of_the_process_is_an_error_and_keeps_the_rows(tiny, tmp_path, monkeypatch):
    run = compiled_report.subprocess.run

    def fail(command, **options):
        run(command, **options)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(compiled_report.subprocess, "run", fail)
    with pytest.raises(compiled_report.subprocess.CalledProcessError):
        __main__.main(["--target", "h100", "--only", "sharded", "--out", str(tmp_path)])
    [file] = tmp_path.glob("*.json")
    assert {row["provider"] for row in json.loads(file.read_text())["rows"]} == set(compiled.PROVIDERS)


def test_the_table_of_the_docs(tmp_path, monkeypatch):
    def row(target, provider, **found):
        names = {"question": "dense", "loss": "focal", "shape": "[2, 3]", "dtype": "bfloat16", "mode": "gradient"}
        return {**names, "target": target, "provider": provider, "limit": 2.0, **found}

    rows = [
        row("tpu-v5e", "jaxloss", bytes=3.04, temporary=0.01, model_ms=2.181),
        row("tpu-v5e", "plain JAX", bytes=8.0, temporary=2.0, model_ms=None),
        row("h100", "jaxloss", bytes=123.4, temporary=9.0),
        row("h100", "optax", error="refused"),
    ]
    docs, results = tmp_path / "docs.md", tmp_path / "results.json"
    results.write_text(json.dumps({"rows": rows}))
    docs.write_text(f"before\n{compiled_report.BEGIN}old\n{compiled_report.END}after\n")
    monkeypatch.setattr(compiled_report, "DOCS", docs)
    compiled_report.main([str(results)])
    text = docs.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    [line] = [line for line in text.splitlines() if "focal" in line]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells == [
        "focal", "[2, 3] bfloat16 gradient", "2.0", "3.0 / - / 8.0 (2.0)", "123 (9) / does not compile", "2.18",
    ]  # fmt: skip


def test_the_docs_have_a_place_for_the_table():
    text = compiled_report.DOCS.read_text()
    assert text.count(compiled_report.BEGIN) == text.count(compiled_report.END) == 1
