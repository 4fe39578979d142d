"""The words for very many accesses at once: one action, and one event that says how each ended.

A list of the MSRs that hardware can pass through ages with every release, its bitmaps do not: VMX
passes 0..0x1fff and 0xc0000000..0xc0001fff through, SVM 0xc0010000..0xc0011fff too, and all else
always exits. That is little enough to look at every MSR.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Annotated, Literal

from vmm.bits import Bits, MsrIndex, u64
from vmm.conformance.language.domains import VcpuId
from vmm.conformance.language.word import Word

Count = Annotated[int, Bits(32, of="count")]
"""How many there are, at least one."""

Kind = Literal["rdmsr", "wrmsr"]
Ended = Literal["FILTER", "INVAL", "UNKNOWN", "PASSED", "GP", "STRANGE", "UNFILTERED", "WHATEVER"]
"""How an access ended: an exit's reason; without one, done or #GP(0); or anything else (STRANGE).

The last two are patterns, which only an expectation has.
"""


@dataclass(frozen=True, slots=True, repr=False)
class Sweep(Word):
    """The guest executes ``access`` of ``count`` MSRs: ``first``, ``first + stride``, and so on.

    ``value`` is what each WRMSR writes. Every exit is answered with success. Leaves one event; in
    L2 it ends with the first access that L1 gets, and leaves what L1 got.
    """

    positional = 3
    access: Kind
    first: MsrIndex
    count: Count
    stride: Count = 1
    value: u64 = 0
    vcpu: VcpuId = 0

    def __post_init__(self) -> None:
        """Refuse what names no MSR, or one of them twice."""
        if self.count < 1 or self.stride < 1 or self.count * self.stride > 1 << 32:
            raise ValueError(f"no sweep of {self.count:#x} MSRs, {self.stride:#x} apart")

    @property
    def indices(self) -> Iterator[int]:
        """The MSRs in order; after the last of 32 bits comes the first."""
        return (self.first + self.stride * number & 0xFFFF_FFFF for number in range(self.count))


@dataclass(frozen=True, slots=True, repr=False)
class Run(Word):
    """``count`` accesses of a sweep in a row, the first of MSR ``first``, that ended alike."""

    positional = 3
    first: MsrIndex
    count: Count
    ended: Ended


@dataclass(frozen=True, slots=True, repr=False)
class Swept(Word):
    """How the accesses of a sweep ended: all of them, in order, in as few runs as there can be."""

    runs: tuple[Run, ...]


def runs_of(action: Sweep, ended: Iterable[Ended]) -> Swept:
    """Return the event of a sweep whose accesses ended as ``ended`` says, one by one."""
    runs = []
    for how, group in groupby(zip(action.indices, ended, strict=True), key=lambda each: each[1]):
        same = list(group)
        runs.append(Run(same[0][0], len(same), how))
    return Swept(tuple(runs))


PATTERNS: dict[Ended, tuple[Ended, ...]] = {
    "UNFILTERED": ("PASSED", "GP", "INVAL", "UNKNOWN"),
    "WHATEVER": ("PASSED", "GP", "INVAL", "UNKNOWN", "FILTER", "UNFILTERED"),
}
"""What a pattern stands for, beside itself."""


def admits(expected: Swept, seen: Swept) -> bool:
    """Say whether every access ended as expected, or as a pattern says."""
    want, have = ([*accumulate(run.count for run in each.runs)] for each in (expected, seen))
    if want[-1:] != have[-1:] or _first(expected) != _first(seen):
        return False
    for end in sorted({*want, *have}):
        wanted = expected.runs[bisect_left(want, end)].ended
        ended = seen.runs[bisect_left(have, end)].ended
        if ended != wanted and ended not in PATTERNS.get(wanted, ()):
            return False
    return True


def _first(event: Swept) -> int | None:
    return event.runs[0].first if event.runs else None


sweep, run, swept = Sweep, Run, Swept
