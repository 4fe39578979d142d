"""What one boot says about one question: good, bad, or nothing (the words of git bisect)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from vmm.lab.machine import LabResult, Outcome


class Step(IntEnum):
    """A verdict of a bisection step; the value is the exit status that git bisect run expects."""

    GOOD = 0
    BAD = 1
    SKIP = 125


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of each kernel: whether a case passes, or what an `observe` case saw.

    With `observe` set, a kernel is good where that observation was made, bad where another was.
    `lost` is what a kernel that panics, hangs or loses the command counts as.
    """

    case: str
    observe: str | None = None
    lost: Step = Step.SKIP

    @property
    def argv(self) -> tuple[str, ...]:
        """The command to run in the guest."""
        return ("python3", "-m", "vmm", "check", "--json", self.case)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One answer and what it rests on, in one line; `records` are the case records behind it."""

    step: Step
    line: str
    records: tuple[dict[str, Any], ...] = ()


def judge(question: Question, result: LabResult) -> Evidence:
    """Return what one boot answers."""
    if result.outcome is not Outcome.DONE:
        counts = Step.SKIP if result.outcome is Outcome.NO_KVM else question.lost
        return Evidence(counts, result.reason)
    records = tuple(r for r in map(json.loads, result.lines) if r.get("type") == "case")
    if question.observe is not None:
        return _observed(question.observe, records)
    return _verdicts(records, result)


def _observed(wanted: str, records: tuple[dict[str, Any], ...]) -> Evidence:
    seen = {str(record["observation"]) for record in records if "observation" in record}
    if not seen:
        return Evidence(Step.SKIP, "nothing was observed", records)
    step = Step.GOOD if seen == {wanted} else Step.BAD
    return Evidence(step, f"observed {', '.join(sorted(seen))}", records)


def _verdicts(records: tuple[dict[str, Any], ...], result: LabResult) -> Evidence:
    verdicts = {record["id"]: record["verdict"] for record in records}
    if failed := [name for name, verdict in verdicts.items() if verdict in ("FAIL", "TIMEOUT")]:
        return Evidence(Step.BAD, f"failed: {', '.join(failed)}", records)
    if result.status == 0 and "PASS" in verdicts.values():
        return Evidence(Step.GOOD, f"passed ({len(verdicts)} cases)", records)
    if result.status == 1:
        return Evidence(Step.BAD, "the kernel log has a splat", records)
    said = result.console_tail[-1] if not records and result.console_tail else "no case passed"
    return Evidence(Step.SKIP, said, records)


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
