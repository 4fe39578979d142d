"""Write cpio archives in the "newc" format that the kernel unpacks as an initramfs.

Format: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class Member:
    """One file: its path without a leading slash, its full mode, its content.

    `device` is the (major, minor) of a device node; a symlink's content is its target.
    """

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(path: str, content: bytes, *, executable: bool = False) -> Member:
    """Return a regular file."""
    return Member(path, stat.S_IFREG | (0o755 if executable else 0o644), content)


def link(path: str, target: str) -> Member:
    """Return a symbolic link."""
    return Member(path, stat.S_IFLNK | 0o777, target.encode())


def directory(path: str) -> Member:
    """Return a directory."""
    return Member(path, stat.S_IFDIR | 0o755)


def character_device(path: str, major: int, minor: int) -> Member:
    """Return a character device node."""
    return Member(path, stat.S_IFCHR | 0o600, b"", (major, minor))


def pack(members: Iterable[Member]) -> bytes:
    """Return the archive: every member once, after the directories that it lies in."""
    ordered: dict[str, Member] = {}
    for member in members:
        for parent in reversed(PurePosixPath(member.path).parents[:-1]):
            ordered.setdefault(str(parent), directory(str(parent)))
        ordered[member.path] = member
    records = [_record(number, member) for number, member in enumerate(ordered.values(), 1)]
    return b"".join((*records, _record(0, Member("TRAILER!!!", 0))))


def _record(inode: int, member: Member) -> bytes:
    name = member.path.encode() + b"\0"
    links, owner, time, checksum = 1, 0, 0, 0
    fields = (
        *(inode, member.mode, owner, owner, links, time, len(member.content)),
        *(0, 0, *member.device, len(name), checksum),
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(member.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
