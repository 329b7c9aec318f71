"""The tables of docs/coming_from/: value and gradient of each line on both sides, and the pages show these lines."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.coming_from import table

BLOCKS = re.compile(r"```python\n(.*?)```", re.DOTALL)
# float32 against nine digits of float64; entries of a gradient are differences of numbers near 1.
CLOSE = {"rtol": 16 * 2.0**-23, "atol": 2 * 2.0**-23}


@functools.cache
def installed(name: str) -> bool:
    """Whether the library that a source compares with can be imported."""
    try:
        table.source(name).names()
    except ImportError:
        return False
    return True


def differences(rows: list[table.Row], found: table.Numbers, expected: table.Numbers, **tolerance) -> list[str]:
    """The rows whose value or gradient is not the expected one."""
    wrong = []
    for row, pair, pair_expected in zip(rows, found, expected, strict=True):
        assert pair_expected[row.by is not None] is not None, row  # where there is a gradient to compare, it is there
        for what, got, want in zip(("value", "gradient"), pair, pair_expected, strict=True):
            try:
                if want is not None:
                    np.testing.assert_allclose(got, want, **tolerance)
            except AssertionError as error:
                wrong.append(f"{what} of {row.theirs}: {error}")
    return wrong


@pytest.mark.parametrize("name", table.SOURCES)
@pytest.mark.usefixtures("standard_promotion")
def test_rows_have_the_numbers_of_the_library(name):
    rows = table.rows(name)
    wrong = differences(rows, table.ours(rows), table.theirs(name, rows), **CLOSE)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", table.RECORDED)
@pytest.mark.filterwarnings("ignore")  # of the libraries themselves
@pytest.mark.usefixtures("standard_promotion")
def test_recorded_numbers_are_those_of_the_installed_library(name):
    if not installed(name):
        pytest.skip(f"needs {name}; its numbers are in tests/coming_from/recorded/")
    rows, recorded = table.rows(name), table.recorded(name)
    assert list(recorded["rows"]) == [row.theirs for row in rows]
    wrong = differences(rows, table.source(name).theirs(rows), table.theirs(name, rows), rtol=1e-8, atol=1e-9)
    assert not wrong, "\n".join(wrong)
    if recorded["versions"] == table.source(name).versions():
        assert recorded["names"] == table.source(name).names()


@pytest.mark.parametrize("name", table.SOURCES)
def test_pages_show_these_rows(name):
    page = (table.PAGES / table.source(name).PAGE).read_text()
    assert page == table.filled(name), "run `python -m tests.coming_from.table`"
    places = re.findall(rf"<!-- table: {name} (.*?) -->", page)
    assert places == [key for key, _ in table.rendered(name)]


def plain(name: str) -> str:
    """One spelling for `HuberLoss` and `huber_loss`."""
    return name.lower().replace("_", "").removesuffix("loss")


@pytest.mark.parametrize("name", table.SOURCES)
def test_every_loss_of_the_library_is_on_its_page(name):
    page = (table.PAGES / table.source(name).PAGE).read_text()
    names = table.recorded(name)["names"] if name in table.RECORDED else table.source(name).names()
    shown = {x for code in re.findall(r"`[^`\n]+`", page) for x in re.findall(r"\w+", code)}
    either = {plain(x) for x in shown}
    # Classes by their own names, for that is what the site is searched for; functions in one of both spellings.
    assert [x for x in names if (x not in shown if x[0].isupper() else plain(x) not in either)] == []


@pytest.mark.usefixtures("standard_promotion")
def test_pytorchs_cross_entropy_in_one_function():
    names: dict = {}
    for block in BLOCKS.findall((table.PAGES / "pytorch.md").read_text()):
        exec(block, names)
    rows = [row for row in table.rows("torch") if row.theirs.startswith("F.cross_entropy(")]
    expressions = [(row.theirs, row.by) for row in rows]
    found = table.in_one_program(expressions, {"F": SimpleNamespace(cross_entropy=names["cross_entropy"])})
    wrong = differences(rows, found, table.theirs("torch", rows), **CLOSE)
    assert not wrong, "\n".join(wrong)
    assert len(rows) > 20

    z, q, w = (table.data()[key].astype(kind) for key, kind in (("z", "float32"), ("q", "int32"), ("w", "float32")))
    by_numpy = jax.jit(lambda z, q: names["cross_entropy"](z, q, weight=w))(z, q)
    np.testing.assert_allclose(by_numpy, names["cross_entropy"](z, q, weight=jnp.asarray(w)), rtol=1e-6)
    with pytest.raises(ValueError, match="reduction must be"):
        names["cross_entropy"](z, q, reduction="batchmean")


@pytest.mark.parametrize("page", sorted(table.PAGES.glob("*.md")), ids=lambda page: page.name)
@pytest.mark.usefixtures("standard_promotion")
def test_python_blocks_run(page):
    names: dict = {}
    for block in BLOCKS.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)
