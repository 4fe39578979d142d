import json
import os
from pathlib import Path

import pytest

from vmm.lab.errors import LabError
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.search import bisect, together
from vmm.lab.search.verdict import Evidence, Question, Step

NAMES = [f"debian:{number}" for number in range(20)]


def history(first_bad, untestable=()):
    def answer(name):
        number = int(name.removeprefix("debian:"))
        if number in untestable:
            return Evidence(Step.SKIP, "does not boot")
        return Evidence(Step.BAD if number >= first_bad else Step.GOOD, "")

    return answer


def silent(name, evidence):
    pass


@pytest.mark.parametrize("first_bad", range(1, 20))
def test_the_first_bad_kernel_is_found_in_few_steps(first_bad):
    found = bisect.search(NAMES, history(first_bad), silent)
    assert (found.last_good, found.first_bad) == (NAMES[first_bad - 1], NAMES[first_bad])
    assert len(found.asked) <= 7
    assert found.untested == ()


def test_kernels_that_cannot_be_tested_are_passed_over_and_named():
    found = bisect.search(NAMES, history(10, untestable={9, 10}), silent)
    assert (found.last_good, found.first_bad) == (NAMES[8], NAMES[11])
    assert found.untested == (NAMES[9], NAMES[10])


def test_a_kernel_that_cannot_be_fetched_is_passed_over():
    def answer(name):
        if name == NAMES[10]:
            raise LabError("gone from the mirror")
        return history(10)(name)

    found = bisect.search(NAMES, answer, silent)
    assert (found.last_good, found.first_bad) == (NAMES[9], NAMES[11])
    assert found.untested == (NAMES[10],)


def test_a_kernel_that_cannot_be_tested_elsewhere_is_not_between():
    found = bisect.search(NAMES, history(3, untestable={10}), silent)
    assert (found.first_bad, found.untested) == (NAMES[3], ())


def test_each_step_is_told_as_it_is_decided():
    told = []
    bisect.search(NAMES, history(3), lambda name, evidence: told.append((name, evidence.step)))
    assert told[:2] == [(NAMES[0], Step.GOOD), (NAMES[-1], Step.BAD)]


@pytest.mark.parametrize("first_bad", [0, 20])
def test_ends_that_are_not_good_and_bad_are_refused(first_bad):
    with pytest.raises(LabError, match="should be"):
        bisect.search(NAMES, history(first_bad), silent)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda: Evidence(Step.GOOD, ""), 0),
        (lambda: Evidence(Step.BAD, ""), 1),
        (lambda: Evidence(Step.SKIP, ""), 125),
        (lambda: 1 // 0, 125),
    ],
)
def test_a_step_ends_with_what_git_understands(answer, status):
    assert bisect.step_status(answer, lambda line: None) == status


@pytest.mark.parametrize("line", ["{", "[]", "{}", "[" * 9999])
def test_answers_that_are_damaged_are_one_line(tmp_path, line):
    place = bisect.Place("svm", tmp_path)
    (tmp_path / "steps.jsonl").write_text(f"{line}\n")
    with pytest.raises(LabError, match="damaged at line 1"):
        place.answers(Question("a.b"))


CASE = "rollback.bitmap_lost_in_slot_0"
KERNEL = Kernel("debian:6.1", "6.1.0-1", Path("vmlinuz"), ())


def leaves(text):
    """Return a judge that leaves these records and has nothing to say."""

    def by(cell, order):
        cell.directory.mkdir(parents=True, exist_ok=True)
        (cell.directory / "results.jsonl").write_text(text)
        return ""

    return by


def asked(place, by):
    return bisect.step(place, Question(CASE), "debian-6.1", lambda: KERNEL, by=by)


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ('{"type": "case"\n', "damaged at line 1"),
        (json.dumps({"schema": 1, "type": "end"}) + "\n", "damaged at line 1"),
        ("", "nothing is on record"),
    ],
)
def test_records_that_are_damaged_are_named_in_the_answer(tmp_path, left, said):
    place = bisect.Place("svm", tmp_path)
    evidence = asked(place, leaves(left))
    assert evidence.step is Step.SKIP
    assert said in evidence.line and "\n" not in evidence.line
    assert ("results.jsonl" in evidence.line) is bool(left)
    assert "nothing is on record" not in evidence.line or not left


def test_a_kernel_whose_records_are_damaged_is_asked_again_and_that_is_said(tmp_path):
    place = bisect.Place("svm", tmp_path)
    records = place.records("debian-6.1") / "results.jsonl"
    asked(place, leaves("no record\n"))
    answers = place.answers(Question(CASE))
    assert f"{records} is damaged at line 1" in answers["debian-6.1"].line
    evidence = asked(place, leaves(""))
    assert f"; asked again: {records} is damaged at line 1" in evidence.line
    assert "asked again" not in asked(place, leaves("")).line, "they are damaged no more"


@pytest.mark.parametrize("jobs", [1, 2, 3, 5, 30])
@pytest.mark.parametrize("untestable", [(), (9, 10), (1,), (18,), tuple(range(2, 18))])
def test_several_at_once_find_what_one_by_one_finds(jobs, untestable):
    for first_bad in range(1, 20):
        if first_bad == 19 and 19 in untestable:
            continue
        answer = history(first_bad, untestable)
        alone = bisect.search(NAMES, answer, silent)
        found = bisect.search(NAMES, answer, silent, jobs=jobs)
        ends = ("last_good", "first_bad", "untested")
        assert [getattr(found, e) for e in ends] == [getattr(alone, e) for e in ends]
        assert len({name for name, _ in found.asked}) == len(found.asked), "none is asked twice"


def test_several_at_once_take_fewer_rounds():
    rounds = [bisect.search(NAMES, history(7), silent, jobs=n).rounds for n in (1, 2, 4, 19)]
    assert rounds == sorted(rounds, reverse=True) and rounds[-1] == 2
    assert bisect.search(NAMES, history(7), silent).rounds == len(
        bisect.search(NAMES, history(7), silent).asked
    )


def test_they_are_asked_in_processes_of_their_own():
    seen = []

    def answer(name):
        if name == NAMES[5]:
            raise LabError("gone from the mirror")
        return Evidence(history(12)(name).step, f"{os.getpid()}")

    found = bisect.search(
        NAMES,
        answer,
        lambda name, evidence: seen.append(evidence.line),
        jobs=3,
        together=together.side_by_side(3),
    )
    assert (found.last_good, found.first_bad) == (NAMES[11], NAMES[12])
    assert str(os.getpid()) not in seen and len({*seen}) > 3
