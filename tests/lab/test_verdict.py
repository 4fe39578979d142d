import json

import pytest

from vmm.lab.machine import LabResult, Outcome
from vmm.lab.verdict import Evidence, Question, Step, combine, judge


def case(name="match.x", verdict="PASS", **more):
    return json.dumps({"type": "case", "id": name, "verdict": verdict, **more})


def result(*lines, status=0, outcome=Outcome.DONE, tail=(), reason=""):
    return LabResult(outcome, status, lines, tail, 1.0, 2.0, "qemu 11", reason=reason)


ASK = Question("match.*")


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (result('{"type": "run"}', case()), Step.GOOD),
        (result(case(), case("match.y", "FAIL"), status=1), Step.BAD),
        (result(case(verdict="TIMEOUT"), status=1), Step.BAD),
        (result(case(), status=1), Step.BAD),
        (result(case(verdict="SKIP"), status=4), Step.SKIP),
        (result(status=2, tail=("no case matches",)), Step.SKIP),
        (result(status=None, outcome=Outcome.NO_KVM, reason="no kvm"), Step.SKIP),
        (result(status=None, outcome=Outcome.PANIC, reason="panic"), Step.SKIP),
    ],
)
def test_what_a_boot_says(seen, step):
    assert judge(ASK, seen).step is step


def test_what_is_wrong_is_in_the_line():
    assert judge(ASK, result(case("match.y", "FAIL"), status=1)).line == "failed: match.y"
    assert judge(ASK, result(status=2, tail=("no case matches",))).line == "no case matches"


@pytest.mark.parametrize("outcome", [Outcome.PANIC, Outcome.HANG, Outcome.TIMEOUT, Outcome.LOST])
def test_a_lost_kernel_is_what_the_user_says_it_is(outcome):
    question = Question("match.*", lost=Step.BAD)
    assert judge(question, result(status=None, outcome=outcome)).step is Step.BAD


@pytest.mark.parametrize(("seen", "step"), [("exit 30", Step.GOOD), ("no exit", Step.BAD)])
def test_an_observation_is_a_verdict_too(seen, step):
    line = case("quirks.x", "PASS", observation=seen)
    assert judge(Question("quirks.x", observe="exit 30"), result(line)).step is step


def test_nothing_observed_cannot_be_tested():
    assert judge(Question("quirks.x", observe="exit 30"), result(case())).step is Step.SKIP


GOOD, BAD, SKIP = (Evidence(step, step.name) for step in (Step.GOOD, Step.BAD, Step.SKIP))


@pytest.mark.parametrize(
    ("evidence", "step"),
    [
        ([GOOD, GOOD], Step.GOOD),
        ([BAD, SKIP, BAD], Step.BAD),
        ([SKIP, SKIP], Step.SKIP),
        ([GOOD, BAD, GOOD], Step.SKIP),
    ],
)
def test_repeated_boots_must_agree(evidence, step):
    assert combine(evidence).step is step
