"""One conformance run in a guest of the lab: the same records, reports and status as on a host."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmm.conformance.judge.again import HANGS
from vmm.conformance.judge.check import Trouble, json_file
from vmm.conformance.language.case import Case
from vmm.conformance.records.results import Results, default_directory
from vmm.conformance.records.saved import Saved, to_resume
from vmm.conformance.records.schema import (
    CaseRecord,
    Ending,
    EndRecord,
    LabRecord,
    MachineRecord,
    Record,
    RunRecord,
    run_of,
)
from vmm.conformance.records.steadiness import is_doubtful, settle
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.desk import Desk
from vmm.conformance.report.progress import Progress
from vmm.conformance.report.view import View
from vmm.lab import append
from vmm.lab.errors import LabError
from vmm.lab.machines import machine
from vmm.lab.machines.abreast import abreast
from vmm.lab.machines.emulation import Listener
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.runs.account import account, rounded
from vmm.lab.runs.claims import Claims, Damaged, Told, summed
from vmm.lab.runs.order import Order
from vmm.lab.runs.spread import Spread, as_one

Take = Callable[[str], Iterator[Told]]


def check(order: Order, view: View, directory: Path | None = None, *, resume: bool = False) -> int:
    """Judge the kernel of the order, print, return the exit status of ``msrward check``.

    Records go to ``directory`` (None: a default one for the kernel and vendor); with ``resume``
    those that are there are continued. Trouble says why there is no verdict, LabError why nothing
    could be booted, ResultsError why the records cannot be kept or continued.
    """
    directory = directory or _default(order)
    before = to_resume(directory) if resume else None
    with ExitStack() as stack:
        inside = _Inside(order, view, directory, stack, before)
        if before and set(order.ids) <= set(before.cases):
            return inside.finish([])
        damage, results = "", list[LabResult]()
        try:
            results = inside.boot(before.cases if before else ())
            if inside.held and not inside.claims.doubt(*results):
                results = inside.boot_again(results)
        except KeyboardInterrupt:
            inside.interrupted = True
        except Damaged as error:
            damage = str(error)
        return inside.finish(results, damage)


def _default(order: Order) -> Path:
    cpu = f"-{order.cpu}" if order.cpu else ""
    name = f"lab-{order.kernel.release}-{order.vendor}{cpu}{append.suffix(order.append)}"
    return default_directory().with_name(name)


@dataclass
class _Inside:
    """The run in the guest, seen from outside."""

    order: Order
    view: View
    directory: Path
    stack: ExitStack
    before: Saved | None
    interrupted: bool = False
    desk: Desk | None = None
    boot_seconds: float | None = None
    first: RunRecord = field(default_factory=lambda: run_of(0, 0))
    held: dict[str, CaseRecord] = field(default_factory=dict)
    """What cases left that are judged once more."""

    def __post_init__(self) -> None:
        self.emulator = machine.emulator_of(self.order.vendor).title
        recorded = self.before.cases if self.before else {}
        cases = self.order.chosen.cases
        asked = [case for case in cases if case.id not in recorded]
        self.is_played = self.order.is_played
        if self.is_played:
            self.claims: Claims | Spread = self._spread(asked, self.order.jobs)
        else:
            options = self.order.options
            if (self.order.machines or 1) > 1:
                raise LabError("--machines spreads what the player does, and here Python does it")
            self.claims = Claims(asked, options.words, options.repeat)
        self.done = sum(name in recorded for name in self.order.ids)
        self.progress = Progress(sys.stderr, len(self.order.ids))
        self.json = json_file(self.stack, self.view, self.directory)
        self.began = time.monotonic()

    def _spread(self, asked: Sequence[Case], jobs: int) -> Spread:
        how = replace(self.order.options.of(jobs), repeat=self.order.options.repeat)
        return Spread(asked, how, self.order.lacks, self.order.machines_for(len(asked)))

    def boot(self, recorded: Container[str] = ()) -> list[LabResult]:
        """Boot the kernel and have the cases done that are not ``recorded``."""
        how: dict[str, Any] = {
            "timeout": self.order.timeout,
            "append": self.order.append,
            "cpu": self.order.cpu,
        }
        where = (self.order.kernel, self.order.vendor)
        if isinstance(self.claims, Spread):
            listeners = [self._listener(part.take) for part in self.claims.parts]
            return abreast(self.claims.boots(*where, **how), listeners)
        how |= {"files": self.order.files, "listener": self._listener(self.claims.take)}
        return [machine.boot(*where, self.order.argv(recorded), **how)]

    def boot_again(self, before: Sequence[LabResult]) -> list[LabResult]:
        """Have what failed done once more, one by one in a guest of its own."""
        doubtful = [case for case in self.order.chosen.cases if case.id in self.held]
        how = replace(self.order.options.of(1), repeat=1)
        self.claims = Spread(doubtful, how, self.order.lacks, before=self.claims.end)
        (result,) = self.boot()
        first = as_one(before)
        total = first.total_seconds + result.total_seconds
        return [replace(result, total_seconds=total, boot_seconds=first.boot_seconds)]

    def _listener(self, take: Take) -> Listener:
        def line(text: str) -> None:
            for record, host in take(text):
                self._record(record, host)

        return Listener(line, self.start, self.tick)

    def start(self, seconds: float) -> None:
        self.boot_seconds = self.boot_seconds or seconds

    def tick(self) -> None:
        if self.desk:
            self.desk.tick(self.claims.running)
        elif not self.view.quiet:
            doing = "starting" if self.boot_seconds is not None else "booting"
            where = f"{self.order.kernel.release} ({self.order.vendor}, {self.emulator})"
            self.progress.note(f"{doing} {where}: {time.monotonic() - self.began:.0f} s")

    def _record(self, record: Record, host: Mapping[str, Any]) -> None:
        if record["type"] == "run":
            if self.desk is None:
                self._open(self._of_all(record), host)
        elif record["type"] == "first":
            assert self.desk
            self.desk.first(self._with_file(record))
        elif record["type"] != "end":
            self._case(self._with_file(record))

    def _case(self, record: CaseRecord) -> None:
        assert self.desk
        first = self.held.pop(record["id"], None) or self._earlier(record)
        if first is None and self._is_held(record):
            self.held[record["id"]] = record
            if record["id"] not in self.desk.firsts:  # --repeat filed its first failure
                self.desk.first(record)
        else:
            self.desk.case(settle(first, record) if first else record)

    def _earlier(self, record: CaseRecord) -> CaseRecord | None:
        return self.before.firsts.get(record["id"]) if self.before else None

    def _is_held(self, record: CaseRecord) -> bool:
        """Whether a case is to be judged once more, which a guest with a msrward does itself."""
        hung = [each for each in self.held.values() if each["verdict"] is Verdict.TIMEOUT]
        enough = record["verdict"] is Verdict.TIMEOUT and len(hung) >= HANGS
        return self.is_played and self.order.again and is_doubtful(record) and not enough

    def _with_file(self, record: CaseRecord) -> CaseRecord:
        files = {case.id: case.file for case in self.order.chosen.saved}
        return {**record, "file": files[record["id"]]} if record["id"] in files else record

    def finish(self, results: Sequence[LabResult], damage: str = "") -> int:
        """File and print the end; Trouble says what went wrong in the guest, or ``damage`` does."""
        if self.desk is None:
            known = self.before.host if self.before else {"release": self.order.kernel.release}
            self._open(self._planned(), known)
        desk = self.desk
        assert desk
        trouble = damage or (self.claims.doubt(*results) if results else "")
        end = self._ended(desk, trouble)
        if results:
            end["lab"] = account(as_one(results), whole=bool(self.claims.end))
            self._say_seconds(desk, end["lab"])
        elif damage:
            end["lab"] = {"outcome": Outcome.LOST, "reason": damage}
        desk.finish(self.first, end)
        if trouble := desk.failure or trouble:
            raise Trouble(f"{trouble}; {desk.results.where}")
        return int(end["status"])

    def _open(self, first: RunRecord, host: Mapping[str, Any]) -> None:
        self.progress.clear()
        if unknown := append.unknown(self.order.append, host.get("parameters", {})):
            raise Trouble(f"{self.order.kernel.name} has no parameter {', '.join(unknown)}")
        facts = {**host, "lab": self._lab()}
        kept = Results(self.directory, facts, resume=self.before is not None)
        results = self.stack.enter_context(kept)
        self.first = first
        view = replace(self.view, rerun=self.order.rerun)
        self.desk = Desk(results, facts, self.order.ids, view, self.json)
        self.desk.start(first)

    def _lab(self) -> MachineRecord:
        lab: MachineRecord = {
            "kernel": self.order.kernel.name,
            "vendor": self.order.vendor,
            "emulator": self.emulator,
            "append": self.order.append,
            "executor": "player" if self.is_played else "python",
            "cpu": self.order.cpu,
            "boot_seconds": rounded(self.boot_seconds),
        }
        if isinstance(self.claims, Spread):
            lab["machines"] = len(self.claims.parts)
        return lab

    def _of_all(self, run: RunRecord) -> RunRecord:
        """Return the run that a guest began as what it is a part of, or goes on with."""
        counts: RunRecord = {
            **run,
            "cases": len(self.order.ids),
            "catalogue": self.order.chosen.of,
            "resumed": self.done,
        }
        if self.order.options.shard:
            counts["shard"] = self.order.options.shard
        return counts

    def _planned(self) -> RunRecord:
        blank = run_of(0, 0, kernel_log="the guest did not get that far")
        return self._of_all({**blank, "started": round(time.time(), 3)})

    def _ended(self, desk: Desk, trouble: str) -> EndRecord:
        """Return the end that all cases amount to, those of a run that was continued too."""
        seconds = time.monotonic() - self.began
        unknown: Ending = {"seconds": seconds, "splats": [], "lost": 0}
        troubled = bool(trouble) or self.claims.is_troubled
        told = self.claims.end or unknown
        return summed(desk.cases, told, interrupted=self.interrupted, trouble=troubled)

    def _say_seconds(self, desk: Desk, lab: LabRecord) -> None:
        desk.progress.clear()
        if self.claims.end and self.view.is_text and not self.view.quiet:
            took = (
                ("boot", lab.get("boot_seconds")),
                ("suite", lab.get("suite_seconds")),
                ("total", lab.get("total_seconds")),
            )
            shown = ", ".join(f"{name} {seconds or 0.0:.1f} s" for name, seconds in took)
            desk.out.lines([f"the lab took: {shown}"])
