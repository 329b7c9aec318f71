"""Docstrings of jaxloss for Sphinx: formulas as LaTeX, shapes as code, names and pages as links."""

import functools
import inspect
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

import formulas
import jaxloss

HERE = Path(__file__).resolve().parent
METRICS = ("hamming_loss", "label_ranking_loss", "zero_one_loss")
BOOSTING = ("objective", "metric", "initial_score")
PUBLIC = {name: f"jaxloss.{name}" for name in jaxloss.__all__ if name not in ("boosting", "metrics")}
PUBLIC |= {f"boosting.{name}": f"jaxloss.boosting.{name}" for name in BOOSTING}
PUBLIC |= {name: f"jaxloss.metrics.{name}" for metric in METRICS for name in (metric, f"metrics.{metric}")}

LITERAL = re.compile(r"(``.+?``|:\w+:`.+?`|`.+?`)")
SHAPE = re.compile(r"(\[\*?batch[^\]]*\])")
PAGE = re.compile(r"\(?docs/([\w/]+)\.md\)?")
INDEXED = re.compile(r"(\b(?:sum|phi|[A-Za-z])_[a-z]{1,2}\b(?: (?:phi|[A-Za-z])_[a-z]{1,2}\b)*)")
SIGNS = re.compile(r"([*|\\]|(?<=\w)_\b)")


def plain(text: str) -> str:
    """Text of which no sign is markup by accident."""
    parts = LITERAL.split(text)
    for i, part in enumerate(parts):
        if i % 2:
            name = part.strip("`").removeprefix("jaxloss.")
            parts[i] = f":py:obj:`{name} <{PUBLIC[name]}>`" if name in PUBLIC else part
            parts[i] += "\\ " * parts[i + 1][:1].isalpha()  # as in `LossSum`s
        else:
            pieces = SHAPE.split(part)
            parts[i] = "".join(f"``{x}``" if j % 2 else _with_pages(x) for j, x in enumerate(pieces))
    return "".join(parts)


def _with_pages(text: str) -> str:
    pieces = PAGE.split(text)
    return "".join(f":doc:`/{piece}`" if i % 2 else _with_indices(piece) for i, piece in enumerate(pieces))


def _with_indices(text: str) -> str:
    """Names with an index, such as p_y, as mathematics."""
    pieces = INDEXED.split(text)
    return "".join(
        f":math:`{formulas.latex(piece)}`\\ " if i % 2 else SIGNS.sub(r"\\\1", piece) for i, piece in enumerate(pieces)
    )


def rewritten(lines: list[str]) -> list[str]:
    """A house docstring as napoleon reads it."""
    out: list[str] = []
    section, block, block_indent = "", [], None
    for line in [*lines, ""]:
        indent = len(line) - len(line.lstrip())
        if block and (not line or indent < 2 or section):
            out += [".. math::", "", *(f"   {x}" for x in formulas.block(block).splitlines()), ""]
            block = []
        if line and block_indent is not None and indent <= block_indent:
            block_indent = None
        if block_indent is None and line.startswith("Example:"):
            block_indent = indent
        if block_indent is not None or not line:
            out.append(line)
            continue
        heading = re.fullmatch(r"([A-Z]\w+):", line)
        section = heading[1] if heading else section if indent else ""
        if indent >= 4 and not section and block:
            block[-1] += f" {line.lstrip()}"
        elif indent >= 2 and not section:
            block.append(line.strip())
        else:
            start = "* " * (section == "Identities" and indent == 2)
            hang = "  " * (section == "Identities" and indent > 2)
            out.append(line[:indent] + hang + start + plain(line[indent:]))
    return out


def process(app, what, name, obj, options, lines):
    lines[:] = rewritten(lines)


def link_names(app, doctree):
    """A public name in code, `softmax_focal_loss` or `jaxloss.softmax_focal_loss`, leads to its page."""
    for code in list(doctree.findall(nodes.literal)):
        name = code.astext().removeprefix("jaxloss.").removesuffix("()")
        if name not in PUBLIC or name in METRICS:
            continue
        inside = code.parent
        while inside is not None and not isinstance(inside, nodes.title | nodes.reference | addnodes.pending_xref):
            inside = inside.parent
        if inside is None:
            target = {"refdomain": "py", "reftype": "obj", "reftarget": PUBLIC[name], "refexplicit": True}
            link = addnodes.pending_xref("", code.deepcopy(), refdoc=app.env.docname, refwarn=False, **target)
            code.replace_self(link)


def families() -> dict[str, list[str]]:
    """Names by the headings of the overview, docs/api/index.md."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in (HERE / "api" / "index.md").read_text().splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif re.fullmatch(r"   [\w.]+", line):
            found.setdefault(heading, []).append(line.strip())
    return found


def neighbours() -> dict[str, dict[str, list[str]]]:
    """For each name: what stands beside it in the overview, and the pages whose text has it."""
    texts = {
        str(path.relative_to(HERE).with_suffix("")): path.read_text()
        for path in sorted(HERE.rglob("*.md"))
        if not {"_build", "api", "measurements", "jupyter_execute"} & set(path.relative_to(HERE).parts)
    }
    known: dict[str, dict[str, list[str]]] = {}
    for names in families().values():
        for name in names:
            word = re.compile(rf"\b{re.escape(name)}\b" if "_" in name else rf"(?:jaxloss\.|`){re.escape(name)}\b")
            pages = [page for page, text in texts.items() if word.search(text) and page != "index"]
            known[f"jaxloss.{name}"] = {"family": [x for x in names if x != name], "pages": pages}
    return known


class OptionsTable(SphinxDirective):
    """`options-table`: which of the named functions takes which argument beyond the first two, with its default."""

    has_content = True

    def run(self):
        signatures = {name: inspect.signature(_public(name)).parameters for name in " ".join(self.content).split()}
        taken = [list(parameters)[2:] for parameters in signatures.values()]
        columns = sorted(dict.fromkeys(x for names in taken for x in names), key=lambda x: -sum(x in t for t in taken))
        group = nodes.tgroup(cols=len(columns) + 1)
        group += [nodes.colspec(colwidth=1) for _ in range(len(columns) + 1)]
        head = _row([nodes.Text(""), *(nodes.literal("", x) for x in columns)])
        body = [
            _row([nodes.literal("", name), *(_default(parameters, x) for x in columns)])
            for name, parameters in signatures.items()
        ]
        group += [nodes.thead("", head), nodes.tbody("", *body)]
        return [nodes.table("", group, classes=["options"])]


def _public(name: str):
    return functools.reduce(getattr, name.split("."), jaxloss)


def _row(cells: list[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def _default(parameters, name: str) -> nodes.Node:
    if name not in parameters:
        return nodes.Text("")
    default = parameters[name].default
    return nodes.literal("", "required" if default is inspect.Parameter.empty else repr(default))
