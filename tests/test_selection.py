"""The part of a product of parameters that a run takes."""

from itertools import product
from types import SimpleNamespace

import pytest

from tests import cases, selection

KINDS = ("ids", "onehot", "soft")


def items(mark=None, **parameters):
    every = (dict(zip(parameters, values, strict=True)) for values in product(*parameters.values()))
    return [
        SimpleNamespace(
            callspec=SimpleNamespace(params=given),
            get_closest_marker=lambda name: mark if mark is not None and mark.name == name else None,
            path=None,
            name="test",
        )
        for given in every
    ]


def test_every_loss_and_within_a_family_every_pair():
    some = [*cases.SOFTMAX, *cases.SPARSE]
    every = items(case=some, kind=KINDS, form=("plain sums", "one read"), dtype=(1, 2))
    taken = selection.cover(every)
    assert len(taken) < len(every) / 5
    given = [item.callspec.params for item in taken]
    assert {x["case"] for x in given} == set(some)
    for family in (cases.SOFTMAX, cases.SPARSE):
        of_family = [x for x in given if x["case"] in family]
        assert len({(x["kind"], x["form"]) for x in of_family}) == 6
        assert len({(x["dtype"], x["form"]) for x in of_family}) == 4


def test_all_values_of_what_a_mark_names():
    mark = pytest.mark.every("case", "kind").mark
    taken = selection.cover(items(mark, case=cases.RANKING, kind=KINDS, form=("plain sums", "one read")))
    assert len({(x["case"], x["kind"]) for x in (item.callspec.params for item in taken)}) == len(taken) == 15


@pytest.mark.parametrize("exhaustive", [False, True])
def test_a_thin_test_has_a_loss_of_each_kind_of_formula(exhaustive):
    given = items(pytest.mark.thin.mark, case=cases.ALL, kind=KINDS)
    taken = [item.callspec.params for item in selection.chosen(given, exhaustive)]
    names = {x["case"].name for x in taken}
    assert names == ({case.name for case in cases.ALL} if exhaustive else selection.THIN_CASES - {None})
    assert {(i, x["kind"]) for i, family in enumerate(selection.FAMILIES) for x in taken if x["case"] in family} == {
        (i, kind) for i in range(len(selection.FAMILIES)) for kind in KINDS
    }


def test_a_test_without_parameters_is_taken():
    every = items()
    assert selection.cover(every) == every
