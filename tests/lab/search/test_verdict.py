from pathlib import Path

import pytest

from vmm.conformance.records.saved import Saved
from vmm.conformance.records.verdict import Verdict
from vmm.lab.machines.machine import Outcome
from vmm.lab.search.verdict import Evidence, Question, Step, combine, judge

SPLAT = [["WARNING: CPU: 0 PID: 1 at kvm_main.c:1"]]


def case(name="match.x", verdict="PASS", **more):
    return {"type": "case", "id": name, "verdict": Verdict(verdict), **more}


def saved(*cases, status=0, outcome=Outcome.DONE, tail=(), reason="", splats=()):
    lab = {"outcome": str(outcome), "reason": reason, "console": list(tail)}
    end = {"status": status, "splats": list(splats), "lab": lab}
    return Saved(Path("results.jsonl"), {}, {each["id"]: each for each in cases}, end)


ASK = Question("match.*")
FAILED = case("match.y", "FAIL", expected=[], seen=["x"])


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (saved(case()), Step.GOOD),
        (saved(case(), FAILED, status=1), Step.BAD),
        (saved(case(verdict="TIMEOUT"), status=1), Step.BAD),
        (saved(case(verdict="SKIP", reason="no vCPUs"), status=4), Step.SKIP),
        (saved(status=2, tail=("no case matches",)), Step.SKIP),
        (saved(status=2, outcome=Outcome.NO_KVM, reason="no kvm"), Step.SKIP),
        (saved(status=2, outcome=Outcome.PANIC, reason="panic"), Step.SKIP),
    ],
)
def test_what_a_boot_says(seen, step):
    assert judge(ASK, seen).step is step


def test_what_is_wrong_is_in_the_line():
    assert judge(ASK, saved(FAILED, status=1)).line == "failed: match.y"
    assert judge(ASK, saved(status=2, tail=("no case matches", ""))).line == "no case matches"
    assert judge(ASK, saved(case(verdict="SKIP", reason="why"), status=4)).line == "why"


def test_what_did_not_repeat_is_neither_good_nor_bad():
    odd = case("match.z", "UNSTEADY", first=Verdict.FAIL, expected=[], seen=["x"])
    found = judge(ASK, saved(case(), odd, status=2))
    assert found.step is Step.SKIP
    assert found.line == "match.z failed once, and not again"


@pytest.mark.parametrize("outcome", [Outcome.PANIC, Outcome.HANG, Outcome.TIMEOUT, Outcome.LOST])
def test_a_lost_kernel_is_what_the_user_says_it_is(outcome):
    question = Question("match.*", lost=Step.BAD)
    assert judge(question, saved(status=2, outcome=outcome)).step is Step.BAD


@pytest.mark.parametrize("lost", [Step.BAD, Step.SKIP, Step.GOOD])
def test_a_splattered_kernel_is_lost(lost):
    question = Question("match.*", lost=lost)
    assert judge(question, saved(case(), status=1, splats=SPLAT)).step is lost
    within = case(verdict="FAIL", splats=SPLAT)
    assert judge(question, saved(within, status=1)).step is lost


def test_a_case_that_saw_something_wrong_is_bad_whatever_the_log_says():
    question = Question("match.*", lost=Step.SKIP)
    assert judge(question, saved(FAILED, status=1, splats=SPLAT)).step is Step.BAD


@pytest.mark.parametrize(("seen", "step"), [("exit 30", Step.GOOD), ("no exit", Step.BAD)])
def test_an_observation_is_a_verdict_too(seen, step):
    seen = saved(case("quirks.x", "PASS", observation=seen))
    assert judge(Question("quirks.x", observe="exit 30"), seen).step is step


def test_nothing_observed_cannot_be_tested():
    assert judge(Question("quirks.x", observe="exit 30"), saved(case())).step is Step.SKIP


def test_a_run_that_was_cut_short_is_lost():
    cut = Saved(Path("results.jsonl"), {}, {}, None)
    assert judge(Question("match.*", lost=Step.BAD), cut).step is Step.BAD


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
