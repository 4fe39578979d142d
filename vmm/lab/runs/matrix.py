"""Many kernels by several vendors: judge them side by side, keep what they say, go on later.

Each cell has a directory RELEASE-VENDOR with results.jsonl, as every run, and report.txt.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

from vmm.conformance.judge.check import Trouble
from vmm.conformance.records.results import ResultsError
from vmm.conformance.records.saved import Saved, load
from vmm.conformance.report.desk import View
from vmm.lab import append
from vmm.lab.errors import LabError
from vmm.lab.initramfs import archive as initramfs
from vmm.lab.kernels import kernels
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.runs import check

_PR_SET_PDEATHSIG = 1
_PATIENCE = 10.0
"""Seconds that a process has to take its emulator away."""


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


def run(
    matrix: Sequence[Cell],
    orders: check.Orders,
    *,
    on_cell: Callable[[Cell, str], None],
    jobs: int | None = None,
    resume: bool = False,
) -> None:
    """Judge every cell, `jobs` at once (default: one a core).

    `on_cell` gets each cell as it finishes, and one line where there is no verdict. With `resume`
    a cell that is finished is handed over without a boot.
    """
    finished = [cell for cell in matrix if resume and cell.finished]
    for cell in finished:
        on_cell(cell, "")
    initramfs.base()  # once, before everybody waits for it
    todo = [cell for cell in matrix if cell not in finished]
    running: dict[Connection, _Judged] = {}
    try:
        while todo or running:
            while todo and len(running) < (jobs or os.cpu_count() or 1):
                judged = _Judged(todo[0], orders.of(todo[0].kernel, todo.pop(0).vendor))
                running[judged.answer] = judged
            for answer in wait(list(running)):
                judged = running.pop(cast(Connection, answer))
                on_cell(judged.cell, judged.result())
    finally:
        for judged in running.values():
            judged.process.terminate()
        for judged in running.values():
            judged.end()


class _Judged:
    """A cell that is being judged in a process of its own, which ends with this one."""

    def __init__(self, cell: Cell, order: check.Order) -> None:
        self.cell = cell
        self.answer, theirs = Pipe(duplex=False)
        self.process = get_context("fork").Process(target=_judge_alone, args=(cell, order, theirs))
        self.process.start()
        theirs.close()

    def result(self) -> str:
        """Return what `judge` did, or that its process died."""
        try:
            said = str(self.answer.recv())
        except EOFError:
            self.process.join()
            said = f"the process that judged it ended with {self.process.exitcode}"
        self.end()
        return said

    def end(self) -> None:
        """Wait for the process; one that does not come is killed."""
        self.process.join(_PATIENCE)
        self.process.kill()
        self.process.join()
        self.answer.close()


def _judge_alone(cell: Cell, order: check.Order, answer: Connection) -> None:
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; we are told
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        answer.send(judge(cell, order))
    except KeyboardInterrupt:
        os._exit(1)


def judge(cell: Cell, order: check.Order) -> str:
    """Judge one cell; what a person would read goes to report.txt. Return why it has no verdict."""
    cell.directory.mkdir(parents=True, exist_ok=True)
    with (cell.directory / "report.txt").open("w") as report, Path(os.devnull).open("w") as nothing:
        try:
            with redirect_stdout(report), redirect_stderr(nothing):
                check.check(order, View(), cell.directory)
        except (Trouble, LabError, ResultsError) as error:
            report.write(f"msrward: {error}\n")
            return str(error)
    return ""


def default_directory() -> Path:
    """Return a directory for a new matrix, named by the time."""
    return Path(time.strftime("msrward-matrix-%Y%m%d-%H%M%S"))


def _die_with_parent() -> None:
    """End a worker with its parent; the emulator in turn ends with the worker."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
