"""Run the suite against mutants of the kernel: build each, boot it, see which cases kill it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from vmm.conformance.c.tape import is_playable
from vmm.conformance.cases import CASES
from vmm.conformance.host.told import lacks_of
from vmm.conformance.judge import runner
from vmm.conformance.judge.selection import choose
from vmm.conformance.language.case import Case
from vmm.conformance.records.status import Status
from vmm.lab import cache, processes, vendors
from vmm.lab.errors import LabError
from vmm.lab.initramfs import player
from vmm.lab.initramfs.player import Playing
from vmm.lab.kernels import build, kernels
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.kernels.source import unpack
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
    decided,
)
from vmm.lab.mutants.source import DoesNotApply, Mutant, Tree, package
from vmm.lab.runs.check import WORKERS_A_CPU
from vmm.lab.runs.claims import Damaged
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


@dataclass(frozen=True, slots=True)
class Built:
    """The image of a mutant and the seconds it took, or the compiler's complaint."""

    image: Path | None
    seconds: float
    complaint: str = ""


class Laboratory:
    """A private tree and its objects in the cache, and the controls of the machines used."""

    def __init__(self, mutants: Sequence[Mutant], options: Options) -> None:
        self.options = options
        self._objects = cache.root() / "mutants" / "objects"
        self._tree = Tree(_tree_directory(), mutants)
        self._tree.restore()
        for leftover in self._objects.parent.glob("bzImage-*"):
            leftover.unlink()

    def control(self, mutant: Mutant) -> MutantRecord:
        """Judge the source as it is the way `mutant` is; :class:`LabError` unless all passes."""
        vendor = mutant.vendor
        unchanged = replace(mutant, name="control", violates=(), changes=(), explained="")
        finding = next(self.judge([unchanged]))
        if finding.fate is not Fate.SURVIVED or not finding.ran:
            said = ", ".join(finding.killers[:5]) or finding.reason or "no case ran"
            raise LabError(f"the unchanged kernel does not pass on {vendor}: {said}")
        return finding

    def judge(self, mutants: Iterable[Mutant]) -> Iterator[MutantRecord]:
        """Build and boot mutants, each building while the one before it is judged."""
        with ProcessPoolExecutor(1, get_context("fork"), processes.die_with_parent) as booter:
            before: Future[MutantRecord] | None = None
            for mutant in mutants:
                built = self._build(mutant)
                if before:
                    yield before.result()
                before = booter.submit(_judge, mutant, built, self.options)
            if before:
                yield before.result()

    def _build(self, mutant: Mutant) -> Built:
        """Build a mutant; the tree is as before afterwards."""
        begin = time.monotonic()
        kept = self._objects.parent / f"bzImage-{mutant.digest}"
        try:
            with self._tree.mutated(mutant):
                image = build.build(self._tree.root, self._objects, jobs=self.options.jobs)
                shutil.copyfile(image, kept)
                return Built(kept, time.monotonic() - begin)
        except (build.BuildError, DoesNotApply) as error:
            return Built(None, time.monotonic() - begin, str(error))


def _judge(mutant: Mutant, built: Built, options: Options) -> MutantRecord:
    """Ask the cases of the requirements it violates first; they are few and to the point."""
    if built.image is None:
        blank = MutantRecord(mutant.name, mutant.digest, mutant.vendor, Fate.UNBUILT)
        return replace(blank, reason=built.complaint, build_seconds=round(built.seconds, 1))
    try:
        if mutant.churn:
            return _churn(mutant, built, options)
        finding = None
        if own := mutant.cases or _checked(mutant.violates):
            finding = _boot(mutant, built, own, options)
        if finding is None or (finding.fate is Fate.SURVIVED and not mutant.cases):
            finding = _boot(mutant, built, options.cases, options)
        return finding
    finally:
        built.image.unlink()


def _boot(mutant: Mutant, built: Built, cases: tuple[str, ...], options: Options) -> MutantRecord:
    collector = Collector(options.enough)
    result: LabResult | None = None
    chosen = choose(CASES, cases).cases
    is_played = player.is_there() and all(map(is_playable, chosen))
    with suppress(Enough):
        kernel = kernels.resolve(str(built.image))
        judged = _play if is_played else _check
        result = judged(kernel, mutant.vendor, chosen, collector, options)
    return conclude(mutant, collector, result, built.seconds)


