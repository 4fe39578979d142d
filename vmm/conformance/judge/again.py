"""Judge what failed once more, alone, before its verdict is believed (``records.steadiness``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from vmm.conformance.host.klog import KernelLog
from vmm.conformance.host.splats import Splat
from vmm.conformance.judge import runner
from vmm.conformance.judge.judging import BackendFactory
from vmm.conformance.judge.recording import Options
from vmm.conformance.language.case import Case
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.steadiness import Times, is_doubtful, settle
from vmm.conformance.records.verdict import Verdict

HANGS, SLOW_MS = 3, 5000.0
"""How many cases must fail twice as slowly as this until others that did so once are believed.

They hung, or saw nothing of what they waited for: each takes its whole deadline to judge again.
"""


class Watcher(runner.Watcher, Protocol):
    """Who is told of a run in which nothing is believed that was seen only once."""

    def first(self, record: CaseRecord) -> None:
        """Keep what a case left that will be judged once more; its ``case`` follows."""


def run(
    cases: Sequence[Case],
    factory: BackendFactory,
    options: Options,
    watcher: Watcher,
    log: KernelLog | None = None,
    *,
    firsts: Mapping[str, CaseRecord] | None = None,
) -> list[Splat]:
    """Do as ``runner.run``; then judge each case that failed in a fresh worker, with no other.

    Before that, each is judged ``options.repeat`` times in all; its first failure is kept at once.

    ``firsts`` has what cases left in an earlier run that did not get to judge them once more.
    """
    earlier = firsts or {}
    doubtful = {case.id: earlier[case.id] for case in cases if case.id in earlier}
    todo = [case for case in cases if case.id not in doubtful for _ in range(options.repeat)]
    times = Times(options.repeat)

    def hold(record: CaseRecord) -> None:
        fails, whole = times.take(record)
        if fails:
            watcher.first(record)
        if whole and is_doubtful(whole):
            doubtful[whole["id"]] = whole
        elif whole:
            watcher.case(whole)

    stray = runner.run(todo, factory, options, _Teller(watcher, hold), log)
    alone, hung = replace(options, jobs=1), 0
    for case in (case for case in cases if case.id in doubtful):
        first = doubtful[case.id]
        if hung == HANGS and _is_slow(first):
            watcher.case({**first, "type": "case"})
            continue
        seen: list[CaseRecord] = []
        stray += runner.run([case], factory, alone, _Teller(watcher, seen.append), log)
        watcher.case(settle(first, seen[0]))
        hung += seen[0]["verdict"].is_violation and _is_slow(seen[0])
    return stray


def _is_slow(record: CaseRecord) -> bool:
    return record["verdict"] is Verdict.TIMEOUT or record["ms"] >= SLOW_MS


class _Teller:
    """A ``runner.Watcher`` that hands the records to somebody else."""

    def __init__(self, watcher: Watcher, take: Callable[[CaseRecord], None]) -> None:
        self.watcher, self.case = watcher, take

    @property
    def interval(self) -> float:
        return self.watcher.interval

    def tick(self, running: Sequence[str]) -> None:
        self.watcher.tick(running)
