"""The formats in which a run is told on stdout while it goes on: one object each, one table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from vmm.conformance.records.causes import causes
from vmm.conformance.records.schema import CaseRecord, EndRecord, RunRecord
from vmm.conformance.report import closing, tap, text
from vmm.conformance.report.view import View


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of a run when it begins: its facts, its cases in order, where it is filed."""

    host: Mapping[str, Any]
    ids: Sequence[str]
    view: View
    path: Path


class Live(Protocol):
    """What turns the records of a run into lines for stdout, as they come."""

    def start(self, run: RunRecord) -> list[str]:
        """Return how it begins, of the ``run`` record."""

    def first(self, case: CaseRecord) -> list[str]:
        """Return what is said of a case that is to be judged once more."""

    def case(self, case: CaseRecord) -> list[str]:
        """Return what is said of a case that has ended."""

    def end(self, run: RunRecord, end: EndRecord, cases: Sequence[CaseRecord]) -> list[str]:
        """Return how it ends, of all that was left of ``cases``."""


class Text:
    """The report for a person: cases as they end under -v, what failed and the verdict last."""

    def __init__(self, run: Run) -> None:
        """Report on the run's cases, in its order at the end."""
        self.run, self.view = run, run.view
        self.paint = text.painter(sys.stdout)

    def start(self, run: RunRecord) -> list[str]:
        """Return the lines that say what is judged, and where."""
        return [] if self.view.quiet else text.header(run, self.run.host)

    def first(self, case: CaseRecord) -> list[str]:
        """Return the case's line, under -v."""
        return [f"{line}; to be judged once more" for line in self.case(case)]

    def case(self, case: CaseRecord) -> list[str]:
        """Return the case's line, under -v."""
        return [text.case_line(case, self.paint)] if self.view.verbose else []

    def end(self, run: RunRecord, end: EndRecord, cases: Sequence[CaseRecord]) -> list[str]:
        """Return causes, what was not tested, observations, what changed, and the verdict."""
        place = {name: number for number, name in enumerate(self.run.ids)}
        cases = sorted(cases, key=lambda case: place[case["id"]])
        host, quiet, verbose = self.run.host, self.view.quiet, self.view.verbose
        lines = [] if quiet else self._whole(end, cases)
        lines += closing.summary(cases, end, self.paint, host)
        lines += closing.since(end, verbose)
        lines += [] if quiet else ["", f"records: {self.run.path}"]
        return [*lines, closing.verdict(run, end, host, self.paint)]

    def _whole(self, end: EndRecord, cases: Sequence[CaseRecord]) -> list[str]:
        host, verbose, lines = self.run.host, self.view.verbose, list[str]()
        bad = [case for case in cases if case["verdict"].is_bad]
        for cause in causes(bad, host):
            lines += text.cause(cause, self.paint, verbose, self.view.rerun)
        lines += text.skips(cases, verbose)
        lines += text.ignoring(cases, host)
        return lines + text.observations(cases, end["fingerprint"], verbose)


class Tap:
    """TAP 13: a test line a case, as they end."""

    def __init__(self, run: Run) -> None:
        """Plan a test for each case."""
        self.run, self.number = run, 0

    def start(self, _: RunRecord) -> list[str]:
        """Return the version, the plan and what is judged."""
        return tap.header(len(self.run.ids), self.run.host)

    def first(self, _: CaseRecord) -> list[str]:
        """Say nothing: a test has one line."""
        return []

    def case(self, case: CaseRecord) -> list[str]:
        """Return the test's line and its diagnostics."""
        self.number += 1
        return tap.case_lines(case, self.number)

    def end(self, _run: RunRecord, end: EndRecord, _cases: Sequence[CaseRecord]) -> list[str]:
        """Return what closes the stream."""
        return tap.end_lines(end)


class Nothing:
    """No format: what is filed goes to stdout itself, as JSON lines."""

    def __init__(self, _: Run) -> None:
        """Say nothing of the run."""

    def start(self, _: RunRecord) -> list[str]:
        """Say nothing."""
        return []

    def first(self, _: CaseRecord) -> list[str]:
        """Say nothing."""
        return []

    def case(self, _: CaseRecord) -> list[str]:
        """Say nothing."""
        return []

    def end(self, _run: RunRecord, _end: EndRecord, _cases: Sequence[CaseRecord]) -> list[str]:
        """Say nothing."""
        return []


LIVE: Mapping[str, Callable[[Run], Live]] = MappingProxyType(
    {"text": Text, "tap": Tap, "json": Nothing}
)
"""By what a ``View`` says that stdout is for."""
