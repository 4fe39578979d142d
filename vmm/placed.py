"""A filter placed in this process's memory, as ``KVM_X86_SET_MSR_FILTER`` is given it."""

from __future__ import annotations

import errno
import struct
from typing import Any, NamedTuple

from vmm._native import ffi
from vmm.errors import Closed
from vmm.filter import AtEdge, MsrFilter, MsrRange, Pointer, bitmap_bytes
from vmm.memory import PAGE, Mapping
from vmm.msr import KVM_MSR_FILTER_MAX_RANGES

KERNEL_ADDRESS = 0xFFFF_8000_0000_0000


class Layout(NamedTuple):
    """How ``struct kvm_msr_filter`` is laid out: its flags, and each of its ranges."""

    header: struct.Struct
    range: struct.Struct
    has_holes: bool
    """Each of the two has 4 bytes of padding: what comes before a 64-bit pointer."""

    @property
    def size(self) -> int:
        """Return the bytes of the struct, which stand in the ioctl's number."""
        return self.header.size + self.range.size * KVM_MSR_FILTER_MAX_RANGES


NATIVE = Layout(struct.Struct("<I4x"), struct.Struct("<III4xQ"), has_holes=True)
COMPAT = Layout(struct.Struct("<I"), struct.Struct("<IIII"), has_holes=False)
HOLE = b"\xa5" * 4
"""The 32-bit layout: the bitmap's pointer has 32 bits, and nothing is padded."""
GAP = 1
"""Bytes between struct and bitmaps: a bitmap is of bytes, and none starts where a long would."""


class Missing(NamedTuple):
    """In place of slot ``slot``'s bitmap: ``address``, where somebody else will put it."""

    slot: int
    address: int


class PlacedFilter:
    """A ``MsrFilter`` laid out at ``address``, until ``close``.

    ``low`` places all of it below 4 GiB. Bitmaps are padded with zeroes to what the kernel reads.
    """

    def __init__(
        self,
        filter_: MsrFilter,
        layout: Layout = NATIVE,
        *,
        low: bool = False,
        missing: Missing | None = None,
    ) -> None:
        """Lay the filter out."""
        if not isinstance(filter_, MsrFilter):
            raise TypeError(f"a filter is a MsrFilter, not {filter_!r}")
        self._mappings: list[Mapping] = []
        self._is_open = True
        self._low, self._missing, self._layout = low, missing, layout
        bitmaps = [bitmap_bytes(each) for each in filter_.ranges]
        self.size = layout.size + GAP + sum(map(len, bitmaps))
        self.data, self._address = self._storage()
        layout.header.pack_into(self.data, 0, filter_.flags)
        slot_at, bitmap_at = layout.header.size, layout.size + GAP
        for slot, (each, bits) in enumerate(zip(filter_.ranges, bitmaps, strict=True)):
            pointer = self._pointer(slot, each, bitmap_at)
            layout.range.pack_into(self.data, slot_at, each.flags, each.nmsrs, each.base, pointer)
            self.data[bitmap_at : bitmap_at + len(bits)] = bits
            slot_at += layout.range.size
            bitmap_at += len(bits)

    def scribble(self) -> None:
        """Invert every byte of the bitmaps (R29)."""
        self._must_be_open("scribble")
        bitmaps = bytes(self.data[self._layout.size : self.size])
        self.data[self._layout.size : self.size] = bytes(each ^ 0xFF for each in bitmaps)

    def fill_holes(self) -> None:
        """Have garbage in the struct's padding, as a caller has whose compiler leaves it alone."""
        self._must_be_open("fill_holes")
        header, each = self._layout.header.size, self._layout.range.size
        ends = (header, *range(header + each, self._layout.size + 1, each))
        for end in ends if self._layout.has_holes else ():
            at = end - len(HOLE) - (8 if end > header else 0)
            self.data[at : at + len(HOLE)] = HOLE

    def close(self) -> None:
        """Unmap what had to be mapped; a second call does nothing."""
        self._is_open = False
        for mapping in self._mappings:
            mapping.close()
        self._mappings.clear()

    @property
    def address(self) -> int:
        """Where the kernel finds it; ``Closed`` once it is closed."""
        self._must_be_open("address")
        return self._address

    def _must_be_open(self, name: str) -> None:
        if not self._is_open:
            raise Closed(errno.EBADF, name, "this filter is closed: place it anew")

    def _storage(self) -> tuple[Any, int]:
        if self._low:
            return self._mapping(self.size).buffer, self._mappings[-1].address
        data = bytearray(self.size)
        self._view = ffi.from_buffer("uint8_t[]", data)
        return data, int(ffi.cast("uintptr_t", self._view))

    def _mapping(self, size: int) -> Mapping:
        self._mappings.append(Mapping(size, low=self._low))
        return self._mappings[-1]

    def _pointer(self, slot: int, each: MsrRange, bitmap_at: int) -> int:
        if self._missing and self._missing.slot == slot:
            return self._missing.address
        if isinstance(each.bitmap, Pointer):
            return bad_address(each.bitmap)
        if isinstance(each.bitmap, AtEdge):
            return self._at_edge(each.bitmap.bits)
        return self._address + bitmap_at

    def _at_edge(self, bits: bytes) -> int:
        pages = -(-len(bits) // PAGE) * PAGE
        edge = self._mapping(pages + PAGE)
        edge.forbid(pages, PAGE)
        edge.buffer[pages - len(bits) : pages] = bits
        return edge.address + pages - len(bits)


_UNMAPPED: list[Mapping] = []


def bad_address(pointer: Pointer) -> int:
    """Return an address of the kind: 0, an inaccessible page below 4 GiB, or one of the kernel."""
    if pointer is Pointer.UNMAPPED:
        if not _UNMAPPED:
            _UNMAPPED.append(Mapping(PAGE, low=True))
            _UNMAPPED[0].forbid(0, PAGE)
        return _UNMAPPED[0].address
    return 0 if pointer is Pointer.NULL else KERNEL_ADDRESS
