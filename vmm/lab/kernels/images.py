"""Kernel images: what a bzImage says about itself, and the uncompressed kernel inside.

The uncompressed one is for QEMU, so that no emulated CPU has to decompress it. Format:
Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmm.lab import cache
from vmm.lab.errors import LabError

_MAGIC_OFFSET, _MAGIC = 0x202, b"HdrS"
_RELEASE_OFFSET = 0x20E
_PAYLOAD_FIELDS = 0x248
_PVH_ENTRY_NOTE = 18
_PT_NOTE = 4


@dataclass(frozen=True, slots=True)
class BzImage:
    """The two parts of a bzImage and the release string it carries."""

    release: str
    setup: bytes
    system: bytes


def read(path: Path) -> BzImage:
    """Take a bzImage apart; a :class:`LabError` when the file is not one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabError(f"cannot read the kernel image {path}: {error.strerror}") from None
    if data[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] != _MAGIC:
        raise LabError(f"{path} is not an x86 bzImage; name arch/x86/boot/bzImage of a built tree")
    # A zero count of setup sectors means four: the oldest loaders wrote none.
    split = ((data[0x1F1] or 4) + 1) * 512
    expected = split + struct.unpack_from("<I", data, 0x1F4)[0] * 16
    if len(data) < expected:
        raise LabError(f"{path} is cut short: {len(data)} of {expected} bytes")
    return BzImage(_release(data, path), data[:split], data[split:])


def _release(data: bytes, path: Path) -> str:
    (offset,) = struct.unpack_from("<H", data, _RELEASE_OFFSET)
    found = re.match(rb"[\w.+~-]+", data[offset + 0x200 : offset + 0x280])
    if not offset or not found:
        raise LabError(f"{path} names no kernel release in its header; is it damaged?")
    return found[0].decode()


def pvh(image: Path, work: Path) -> Path | None:
    """Return the vmlinux of a bzImage if it can be started without a boot loader, else None.

    None also where the decompressor is not here: such a kernel boots as a bzImage, later. That
    of a packaged kernel is cached; that of a tree, built for one boot, is written to `work`.
    """
    try:
        found = _directory(image, work) / "vmlinux"
    except _CannotDecompress:
        return None
    return found if found.stat().st_size else None


def _directory(image: Path, work: Path) -> Path:
    if image.is_relative_to(cache.root() / "kernels"):
        key = cache.sha256(image)[:16]
        return cache.entry("vmlinux", key, lambda into: _extract(image, into))
    _extract(image, work)
    return work


class _CannotDecompress(Exception):
    pass


def _extract(image: Path, into: Path) -> None:
    """Write vmlinux, or an empty file for a kernel without a PVH entry."""
    content = _decompress(_payload(read(image)))
    if not content.startswith(b"\x7fELF"):
        raise _CannotDecompress
    (into / "vmlinux").write_bytes(content if has_pvh_entry(content) else b"")


def _payload(image: BzImage) -> bytes:
    offset, length = struct.unpack_from("<II", image.setup, _PAYLOAD_FIELDS)
    return image.system[offset : offset + length]


def _decompress(payload: bytes) -> bytes:
    decompressors: dict[bytes, Callable[[bytes], bytes]] = {
        b"\xfd7zXZ": lambda data: lzma.LZMADecompressor().decompress(data),
        b"\x1f\x8b": lambda data: gzip.decompress(data[:-4]),
        b"BZh": lambda data: bz2.BZ2Decompressor().decompress(data),
        b"]\0\0": lambda data: lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data),
        # The build appends the size of the content to these three.
        b"\x28\xb5\x2f\xfd": lambda data: _pipe("zstd", data[:-4]),
        b"\x02\x21\x4c\x18": lambda data: _pipe("lz4", data[:-4]),
    }
    for magic, decompress in decompressors.items():
        if payload.startswith(magic):
            try:
                return decompress(payload)
            except (OSError, EOFError, lzma.LZMAError, subprocess.CalledProcessError) as error:
                raise _CannotDecompress from error
    raise _CannotDecompress


def _pipe(tool: str, data: bytes) -> bytes:
    return subprocess.run([tool, "-dc"], input=data, capture_output=True, check=True).stdout


def has_pvh_entry(elf: bytes) -> bool:
    """Whether the ELF notes name a 32-bit PVH entry point (CONFIG_PVH)."""
    (table,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    for header in range(table, table + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, header)
        if kind == _PT_NOTE and _PVH_ENTRY_NOTE in _xen_notes(elf[offset : offset + length]):
            return True
    return False


def _xen_notes(notes: bytes) -> set[int]:
    found = set()
    while len(notes) >= 12:
        name, content, kind = struct.unpack_from("<III", notes)
        if notes[12 : 12 + name] == b"Xen\0":
            found.add(kind)
        notes = notes[12 + (name + 3 & ~3) + (content + 3 & ~3) :]
    return found