def _check(
    kernel: Kernel, vendor: str, cases: Sequence[Case], collector: Collector, options: Options
) -> LabResult:
    """Have a msrward in the guest judge."""
    ids = (case.id for case in cases)
    argv = ("python3", "-m", "vmm", "check", "--json", f"--timeout={options.case_timeout:g}", *ids)
    return machine.boot(kernel, vendor, argv, on_line=collector.line, timeout=options.timeout)


def _play(
    kernel: Kernel, vendor: str, cases: Sequence[Case], collector: Collector, options: Options
) -> LabResult:
    """Judge here what a player saw in the guest; its status is that of a check."""
    row, emulated = vendors.of(vendor), not machine.emulator_of(vendor).accelerated
    jobs = WORKERS_A_CPU * row.cpus
    how = runner.Options(jobs, options.case_timeout)
    played = Played(cases, how, lacks_of(row.lacks) if emulated else {})

    def line(text: str) -> None:
        for record, _ in played.take(text):
            collector.take(record)

    try:
        result = machine.play(
            *(kernel, vendor, Playing(played.tape, jobs)),
            timeout=options.timeout,
            listener=Listener(line),
        )
    except Damaged as error:
        return LabResult(Outcome.DONE, Status.TROUBLE, (), (str(error),), None, 0.0, "")
    if result.outcome is not Outcome.DONE:
        return result
    if doubt := played.doubt(result):
        return replace(result, status=Status.TROUBLE, console_tail=(doubt,))
    return replace(result, status=Status.of(bool(played.end["splats"])))


def _churn(mutant: Mutant, built: Built, options: Options) -> MutantRecord:
    collector = Collector(options.enough)
    kernel = kernels.resolve(str(built.image))
    result = machine.boot(
        kernel, mutant.vendor, CHURN, on_line=collector.line, timeout=options.timeout
    )
    return conclude_churn(mutant, collector, result, built.seconds)


def _checked(requirements: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of the requirements that a case checks: no other is a glob of `check`."""
    checked = {requirement for case in CASES for requirement in case.requirements}
    return tuple(requirement for requirement in requirements if requirement in checked)


def _tree_directory() -> Path:
    return cache.root() / "mutants" / "tree"


@contextmanager
def laboratory(
    mutants: Sequence[Mutant], options: Options, source: Path | None = None
) -> Iterator[Laboratory]:
    """Open the laboratory, alone: a second run waits. The source is fetched the first time."""
    with cache.in_use(), cache.lock("mutants"):
        unpack(_tree_directory(), package(), source)
        yield Laboratory(mutants, options)


def run(
    lab: Laboratory,
    mutants: Sequence[Mutant],
    results: Path,
    on_finding: Callable[[MutantRecord], None],
    *,
    resume: bool = False,
) -> list[MutantRecord]:
    """Judge the mutants after their controls; each finding is written as it comes.

    With `resume` a mutant that `results` has a verdict for, and that has not changed since, is
    handed over as it was found.
    """
    known = decided(results.read_text().splitlines()) if resume and results.exists() else {}
    todo = [mutant for mutant in mutants if (mutant.name, mutant.digest) not in known]
    found = [known[key] for m in mutants if (key := (m.name, m.digest)) in known]
    for finding in found:
        on_finding(finding)
    with results.open("a" if resume else "w") as file:
        for finding in _judged(lab, todo):
            file.write(json.dumps(asdict(finding)) + "\n")
            file.flush()
            on_finding(finding)
            found.append(finding)
    return found


def _judged(lab: Laboratory, todo: Sequence[Mutant]) -> Iterator[MutantRecord]:
    if lab.options.control:
        alike = {(mutant.vendor, mutant.cases, mutant.churn): mutant for mutant in todo}
        for mutant in alike.values():
            yield lab.control(mutant)
    yield from lab.judge(todo)
