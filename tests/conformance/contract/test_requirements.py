"""The contract's data: well formed, complete against the specification, and explained in words."""

import re
from pathlib import Path

import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.contract.requirements import HISTORY, REQUIREMENTS, explain
from vmm.conformance.contract.sources import SOURCES
from vmm.conformance.report.listing import by_requirement

DOCUMENT = Path(__file__).resolve().parents[4] / "shared" / "CONTRACT.md"
RELEASE = re.compile(r"\d+\.\d+")
BEHAVIOUR_CHANGES = {f"B{number}" for number in range(26, 34)}
FOUND_SINCE = {"B39", "B40"}
"""Bugs that the suite has found since the document was written; it cannot name them."""


@pytest.fixture(scope="module")
def document() -> str:
    if not DOCUMENT.exists():
        pytest.skip(f"{DOCUMENT} is not here: the specification lives outside the repository")
    return DOCUMENT.read_text()


def test_requirement_ids_are_well_formed_and_sorted() -> None:
    assert list(REQUIREMENTS) == sorted(REQUIREMENTS)
    for name, entry in REQUIREMENTS.items():
        assert re.fullmatch(r"R\d\d", name)
        assert entry.id == name


def test_history_ids_are_well_formed_and_sorted() -> None:
    assert list(HISTORY) == sorted(HISTORY)
    for name, fix in HISTORY.items():
        assert re.fullmatch(r"B\d\d", name)
        assert fix.id == name


def test_no_id_is_given_twice() -> None:
    from vmm.conformance.contract import history
    from vmm.conformance.contract import requirements as contract

    rows = [entry.id for table in contract._TABLES for entry in table]
    assert len(rows) == len(set(rows))
    assert len(history._FIXES) == len(HISTORY)


def test_every_sentence_is_one_distinct_sentence() -> None:
    sentences = [entry.sentence for entry in REQUIREMENTS.values()]
    assert len(set(sentences)) == len(sentences)
    for sentence in sentences:
        assert sentence == " ".join(sentence.split())
        assert ". " not in sentence
        assert sentence[-1] not in ".;,"
        assert 20 < len(sentence) < 130, sentence


def test_releases_are_releases() -> None:
    for entry in REQUIREMENTS.values():
        assert not entry.since or RELEASE.fullmatch(entry.since)
    for fix in HISTORY.values():
        assert not fix.fixed_in or RELEASE.fullmatch(fix.fixed_in)
        assert fix.affected
        assert fix.symptom


def test_every_history_reference_is_a_bug_that_exists() -> None:
    for entry in REQUIREMENTS.values():
        assert len(set(entry.history)) == len(entry.history)
        for name in entry.history:
            assert name in HISTORY, f"{entry.id} names {name}"
            assert name not in BEHAVIOUR_CHANGES, f"{entry.id} blames a change of behaviour"


def test_every_known_bug_explains_some_requirement() -> None:
    used = {name for entry in REQUIREMENTS.values() for name in entry.history}
    assert {name for name in HISTORY if name not in BEHAVIOUR_CHANGES} == used


def test_a_fix_has_a_commit_and_an_open_problem_has_none() -> None:
    for fix in HISTORY.values():
        assert bool(fix.commit) == bool(fix.fixed_in), fix.id
        assert not fix.commit or re.fullmatch(r"[0-9a-f]{12,40}", fix.commit)


def test_a_requirement_newer_than_the_filter_names_the_fix_of_that_release() -> None:
    """R58 alone is new hardware, not a fix."""
    for entry in REQUIREMENTS.values():
        if entry.since and entry.id != "R58":
            assert entry.since in {HISTORY[name].fixed_in for name in entry.history}, entry.id


def test_all_ids_of_the_document_are_here_and_no_others(document: str) -> None:
    mentioned = set(re.findall(r"\b([RB]\d\d)\b", document))
    assert mentioned == set(REQUIREMENTS) | set(HISTORY) - FOUND_SINCE


def test_the_quirks_are_those_of_the_document(document: str) -> None:
    marked = re.findall(r"^\* \*\*(R\d\d)\*\*.*?\bQ(?:: | \()", document, re.MULTILINE)
    assert set(marked) == {entry.id for entry in REQUIREMENTS.values() if entry.quirk}


def test_commits_and_releases_stand_in_the_document(document: str) -> None:
    for fix in HISTORY.values():
        if fix.id not in FOUND_SINCE:
            assert fix.commit[:12] in document, fix.id
            assert fix.fixed_in in document, fix.id


def test_titles_of_fixed_bugs_stand_in_the_document(document: str) -> None:
    for fix in HISTORY.values():
        if fix.commit and fix.id not in BEHAVIOUR_CHANGES | FOUND_SINCE:
            assert fix.title in document, fix.id


def test_every_requirement_has_a_source_and_no_other_has() -> None:
    assert list(SOURCES) == list(REQUIREMENTS)
    for name, source in SOURCES.items():
        assert re.search(r"api\.rst|commit [0-9a-f]{12}|no text|SDM|GHCB|as R\d\d", source.where), (
            name
        )
        assert all(era[-1] not in ".;," for era in source.eras)


def test_sources_name_commits_that_the_document_names(document: str) -> None:
    for source in SOURCES.values():
        for commit in re.findall(r"\b[0-9a-f]{12}\b", source.where):
            assert commit in document


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_a_requirement_has_a_case_or_the_reason_why_not(name: str) -> None:
    checked = {each for case in CASES for each in case.requirements}
    assert (name in checked) != bool(REQUIREMENTS[name].untested)


def test_the_list_says_why_a_requirement_has_no_case() -> None:
    lines = by_requirement(CASES)
    for entry in REQUIREMENTS.values():
        if entry.untested:
            assert f"    (no case: {entry.untested})" in lines
    assert "    (no case)" not in lines


def test_explain_names_the_fix_that_is_missing() -> None:
    assert explain("R14", ["B03"]) == (
        "R14: a failing call leaves the previous filter fully in force. "
        "fixed by b318e8decf6b (v5.12); where it fails the kernel lacks it or undid it"
    )


def test_explain_gives_every_fix_that_is_missing() -> None:
    line = explain("R70", ["B03", "B10"])
    assert "fixed by b318e8decf6b (v5.12) or dad1613e0533 (v6.11)" in line
    assert line.endswith("the kernel lacks one of them or undid it")


def test_explain_says_when_no_kernel_has_a_fix() -> None:
    line = explain("R33", ["B12", "B13"])
    assert "open, no kernel has a fix: B12 TSC_DEADLINE" in line
    assert "B13 TSC_DEADLINE" in line
    assert "lacks" not in line


def test_explain_gives_fixes_and_open_problems_together() -> None:
    line = explain("R36", ["B05", "B20"])
    assert "fixed by 67f4b9969c30 (v5.16)" in line
    assert "; or open, no kernel has a fix: B20 " in line


def test_explain_ends_with_what_is_said_of_the_rest() -> None:
    line = explain("R23", [], "nothing explains it")
    assert line.startswith("R23: where ranges overlap") and line.endswith(". nothing explains it")
    assert explain("R14", ["B03"], "and more").endswith("lacks it or undid it; and more")


def test_explain_never_raises() -> None:
    assert explain("R99", ["B03"]) == "R99: not a requirement of the contract"


def test_explain_speaks_for_every_requirement() -> None:
    for name in REQUIREMENTS:
        line = explain(name, [], "x")
        assert line.startswith(f"{name}: {REQUIREMENTS[name].sentence}. ")
        assert "\n" not in line
