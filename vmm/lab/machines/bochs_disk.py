"""The disk that Bochs boots: our boot sector, and a kernel that it reads to where boot.rst says.

Bochs has no -kernel option. A CD with a boot loader would do, but its BIOS calls are emulated
instruction by instruction; this sector reads by PIO, which Bochs does at the host's speed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vmm.lab.errors import LabError
from vmm.lab.kernels.images import BzImage

SECTOR = 512
# A cylinder of the geometry that Bochs assumes: the disk must be a multiple of it.
_CYLINDER = 16 * 63 * SECTOR
_SETUP, _COMMAND_LINE, _SYSTEM, _INITRAMFS = 0x90000, 0x9E000, 0x100000, 0x8000000
_SECTORS_PER_COMMAND = 128

# bochs_boot.S, assembled; a test assembles it again and compares.
BOOT_CODE = bytes.fromhex(
    "fa31c08ed8e4920c02e6920f0116a87c0f20c00c010f22c0bb08008ec324fe0f22c0baf603b002ee"
    "beae7cfc668b3c6685ff744f668b5c04baf2018a4408ee426689d8ee4266c1e808ee4266c1e808ee"
    "4288e00ce0ee42b020ee660fb76c086601ebec24883c0875f9b2f066b90001000067f36db2f74d75"
    "e9ff4c0a75ba83c60ceba9b800908ed88ec08ee08ee88ed0bc00e0ea000020900000000000000000"
    "ffff00000092cf000f00987c0000"
)


def disk(kernel: BzImage, initramfs: bytes, cmdline: str) -> bytes:
    """Return the image of the disk."""
    low = _low_memory(kernel.setup, len(initramfs), cmdline)
    parts = (
        (_SETUP, low, len(low) // SECTOR),
        (_SYSTEM, kernel.system, _SECTORS_PER_COMMAND),
        (_INITRAMFS, initramfs, _SECTORS_PER_COMMAND),
    )
    entries, contents = zip(*_laid_out(parts), strict=True)
    code = BOOT_CODE + b"".join(entries) + bytes(4)
    image = code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa" + b"".join(contents)
    return image + bytes(-len(image) % _CYLINDER)


def _laid_out(parts: tuple[tuple[int, bytes, int], ...]) -> Iterator[tuple[bytes, bytes]]:
    """(table entry, padded content) of each part, one behind the other after the boot sector."""
    sector = 1
    for address, content, per_command in parts:
        padded = content + bytes(-len(content) % (per_command * SECTOR))
        commands = len(padded) // (per_command * SECTOR)
        yield struct.pack("<IIHH", address, sector, per_command, commands), padded
        sector += len(padded) // SECTOR


def _low_memory(setup: bytes, initramfs_size: int, cmdline: str) -> bytes:
    """Fill in the header of the real-mode code as a boot loader does; add the command line."""
    room = _COMMAND_LINE - _SETUP
    if len(setup) > room or len(cmdline) >= SECTOR * 3:
        raise LabError("the kernel's setup code or command line is too large for Bochs; shorten it")
    code = bytearray(setup)
    code[0x210] = 0xFF  # type_of_loader: one without a number of its own
    code[0x211] |= 0x80  # loadflags: CAN_USE_HEAP
    struct.pack_into("<H", code, 0x224, room - 0x200)  # heap_end_ptr
    struct.pack_into("<I", code, 0x228, _COMMAND_LINE)  # cmd_line_ptr
    struct.pack_into("<II", code, 0x218, _INITRAMFS, initramfs_size)  # ramdisk_image, _size
    low = bytes(code).ljust(room, b"\0") + cmdline.encode() + b"\0"
    return low + bytes(-len(low) % SECTOR)
