"""The tables of docs/coming_from/: expressions of another library beside ours, kept once, shown and tested from here.

`python -m tests.coming_from.table` writes the tables into the pages; `python -m tests.coming_from.table record torch`
(keras, timm) writes what that library returns into recorded/, so that the tests do without it.
"""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss

SOURCES = ("torch", "keras", "optax", "timm", "addons", "sklearn")
RECORDED = ("torch", "keras", "timm")
HERE = Path(__file__).parent
PAGES = HERE.parent.parent / "docs" / "coming_from"


class Row(NamedTuple):
    """Two expressions with one value and one gradient by the array named `by` (None: the value alone)."""

    theirs: str
    ours: str
    by: str | None = "z"
    note: str = ""


def _softmax(z: np.ndarray) -> np.ndarray:
    exponentials = np.exp(z)
    return exponentials / exponentials.sum(-1, keepdims=True)


def data() -> dict[str, np.ndarray]:
    """The arrays by the names of the pages; the numbers are exact in float32, and on no kink of a hinge."""
    z = np.array([[2.0, -1.25, 0.5], [0.25, 1.5, -0.75], [-2.0, 0.5, 3.0], [1.0, -0.5, -1.25]])
    b = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    return {
        "z": z,
        "u": np.array([[1.0, 0.5, -0.5], [-1.0, 2.0, 0.0], [0.0, 1.0, 0.75], [0.5, -2.0, 1.5]]),
        "y": np.array([0, 2, 2, 1]),
        "q": np.array([0, -100, 2, 1]),
        "t": np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5], [0.625, 0.25, 0.125]]),
        "b": b.astype(np.float64),
        "ids": np.array([[0, 2, -1], [1, -1, -1], [0, 1, -1], [2, -1, -1]]),
        "one_hot": np.eye(3)[[0, 2, 2, 1]],
        "sign": 2.0 * b - 1,
        "known": np.array([[True, True, False], [False, True, True], [True, True, True], [False, False, True]]),
        "w": np.array([0.5, 1.0, 2.0]),
        "v": np.array([1.0, 0.5, 2.0, 0.25]),
        "p": _softmax(z),
        "r": 1 / (1 + np.exp(-z)),
        "e": np.array([[0.0, 0.25, 0.75], [0.5, 0.0, 0.0], [0.875, 0.5, 0.125], [0.25, 0.5, 0.75]]),
        "log_p": np.log(_softmax(z)),
        "f": np.array([0.25, -1.5, 2.0, 0.125]),
        "g": np.array([0.0, 1.0, 1.75, 0.0]),
        "images": np.stack([z, z[::-1] - 0.5]).transpose(0, 2, 1).reshape(2, 3, 2, 2),
        "marks": np.stack([b, 1 - b]).transpose(0, 2, 1).reshape(2, 3, 2, 2).astype(np.float64),
        "pixels": np.array([[[0, 255], [2, 1]], [[255, 255], [1, 0]]]),
        "h": np.array([[1.0, -0.5], [0.25, 2.0], [-1.5, 0.75], [0.5, 0.5]]),
        "kernel": np.array([[0.5, 1.0], [-1.0, 0.25], [2.0, -0.75]]),
    }


def source(name: str) -> ModuleType:
    return importlib.import_module(f"tests.coming_from.rows_{name}")


def rows(name: str) -> list[Row]:
    return [row for table in source(name).TABLES.values() for row in table]


Numbers = list[tuple[Any, Any]]
"""Of each row, the value and the gradient, or None in place of the gradient."""


def ours(table: list[Row]) -> Numbers:
    """Values and gradients of our expressions, in float32."""
    return in_one_program(
        [(row.ours, row.by) for row in table], {key: getattr(jaxloss, key) for key in jaxloss.__all__}
    )


