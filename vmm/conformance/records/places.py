"""Files that are written in a directory, and files that are read, whatever lies there already.

What is written is created new, in a directory that is held by its descriptor: no symbolic link is
followed. What is read is a regular file of a bounded size: nothing is waited for.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MOST = 64 << 20
"""Bytes of a file of records, at most, read or written."""

_READ = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class NotRegular(OSError):
    """What is there is a device, a FIFO, a directory: nothing to read records from."""

    def __init__(self) -> None:
        super().__init__(errno.EINVAL, "it is no regular file")


class TooLarge(OSError):
    """The file is larger than what is ever written."""

    def __init__(self, most: int) -> None:
        super().__init__(errno.EFBIG, f"it is larger than {most >> 20} MiB")


def open_directory(path: Path) -> int:
    """Return a descriptor of the directory, made if need be; OSError if it is a symbolic link."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _said(error, path) from None


@contextmanager
def directory(path: Path) -> Iterator[int]:
    """Hold ``open_directory(path)`` open."""
    descriptor = open_directory(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def create(name: str, directory: int, how: int = os.O_WRONLY) -> int:
    """Return a descriptor of a new file of the directory; what had the name is gone."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    flags = how | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o644, dir_fd=directory)


def keep(name: str, other: str, directory: int) -> None:
    """Give a file of the directory another name; what had that is gone."""
    os.rename(name, other, src_dir_fd=directory, dst_dir_fd=directory)


def append(name: str, directory: int, text: str) -> None:
    """Add the text to a file of the directory, which is made if need be and is no link."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | _READ
    with os.fdopen(os.open(name, flags, 0o644, dir_fd=directory), "w") as file:
        file.write(text)


def write_new(path: Path, text: str) -> None:
    """Write a text as a new file; what cannot be encoded is written as an escape."""
    with directory(path.parent) as held:
        file = os.fdopen(create(path.name, held), "w", encoding="utf-8", errors="backslashreplace")
        with file:
            file.write(text)


def open_regular(name: str | Path, how: int = os.O_RDONLY, directory: int | None = None) -> int:
    """Return a descriptor of a file that is there; with ``directory``, of that and no link."""
    flags = how | _READ | (0 if directory is None else os.O_NOFOLLOW)
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        raise _said(error, Path(name)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular
    return descriptor


def read(descriptor: int, most: int = MOST) -> bytes:
    """Return all of an open file; TooLarge, without having read it, if that is too much."""
    if os.fstat(descriptor).st_size > most:
        raise TooLarge(most)
    parts, left = [], most + 1  # it may grow meanwhile
    while left > 0 and (part := os.read(descriptor, min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise TooLarge(most)
    return b"".join(parts)


def read_regular(path: Path, most: int = MOST) -> bytes:
    """Return the content of a regular file; OSError says why not."""
    descriptor = open_regular(path)
    try:
        return read(descriptor, most)
    finally:
        os.close(descriptor)


def is_gone(descriptor: int) -> bool:
    """Say whether an open file has no name any more."""
    return os.fstat(descriptor).st_nlink == 0


def _said(error: OSError, path: Path) -> OSError:
    if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
        return OSError(error.errno, "it is a symbolic link, and none is followed here")
    return error
