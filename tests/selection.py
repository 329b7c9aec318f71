"""Which of the collected tests run: of the product of a test's parameters, a part that has every pair of values.

A test of a property runs over losses, kinds of labels, dtypes and forms of the program. Their product is long, and
nearly every fault that one of its members notices is noticed by another. So each loss is taken, and for each family of
losses each pair of values of the other parameters; the whole product is run before a release:
`EXHAUSTIVE=1 python -m pytest -n 2`. `python -m tests.mutants` says whether what is left still bites. A test marked
`every("case", "kind")` runs over all values of these together, since each has a formula of its own. One marked `thin`,
of what the core does for every loss alike, takes a loss of each kind of formula, and those that the mark names.
"""

import os
from collections import Counter, defaultdict
from itertools import combinations

from tests import cases

EXHAUSTIVE = os.environ.get("EXHAUSTIVE", "0") != "0"
FAMILIES = [cases.SOFTMAX, cases.SIGMOID, cases.SPARSE, cases.COSTS, cases.RANKING, cases.PROBABILITIES]
SMOKE = {
    f"test_{name}.py"
    for name in (
        "values", "edges", "derivatives", "second_derivatives", "errors", "misuse", "zero_weights", "elementwise"
    )
}  # fmt: skip
"""Files of which `-m smoke` runs each test once for each of these cases, for the inner loop."""
SMOKE_CASES = {None, "cross_entropy", "focal_2", "binary", "entmax15", "logistic", "probabilities"}
THIN_CASES = SMOKE_CASES | {"costs"}
"""One of each kind of formula."""


def parameters(item) -> dict:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _case(item) -> str | None:
    return getattr(parameters(item).get("case"), "name", None)


def chosen(items: list, exhaustive: bool) -> list:
    """Those that run, in their order."""
    items = [item for item in items if _has_that_form(item)]
    if exhaustive:
        return items
    items = [item for item in items if _is_of_the_few(item)]
    tests = defaultdict(list)
    for item in items:
        tests[item.path, getattr(item, "originalname", item.name)].append(item)
    kept = {id(item) for members in tests.values() for item in cover(members)}
    return [item for item in items if id(item) in kept]


def _is_of_the_few(item) -> bool:
    mark = item.get_closest_marker("thin")
    return mark is None or _case(item) in THIN_CASES.union(mark.args)


def _has_that_form(item) -> bool:
    """One read is a form of what sums over a softmax: other losses are not run twice."""
    softmax = {*cases.SOFTMAX, *cases.COSTS, *(case for case in cases.RANKING if case.name in ("lsep", "zlpr"))}
    given = parameters(item)
    return given.get("form") != "one read" or given.get("case") in {None, *softmax}


def cover(items: list) -> list:
    """Few of the items that have together all that `_wanted` wants, each of it about as often as the rest."""
    left = [(item, _wanted(item)) for item in items]
    missing, uses = set().union(*(wanted for _, wanted in left)), Counter()
    taken = []
    while missing:
        gains = [(len(wanted & missing), -sum(uses[part] for part in wanted)) for _, wanted in left]
        item, wanted = left.pop(gains.index(max(gains)))
        taken.append(item)
        uses.update(wanted)
        missing -= wanted
    return taken or items


def _wanted(item) -> set:
    """The loss, or what `every` names; and, for each family of losses, each pair of values of the other parameters.

    Values are told apart by what a program shows of them.
    """
    given, mark = parameters(item), item.get_closest_marker("every")
    case = given.get("case")
    family = next((i for i, some in enumerate(FAMILIES) if case in some), None)
    shown = [(key, getattr(value, "name", None) or repr(value)) for key, value in given.items()]
    others = [(family, part) for part in shown if part[0] != "case"]
    together = tuple(part for part in shown if part[0] in (mark.args if mark else ("case",)))
    return {together, *others, *combinations(others, 2)}


def mark_smoke(items) -> None:
    seen = set()
    for item in items:
        if item.path.name not in SMOKE or item.get_closest_marker("optimized"):
            continue
        case = _case(item)
        key = item.path, getattr(item, "originalname", item.name), case
        if case in SMOKE_CASES and key not in seen:
            seen.add(key)
            item.add_marker("smoke")
