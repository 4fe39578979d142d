"""Random cases of a sweep: a fresh filter of four ranges each, and accesses near their edges.

What a seed gives is the same on every host and in every run. Every access is one whose fate the
contract determines completely: of an MSR that no KVM has, or of one that only stores (R52).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import NamedTuple

from vmm.conformance.language.script import Access, Rdmsr, Reply, Wrmsr
from vmm.conformance.oracle.msrs import STORABLE, fitting
from vmm.filter import READ, READ_WRITE, WRITE, MsrFilter, MsrRange, bitmap_size
from vmm.msr import KVM_MSR_FILTER_DEFAULT_ALLOW, KVM_MSR_FILTER_DEFAULT_DENY

RANGES, RANGES_A_CHUNK = 4, 64
UNKNOWN_FIRST = 0x474F_4000
STORAGE = tuple(sorted(STORABLE))
BITS = 1 << 16
"""Bytes of random bits; a bitmap is a piece of them, and the kernel is given its address."""

WINDOWS = (
    *((UNKNOWN_FIRST, 0x200),) * 5,
    *((0xC000_0078, 0x10),) * 1,
    *((0xC000_00F8, 0x10),) * 1,
    *((0x170, 8),) * 1,
)
"""Where ranges start, within how many MSRs: they overlap often, and often hold a real MSR."""

SIZES = (1, 1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129)
FLAGS = (READ, WRITE, READ_WRITE, READ_WRITE)
DEFAULTS = (KVM_MSR_FILTER_DEFAULT_ALLOW, KVM_MSR_FILTER_DEFAULT_DENY)
VARIANTS = 8
"""How many accesses differ only in their values and replies; the lowest bit says WRMSR."""


class RandomCase(NamedTuple):
    """A case: its filter, which of the chunk's ranges that has, and the keys of its accesses."""

    filter: MsrFilter
    picked: list[int]
    keys: list[int]


class Chunk(NamedTuple):
    """Some consecutive cases; a place is where in the bits a range's bitmap lies."""

    ranges: list[MsrRange]
    places: list[int]
    cases: Iterator[RandomCase]


class Chunks:
    """All cases of ``seed``, with so many ``accesses`` each, in chunks."""

    def __init__(self, seed: int, accesses: int) -> None:
        """Make the bits that all bitmaps come from."""
        self.seed, self.accesses = seed, accesses
        self.bits = random.Random(f"{seed} sea").randbytes(BITS)

    def chunk(self, number: int, size: int) -> Chunk:
        """Return chunk ``number`` of chunks of ``size`` cases: picks from ranges of its own."""
        rng = random.Random(f"{self.seed} {self.accesses} {size} {number}")
        words = struct.unpack(f"<{RANGES_A_CHUNK}Q", rng.randbytes(8 * RANGES_A_CHUNK))
        places = [word >> 15 & BITS // 2 - 1 for word in words]
        ranges = [self._range(word, place) for word, place in zip(words, places, strict=True)]
        return Chunk(ranges, places, self._cases(rng, size, ranges))

    def _cases(self, rng: random.Random, size: int, ranges: list[MsrRange]) -> Iterator[RandomCase]:
        keys = [_keys_near(each, start) for start, each in enumerate(ranges)]
        shape = struct.Struct(f"<B{RANGES}B{self.accesses}H")
        for default, *words in shape.iter_unpack(rng.randbytes(shape.size * size)):
            picked = [word % RANGES_A_CHUNK for word in words[:RANGES]]
            filter_ = MsrFilter(DEFAULTS[default & 1], tuple([ranges[each] for each in picked]))
            near = [keys[each] for each in picked]
            yield RandomCase(
                filter_, picked, [near[w & 3][w >> 2 & 7] + (w >> 5 & 7) for w in words[4:]]
            )

    def access(self, key: int) -> Access:
        """Return the access that ``key`` stands for, always the same one."""
        index, variant = divmod(key, VARIANTS)
        rng = random.Random(f"{self.seed} access {key}")
        value, high, rcx_high = rng.getrandbits(64), rng.getrandbits(64), rng.getrandbits(32)
        error = rng.randrange(1, 256) if rng.random() < 1 / 16 else 0
        reply = Reply(rng.getrandbits(64), error, scribble=rng.random() < 1 / 8)
        if not variant & 1:
            return Rdmsr(index, value, high, rcx_high, reply)
        return Wrmsr(index, fitting(index, value), high, rcx_high, reply)

    def _range(self, word: int, place: int) -> MsrRange:
        first, span = WINDOWS[word & 7]
        nmsrs = SIZES[word >> 3 & 15] + (word >> 7 & 1) * (word >> 8 & 127)
        bits = self.bits[place : place + bitmap_size(nmsrs)]
        return MsrRange(FLAGS[word >> 30 & 3], first + (word >> 32) % span, nmsrs, bits)


def _keys_near(range_: MsrRange, start: int) -> list[int]:
    """Return keys, without variant, of eight MSRs: at and beside its edges, and ones that store."""
    base, end = range_.base, range_.base + range_.nmsrs
    stored = [STORAGE[(start + each) % len(STORAGE)] for each in range(8)]
    edges = [base - 1, base, base + range_.nmsrs // 2, end - 1, end, end + 1, *stored[:2]]
    return [index * VARIANTS for index in (edges if _is_unknown_around(base) else stored)]


def _is_unknown_around(base: int) -> bool:
    return base & ~0xFFFF == UNKNOWN_FIRST & ~0xFFFF
