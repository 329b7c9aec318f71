"""The README's Python blocks and the examples run, and links lead somewhere; building the site runs its pages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BUILT = ("_build", "generated", "jupyter_execute")
PAGES = [README, *(p for p in sorted((ROOT / "docs").rglob("*.md")) if not set(BUILT) & set(p.parts))]


@pytest.mark.usefixtures("standard_promotion")
def test_python_blocks_of_the_readme_run():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(block, str(README), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("imbalanced_digits", ["--quick"], "focal"),
        ("multilabel", ["--quick"], "focal"),
        ("language_model", ["--steps", "2", "--files", "60"], "Perplexity on files held out"),
    ],
)
def test_examples_run(name, options, says, tmp_path):
    figure = tmp_path / "figure.png"
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py"), *options, "--out", str(figure)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}).stdout
    assert says in output
    assert figure.read_bytes().startswith(b"\x89PNG")
