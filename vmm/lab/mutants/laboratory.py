"""Run the suite against mutants of the kernel: build each, have it booted and judged by workers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vmm.lab import cache, workers
from vmm.lab.alone import Unreachable
from vmm.lab.errors import LabError
from vmm.lab.kernels import build
from vmm.lab.kernels.source import unpack
from vmm.lab.mutants import judging
from vmm.lab.mutants.findings import Fate, MutantRecord, decided
from vmm.lab.mutants.judging import Options
from vmm.lab.mutants.source import DoesNotApply, Mutant, Tree, package
from vmm.lab.workers import Workers


@dataclass(frozen=True, slots=True)
class Built:
    """The image of a mutant and the seconds it took, or the compiler's complaint."""

    image: bytes | None
    seconds: float
    complaint: str = ""


_Running = dict[Future[MutantRecord], tuple[Mutant, float]]
"""Mutants that are judged, each with the seconds that its build took."""


class Laboratory:
    """Private trees and their objects in the cache, and who judges what is built of them.

    There is a tree of each package that a mutant is of, from its first one on; `source` is a tree
    to use in place of them.
    """

    def __init__(
        self,
        mutants: Sequence[Mutant],
        options: Options,
        workers: Workers,
        source: Path | None = None,
    ) -> None:
        self.options = options
        self._workers, self._mutants, self._source = workers, mutants, source
        self._trees: dict[str, Tree] = {}

    def _tree(self, name: str) -> Tree:
        """Return the tree of a package, as it came."""
        if name not in self._trees:
            unpack(_tree_directory(name), name or package(), self._source)
            alike = [mutant for mutant in self._mutants if mutant.package == name]
            self._trees[name] = Tree(_tree_directory(name), alike)
            self._trees[name].restore()
        return self._trees[name]

    def controls(self, mutants: Iterable[Mutant]) -> Iterator[MutantRecord]:
        """Judge the source as it is the way each is; :class:`LabError` unless all passes.

        That is by the cases of the requirements that a mutant violates, too: what the unchanged
        kernel fails there would kill any mutant.
        """
        changes: dict[str, Any] = {"changes": (), "explained": ""}
        for finding in self.judge(replace(m, name="control", **changes) for m in mutants):
            if finding.fate is not Fate.SURVIVED or not finding.ran:
                said = ", ".join(finding.killers[:5]) or finding.reason or "no case ran"
                raise LabError(f"the unchanged kernel does not pass on {finding.vendor}: {said}")
            yield finding

    def judge(self, mutants: Iterable[Mutant]) -> Iterator[MutantRecord]:
        """Build mutants here, each while those before it are judged; the findings as they come."""
        running: _Running = {}
        for mutant in mutants:
            built = self._build(mutant)
            yield from self._found(running, {future for future in running if future.done()})
            if built.image is None:
                yield _blank(mutant, Fate.UNBUILT, built.complaint, built.seconds)
                continue
            while len(running) >= max(1, self._workers.jobs):
                yield from self._found(running, self._workers.first_of(running))
            future = self._workers.submit(judging.judge, mutant, built.image, self.options)
            running[future] = mutant, built.seconds
        while running:
            yield from self._found(running, self._workers.first_of(running))

    def _found(
        self, running: _Running, done: Iterable[Future[MutantRecord]]
    ) -> Iterator[MutantRecord]:
        for future in done:
            mutant, seconds = running.pop(future)
            try:
                yield replace(self._workers.result(future), build_seconds=round(seconds, 1))
            except Unreachable:
                raise
            except LabError as error:
                yield _blank(mutant, Fate.LOST, str(error), seconds)

    def _build(self, mutant: Mutant) -> Built:
        """Build a mutant; the tree is as before afterwards."""
        begin = time.monotonic()
        try:
            tree, objects = self._tree(mutant.package), _directory(mutant.package) / "objects"
            with tree.mutated(mutant):
                image = build.build(tree.root, objects, jobs=self.options.jobs)
                return Built(image.read_bytes(), time.monotonic() - begin)
        except (build.BuildError, DoesNotApply) as error:
            return Built(None, time.monotonic() - begin, str(error))


def _blank(mutant: Mutant, fate: Fate, reason: str, seconds: float) -> MutantRecord:
    seen = MutantRecord(mutant.name, mutant.digest, mutant.vendor, fate, reason=reason)
    return replace(seen, build_seconds=round(seconds, 1))


def _directory(name: str) -> Path:
    return cache.root() / "mutants" / name


def _tree_directory(name: str) -> Path:
    return _directory(name) / "tree"


@contextmanager
def laboratory(
    mutants: Sequence[Mutant],
    options: Options,
    source: Path | None = None,
    on: str | None = None,
) -> Iterator[Laboratory]:
    """Open the laboratory, alone: a second run waits. The source is fetched the first time.

    The workers of the cluster `on` judge what is built here; without one, a process here does.
    """
    with workers.of(on, 1) as found, cache.in_use(), cache.lock("mutants"):
        yield Laboratory(mutants, options, found, source)


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
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a" if resume else "w") as file:
        for finding in _judged(lab, todo):
            file.write(json.dumps(asdict(finding)) + "\n")
            file.flush()
            on_finding(finding)
            found.append(finding)
    return found


def _alike(mutants: Iterable[Mutant]) -> Iterator[Mutant]:
    """Yield one of those that are judged alike, which violates all that one of them does."""
    groups: dict[tuple[object, ...], list[Mutant]] = {}
    for m in mutants:
        groups.setdefault((m.package, m.vendor, m.cpu, m.cases, m.churn), []).append(m)
    for group in groups.values():
        violated = {requirement for mutant in group for requirement in mutant.violates}
        yield replace(group[0], violates=tuple(sorted(violated)))


def _judged(lab: Laboratory, todo: Sequence[Mutant]) -> Iterator[MutantRecord]:
    if lab.options.control:
        yield from lab.controls(_alike(todo))
    yield from lab.judge(todo)
