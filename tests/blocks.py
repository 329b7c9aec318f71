"""Writes the Python of the README and of pages of docs/ to files for type checkers: `python -m tests.blocks DIR`.

Not that of the folders of docs/, where the types of scikit-learn and matplotlib decide.
"""

import re
import sys
from pathlib import Path

from tests.test_docs import PAGES, ROOT

FENCE = re.compile(r"^```(?:python|\{code-cell\}[^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for page in (page for page in PAGES if page.parent in (ROOT, ROOT / "docs")):
        blocks = [
            re.sub(r"\A(?:---\n.*?^---\n|(?::\w+:[^\n]*\n)+)", "", block, flags=re.DOTALL | re.MULTILINE)
            for block in FENCE.findall(page.read_text())
        ]
        if blocks:
            name = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
            (folder / f"{name}.py").write_text("\n".join(blocks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
