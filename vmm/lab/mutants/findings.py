"""What became of a mutant, and how the records of its boot tell."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from vmm.conformance.records.jsonl import OF_A_CASE
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.mutants.source import Mutant

_FAILED = (Verdict.FAIL, Verdict.TIMEOUT, Verdict.ERROR, Verdict.XPASS)


class Fate(StrEnum):
    """What became of a mutant. LOST: no verdict, since the kernel never got to the suite."""

    KILLED = "killed"
    SURVIVED = "survived"
    UNBUILT = "did not build"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class MutantRecord:
    """One mutant's fate: which cases killed it (`more`: others were not run), or the reason.

    `ran` is the number of cases that gave a verdict, the seconds are wall time. `evidence` is what
    the first killer saw: the step that is not as expected, or why there was none.
    """

    name: str
    digest: str
    vendor: str
    fate: Fate
    killers: tuple[str, ...] = ()
    more: bool = False
    ran: int = 0
    reason: str = ""
    build_seconds: float = 0.0
    boot_seconds: float = 0.0
    suite_seconds: float = 0.0
    evidence: str = ""


class Enough(Exception):
    """The mutant is dead many times over."""


@dataclass
class Collector:
    """Collects the records of a boot as they come, and ends it when it has seen enough."""

    enough: int
    ran: int = 0
    killers: list[str] = field(default_factory=list)
    begin: float = field(default_factory=time.monotonic)
    started: float | None = None
    evidence: str = ""

    def line(self, text: str) -> None:
        """Take one line of output; raises :class:`Enough`."""
        self.take(record(text))

    def take(self, read: Mapping[str, Any]) -> None:
        """Take one record; raises :class:`Enough`."""
        self.started = self.started or time.monotonic()
        if read.get("type") not in OF_A_CASE:
            return
        self.ran += read["type"] == "case" and read["verdict"] != Verdict.SKIP
        if read["verdict"] in _FAILED and read["id"] not in self.killers:
            self.killers.append(read["id"])
            self.evidence = self.evidence or evidence(read)
        elif read["verdict"] == Verdict.UNSTEADY:
            self.killers.remove(read["id"])
        if self.enough and len(self.killers) >= self.enough:
            raise Enough


def evidence(case: Mapping[str, Any]) -> str:
    """Return in one line what a case that did not pass saw."""
    if "expected" not in case:
        return f"{case['verdict']} {case.get('reason') or case.get('error') or ''}".strip()
    sides = (f"{side} {', '.join(case[side]) or 'nothing'}" for side in ("expected", "seen"))
    return f"step {case['step']}, {case['action']}: {', '.join(sides)}"


def record(text: str) -> dict[str, Any]:
    """Return the JSON object of a line, empty for any other line."""
    try:
        loaded: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return loaded


def conclude(mutant: Mutant, collector: Collector, result: LabResult | None) -> MutantRecord:
    """Return what a boot says about a mutant; no result: it was ended with enough killers."""
    fate, reason = fate_of(collector, result)
    started = collector.started or time.monotonic()
    return MutantRecord(
        mutant.name,
        mutant.digest,
        mutant.vendor,
        fate,
        tuple(collector.killers),
        result is None,
        collector.ran,
        reason,
        boot_seconds=round(started - collector.begin, 1),
        suite_seconds=round(time.monotonic() - started, 1),
        evidence=collector.evidence,
    )


def conclude_churn(mutant: Mutant, collector: Collector, result: LabResult) -> MutantRecord:
    """Return what a churn says about a mutant: its status, and the line that says what leaks."""
    leaks = [line.strip() for line in result.lines if "LEAK" in line]
    collector.ran = int(result.outcome is Outcome.DONE)
    found = conclude(mutant, collector, result)
    if result.outcome is Outcome.DONE and result.status == Status.VIOLATES:
        return replace(found, killers=("churn",), reason="; ".join(leaks) or "a VM got stuck")
    return found


def fate_of(collector: Collector, result: LabResult | None) -> tuple[Fate, str]:
    """Return the fate, and the reason where no case is one."""
    if result is None:
        return Fate.KILLED, ""
    if result.outcome is not Outcome.DONE:
        # A kernel that goes down under the suite is as good as a failed case; one that never
        # got there says nothing.
        dead = collector.started is not None or bool(collector.killers)
        return (Fate.KILLED if dead else Fate.LOST), result.reason
    if collector.killers:
        return Fate.KILLED, ""
    if result.status == Status.VIOLATES:
        return Fate.KILLED, "the kernel log has a splat"
    if result.status != Status.CONFORMS:
        said = (f"the suite ended with status {result.status}", *result.console_tail)
        return Fate.LOST, said[-1]
    return Fate.SURVIVED, ""


def decided(lines: Iterable[str]) -> dict[tuple[str, str], MutantRecord]:
    """Read findings back: those with a verdict, by name and digest."""
    found = [
        MutantRecord(**{**read, "fate": Fate(read["fate"]), "killers": tuple(read["killers"])})
        for line in lines
        if (read := record(line))
    ]
    kept = (Fate.KILLED, Fate.SURVIVED)
    return {(f.name, f.digest): f for f in found if f.fate in kept and f.name != "control"}
