"""What the site says of the package is so: names, formulas, signatures, tables, links."""

import functools
import html
import inspect
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import jaxloss
from tests import accuracy
from tests.site import DOCS, NAMES, SITE

ROOT = Path(__file__).parent.parent
WITHOUT_FORMULA = {
    "LossSum", "SoftmaxStatistics", "TopK", "masked_loss", "per_example_value_and_grad", "per_example_value_grad_hess",
    "softmax_statistics",
}  # fmt: skip

sys.path.append(str(DOCS))
import formulas  # noqa: E402


def public(name: str):
    return functools.reduce(getattr, name.split("."), jaxloss)


def overview(file: Path = DOCS / "api" / "index.md") -> list[str]:
    return re.findall(r"^   ((?:metrics\.|boosting\.)?\w+)$", file.read_text(), re.MULTILINE)


def test_the_overview_has_every_name_once():
    assert sorted(overview()) == sorted(NAMES)


def test_the_tables_of_options_name_what_exists():
    tables = re.findall(r"```{options-table}\n(.*?)```", (DOCS / "api" / "index.md").read_text(), re.DOTALL)
    names = [name for table in tables for name in table.split()]
    assert len(names) == len(set(names))
    losses = {name for name in NAMES if len(inspect.signature(public(name)).parameters) > 3 and "loss" in name}
    alone = {"huber_loss", "linear_loss", "map_linear_logits", "masked_loss"}  # without a table
    assert losses - alone <= set(names) <= set(NAMES)


def test_the_readme_lists_every_name():
    text = (ROOT / "README.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in text and name != "SoftmaxStatistics"] == []


def test_the_readme_names_the_options_of_each_family():
    """Its sentence of which losses take which options, against their signatures."""
    text = " ".join((ROOT / "README.md").read_text().split())
    for prefix, names in (
        ("Softmax", "softmax_cross_entropy"),
        ("sigmoid", "squared_hinge_loss"),
        ("ranking", "zlpr_loss"),
    ):
        said = re.search(rf"{prefix} losses(?: take)? ((?:`\w+`(?:, | and )?)+)", text)
        assert said, prefix
        assert set(re.findall(r"`(\w+)`", said[1])) == set(list(inspect.signature(public(names)).parameters)[2:])
    assert "(the divergences the first three, `temperature`, and `direction` or `weight`)" in text
    for divergence, own in ((jaxloss.softmax_kl_divergence, "direction"), (jaxloss.softmax_js_divergence, "weight")):
        found = list(inspect.signature(divergence).parameters)[2:]
        assert set(found) == {"axis", "where", "axis_name", "temperature", own}
    said = re.search(r"A weight of positives is `pos_weight` of ((?:`\w+`(?: and )?)+)", text)
    assert said
    weighed = {name for name in NAMES if "pos_weight" in inspect.signature(public(name)).parameters}
    assert set(re.findall(r"`(\w+)`", said[1])) == weighed


def written(name: str) -> list[str]:
    """Lines of a docstring's formulas."""
    before = (inspect.getdoc(public(name)) or "").split("\nArgs:")[0].split("\nExample:")[0]
    return [line for line in before.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("name", NAMES)
def test_formulas_of_docstrings_become_latex(name):
    lines = written(name)
    assert bool(lines) == (name not in WITHOUT_FORMULA)
    if lines:
        text = formulas.block(lines)
        assert text.count("{") == text.count("}")
        assert text.count(r"\left") == text.count(r"\right")
        assert "d" + "loss" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1 - p_y^q) / q", r"\frac{1 - p_{y}^{q}}{q}"),
        ("-p_j / (1 - p_y) dloss/dz_y", r"- \frac{p_{j}}{1 - p_{y}} \frac{\partial \ell}{\partial z_{y}}"),
        ("p_j^(2 - alpha)", r"p_{j}^{2 - \alpha}"),
        ("[z_j / 2 - tau]_+^2", r"\left[\frac{z_{j}}{2} - \tau\right]_+^{2}"),
        ("log(1 + exp(d))", r"\log(1 + \exp(d))"),
        ("(a) / (b) (c)", r"\frac{a}{b} (c)"),
        ("(a) (b) / c", r"(a) \frac{b}{c}"),
        ("sqrt(p_j) != 1", r"\sqrt{p_{j}} \ne 1"),
    ],
)
def test_notation_of_formulas(text, expected):
    assert formulas.latex(text) == expected


@pytest.mark.parametrize("text", ["(1 - p", "1 - p)", "/ 2", "p ^", "a @ b"])
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(formulas.FormulaError):
        formulas.latex(text)


def test_words_stand_beside_formulas():
    line = formulas.line("loss = -log p_y  for an id y")
    assert line == r"\ell &= - \log p_{y}\quad \text{for an id}\ y"


def test_pages_that_the_code_names_exist():
    for path in [*(ROOT / "jaxloss").rglob("*.py"), *(ROOT / "bench").glob("*.py"), ROOT / "CHANGELOG.md"]:
        for page in re.findall(r"\bdocs/[\w/]+\.md", path.read_text()):
            assert (ROOT / page).exists(), (path, page)


def test_the_page_of_accuracy_sums_up_its_file():
    rows = accuracy.read()
    assert accuracy.summary(rows) in (DOCS / "measurements" / "accuracy.md").read_text()
    assert max(float(row["share"]) for row in rows) < 1


# Of the built site.


class Page(HTMLParser):
    """Links, images and anchors of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.targets: list[str] = []
        self.anchors = {"", "top"}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.targets += [found[key] for key in ("href", "src") if found.get(key)]


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    if not (SITE / "index.html").exists():
        pytest.skip(f"no site in {SITE}: python -m sphinx -W -b html docs docs/_build")
    return {path: Page(path) for path in SITE.rglob("*.html")}


def test_links_and_images_of_the_site_lead_somewhere(pages):
    wrong = []
    for path, page in pages.items():
        for target in page.targets:
            scheme, host, file, _, anchor = urlsplit(target)
            if scheme or host:
                continue
            to = (path.parent / unquote(file)).resolve() if file else path
            to = to / "index.html" if to.is_dir() else to
            if not to.exists() or (
                to in pages and to.name != "search.html" and unquote(anchor) not in pages[to].anchors
            ):
                wrong.append(f"{path.relative_to(SITE)}: {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_the_site_shows_signatures_as_they_are(name, pages):
    text = (SITE / "api" / "generated" / f"jaxloss.{name}.html").read_text()
    shown = re.search(rf'<dt class="sig[^>]*id="jaxloss\.{name}">(.*?)</dt>', text, re.DOTALL)
    assert shown
    parameters = re.search(r"\((.*)\)", html.unescape(re.sub(r"<[^>]+>|\s", "", shown[1])))
    assert parameters
    signature = inspect.signature(public(name))
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    expected = str(inspect.Signature(plain)).replace(" ", "")
    assert f"({parameters[1].rstrip(',').replace('[source]', '')})" == expected


def test_the_site_is_small():
    if not (SITE / "index.html").exists():
        pytest.skip(f"no site in {SITE}")
    size = sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file() and ".doctrees" not in path.parts)
    assert size < 40e6, f"{size / 1e6:.0f} MB"