def in_one_program(expressions: list[tuple[str, str | None]], library: dict[str, Any]) -> Numbers:
    """Values and gradients by JAX: compiled together, for each alone takes ten times as long."""
    names = {**library, "jax": jax, "jnp": jnp, "partial": partial}
    dtypes = {"f": jnp.float32, "i": jnp.int32, "b": bool}
    arrays = {key: jnp.asarray(x, dtypes[x.dtype.kind]) for key, x in data().items()}

    def every(arrays):
        return [derived(expression, names | arrays, by) for expression, by in expressions]

    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.tree.map(np.asarray, jax.jit(every).lower(arrays).compile(quick)(arrays))


def derived(expression: str, names: dict[str, Any], by: str | None) -> tuple[Any, Any]:
    """Value of an expression, and the gradient of its sum by the array named `by`, by JAX."""
    if by is None:
        return eval(expression, names), None
    value, pullback = jax.vjp(lambda x: eval(expression, names | {by: x}), names[by])
    return value, pullback(jnp.ones_like(value))[0]


def theirs(name: str, table: list[Row]) -> Numbers:
    """Values and gradients of the other side: of the library itself, or its recorded numbers."""
    if name not in RECORDED:
        return source(name).theirs(table)
    found = recorded(name)["rows"]
    return [tuple(found[row.theirs]) for row in table]


def recorded(name: str) -> dict:
    return json.loads((HERE / "recorded" / f"{name}.json").read_text())


def record(name: str) -> dict:
    """What the installed library returns, with nine digits."""
    module = source(name)

    def digits(x: Any) -> Any:
        return None if x is None else json.loads(json.dumps(np.asarray(x, np.float64).tolist()), parse_float=nine)

    table = rows(name)
    found = zip(table, module.theirs(table), strict=True)
    numbers = {row.theirs: [digits(x) for x in pair] for row, pair in found}
    return {"versions": module.versions(), "names": module.names(), "rows": numbers}


def nine(x: str) -> float:
    return float(f"{float(x):.9g}")


def code(expression: str) -> str:
    return f"`{expression}`".replace("|", r"\|")


def rendered(name: str) -> Iterator[tuple[str, str]]:
    """Markdown of each table of a source, and of the names without a counterpart."""
    module = source(name)
    for key, table in module.TABLES.items():
        notes = any(row.note for row in table)
        lines = [f"| {module.NAME} | jaxloss |" + " note |" * notes, "|---|---|" + "---|" * notes]
        for row in table:
            cells = [code(row.theirs), code(row.ours), *([row.note] * notes)]
            lines.append("| " + " | ".join(cells).rstrip() + " |")
        yield key, "\n".join(lines)
    if module.ABSENT:
        lines = [f"| {module.NAME} | why there is none here |", "|---|---|"]
        yield "absent", "\n".join(lines + [f"| {names} | {reason} |" for names, reason in module.ABSENT.items()])


def filled(name: str) -> str:
    """The page with its tables, each between `<!-- table: key -->` and `<!-- end -->`."""
    page, tables = (PAGES / source(name).PAGE).read_text(), dict(rendered(name))
    for key, table in tables.items():
        marked = re.compile(rf"(<!-- table: {name} {key} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marked.search(page):
            raise ValueError(f"{source(name).PAGE} has no place for the table {key!r} of {name}")
        page = marked.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", page)
    return page


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["record"]:
        for name in arguments[1:]:
            found = record(name)
            lines = [f"  {json.dumps(key)}: {json.dumps(numbers)}" for key, numbers in found.pop("rows").items()]
            head = [f" {json.dumps(key)}: {json.dumps(x)}," for key, x in found.items()]
            text = "\n".join(["{", *head, ' "rows": {', ",\n".join(lines), " }", "}"])
            (HERE / "recorded" / f"{name}.json").write_text(text + "\n")
    else:
        for name in SOURCES:
            (PAGES / source(name).PAGE).write_text(filled(name))


if __name__ == "__main__":
    main(sys.argv[1:])
