"""The surface: names, signatures, docstrings, dependencies."""

import ast
import copy
import dataclasses
import functools
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss._core.labels import TOP_K

ROOT = Path(__file__).parent.parent
FUNCTIONS = [name for name in jaxloss.__all__ if inspect.isfunction(getattr(jaxloss, name))]
SHARED = re.compile(r"^      (\w+): ((?:.+\n)(?:        .+\n)*)", re.MULTILINE)
TEACHERS = "; or\n        `TopK`, the classes that a teacher holds likeliest.\n"
functions = pytest.mark.parametrize("name", FUNCTIONS)


def test_all_is_sorted_and_complete():
    assert jaxloss.__all__ == sorted(jaxloss.__all__)
    public = {name for name in vars(jaxloss) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(jaxloss, name))}
    assert public - modules == set(jaxloss.__all__) - modules


def test_completion_offers_names_not_modules():
    assert {name for name in dir(jaxloss) if not name.startswith("_")} == set(jaxloss.__all__)


@functions
def test_signatures_are_written_as_in_the_source(name):
    """`help` and editors show aliases, not the unions that they stand for."""
    signature = str(inspect.signature(getattr(jaxloss, name)))
    assert "Union" not in signature
    assert "ndarray" not in signature


@functions
def test_everything_after_the_four_is_keyword_only(name):
    parameters = list(inspect.signature(getattr(jaxloss, name)).parameters.values())
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    positional = [p.name for p in parameters if p.kind not in by_keyword]
    assert len(positional) <= 4
    if positional[0] == "logits":
        names = positional[2:] if "labels" in positional[1] or "logits" in positional[1] else positional[1:]
        assert names == ["axis", "where"], positional


@functions
def test_docstrings_have_every_part(name):
    doc = inspect.getdoc(getattr(jaxloss, name)) or ""
    assert doc.splitlines()[0].endswith(".")
    for part in ("Args:", "Example:", ">>> "):
        assert part in doc, part
    if not name.startswith("per_example"):
        for part in ("Returns:", "Raises:", "Identities:"):
            assert part in doc, part
    if "logits" in inspect.signature(getattr(jaxloss, name)).parameters:
        assert "Reference:" in doc
    for parameter in inspect.signature(getattr(jaxloss, name)).parameters:
        assert re.search(rf"^  {parameter}: ", doc, re.MULTILINE), parameter


MODULES = {"softmax": ("softmax", "focal", "divergence", "statistics"), "sigmoid": ("sigmoid", "statistics")}


@pytest.mark.parametrize("family", MODULES)
def test_shared_arguments_are_described_in_the_same_words(family):
    words: dict[str, set[str]] = {}
    for name in FUNCTIONS:
        function = getattr(jaxloss, name)
        if function.__module__.split(".")[1] not in MODULES[family]:
            continue
        for argument, text in SHARED.findall(function.__doc__):
            known = text.replace(TEACHERS, ".\n")
            assert argument != "labels" or (known != text) == (name in TOP_K), name
            words.setdefault(argument, set()).add(known)
    if family == "sigmoid":
        words = {k: v for k, v in words.items() if k in ("pos_weight", "alpha", "label_smoothing")}
    for argument in (
        "logits",
        "labels",
        "axis",
        "where",
        "axis_name",
        "class_weights",
        "label_margins",
        "label_smoothing",
        "z_loss",
    ):
        assert len(words.get(argument, {""})) == 1, words[argument]


@functions
def test_names_appear_in_the_readme_and_the_reference(name):
    assert f"\n   {name}\n" in (ROOT / "docs" / "api" / "index.md").read_text()


def test_run_time_needs_jax_alone():
    """Nothing but jax, its own dependencies and the standard library is imported."""
    allowed = {"jax", "numpy", "jaxloss", *sys.stdlib_module_names}
    for path in (ROOT / "jaxloss").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert {n.split(".")[0] for n in names} <= allowed, (path, names)


def test_import_initializes_no_backend():
    code = (
        "import jax, jaxloss; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized(), 'a backend was initialized'"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


def test_modules_stay_short():
    for path in (ROOT / "jaxloss").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path


def test_package_is_typed():
    assert (ROOT / "jaxloss" / "py.typed").exists()


@dataclasses.dataclass
class Model:
    objective: Callable


@pytest.mark.parametrize("transform", [jaxloss.per_example_value_and_grad, jaxloss.per_example_value_grad_hess])
def test_they_and_what_holds_them_can_be_pickled(transform, rng):
    z, ids = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), jnp.array([0, 1, 2, 0])
    for loss in (jaxloss.softmax_cross_entropy, functools.partial(jaxloss.softmax_focal_loss, gamma=1.5)):
        made = transform(loss)
        copied = pickle.loads(pickle.dumps(Model(made))).objective
        jax.tree.map(np.testing.assert_array_equal, copied(z, ids), made(z, ids))
        jax.tree.map(np.testing.assert_array_equal, copy.deepcopy(made)(z, ids), made(z, ids))
    made = transform(jaxloss.softmax_cross_entropy)
    assert made == pickle.loads(pickle.dumps(made))  # one program where it is a static argument
    assert hash(made) == hash(transform(jaxloss.softmax_cross_entropy))
    assert made != transform(jaxloss.poly_loss_cross_entropy)
    assert inspect.signature(made) == inspect.signature(jaxloss.softmax_cross_entropy)
