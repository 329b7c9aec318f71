"""Which of the collected tests run: of the product of a test's parameters, a part that has every value.

A test of a property runs over losses, kinds of labels, dtypes and forms of the program. Their product is long, and
nearly every fault that one of its members notices is noticed by another. So each value of each parameter is taken, in
turn with the values of the others, and the product is run before a release: `EXHAUSTIVE=1 python -m pytest -n 2`.
`python -m tests.mutants` says whether what is left still bites.
"""

import os
from collections import Counter, defaultdict

from tests import cases

EXHAUSTIVE = os.environ.get("EXHAUSTIVE", "0") != "0"
SMOKE = {
    f"test_{name}.py"
    for name in (
        "values", "edges", "derivatives", "second_derivatives", "errors", "misuse", "zero_weights", "elementwise"
    )
}  # fmt: skip
"""Files of which `-m smoke` runs each test once for each of these cases, for the inner loop."""
SMOKE_CASES = {None, "cross_entropy", "focal_2", "binary", "entmax15", "logistic", "probabilities"}


def parameters(item) -> dict:
    return item.callspec.params if hasattr(item, "callspec") else {}


def chosen(items: list, exhaustive: bool) -> list:
    """Those that run, in their order."""
    items = [item for item in items if _has_that_form(item)]
    if exhaustive:
        return items
    tests = defaultdict(list)
    for item in items:
        tests[item.path, getattr(item, "originalname", item.name)].append(item)
    kept = {id(item) for members in tests.values() for item in cover(members)}
    return [item for item in items if id(item) in kept]


def _has_that_form(item) -> bool:
    """One read is a form of what sums over a softmax: other losses are not run twice."""
    softmax = {*cases.SOFTMAX, *cases.COSTS, *(case for case in cases.RANKING if case.name in ("lsep", "zlpr"))}
    given = parameters(item)
    return given.get("form") != "one read" or given.get("case") in {None, *softmax}


def cover(items: list) -> list:
    """Few of the items that have together every value of every parameter, each value about as often as the others.

    Values are told apart by what stands for them in the name of the test.
    """
    values = {id(item): _values(item) for item in items}
    missing = {value for found in values.values() for value in found}
    taken, uses = [], Counter()
    while missing:
        best = max(
            (item for item in items if missing.intersection(values[id(item)])),
            key=lambda item: (
                sum(value in missing for value in values[id(item)]),
                -sum(uses[value] for value in values[id(item)]),
            ),
        )
        taken.append(best)
        uses.update(values[id(best)])
        missing.difference_update(values[id(best)])
    return taken or items


def _values(item) -> list[tuple[str, str]]:
    given = parameters(item)
    return [(key, getattr(value, "name", None) or repr(value)) for key, value in given.items()]


def mark_smoke(items) -> None:
    seen = set()
    for item in items:
        if item.path.name not in SMOKE or item.get_closest_marker("optimized"):
            continue
        case = getattr(parameters(item).get("case"), "name", None)
        key = item.path, getattr(item, "originalname", item.name), case
        if case in SMOKE_CASES and key not in seen:
            seen.add(key)
            item.add_marker("smoke")
