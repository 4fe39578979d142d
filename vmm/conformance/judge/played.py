"""A trace of the player, judged from end to end: records on disk, reports, exit status."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from vmm.conformance.judge.check import Trouble, json_file, results_in
from vmm.conformance.judge.lines import MOST_LINE, TraceError
from vmm.conformance.judge.recording import Options, run_record
from vmm.conformance.judge.trace import Reading
from vmm.conformance.language.case import Case
from vmm.conformance.records.summary import end_record
from vmm.conformance.report.desk import Desk
from vmm.conformance.report.view import View


def lines_of(stream: BinaryIO) -> Iterable[str]:
    """Yield the whole lines of a stream; of one that is too long, enough to see that."""
    while (line := stream.readline(MOST_LINE + 2)).endswith(b"\n") or len(line) > MOST_LINE:
        yield line.rstrip(b"\n").decode("latin-1").rstrip("\r")


def judge_trace(
    stream: BinaryIO,
    cases: Sequence[Case],
    catalogue: int,
    options: Options,
    view: View,
    *,
    directory: Path | None = None,
) -> int:
    """Judge the machine that left the trace, print, return the exit status of a check.

    Trouble says in one line why there is no verdict: a trace that is damaged, cut, or of another
    tape. What was read until then is on disk and has been printed.
    """
    began = time.monotonic()
    reading = Reading(cases, options)
    with ExitStack() as stack:
        json = json_file(stack, view, directory)
        first = run_record(len(cases), catalogue, options)
        desk: Desk | None = None
        why = ""
        try:
            for line in lines_of(stream):
                for record in reading.line(line):
                    if desk is None:
                        results = results_in(directory, reading.host, resume=False)
                        stack.enter_context(results)
                        ids = [case.id for case in cases]
                        desk = Desk(results, reading.host, ids, view, json)
                        desk.start(first)
                    desk.case(record)
        except TraceError as error:
            why = str(error)
        why = why or ("" if reading.is_over else _cut(reading))
        if desk is None:
            raise Trouble(f"no verdict: {why or 'nothing was played'}")
        seconds = time.monotonic() - began
        end = end_record(
            desk.cases, seconds, lost=reading.lost, splats=reading.stray, trouble=bool(why)
        )
        desk.finish(first, end)
        if why or desk.failure:
            raise Trouble(f"{why or desk.failure}; what was read is in {desk.results.path}")
        return end["status"]


def _cut(reading: Reading) -> str:
    cases = sum(isinstance(entry, Case) for entry in reading.entries)
    done = cases - len(reading.missing)
    where = f", while {', '.join(reading.running[:4])} ran" if reading.running else ""
    if done == cases:
        return (
            f"the trace has all {cases} cases, and not its last line, which says that it is whole"
        )
    return f"the trace stops after {done} of {cases} cases{where}"
