"""Which cases words choose."""

from dataclasses import replace

import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.judge import selection
from vmm.conformance.judge.selection import Chosen, UnknownCase
from vmm.conformance.judge.selection import select as choose
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import get_msr, got


def case(name):
    return Case(f"t.{name}", "A sentence.", "R14", [get_msr(0)], [got(0)])


CATALOGUE = [case("alpha"), case("beta"), case("gamma")]


def test_globs_name_cases_and_requirements():
    assert [each.id for each in choose(CATALOGUE, ["t.*a"], ["t.b*"])] == ["t.alpha", "t.gamma"]
    assert choose(CATALOGUE, ["R14"]) == choose(CATALOGUE, []) == CATALOGUE


def test_a_long_case_runs_where_it_is_asked_for():
    long = replace(CATALOGUE[1], thorough=True)
    both = [CATALOGUE[0], long]
    assert selection.choose(both, []) == Chosen([CATALOGUE[0]], 2, ())
    assert selection.choose(both, [], thorough=True) == Chosen(both, 2, ("--thorough",))
    assert selection.choose(both, ["t.b*"]) == Chosen([long], 2, None)


@pytest.mark.parametrize("globs", [(["t.alpa"], []), ([], ["t.alpa"])])
def test_a_glob_without_a_match_suggests_one(globs):
    with pytest.raises(UnknownCase, match=r"no case matches 't.alpa'; did you mean t.alpha"):
        choose(CATALOGUE, *globs)


def test_nothing_left_is_an_error():
    with pytest.raises(UnknownCase, match="no case is left"):
        choose(CATALOGUE, [], ["*"])


def test_a_whole_name_is_looked_up_and_not_compared_with_every_other(monkeypatch):
    monkeypatch.setattr(selection, "fnmatchcase", None)
    ids = [each.id for each in CASES]
    assert choose(CASES, reversed(ids), ids[:2]) == list(CASES[2:])
