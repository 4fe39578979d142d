"""Many kernels by several vendors: judge them side by side, keep what they say, go on later.

Each cell has a directory RELEASE-VENDOR with results.jsonl, as every run, and report.txt.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from vmm.conformance.judge.check import Trouble
from vmm.conformance.records import places
from vmm.conformance.records.plain import plain
from vmm.conformance.records.results import FILE, ResultsError
from vmm.conformance.records.saved import Empty, Saved, load
from vmm.conformance.report.view import View
from vmm.lab import append, processes, vendors
from vmm.lab.errors import LabError
from vmm.lab.initramfs import archive as initramfs
from vmm.lab.kernels import kernels
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines.abreast import carried
from vmm.lab.runs import check
from vmm.lab.runs.order import Order, Orders


@dataclass(frozen=True, slots=True)
class Cell:
    """One kernel on one vendor's machine, and the directory that keeps what came of it.

    `append` is what its command line has besides.
    """

    kernel: Kernel
    vendor: str
    directory: Path
    append: str = ""

    @property
    def title(self) -> str:
        """The machine: its vendor, and what is added to the kernel's command line."""
        return f"{self.vendor} {self.append}".rstrip()

    @staticmethod
    def on_record(directory: Path) -> Saved | None:
        """Return the records in a directory, None where there are none that can be read."""
        try:
            return load(directory)
        except ResultsError:
            return None

    @staticmethod
    def damage(directory: Path) -> str:
        """Return in one line what is wrong with the records in a directory; "" with none too."""
        try:
            load(directory)
        except ResultsError as error:
            is_there = not isinstance(error, Empty) and os.path.lexists(directory / FILE)
            return str(error) if is_there else ""
        return ""

    @property
    def lacks(self) -> str:
        """Why it has no records that can be read, in one line, or ""."""
        return "" if self.saved else self.damage(self.directory) or "nothing is on record"

    @property
    def saved(self) -> Saved | None:
        """Its records, None where there are none that can be read."""
        return self.on_record(self.directory)

    @property
    def finished(self) -> bool:
        """Whether it was judged to the end, or why it cannot be is on record."""
        saved = self.saved
        return bool(saved and saved.end and not saved.end["interrupted"])


def named(wish: str) -> str:
    """Return how :func:`kernels.resolve` knows what a list calls "6.12" or "newest"."""
    packaged = wish == "newest" or re.fullmatch(r"\d+([.]\d+)*", wish)
    return f"debian:{wish}" if packaged else wish


def cells(
    wishes: Iterable[str],
    vendors: Sequence[str],
    directory: Path,
    on_missing: Callable[[str, LabError], None],
    line: str = "",
) -> list[Cell]:
    """Resolve the kernels (fetching what is missing) and lay out the matrix.

    A kernel that cannot be had is handed to `on_missing`, and the rest goes on without it.
    `line` is added to every command line.
    """
    found: dict[str, Kernel] = {}
    for wish in wishes:
        try:
            kernel = kernels.resolve(named(wish))
        except LabError as error:
            on_missing(wish, error)
        else:
            found.setdefault(kernel.release, kernel)
    return [
        Cell(kernel, vendor, directory / f"{kernel.release}-{vendor}{append.suffix(line)}", line)
        for vendor in vendors
        for kernel in found.values()
    ]


class Crew(Protocol):
    """Who judges cells, several at once: processes here, or machines elsewhere."""

    @property
    def jobs(self) -> int:
        """How many at once."""

    def submit(self, cell: Cell, order: Order) -> Future[Any]:
        """Have a cell judged."""

    def first_of(self, running: Collection[Future[Any]]) -> Collection[Future[Any]]:
        """Wait for one or more that are done."""

    def received(self, cell: Cell, done: Future[Any]) -> str:
        """See that the records are in the cell's directory; return why it has no verdict."""


Judge = Callable[[Cell, Order], str]
"""Judges one cell and returns why it has no verdict, or ""; its records are in its directory."""

