"""Every Python block of the README and of docs/ runs, in order, and the examples do."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("standard_promotion")
def test_python_blocks_run(page):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("imbalanced_digits", ["--quick"], "focal"),
        ("multilabel", ["--quick"], "focal"),
        ("language_model", ["--steps", "2"], "Perplexity on files held out"),
    ],
)
def test_examples_run(name, options, says, tmp_path):
    figure = tmp_path / "figure.png"
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py"), *options, "--out", str(figure)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}).stdout
    assert says in output
    assert figure.read_bytes().startswith(b"\x89PNG")
