"""A tape that was played in a guest: what its trace amounts to, as it comes.

Verdicts are made here, from the events alone. It stands where ``claims`` does for a guest that has
its own msrward, whose records are believed only as far as they agree.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from vmm.conformance.c.tape import tape
from vmm.conformance.judge.lines import TraceError
from vmm.conformance.judge.recording import Options, case_record, run_record
from vmm.conformance.judge.trace import Reading
from vmm.conformance.language.case import Case
from vmm.conformance.records.schema import CaseOutcome, CaseRecord, Ending, RunRecord
from vmm.conformance.records.status import Status
from vmm.conformance.records.steadiness import Times
from vmm.conformance.records.verdict import Verdict
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.runs.claims import Damaged, Told


class Played:
    """The trace of one guest. ``end`` is None until the trace is over, with a record a case."""

    is_troubled = False

    def __init__(self, asked: Sequence[Case], options: Options, lacks: Mapping[str, str]) -> None:
        """Expect a trace of ``asked``, but for those that need what the machine ``lacks``."""
        self.options, self.lacks = options, lacks
        self.skipped = [case for case in asked if {*case.all_needs} & lacks.keys()]
        played = [case for case in asked if case not in self.skipped]
        self.cases = [case for case in played for _ in range(options.repeat)]
        self.reading = Reading(self.cases, options)
        self.asked = len(asked)
        self.done = 0
        self.begun = False
        self.end: Ending | None = None
        self._times = Times(options.repeat)
        self._began = time.monotonic()

    @property
    def tape(self) -> bytes:
        """The tape to be played."""
        return tape(self.cases, timeout=self.options.timeout)

    @property
    def running(self) -> list[str]:
        """The ids of the cases that run now."""
        return self.reading.running

    def take(self, line: str) -> Iterator[Told]:
        """Yield the records that a line completes; Damaged if it cannot be of this tape."""
        try:
            records = list(self.reading.line(line))
        except TraceError as error:
            raise Damaged(f"the guest's trace: {error}") from None
        host = self.reading.host
        if self.reading.has_host and not self.begun:
            self.begun = True
            yield self._run(), host
            for case in self.skipped:
                yield self._skip(case), host
        for record in records:
            for each in self._whole(record):
                yield each, host
        if self.reading.is_over:
            self.end = {
                "seconds": round(time.monotonic() - self._began, 3),
                "splats": self.reading.stray,
                "foreign": [],
                "lost": self.reading.lost,
            }

    def _whole(self, record: CaseRecord) -> Iterator[CaseRecord]:
        """Yield what a case amounts to that was played so often as it was to be.

        Its first failure is told at once.
        """
        fails, whole = self._times.take(record)
        if whole:
            self.done += 1
            yield whole
        elif fails:
            yield {**record, "type": "first"}

    def _run(self) -> RunRecord:
        log = self.reading.unwatched or "watched"
        return run_record(self.asked, self.asked, self.options, kernel_log=log)

    def _skip(self, case: Case) -> CaseRecord:
        need = next(each for each in case.all_needs if each in self.lacks)
        outcome: CaseOutcome = {"verdict": Verdict.SKIP, "need": need, "reason": self.lacks[need]}
        return case_record(case, outcome, 0.0, [], self.options)

    def doubt(self, result: LabResult) -> str:
        """Return why what came of the boot is no verdict, or ""."""
        last = next((line for line in reversed(result.console_tail) if line.strip()), "silence")
        while_ = f", while {', '.join(self.running[:3])} ran" if self.running else ""
        if result.outcome is not Outcome.DONE:
            some = f" after {self.done} of {self.asked} cases{while_}" if self.begun else ""
            return f"{result.reason}{some}; the console ended with: {last}"
        if not self.end or result.status != Status.CONFORMS:
            return f"the player ended with status {result.status}{while_}: {last}"
        return ""
