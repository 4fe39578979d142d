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
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from vmm.conformance.check import Trouble
from vmm.conformance.report.desk import View
from vmm.conformance.report.saved import Saved, load
from vmm.conformance.results import ResultsError
from vmm.lab import check, initramfs, kernels
from vmm.lab.errors import LabError
from vmm.lab.kernels import Kernel

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Cell:
    """One kernel on one vendor's machine, and the directory that keeps what came of it."""

    kernel: Kernel
    vendor: str
    directory: Path

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
) -> list[Cell]:
    """Resolve the kernels (fetching what is missing) and lay out the matrix.

    A kernel that cannot be had is handed to `on_missing`, and the rest goes on without it.
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
        Cell(kernel, vendor, directory / f"{kernel.release}-{vendor}")
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
    with ProcessPoolExecutor(
        jobs or os.cpu_count() or 1, get_context("fork"), initializer=_die_with_parent
    ) as pool:
        todo = [cell for cell in matrix if cell not in finished]
        futures = {pool.submit(judge, c, orders.of(c.kernel, c.vendor)): c for c in todo}
        try:
            for future in as_completed(futures):
                on_cell(futures[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
