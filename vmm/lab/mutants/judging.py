"""Judge one mutant: boot the kernel that was built of it, and see which cases kill it.

Here or on the worker of a cluster: what comes is an image as bytes, what goes is a record.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vmm.conformance.c.tape import is_playable
from vmm.conformance.cases import CASES
from vmm.conformance.contract.reach import lacking
from vmm.conformance.host.told import lacks_of
from vmm.conformance.judge import recording
from vmm.conformance.judge.selection import choose
from vmm.conformance.language.case import Case
from vmm.conformance.records.status import Status
from vmm.lab import vendors
from vmm.lab.initramfs import player
from vmm.lab.initramfs.player import Playing
from vmm.lab.kernels import kernels
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.machines.emulation import Listener
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.mutants.findings import (
    Collector,
    Enough,
    Fate,
    MutantRecord,
    conclude,
    conclude_churn,
)
from vmm.lab.mutants.source import Mutant
from vmm.lab.runs.claims import Damaged
from vmm.lab.runs.order import WORKERS_A_CPU
from vmm.lab.runs.played import Played

THEMES = tuple(
    f"{theme}.*"
    for theme in (
        *("rollback", "validation", "matching", "bitmaps", "slots", "masks", "exits"),
        *("completion", "reentry", "scope", "x2apic", "vcpus", "stalled", "locks", "parked"),
        *("overtaken", "running", "passthrough", "teardown", "compat"),
    )
)
"""What a survivor of its own requirements' cases has to face; and what the control has to pass."""


CHURN = (
    *("python3", "-m", "vmm", "churn", "--rounds=1"),
    *("--installs=3000", "--vms=1000"),
)
"""Enough to tell 64 bytes an operation from a quiet guest's own needs, in a minute."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run: seconds for a case and for a boot, killers that are enough (0: find all)."""

    case_timeout: float = 10.0
    timeout: float = 300.0
    enough: int = 5
    jobs: int | None = None
    cases: tuple[str, ...] = THEMES
    control: bool = True


def judge(mutant: Mutant, image: bytes, options: Options) -> MutantRecord:
    """Boot what was built of a mutant, and return its record.

    What the history explains, and the unchanged kernel has no fix for, is not the mutant's doing,
    and kills nobody.

    The cases of the requirements that it violates are asked first; they are few and to the point.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "bzImage")
        path.write_bytes(image)
        return _judged(mutant, kernels.resolve(str(path)), options)


def _judged(mutant: Mutant, kernel: Kernel, options: Options) -> MutantRecord:
    if mutant.churn:
        return _churn(mutant, kernel, options)
    finding = None
    if own := mutant.cases or _checked(mutant.violates):
        finding = _boot(mutant, kernel, own, options)
    if finding is None or (finding.fate is Fate.SURVIVED and not mutant.cases):
        finding = _boot(mutant, kernel, options.cases, options)
    return finding


def _boot(mutant: Mutant, kernel: Kernel, cases: tuple[str, ...], options: Options) -> MutantRecord:
    collector = Collector(options.enough)
    result: LabResult | None = None
    chosen = choose(CASES, cases).cases
    if not mutant.cases:  # a long one may take longer than a case has here: it killed any mutant
        chosen = [case for case in chosen if not case.thorough]
    is_played = player.is_there() and all(map(is_playable, chosen))
    with suppress(Enough):
        judged = _play if is_played else _check
        result = judged(kernel, mutant, chosen, collector, options)
    return conclude(mutant, collector, result)


def _check(
    kernel: Kernel, mutant: Mutant, cases: Sequence[Case], collector: Collector, options: Options
) -> LabResult:
    """Have a msrward in the guest judge."""
    ids = (case.id for case in cases)
    known = ",".join(lacking(mutant.release))
    how = ("--json", f"--known={known}", f"--timeout={options.case_timeout:g}")
    argv = ("python3", "-m", "vmm", "check", *how, *ids)
    return machine.boot(
        *(kernel, mutant.vendor, argv),
        on_line=collector.line,
        timeout=options.timeout,
        cpu=mutant.cpu,
    )


def _play(
    kernel: Kernel, mutant: Mutant, cases: Sequence[Case], collector: Collector, options: Options
) -> LabResult:
    """Judge here what a player saw in the guest; its status is that of a check."""
    row = vendors.of(mutant.vendor)
    emulated = not machine.emulator_of(mutant.vendor).accelerated
    jobs = WORKERS_A_CPU * row.cpus
    how = recording.Options(
        jobs, options.case_timeout, known=lacking(mutant.release), vendor=row.module
    )
    played = Played(cases, how, lacks_of(row.lacks) if emulated else {})

    def line(text: str) -> None:
        for record, _ in played.take(text):
            collector.take(record)

    try:
        result = machine.play(
            *(kernel, mutant.vendor, Playing(played.tape, jobs)),
            timeout=options.timeout,
            cpu=mutant.cpu,
            listener=Listener(line),
        )
    except Damaged as error:
        return LabResult(Outcome.DONE, Status.TROUBLE, (), (str(error),), None, 0.0, "")
    if result.outcome is not Outcome.DONE:
        return result
    if doubt := played.doubt(result):
        return replace(result, status=Status.TROUBLE, console_tail=(doubt,))
    return replace(result, status=Status.of(bool(played.end and played.end["splats"])))


def _churn(mutant: Mutant, kernel: Kernel, options: Options) -> MutantRecord:
    collector = Collector(options.enough)
    result = machine.boot(
        *(kernel, mutant.vendor, CHURN),
        on_line=collector.line,
        timeout=options.timeout,
        cpu=mutant.cpu,
    )
    return conclude_churn(mutant, collector, result)


def _checked(requirements: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of the requirements that a case checks: no other is a glob of `check`."""
    checked = {requirement for case in CASES for requirement in case.requirements}
    return tuple(requirement for requirement in requirements if requirement in checked)