Team = Callable[[int | None], AbstractContextManager[Crew]]
"""Opens a crew of so many (None: as many as fit), and ends what it does if the block fails."""


@dataclass(frozen=True, slots=True)
class _Here:
    jobs: int
    pool: Executor

    def submit(self, cell: Cell, order: Order) -> Future[Any]:
        return self.pool.submit(_judge_alone, cell, order)

    def first_of(self, running: Collection[Future[Any]]) -> Collection[Future[Any]]:
        return wait(running, return_when=FIRST_COMPLETED).done

    def received(self, cell: Cell, done: Future[Any]) -> str:
        return str(done.result())


@contextmanager
def here(jobs: int | None) -> Iterator[Crew]:
    """Open a crew of processes on this machine (None: one a core, as far as the memory goes)."""
    initramfs.base()  # once, before everybody waits for it
    number = jobs or carried()
    with processes.pool(number) as pool:
        yield _Here(number, pool)


def run(
    matrix: Sequence[Cell],
    orders: Orders,
    *,
    on_cell: Callable[[Cell, str], None],
    jobs: int | None = None,
    resume: bool = False,
    team: Team = here,
) -> None:
    """Have the team judge every cell, `jobs` at once (None: as many as it does at once).

    `on_cell` gets each cell as it finishes, and one line where there is no verdict. With `resume`
    a cell that is finished is handed over without a boot.
    """
    finished = [cell for cell in matrix if resume and cell.finished]
    for cell in finished:
        on_cell(cell, "")
    todo = sorted((cell for cell in matrix if cell not in finished), key=_comes_late)
    while todo:
        suspects, todo = _side_by_side(todo, orders, on_cell, team, jobs)
        for cell in suspects:  # which of them ended its process, and so the others, is not known
            if _side_by_side([cell], orders, on_cell, team, 1)[0]:
                on_cell(cell, "the process that judged it died")


def _comes_late(cell: Cell) -> bool:
    # A suite takes Bochs three times as long as QEMU: begun last, all would wait for one machine.
    return vendors.of(cell.vendor).emulator != "bochs"


def _side_by_side(
    todo: Sequence[Cell],
    orders: Orders,
    on_cell: Callable[[Cell, str], None],
    team: Team,
    jobs: int | None,
) -> tuple[list[Cell], list[Cell]]:
    """Judge cells until all are, or a process dies: then return those under way and the rest."""
    left, running = list(todo), dict[Future[Any], Cell]()
    with team(jobs) as crew:
        while left or running:
            try:
                while left and len(running) < max(1, crew.jobs):
                    order = orders.of(left[0].kernel, left[0].vendor)
                    running[crew.submit(left[0], order)] = left[0]
                    del left[0]
                for future in crew.first_of(running):
                    on_cell(running[future], crew.received(running[future], future))
                    del running[future]
            except BrokenProcessPool:
                break
    return list(running.values()), left


def _judge_alone(cell: Cell, order: Order) -> str:
    return processes.interruptibly(lambda: judge(cell, order))


def judge(cell: Cell, order: Order) -> str:
    """Judge one cell; what a person would read goes to report.txt. Return why it has no verdict."""
    with _report(cell) as report, Path(os.devnull).open("w") as nothing:
        try:
            with redirect_stdout(report), redirect_stderr(nothing):
                check.check(order, View(), cell.directory)
        except (Trouble, LabError, ResultsError) as error:
            report.write(f"msrward: {plain(str(error))}\n")
            return str(error)
    return ""


@contextmanager
def _report(cell: Cell) -> Iterator[TextIO]:
    with places.directory(cell.directory) as held:
        file = os.fdopen(places.create("report.txt", held), "w", errors="backslashreplace")
        with file:
            yield file


def default_directory() -> Path:
    """Return a directory for a new matrix, named by the time."""
    return Path(time.strftime("msrward-matrix-%Y%m%d-%H%M%S"))
