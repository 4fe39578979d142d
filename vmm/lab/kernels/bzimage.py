"""What a bzImage says about itself (Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from vmm.lab.errors import LabError

_MAGIC_OFFSET, _MAGIC = 0x202, b"HdrS"
_RELEASE_OFFSET = 0x20E


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
