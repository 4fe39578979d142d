"""One conformance run in a guest of the lab: the same records, reports and status as on a host."""

from __future__ import annotations

import sys
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmm.conformance.judge.check import Trouble, json_file
from vmm.conformance.judge.selection import Chosen
from vmm.conformance.language import codec
from vmm.conformance.records.results import FILE, Results, default_directory
from vmm.conformance.records.saved import Saved, load
from vmm.conformance.records.schema import Record
from vmm.conformance.records.steadiness import settle
from vmm.conformance.records.summary import end_record
from vmm.conformance.report.desk import Desk, View
from vmm.conformance.report.progress import Progress
from vmm.conformance.report.rerun import in_the_lab
from vmm.lab import append, vendors
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.machines.emulation import Listener
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.runs.claims import TOLD, Claims, Damaged

WORKERS_A_CPU = 2
"""Workers sleep in the kernel's grace periods, and an emulated CPU has no time to give away."""
CHECK = ("python3", "-m", "vmm", "check", "--json", "-q")


def _told(vendor: str) -> tuple[str, ...]:
    lacks = "" if machine.emulator_of(vendor).accelerated else vendors.of(vendor).lacks
    return ("/bin/busybox", "env", f"MSRWARD_LACKS={lacks}") if lacks else ()


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run where: the kernel and vendor, the cases in their order, and the options.

    `options` are those of the check inside (see
    :func:`options`), `timeout` is seconds for the guest, `append` is added to its command line.
    """

    kernel: Kernel
    vendor: str
    chosen: Chosen
    options: Sequence[str] = ()
    timeout: float = 900.0
    append: str = ""

    @property
    def ids(self) -> list[str]:
        """The ids of the cases."""
        return self.chosen.ids

    @property
    def files(self) -> dict[str, bytes]:
        """What the guest needs besides msrward, by path: the cases that are saved ones."""
        return {saved_as(case.id): codec.dump(case).encode() for case in self.chosen.saved}

    @property
    def rerun(self) -> str:
        """The command that takes the id of a case to run it again."""
        return in_the_lab(self.kernel.name, self.vendor, self.append)

    def argv(self, recorded: Container[str] = ()) -> tuple[str, ...]:
        """Return the command that judges the kernel it runs on, by what is not ``recorded``."""
        saved = {case.id: saved_as(case.id) for case in self.chosen.saved}
        todo = [saved.get(name, name) for name in self.ids if name not in recorded]
        workers = f"-j{WORKERS_A_CPU * vendors.of(self.vendor).cpus}"
        asked = self.chosen.options
        if saved or asked is None or len(todo) < len(self.ids):
            asked = tuple(todo)
        return (*_told(self.vendor), *CHECK, workers, *self.options, *asked)


def saved_as(case_id: str) -> str:
    """Return the path at which the guest finds a saved case."""
    return f"/cases/{case_id}.json"


@dataclass(frozen=True, slots=True)
class Orders:
    """The same run for many kernels: what :class:`Order` has but the kernel and the vendor."""

    chosen: Chosen
    options: Sequence[str] = ()
    timeout: float = 900.0
    append: str = ""

    def of(self, kernel: Kernel, vendor: str) -> Order:
        """Return the order for one of them."""
        how = (self.options, self.timeout, self.append)
        return Order(kernel, vendor, self.chosen, *how)


def options(
    xfail: Sequence[str] = (),
    known: Sequence[str] = (),
    *,
    jobs: int | None = None,
    timeout: float | None = None,
) -> tuple[str, ...]:
    """Return the options of a check in the guest, other than its cases."""
    words = [f"-j{jobs}"] if jobs else []
    words += [f"--timeout={timeout:g}"] if timeout else []
    words += [f"--known={','.join(known)}"] if known else []
    return (*words, *(f"--xfail={glob}" for glob in xfail))


def check(order: Order, view: View, directory: Path | None = None, *, resume: bool = False) -> int:
    """Judge the kernel of the order, print, return the exit status of ``msrward check``.

    Records go to ``directory`` (None: a default one for the kernel and vendor); with ``resume``
    those that are there are continued. Trouble says why there is no verdict, LabError why nothing
    could be booted, ResultsError why the records cannot be kept or continued.
    """
    directory = directory or _default(order)
    before = load(directory) if resume and (directory / FILE).exists() else None
    with ExitStack() as stack:
        inside = _Inside(order, view, directory, stack, before)
        if before and set(order.ids) <= set(before.cases):
            return inside.finish(None)
        listener = Listener(inside.line, inside.start, inside.tick)
        damage, result = "", None
        argv = order.argv(before.cases if before else ())
        try:
            result = machine.boot(
                *(order.kernel, order.vendor, argv),
                timeout=order.timeout,
                append=order.append,
                files=order.files,
                listener=listener,
            )
        except KeyboardInterrupt:
            inside.interrupted = True
        except Damaged as error:
            damage = str(error)
        return inside.finish(result, damage)


def _default(order: Order) -> Path:
    name = f"lab-{order.kernel.release}-{order.vendor}{append.suffix(order.append)}"
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
    first: Record = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.emulator = machine.emulator_of(self.order.vendor).title
        recorded = self.before.cases if self.before else {}
        cases = self.order.chosen.cases
        asked = [case for case in cases if case.id not in recorded]
        self.claims = Claims(asked, self.order.options)
        self.done = sum(name in recorded for name in self.order.ids)
        self.progress = Progress(sys.stderr, len(self.order.ids))
        self.json = json_file(self.stack, self.view)
        self.began = time.monotonic()

    def start(self, seconds: float) -> None:
        self.boot_seconds = seconds

    def tick(self) -> None:
        if self.desk:
            self.desk.tick(())
        elif not self.view.quiet:
            doing = "starting" if self.boot_seconds is not None else "booting"
            where = f"{self.order.kernel.release} ({self.order.vendor}, {self.emulator})"
            self.progress.note(f"{doing} {where}: {time.monotonic() - self.began:.0f} s")

    def line(self, text: str) -> None:
        record, host = self.claims.take(text)
        match record["type"]:
            case "run":
                whole = {"cases": len(self.order.ids), "resumed": self.done}
                self._open({**record, **whole, "catalogue": self.order.chosen.of}, host)
            case "case":
                assert self.desk
                record |= self._file_of(record)
                first = self.before.firsts.get(record["id"]) if self.before else None
                self.desk.case(settle(first, record) if first else record)
            case "first":
                assert self.desk
                self.desk.first({**record, **self._file_of(record)})

    def _file_of(self, record: Record) -> Record:
        files = {case.id: case.file for case in self.order.chosen.saved}
        return {"file": files[record["id"]]} if record["id"] in files else {}

    def finish(self, result: LabResult | None, damage: str = "") -> int:
        """File and print the end; Trouble says what went wrong in the guest, or ``damage`` does."""
        if self.desk is None:
            known = self.before.host if self.before else {"release": self.order.kernel.release}
            self._open(self._planned(), known)
        desk = self.desk
        assert desk
        trouble = damage or (self.claims.doubt(result) if result else "")
        end = self._ended(desk, trouble)
        if result:
            end["lab"] = self._account(result)
            self._say_seconds(desk, end["lab"])
        elif damage:
            end["lab"] = {"outcome": Outcome.LOST, "reason": damage}
        desk.finish(self.first, end)
        if trouble := desk.failure or trouble:
            raise Trouble(f"{trouble}; {desk.results.where}")
        return int(end["status"])

    def _open(self, first: Record, host: Mapping[str, Any]) -> None:
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

    def _lab(self) -> Record:
        return {
            "kernel": self.order.kernel.name,
            "vendor": self.order.vendor,
            "emulator": self.emulator,
            "append": self.order.append,
            "boot_seconds": _rounded(self.boot_seconds),
        }

    def _planned(self) -> Record:
        counts = {"cases": len(self.order.ids), "catalogue": self.order.chosen.of}
        counts["resumed"] = self.done
        why = "the guest did not get that far"
        return {"type": "run", "started": round(time.time(), 3), **counts, "kernel_log": why}

    def _ended(self, desk: Desk, trouble: str) -> Record:
        """Return the end that all cases amount to, those of a run that was continued too."""
        claimed = self.claims.end
        told: dict[str, Any] = {name: claimed[name] for name in TOLD if name in claimed}
        seconds = claimed["seconds"] if claimed else time.monotonic() - self.began
        troubled = bool(trouble) or self.claims.is_troubled
        return end_record(
            desk.cases, seconds, interrupted=self.interrupted, trouble=troubled, **told
        )

    def _account(self, result: LabResult) -> Record:
        boot = result.boot_seconds
        told = {} if self.claims.end else {"console": list(result.console_tail)}
        return {
            "outcome": result.outcome,
            "reason": result.reason,
            "attempts": result.attempts,
            "boot_seconds": _rounded(boot),
            "suite_seconds": _rounded(None if boot is None else result.total_seconds - boot),
            "total_seconds": _rounded(result.total_seconds),
            **told,
        }

    def _say_seconds(self, desk: Desk, lab: Record) -> None:
        desk.progress.clear()
        if self.claims.end and self.view.is_text and not self.view.quiet:
            names = ("boot", "suite", "total")
            shown = ", ".join(f"{name} {lab[f'{name}_seconds']:.1f} s" for name in names)
            desk.out.lines([f"the lab took: {shown}"])


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
