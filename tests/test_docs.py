"""The README's Python blocks and the examples run, and links lead somewhere; building the site runs its pages."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs

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


def test_the_example_of_the_readme_runs(tmp_path):
    figure = tmp_path / "figure.png"
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "imbalanced_digits.py"), "--out", str(figure)]
    environment = {**programs.environment(), "PYTHONPATH": str(ROOT)}
    command += ["--seeds", "2", "--steps", "1"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert "focal" in output
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "options", "sizes", "says"),
    [
        ("multilabel", ["--seeds", "2", "--steps", "1"], {}, "focal"),
        (
            "language_model",
            ["--steps", "1", "--files", "40"],
            {"WORDS": 500, "SEQUENCES": 2, "ROWS": 256, "CHUNK_ROWS": 32, "HELD_OUT": 4},
            "Perplexity on files held out",
        ),
    ],
)
@pytest.mark.usefixtures("standard_promotion")
def test_other_examples_run(name, options, sizes, says, tmp_path, monkeypatch, capsys):
    """In this process, which has JAX and matplotlib imported, and with small arrays."""
    figure, path = tmp_path / "figure.png", ROOT / "examples" / f"{name}.py"
    assert path.read_text().endswith('\n\nif __name__ == "__main__":\n    main()\n')
    monkeypatch.setattr(sys, "argv", [str(path), *options, "--out", str(figure)])
    monkeypatch.syspath_prepend(path.parent)
    example = importlib.import_module(name)
    for size, value in sizes.items():
        monkeypatch.setattr(example, size, value)
    example.main()
    assert says in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")
