"""Kernel images: what a bzImage says about itself, and the uncompressed kernel inside.

The uncompressed one is for QEMU, so that no emulated CPU has to decompress it. Format:
Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from vmm.conformance.records import places
from vmm.lab import cache
from vmm.lab.errors import LabError
from vmm.lab.kernels.compressed import Damaged, decompress

_MAGIC_OFFSET, _MAGIC = 0x202, b"HdrS"
_RELEASE_OFFSET = 0x20E
_PAYLOAD_FIELDS = 0x248
_HEADER = 0x268
"""Bytes up to the end of the setup header, as far as it is read here."""
_LARGEST = 512 << 20
"""Bytes of a bzImage, at most; what it does not count itself is not read."""
_NOTES = 64 << 10
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
        descriptor = places.open_regular(path)
    except OSError as error:
        raise LabError(f"cannot read the kernel image {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(_HEADER)
        split, expected = _sizes(path, data)
        data += file.read(expected - len(data))
    if len(data) < expected:
        raise LabError(f"{path} is cut short: {len(data)} of {expected} bytes")
    return BzImage(_release(data, path), data[:split], data[split:])


def _sizes(path: Path, data: bytes) -> tuple[int, int]:
    """Return where the setup ends, and where the whole does, by the image's header."""
    if len(data) < _HEADER or data[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] != _MAGIC:
        raise LabError(f"{path} is not an x86 bzImage; name arch/x86/boot/bzImage of a built tree")
    # A zero count of setup sectors means four: the oldest loaders wrote none.
    split = ((data[0x1F1] or 4) + 1) * 512
    expected = split + struct.unpack_from("<I", data, 0x1F4)[0] * 16
    if expected > _LARGEST or split < _HEADER:
        raise LabError(f"{path} says that it has {expected} bytes; is it damaged?")
    return split, expected


def _release(data: bytes, path: Path) -> str:
    (offset,) = struct.unpack_from("<H", data, _RELEASE_OFFSET)
    found = re.match(rb"\w[\w.+~-]*", data[offset + 0x200 : offset + 0x280])
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
    except Damaged:
        return None
    return found if found.stat().st_size else None


def _directory(image: Path, work: Path) -> Path:
    if image.is_relative_to(cache.root() / "kernels"):
        key = cache.sha256(image)[:16]
        return cache.entry("vmlinux", key, lambda into: _extract(image, into))
    _extract(image, work)
    return work


def _extract(image: Path, into: Path) -> None:
    """Write vmlinux, or an empty file for a kernel without a PVH entry."""
    content = decompress(_payload(read(image)))
    if not content.startswith(b"\x7fELF"):
        raise Damaged("no ELF file is in it")
    (into / "vmlinux").write_bytes(content if has_pvh_entry(content) else b"")


def _payload(image: BzImage) -> bytes:
    offset, length = struct.unpack_from("<II", image.setup, _PAYLOAD_FIELDS)
    return image.system[offset : offset + length]


def has_pvh_entry(elf: bytes) -> bool:
    """Whether the ELF notes name a 32-bit PVH entry point (CONFIG_PVH); Damaged if it has none."""
    try:
        (table,) = struct.unpack_from("<Q", elf, 0x20)
        size, count = struct.unpack_from("<HH", elf, 0x36)
        headers = [struct.unpack_from("<IIQQQQ", elf, table + size * n) for n in range(count)]
    except (struct.error, OverflowError):
        raise Damaged("its ELF headers lie beyond its end") from None
    return any(
        kind == _PT_NOTE
        and _PVH_ENTRY_NOTE in _xen_notes(elf[offset : offset + min(length, _NOTES)])
        for kind, _, offset, _, _, length in headers
    )


def _xen_notes(notes: bytes) -> set[int]:
    found = set()
    while len(notes) >= 12:
        name, content, kind = struct.unpack_from("<III", notes)
        if notes[12 : 12 + name] == b"Xen\0":
            found.add(kind)
        notes = notes[12 + (name + 3 & ~3) + (content + 3 & ~3) :]
    return found
