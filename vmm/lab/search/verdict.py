"""What one boot says about one question: good, bad, or nothing (the words of git bisect)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.status import UNTESTABLE, Status
from vmm.conformance.records.verdict import Verdict
from vmm.lab.machines.machine import Outcome


class Step(IntEnum):
    """A verdict of a bisection step; the value is the exit status that git bisect run expects."""

    GOOD = 0
    BAD = 1
    SKIP = UNTESTABLE


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of each kernel: whether a case passes, or what an `observe` case saw.

    With `observe` set, a kernel is good where that observation was made, bad where another was.
    `lost` is what a kernel that panics, hangs, loses the command or splats counts as.
    """

    case: str
    observe: str | None = None
    lost: Step = Step.SKIP


@dataclass(frozen=True, slots=True)
class Evidence:
    """One answer and what it rests on: one line, and the records of the run behind it."""

    step: Step
    line: str
    saved: Saved | None = None


def judge(question: Question, saved: Saved) -> Evidence:
    """Return what one run in the lab answers."""
    lab = saved.lab
    if lab.get("outcome") != Outcome.DONE:
        counts = Step.SKIP if lab.get("outcome") == Outcome.NO_KVM else question.lost
        return Evidence(counts, lab.get("reason") or "the run was cut short", saved)
    step, line = _answer(question, saved)
    return Evidence(step, line, saved)


def _answer(question: Question, saved: Saved) -> tuple[Step, str]:
    records = list(saved.cases.values())
    if splats := _splats(saved, records):
        return question.lost, f"the kernel log says: {splats[0][0]}"
    if question.observe is not None:
        return _observed(question.observe, records)
    if failed := [r["id"] for r in records if r["verdict"].is_violation]:
        return Step.BAD, f"failed: {', '.join(failed)}"
    passed = any(record["verdict"] is Verdict.PASS for record in records)
    if saved.end and saved.end["status"] == Status.CONFORMS and passed:
        return Step.GOOD, f"passed ({len(records)} case{'s' * (len(records) > 1)})"
    return Step.SKIP, _why_nothing(saved, records)


def _splats(saved: Saved, records: Sequence[CaseRecord]) -> list[list[str]]:
    """Return the splats, unless a case failed by what it saw: that is evidence of its own."""
    if any("expected" in record for record in records):
        return []
    stray = saved.end["splats"] if saved.end else []
    return [*stray, *(s for record in records for s in record.get("splats", ()))]


def _observed(wanted: str, records: Sequence[CaseRecord]) -> tuple[Step, str]:
    seen = {str(record["observation"]) for record in records if "observation" in record}
    if not seen:
        return Step.SKIP, "nothing was observed"
    return (Step.GOOD if seen == {wanted} else Step.BAD), f"observed {', '.join(sorted(seen))}"


def _why_nothing(saved: Saved, records: Sequence[CaseRecord]) -> str:
    console = [line for line in saved.lab.get("console", ()) if line.strip()]
    unsteady = [f"{r['id']} failed once, and not again" for r in records if "first" in r]
    reasons = [*unsteady, *(record.get("reason") or record.get("error") for record in records)]
    return next((str(text) for text in (*reasons, *console[-1:]) if text), "no case passed")


def combine(evidence: Sequence[Evidence]) -> Evidence:
    """Return what repeated boots say together: agreement, or SKIP where they contradict."""
    steps = {item.step for item in evidence} - {Step.SKIP}
    if len(steps) == 1:
        return next(item for item in evidence if item.step in steps)
    if not steps:
        return evidence[0]
    counts = ", ".join(f"{name.name.lower()} {n}" for name, n in _counted(evidence))
    return Evidence(Step.SKIP, f"mixed evidence: {counts}")


def _counted(evidence: Iterable[Evidence]) -> list[tuple[Step, int]]:
    steps = [item.step for item in evidence]
    return [(step, steps.count(step)) for step in Step if step in steps]
