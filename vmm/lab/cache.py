"""The lab's cache: directories that are built once, verified on every use, and safe to share.

Layout below :func:`root`: ``KIND/KEY/`` is one finished entry with a ``manifest.json`` of its
files, ``locks/`` holds one lock file per entry. Nothing outside :func:`root` is ever written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmm.lab.errors import LabError

MANIFEST = "manifest.json"
_OWN = "set MSRWARD_CACHE to a directory that you may write to"
_LOCKS, _IN_USE = "locks", "in-use"


def root() -> Path:
    """Return the cache directory: $MSRWARD_CACHE, or msrward below $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("MSRWARD_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "msrward"


class NoSpace(LabError):
    """The cache cannot be written: its disk is full, or not ours to write."""

    def __init__(self, number: int = errno.ENOSPC) -> None:
        full = number in (errno.ENOSPC, errno.EDQUOT)
        mend = "free some space (`msrward lab clean`) or set MSRWARD_CACHE" if full else _OWN
        super().__init__(f"cannot write the cache {root()}: {os.strerror(number).lower()}; {mend}")


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock `name` against every other msrward of this cache, waiting for it."""
    with _locked(name, fcntl.LOCK_EX):
        yield


@contextmanager
def in_use() -> Iterator[None]:
    """Keep `clean` of every other msrward from emptying the cache."""
    with _locked(_IN_USE, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(name: str, how: int) -> Iterator[None]:
    with no_space_in_one_line():
        path = root() / _LOCKS / f"{name.replace('/', '_')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            raise
        except OSError as error:  # NFS without its lock daemon
            why = f"nothing can be locked in the cache {root()}: {error.strerror}"
            raise LabError(f"{why}; set MSRWARD_CACHE to a directory elsewhere") from None
        yield
    finally:
        os.close(descriptor)


def entry(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the verified directory KIND/KEY.

    Where it is missing or damaged, `build` fills an empty directory, which becomes the entry
    only once it is complete: a killed run leaves nothing that looks finished.
    """
    final = root() / kind / key
    with in_use(), lock(f"{kind}-{key}"):
        if not intact(final):
            _build(final, build)
    return final


def _build(final: Path, build: Callable[[Path], None]) -> None:
    scratch = final.with_name(f".{final.name}.new")
    with no_space_in_one_line():
        try:
            for leftover in (scratch, final):
                shutil.rmtree(leftover, ignore_errors=True)
            scratch.mkdir(parents=True)
            build(scratch)
            (scratch / MANIFEST).write_text(json.dumps(_describe(scratch)))
            scratch.rename(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def intact(directory: Path) -> bool:
    """Whether every file of an entry still has the size and SHA-256 it was finished with."""
    try:
        recorded = json.loads((directory / MANIFEST).read_text())
        return bool(recorded == _describe(directory))
    except (OSError, ValueError):
        return False


def _describe(directory: Path) -> dict[str, list[int | str]]:
    files = sorted(p for p in directory.rglob("*") if p.is_file() and not p.is_symlink())
    return {
        str(path.relative_to(directory)): [path.stat().st_size, sha256(path)]
        for path in files
        if path.name != MANIFEST
    }


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries(kind: str) -> list[Path]:
    """Return the finished entries of one kind, intact or not, oldest name first."""
    return sorted(path.parent for path in (root() / kind).glob(f"*/{MANIFEST}"))


def size() -> int:
    """Bytes that the cache takes."""
    return sum(path.lstat().st_size for path in root().rglob("*") if path.is_file())


def clean() -> int:
    """Empty the cache; returns the bytes freed. :class:`LabError` while another run uses it."""
    if not root().exists():
        return 0
    freed = size()
    try:
        with _locked(_IN_USE, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for child in root().iterdir():
                shutil.rmtree(child) if child.is_dir() else child.unlink()
    except BlockingIOError:
        raise LabError(f"another run uses the cache {root()}: wait for its end") from None
    return freed


@contextmanager
def no_space_in_one_line() -> Iterator[None]:
    """Turn a full or read-only cache disk into a :class:`LabError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise NoSpace(error.errno or 0) from error
