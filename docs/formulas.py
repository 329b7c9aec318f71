"""The formulas of docstrings, written to be read in a terminal, as LaTeX.

A docstring has its formulas as indented lines before its first section. On a line, mathematics comes first, and two
spaces stand between it and words:

    loss = (1 - p_y^q) / q  for an id y
"""

import itertools
import re

FUNCTIONS = {"exp", "log", "max", "min"}
NAMED = {"clip", "entmax", "mean", "sigmoid", "sign", "softmax", "sparsemax", "total", "fn"}
GREEK = {"alpha", "beta", "delta", "gamma", "phi", "tau", "Omega"}
SYMBOLS = {"loss": r"\ell", "epsilon": r"\epsilon", "eps": r"\varepsilon", "inf": r"\infty", "sum": r"\sum"}
OPERATORS = {
    ">=": r" \ge ",
    "<=": r" \le ",
    "!=": r" \ne ",
    "->": r" \to ",
    ">": " > ",
    "<": " < ",
    "=": " = ",
    "+": " + ",
    "-": " - ",
}
TOKEN = re.compile(r"\s*(dloss/d|d/d|\]_\+|[A-Za-z]+'?(?:_[A-Za-z0-9]+)?|\d+(?:\.\d+)?|>=|<=|!=|->|\S)")
UNDERSCORE = r"\_"
CLOSING = {"(": (")",), "[": ("]", "]_+")}


class FormulaError(ValueError):
    """A formula that is not in the notation of the docstrings."""


def latex(text: str) -> str:
    """One formula."""
    rest = [(match[1], match.start(1)) for match in TOKEN.finditer(text)]
    out = _sequence(rest, text)
    if rest:
        raise FormulaError(f"{rest[0][0]!r} in {text!r}")
    return re.sub(r"\s+", " ", out).strip()


def line(text: str) -> str:
    """One line of a docstring's formulas, aligned at its first sign of equality."""
    parts = re.split(r" {2,}", text.strip())
    first, *others = (_words(part) if i and _begins_with_a_word(part) else latex(part) for i, part in enumerate(parts))
    left, equals, right = first.partition(" = ")
    aligned = f"{left} &= {right}" if equals else f"& {first}"
    return r"\quad ".join([aligned, *others])


def block(lines: list[str]) -> str:
    """Lines of formulas as the body of a displayed formula."""
    return "\\begin{aligned}\n" + " \\\\\n".join(map(line, lines)) + "\n\\end{aligned}"


def _is_word(piece: str) -> bool:
    bare = piece.strip("(),.")
    return bool(re.fullmatch(r"a|[a-z]{2,}|`\w+`", bare)) and bare not in FUNCTIONS | NAMED | GREEK | SYMBOLS.keys()


def _begins_with_a_word(text: str) -> bool:
    return _is_word(text.split()[0])


def _words(text: str) -> str:
    """Words with mathematics among them."""
    out = []
    for is_text, pieces in itertools.groupby(text.split(), _is_word):
        piece = " ".join(pieces)
        out.append(rf"\text{{{piece.replace('`', '').replace('_', UNDERSCORE)}}}" if is_text else latex(piece))
    return r"\ ".join(out)


def _sequence(rest: list, text: str, closing: tuple[str, ...] = ()) -> str:
    """Atoms up to a closing bracket or the end."""
    atoms: list[str] = []
    while rest and rest[0][0] not in closing:
        token, _ = rest[0]
        if token == "/":
            rest.pop(0)
            if not atoms:
                raise FormulaError(text)
            atoms.append(rf"\frac{{{_bare(atoms.pop())}}}{{{_bare(_atom(rest, text))}}}")
        elif token in OPERATORS:
            rest.pop(0)
            atoms.append(OPERATORS[token])
        else:
            atoms.append(_atom(rest, text))
    return " ".join(atoms)


def _atom(rest: list, text: str) -> str:
    """A name, a number, a bracket or a call, with its exponent."""
    if not rest:
        raise FormulaError(text)
    token, start = rest.pop(0)
    if token in CLOSING:
        atom = _bracket(token, rest, text)
    elif token == "sqrt" and rest and rest[0][0] == "(":
        atom = rf"\sqrt{{{_bare(_atom(rest, text))}}}"
    elif token in ("dloss/d", "d/d"):
        of = SYMBOLS["loss"] if "loss" in token else ""
        atom = rf"\frac{{\partial {of}}}{{\partial {_bare(_atom(rest, text))}}}"
    elif re.match(r"[A-Za-z]", token):
        atom = _name(token, text)
        if rest and rest[0][0] == "(" and rest[0][1] == start + len(token):  # a call
            atom += _atom(rest, text)
    elif re.match(r"[\d,|]", token):
        atom = token
    else:
        raise FormulaError(f"{token!r} in {text!r}")
    if rest and rest[0][0] == "^":
        rest.pop(0)
        atom += f"^{{{_bare(_atom(rest, text))}}}"
    return atom


def _bracket(opening: str, rest: list, text: str) -> str:
    inside = _sequence(rest, text, CLOSING[opening])
    if not rest:
        raise FormulaError(f"unclosed {opening} in {text!r}")
    closing, _ = rest.pop(0)
    tall = r"\frac" in inside or r"\sum" in inside
    left, right = (r"\left" + opening, r"\right" + closing[0]) if tall else (opening, closing[0])
    return f"{left}{inside}{right}" + "_+" * closing.endswith("_+")


def _bare(atom: str) -> str:
    """What a pair of brackets around the whole atom holds: a fraction or an exponent needs none."""
    match = re.fullmatch(r"(?:\\left)?\((.*?)(?:\\right)?\)", atom)
    if not match:
        return atom
    depth = 0
    for sign in match[1]:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth < 0:
            return atom
    return match[1]


def _name(token: str, text: str) -> str:
    base, _, index = token.partition("_")
    prime = "'" * base.endswith("'")
    base = base.removesuffix("'")
    if len(base) > 1 and base[0] == "d" and (base[1:] in GREEK or len(base) == 2):
        shown = r"\mathrm{d}" + _name(base[1:], text)
    elif base in SYMBOLS:
        shown = SYMBOLS[base]
    elif base in GREEK or base in FUNCTIONS:
        shown = "\\" + base
    elif len(base) == 1:
        shown = base
    elif base in NAMED:
        shown = rf"\operatorname{{{base}}}"
    elif base.isalpha():
        shown = rf"\text{{{base}}}"
    else:
        raise FormulaError(f"{token!r} in {text!r}")
    return shown + prime + (f"_{{{index}}}" if index else "")
