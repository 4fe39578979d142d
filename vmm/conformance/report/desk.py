"""Where the records of a run arrive: filed on disk first, then passed on to every report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from vmm.conformance.records.causes import FAILED, explains
from vmm.conformance.records.plain import plain_painted
from vmm.conformance.records.results import Results
from vmm.conformance.records.schema import CaseRecord, EndRecord, RunRecord
from vmm.conformance.records.unseen import unseen
from vmm.conformance.report.live import LIVE, Run
from vmm.conformance.report.progress import Progress
from vmm.conformance.report.view import View


class Output:
    """A stream that may close or fill up early: the run goes on, and ``failure`` says why."""

    def __init__(self, stream: TextIO, name: str) -> None:
        """Write to ``stream``, called ``name`` in the failure."""
        self.stream, self.name, self.failure = stream, name, ""

    def write(self, data: str) -> None:
        """Write and flush; after a failure, nothing."""
        if self.failure:
            return
        try:
            self.stream.write(data)
            self.stream.flush()
        except BrokenPipeError:
            self.failure = f"{self.name} was closed early"
        except OSError as error:
            self.failure = f"cannot write to {self.name}: {error.strerror}"

    def lines(self, lines: Sequence[str]) -> None:
        """Write whole lines, each made plain."""
        self.write("".join(f"{plain_painted(line)}\n" for line in lines))


class Desk:
    """The watcher of a run (``again.Watcher``): ``cases`` has the records that came in.

    ``firsts`` has what cases left that are still to be judged once more.
    """

    def __init__(
        self,
        results: Results,
        host: Mapping[str, Any],
        ids: Sequence[str],
        view: View,
        json: Output | None,
    ) -> None:
        """File with ``results`` and report on the cases ``ids``, in that order at the end."""
        self.results, self.host, self.ids, self.view = results, host, ids, view
        self.out = Output(sys.stdout, "stdout")
        self.json = self.out if view.json == "-" else json
        self.format = LIVE[view.stdout](Run(host, ids, view, results.path))
        self.progress = Progress(sys.stderr, len(ids))
        self.cases: list[CaseRecord] = []
        self.firsts = {name: results.firsts[name] for name in ids if name in results.firsts}

    @property
    def interval(self) -> float:
        """How often the progress wants to be shown, in seconds."""
        return self.progress.interval

    @property
    def failure(self) -> str:
        """Why a report is not complete, or ""."""
        return self.out.failure or (self.json.failure if self.json else "")

    def start(self, run: RunRecord) -> None:
        """File and show the ``run`` record, and what an earlier run had recorded of these cases."""
        self._file(run)
        self._say(self.format.start(run))
        for name in self.ids:
            if record := self.results.recorded.get(name):
                self._show(record, self.results.line(record))

    def first(self, record: CaseRecord) -> None:
        """File what a case left that is judged once more."""
        self.firsts[record["id"]] = record
        self._file({**record, "type": "first"})
        self._say(self.format.first(record))

    def case(self, record: CaseRecord) -> None:
        """File the record of a case that has ended, with what explains it, and show it.

        Under a baseline its verdict is about what changed.
        """
        entry = explains(record, self.host) if record["verdict"] in FAILED else ""
        if self.view.baseline:
            record = self.view.baseline.judged(record, entry)
        record = {**record, "cause": entry} if entry else record
        self.firsts.pop(record["id"], None)
        self._show(record, self.results.write(record))

    def tick(self, running: Sequence[str]) -> None:
        """Show the progress."""
        if not self.view.quiet:
            self.progress.tick(running)

    def finish(self, run: RunRecord, end: EndRecord) -> None:
        """Show the report, file the ``end`` record, and do what is to be done then.

        ResultsError says that the disk is full, or what is wrong with ``View.then``.
        """
        if passed := unseen(self.view.known, self.cases, self.host):
            end["unseen"] = passed
        if self.view.baseline:
            end["baseline"] = self.view.baseline.changes(self.cases)
        self.progress.clear()
        self._say(self.format.end(run, end, [*self.cases, *self.firsts.values()]))
        self._file(end)
        if self.view.then:
            self.view.then(self.results.path)

    def _file(self, record: Mapping[str, Any]) -> None:
        line = self.results.write(record)
        if self.json:
            self.json.write(line)

    def _show(self, record: CaseRecord, line: str) -> None:
        self.cases.append(record)
        self.progress.case(record)
        if self.json:
            self.json.write(line)
        self._say(self.format.case(record))

    def _say(self, lines: Sequence[str]) -> None:
        if lines:
            self.progress.clear()
            self.out.lines(lines)
