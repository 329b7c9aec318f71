"""Faults of the common kinds, found in the source of the package: for `python -m tests.mutants --sample N`.

An operator becomes its opposite, a bound takes in or leaves out its end, a sign is dropped, a small number is one
larger, the two values of a `jnp.where` change places. Errors, annotations, defaults and texts are left alone.
"""

import ast
import random
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent / "jaxloss"
OPPOSITES = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
LEFT_ALONE = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)


class Fault(NamedTuple):
    file: str  # in jaxloss/
    line: int
    start: int  # of the text that is replaced
    end: int
    new: str

    def applied(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]


def faults(path: Path) -> list[Fault]:
    """Every fault of a module; each is a program that Python can read."""
    text = path.read_text()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    name, found = path.relative_to(PACKAGE).as_posix(), []

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + column

    def span(node) -> tuple[int, int]:
        return offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)

    def replaced(node, start: int, end: int, new: str) -> None:
        found.append(Fault(name, node.lineno, start, end, new))

    def between(node, left, right, operator) -> None:
        if type(operator) in OPPOSITES:
            old, new = OPPOSITES[type(operator)]
            start, end = span(left)[1], span(right)[0]
            at = text.find(old, start, end)
            replaced(node, at, at + len(old), new)

    def visit(node) -> None:
        if isinstance(node, LEFT_ALONE):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            for child in node.body if isinstance(node.body, list) else [node.body]:
                visit(child)
            return
        if isinstance(node, ast.AnnAssign):
            return
        if isinstance(node, ast.BinOp):
            between(node, node.left, node.right, node.op)
        elif isinstance(node, ast.Compare):
            for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
                between(node, left, right, operator)
        elif isinstance(node, ast.BoolOp):
            between(node, *node.values[:2], node.op)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert | ast.Not):
            start = span(node)[0]
            if not isinstance(node.operand, ast.Constant):
                replaced(node, start, span(node.operand)[0], "")
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) < 4:
            replaced(node, *span(node), repr(node.value + 1))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "jnp.where" and len(node.args) == 3:
            (a, b), (c, d) = map(span, node.args[1:])
            replaced(node, a, d, f"{text[c:d]}, {text[a:b]}")
        for child in ast.iter_child_nodes(node):
            visit(child)

    for statement in ast.parse(text).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            visit(statement)
    return [fault for fault in found if _readable(fault.applied(text))]


def _readable(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:  # the text of an argument in brackets is more than that of its expression
        return False
    return True


def sample(count: int, seed: int, modules: list[str]) -> list[Fault]:
    """Faults drawn without repetition, each as likely as another."""
    every = [fault for module in modules for fault in faults(PACKAGE / module)]
    return random.Random(seed).sample(every, min(count, len(every)))
