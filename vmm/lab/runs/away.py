"""A cell that is judged on another machine: what goes there, and what comes back.

Nothing is shared but a connection. The kernel goes there as bytes, which the cache there keeps; the
files that the run leaves come back as bytes, and are written here once, when all of them are here.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vmm.conformance.records import places
from vmm.lab import alone, cache
from vmm.lab.cluster import Cluster, cluster
from vmm.lab.errors import LabError
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.runs import matrix
from vmm.lab.runs.matrix import Cell
from vmm.lab.runs.order import Order

_IMAGE = "vmlinuz"


@dataclass(frozen=True, slots=True)
class Parcel:
    """A kernel on its way: what it is called, its release, and its image and modules by name."""

    name: str
    release: str
    files: tuple[tuple[str, bytes], ...]

    @staticmethod
    def of(kernel: Kernel) -> Parcel:
        """Return a kernel as bytes; LabError if its files cannot be read."""
        try:
            modules = [(path.name, path.read_bytes()) for path in kernel.modules]
            image = (_IMAGE, kernel.image.read_bytes())
        except OSError as error:
            raise LabError(f"cannot read {kernel.name}: {error}") from None
        return Parcel(kernel.name, kernel.release, (image, *modules))

    def unpacked(self) -> Kernel:
        """Return the kernel, whose files are in the cache then."""
        digest = hashlib.sha256()
        for name, content in self.files:
            digest.update(f"{name}\0{len(content)}\0".encode() + content)

        def fill(into: Path) -> None:
            for name, content in self.files:
                (into / name).write_bytes(content)

        place = cache.entry("sent", f"{self.release}-{digest.hexdigest()[:16]}", fill)
        (image, *modules) = (place / name for name, _ in self.files)
        return Kernel(self.name, self.release, image, tuple(modules))


@dataclass(frozen=True, slots=True)
class Returned:
    """What a cell left: the line that says why it has no verdict, or "", and its files."""

    trouble: str
    files: tuple[tuple[str, bytes], ...]


def judge_there(parcel: Parcel, order: Order, vendor: str, append: str, home: str) -> Returned:
    """Judge a cell, whose records will be kept at `home`, on the machine that this runs on."""
    try:
        kernel = parcel.unpacked()
    except LabError as error:
        return Returned(str(error), ())
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, "cell")
        trouble = matrix.judge(Cell(kernel, vendor, place, append), replace(order, kernel=kernel))
        found = sorted(place.iterdir()) if place.is_dir() else []
        files = [(path.name, path.read_bytes()) for path in found if path.is_file()]

    def moved(content: bytes) -> bytes:
        return content.replace(str(place).encode(), home.encode(errors="surrogateescape"))

    said = trouble.replace(str(place), home)
    return Returned(said, tuple((name, moved(content)) for name, content in files))


@dataclass(frozen=True, slots=True)
class Away:
    """Judges cells on the workers of a cluster; ``matrix.here`` does on this machine.

    `most` is how many at once, None for as many as the workers do.
    """

    cluster: Cluster
    most: int | None = None

    @property
    def jobs(self) -> int:
        """How many cells at once now: workers come and go."""
        return min(self.cluster.jobs, self.most or sys.maxsize)

    @contextmanager
    def team(self, jobs: int | None) -> Iterator[Away]:
        """Open it for `jobs` at once; the cluster ends what it does, where it was connected."""
        yield replace(self, most=jobs)

    def submit(self, cell: Cell, order: Order) -> Future[Returned]:
        """Send a cell: no path of this machine goes along, but what its records will be called."""
        sent = replace(order, kernel=replace(cell.kernel, image=Path(), modules=()))
        where = (cell.vendor, cell.append, str(cell.directory))
        return self.cluster.submit(judge_there, Parcel.of(cell.kernel), sent, *where)

    def first_of(self, running: Collection[Future[Returned]]) -> set[Future[Returned]]:
        """Wait for one or more that are done; LabError if no worker is left to do any."""
        return self.cluster.first_of(running)

    def received(self, cell: Cell, done: Future[Returned]) -> str:
        """Write what came back to the cell's directory; return why it has no verdict."""
        try:
            returned = self.cluster.result(done)
        except alone.Died as error:
            return str(error)
        with places.directory(cell.directory) as held:
            for name, content in returned.files:
                with os.fdopen(places.create(name, held), "wb") as file:
                    file.write(content)
        return returned.trouble

    def judge(self, cell: Cell, order: Order) -> str:
        """Judge one cell and wait for it, as ``matrix.judge`` does here."""
        done = self.submit(cell, order)
        self.first_of([done])
        return self.received(cell, done)


@contextmanager
def team(address: str | None) -> Iterator[matrix.Team]:
    """Return who judges cells: the workers of the cluster at `address`, or this machine."""
    if address is None:
        yield matrix.here
        return
    with cluster(address) as found:
        yield Away(found).team


@contextmanager
def judge(address: str | None) -> Iterator[tuple[matrix.Judge, int | None]]:
    """Return what judges a cell, and how many at once a cluster does (None: it is done here)."""
    if address is None:
        yield matrix.judge, None
        return
    with cluster(address) as found:
        yield Away(found).judge, found.jobs
