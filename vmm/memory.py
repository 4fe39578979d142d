"""Memory of this process that a kernel is given: guest RAM, and filters placed for an ioctl."""

from __future__ import annotations

import struct
from types import TracebackType
from typing import Any, Self

from vmm._native import ffi, lib
from vmm.errors import KvmError
from vmm.filter import AtEdge, MsrFilter, MsrRange, Pointer, bitmap_size
from vmm.msr import KVM_MSR_FILTER_MAX_RANGES

PAGE = 4096
KERNEL_ADDRESS = 0xFFFF_8000_0000_0000
NATIVE_HEADER, NATIVE_RANGE = struct.Struct("<I4x"), struct.Struct("<III4xQ")


class Mapping:
    """Anonymous memory of ``size`` bytes (whole pages), unmapped by ``close``.

    ``low`` places it below 4 GiB, where a 32-bit caller can point. ``KvmError`` names mmap.
    """

    def __init__(self, size: int, *, low: bool = False) -> None:
        """Map the pages, readable, writable and zero."""
        self.size = -(-size // PAGE) * PAGE
        flags = lib.MAP_PRIVATE | lib.MAP_ANONYMOUS | lib.MAP_NORESERVE
        self._at = lib.mmap(
            ffi.NULL,
            self.size,
            lib.PROT_READ | lib.PROT_WRITE,
            flags | (lib.MAP_32BIT if low else 0),
            -1,
            0,
        )
        self.address = int(ffi.cast("uintptr_t", self._at))
        if self.address == 2**64 - 1:
            self.size = 0
            raise KvmError(ffi.errno, "mmap", f"{size} bytes")
        self.buffer: Any = ffi.buffer(self._at, self.size)

    def forbid(self, offset: int, size: int) -> None:
        """Make ``size`` bytes from ``offset`` (whole pages) inaccessible."""
        if lib.mprotect(self._at + offset, size, lib.PROT_NONE) < 0:
            raise KvmError(ffi.errno, "mprotect")

    def close(self) -> None:
        """Unmap; a second call does nothing."""
        if self.size:
            lib.munmap(self._at, self.size)
        self.size, self.buffer = 0, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


class GuestMemory(Mapping):
    """Guest RAM at guest-physical ``base``, read and written by guest-physical address."""

    def __init__(self, base: int, size: int) -> None:
        """Map ``size`` bytes for the guest-physical range from ``base``."""
        super().__init__(size)
        self.base = base

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to ``gpa``; IndexError when it does not fit."""
        start = self._offset(gpa, len(data))
        self.buffer[start : start + len(data)] = data

    def read(self, gpa: int, size: int) -> bytes:
        """Return ``size`` bytes from ``gpa``; IndexError when they are not all inside."""
        start = self._offset(gpa, size)
        return bytes(self.buffer[start : start + size])

    def _offset(self, gpa: int, size: int) -> int:
        start = gpa - self.base
        if start < 0 or start + size > self.size:
            raise IndexError(f"{size} bytes at GPA {gpa:#x} are outside the guest's memory")
        return start


class PlacedFilter:
    """A ``MsrFilter`` laid out as ``struct kvm_msr_filter`` at ``address``, until ``close``.

    ``bitmaps`` is the part of memory that holds its bitmaps, so that a case can change it.
    """

    def __init__(self, filter_: MsrFilter) -> None:
        """Lay the filter out; bitmaps are padded with zeroes to what the kernel reads."""
        self._edges: list[Mapping] = []
        # The kernel's own struct size: 8 bytes of header and 16 ranges.
        image = bytearray(NATIVE_HEADER.size + NATIVE_RANGE.size * KVM_MSR_FILTER_MAX_RANGES)
        offsets = []
        for each in filter_.ranges:
            offsets.append(len(image))
            image += _padded(each)
        self.data = image
        self._view = ffi.from_buffer("uint8_t[]", image)
        self.address = int(ffi.cast("uintptr_t", self._view))
        NATIVE_HEADER.pack_into(image, 0, filter_.flags)
        at = NATIVE_HEADER.size
        for each, offset in zip(filter_.ranges, offsets, strict=True):
            pointer = self._pointer(each, offset)
            NATIVE_RANGE.pack_into(image, at, each.flags, each.nmsrs, each.base, pointer)
            at += NATIVE_RANGE.size

    def scribble(self) -> None:
        """Invert every byte of the bitmaps (R29)."""
        start = NATIVE_HEADER.size + NATIVE_RANGE.size * KVM_MSR_FILTER_MAX_RANGES
        for at in range(start, len(self.data)):
            self.data[at] ^= 0xFF

    def close(self) -> None:
        """Unmap what a bitmap at an edge needed."""
        for edge in self._edges:
            edge.close()
        self._edges.clear()

    def _pointer(self, each: MsrRange, offset: int) -> int:
        if isinstance(each.bitmap, Pointer):
            return bad_address(each.bitmap)
        if isinstance(each.bitmap, AtEdge):
            return self._at_edge(each.bitmap.bits)
        return self.address + offset

    def _at_edge(self, bits: bytes) -> int:
        pages = -(-len(bits) // PAGE) * PAGE
        edge = Mapping(pages + PAGE)
        self._edges.append(edge)
        edge.forbid(pages, PAGE)
        edge.buffer[pages - len(bits) : pages] = bits
        return edge.address + pages - len(bits)


_UNMAPPED: list[Mapping] = []


def bad_address(pointer: Pointer) -> int:
    """Return an address of the kind: 0, an inaccessible page, or one in the kernel's half."""
    if pointer is Pointer.UNMAPPED:
        if not _UNMAPPED:
            _UNMAPPED.append(Mapping(PAGE))
            _UNMAPPED[0].forbid(0, PAGE)
        return _UNMAPPED[0].address
    return 0 if pointer is Pointer.NULL else KERNEL_ADDRESS


def _padded(each: MsrRange) -> bytes:
    if not isinstance(each.bitmap, bytes):
        return b""
    size = max(len(each.bitmap), min(bitmap_size(each.nmsrs), PAGE))
    return each.bitmap.ljust(-(-size // 8) * 8, b"\x00")
