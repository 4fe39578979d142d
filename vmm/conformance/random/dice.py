"""What random scripts are made of: numbers, MSR values, filters and replies, each drawn.

All is drawn as small numbers, of which 0 is the plainest choice, from whatever can draw them: a
seeded ``random.Random``, or Hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from vmm.conformance.language import script as s
from vmm.conformance.oracle.msrs import fitting
from vmm.filter import (
    EMPTY_SLOT,
    READ,
    READ_WRITE,
    U32,
    WRITE,
    AtEdge,
    Bitmap,
    MsrFilter,
    MsrRange,
    Pointer,
    bitmap_size,
)
from vmm.msr import MAX_NMSRS

T = TypeVar("T")

A = 0x474F4F00
U64 = (1 << 64) - 1
PLACES = (A, A + 0x40, 0xC0000080, 0xC0000100, 0x174, 0x7C0, 0x800, 0x8FF, 0, 1 << 31, U32)
"""Where ranges lie: MSRs nobody knows, those that store, round the window, at the ends of u32."""

SIZES = (1, 2, 7, 8, 9, 63, 64, 65, 128, 0x100, 0x2FFF, MAX_NMSRS)
BAD_RANGES = (
    *(MsrRange(flags, A, 1, b"\0") for flags in (0, 4, 8, 1 << 31)),
    *(MsrRange(3, A, size, b"\0") for size in (MAX_NMSRS + 1, 0x4000, 1 << 31, U32)),
    *(MsrRange(3, A, 1, pointer) for pointer in Pointer),
    MsrRange(3, A, 65, AtEdge(b"\xff" * 8)),
)
IGNORED = (EMPTY_SLOT, MsrRange(0xFF, A, 0, Pointer.KERNEL))
CONTENTS = (0, 1, A, U32, 1 << 32, 1 << 63, 0x99AA_BBCC_DDEE_FF01, U64)


class Dice:
    """Draws numbers, MSR values, filters and replies; 0 is the plainest of each."""

    def __init__(self, below: Callable[[int], int]) -> None:
        """Draw with ``below(n)``, a number from 0 to n - 1."""
        self.below = below

    def one_in(self, number: int) -> bool:
        """Return True one time in ``number``."""
        return self.below(number) == number - 1

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the ``choices``."""
        return choices[self.below(len(choices))]

    def u64(self) -> int:
        """Return 64 bits, most often some that say something."""
        return self.below(U64 + 1) if self.one_in(3) else self.pick(CONTENTS)

    def value_for(self, index: int) -> int:
        """Return what MSR ``index`` can hold on every host."""
        return fitting(index, self.u64())

    def filter(self) -> MsrFilter:
        """Return a filter; most are such that a kernel accepts them."""
        ranges = [self.range() for _ in range(self.below(self.pick((3, 5, 17))))]
        if self.one_in(6):  # what is said in the last slots counts as much
            ranges = [*[self.pick(IGNORED)] * (16 - len(ranges)), *ranges]
        flags = self.pick((0, 1))
        return MsrFilter(self.pick((2, 3, U32)) if self.one_in(12) else flags, tuple(ranges))

    def spoilt(self, good: MsrFilter) -> MsrFilter:
        """Return the filter with one range in it for which a kernel must refuse it."""
        at = self.below(min(len(good.ranges) + 1, 16))
        rest = good.ranges[at : at + 15 - at]
        return MsrFilter(good.flags, (*good.ranges[:at], self.pick(BAD_RANGES), *rest))

    def range(self) -> MsrRange:
        """Return a range that a kernel accepts, or one that it ignores."""
        if self.one_in(8):
            return self.pick(IGNORED)
        nmsrs = 1 + self.below(80) if self.one_in(4) else self.pick(SIZES)
        base = (self.pick(PLACES) + self.pick((0, 1, -1)) * self.below(70)) & U32
        return MsrRange(self.pick((READ_WRITE, READ, WRITE)), base, nmsrs, self.bitmap(nmsrs))

    def bitmap(self, nmsrs: int) -> Bitmap:
        """Return a bitmap: plain, with one odd bit, with runs, without a pattern, too short."""
        size, kind = bitmap_size(nmsrs), self.below(7)
        if kind < 2:
            return (b"\0", b"\xff" * size)[kind]
        if kind == 2:
            bit = self.below(nmsrs)
            return _turning([bit, bit + 1], size)
        if kind < 5:
            return _turning([self.below(nmsrs) for _ in range(1 + self.below(4))], size)
        if kind == 5:
            return self.below(U64 + 1).to_bytes(8, "little")[: 1 + self.below(8)]
        return AtEdge(b"\x55" * size)

    def reply(self) -> s.Reply:
        """Return an answer to an exit; an error byte is rare."""
        value = self.u64() if self.one_in(3) else s.REPLY
        return s.Reply(value, self.pick((0, 0, 1, 2, 0x80, 0xFF)), self.one_in(3))


def _turning(edges: Iterable[int], size: int) -> bytes:
    """Return a bitmap that starts with allowing and changes at each of the ``edges``."""
    bits = (1 << 8 * size) - 1
    for edge in edges:
        bits ^= (1 << 8 * size) - (1 << edge)
    return bits.to_bytes(size, "little")
