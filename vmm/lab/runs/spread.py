"""The cases of a run spread over machines that play them side by side: one trace a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from vmm.conformance.judge.recording import Options
from vmm.conformance.language.case import Case
from vmm.conformance.records.schema import Ending
from vmm.lab.initramfs.player import Playing
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.machines.abreast import Boot, carried
from vmm.lab.machines.emulation import Listener
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.runs.played import Played

CASES_A_MACHINE = 200
"""A machine boots in about the time that so many cases take."""
MOST = 8


class Spread:
    """What is played on some machines; ``parts`` are their traces, each with its cases."""

    is_troubled = False

    def __init__(
        self,
        asked: Sequence[Case],
        options: Options,
        lacks: Mapping[str, str],
        machines: int = 1,
        before: Ending | None = None,
    ) -> None:
        """Spread ``asked``; ``before`` is the end of what was played earlier in the same run."""
        count = max(1, min(machines, len(asked)))
        self.parts = [Played(asked[part::count], options, lacks) for part in range(count)]
        self.before = before

    def boots(self, kernel: Kernel, vendor: str, **how: Any) -> list[Boot]:
        """Return what boots each machine and has its tape played, for a listener."""
        return [partial(_play, part, kernel, vendor, how) for part in self.parts]

    @property
    def running(self) -> list[str]:
        """The ids of the cases that run now."""
        return [name for part in self.parts for name in part.running]

    @property
    def end(self) -> Ending | None:
        """What only the guests know, as of one; None until the last trace is over."""
        ends = [part.end for part in self.parts if part.end]
        if len(ends) < len(self.parts):
            return None
        before = [self.before] if self.before else []
        every = [*before, *ends]
        return {
            "seconds": sum(end["seconds"] for end in before) + max(end["seconds"] for end in ends),
            "splats": [splat for end in every for splat in end["splats"]],
            "foreign": [],
            "lost": sum(end["lost"] for end in every),
        }

    def doubt(self, *results: LabResult) -> str:
        """Return why what came of the boots is no verdict, or ""."""
        count = len(self.parts)
        for number, (part, result) in enumerate(zip(self.parts, results, strict=True), 1):
            if why := part.doubt(result):
                return why if count == 1 else f"machine {number} of {count}: {why}"
        return ""


def _play(
    part: Played, kernel: Kernel, vendor: str, how: dict[str, Any], listener: Listener
) -> LabResult:
    playing = Playing(part.tape, part.options.jobs)
    return machine.play(kernel, vendor, playing, listener=listener, **how)


def as_one(results: Sequence[LabResult]) -> LabResult:
    """Return boots side by side as one: the first that failed, and the longest times."""
    failed = (each for each in results if each.outcome is not Outcome.DONE)
    boots = [each.boot_seconds for each in results if each.boot_seconds is not None]
    return replace(
        next(failed, results[0]),
        boot_seconds=max(boots) if len(boots) == len(results) else None,
        total_seconds=max(each.total_seconds for each in results),
        attempts=max(each.attempts for each in results),
    )


def machines_for(cases: int) -> int:
    """Return how many machines are worth their boots for so many cases, and can be carried here."""
    return max(1, min(carried(), cases // CASES_A_MACHINE, MOST))
