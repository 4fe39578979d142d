"""What a stress does: accesses, filters to swap, and which outcomes each filter permits.

All of it follows from the seed. The filters are shaped so that some MSRs are alike in all of them
(however differently they say it), some are not, some are in no range; failing filters say the
opposite of all others before the range that makes them fail.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmm.conformance.language.script import (
    Access,
    Rdmsr,
    Step,
    Wrmsr,
    enable_exits,
    gp,
    install,
    unfiltered,
    whatever,
)
from vmm.conformance.oracle.installs import REPORTED
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import STORABLE, is_unknown_to_kvm
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import (
    READ,
    READ_WRITE,
    WRITE,
    MsrFilter,
    MsrRange,
    Pointer,
    bitmap_size,
)
from vmm.msr import FILTER, INVAL, MAX_NMSRS, UNKNOWN, Msr, MsrExitReason

OUTCOMES = ("completed", "#GP", "FILTER exit", "UNKNOWN exit", "INVAL exit", "another exit")
"""How an access ends, in the order of the shim's numbers."""

COMPLETED, FAULTED, FILTERED, UNKNOWN_EXIT, INVAL_EXIT, STRANGE = range(6)
EXITS = {FILTER: FILTERED, UNKNOWN: UNKNOWN_EXIT, INVAL: INVAL_EXIT}
UNFILTERED = frozenset({COMPLETED, FAULTED, UNKNOWN_EXIT, INVAL_EXIT})

REPLY = 0x5A3C
"""What RDMSR exits are answered with; guest registers hold nothing else, so WRMSR writes it.

All MSRs of ``STORABLE`` hold it: IA32_SYSENTER_CS has 16 bits on AMD.
"""

UNKNOWN_BASES = 0x474F_4F00, 0x1000_0000, 0x8765_4300, 0xDEAD_BE00, 0x7FFF_FF80, 0x0003_0040
CLUSTER = 64
SYSCALLS = range(Msr.STAR, Msr.SYSCALL_MASK + 1)
BASES = range(Msr.FS_BASE, Msr.KERNEL_GS_BASE + 1)
SYSENTERS = range(Msr.IA32_SYSENTER_CS, Msr.IA32_SYSENTER_EIP + 1)

Bits = dict[int, bytes]
"""For READ and for WRITE, the bitmap of a cluster of consecutive MSRs."""


@dataclass(frozen=True)
class Plan:
    """One stress: the mask, its accesses, and the filters that are accepted and refused.

    ``table[access][filter]`` has the outcomes that ``filters[filter]`` permits; ``refused`` pairs
    each filter that must fail with its errno. ``schedule`` is the order of the installs: numbers of
    filters, the refused ones counted on.
    """

    seed: int
    mask: MsrExitReason
    accesses: tuple[Access, ...]
    filters: tuple[MsrFilter, ...]
    refused: tuple[tuple[MsrFilter, int], ...]
    table: dict[Access, tuple[frozenset[int], ...]]
    schedule: tuple[int, ...]

    def permits(self, access: Access, outcome: int) -> int:
        """Return a bit for each filter under which ``access`` may end with ``outcome``."""
        return sum(1 << n for n, some in enumerate(self.table[access]) if outcome in some)

    def is_alike(self, access: Access) -> bool:
        """Say whether all filters treat ``access`` alike (R70: it never changes behaviour)."""
        return len(set(self.table[access])) == 1


def plan(seed: int, *, model: Model | None = None, filters: int = 5, accesses: int = 256) -> Plan:
    """Return the stress of ``seed``; up to 64 filters; ``model`` is the oracle."""
    oracle, world = model or Model(), _World(random.Random(seed))
    mask = world.rng.choice([FILTER, FILTER, FILTER | UNKNOWN | INVAL])
    accepted = tuple(world.filter(number & 1) for number in range(filters))
    done = tuple(world.access() for _ in range(accesses))
    table = {
        each: tuple(_outcomes(oracle, mask, one, each) for one in accepted) for each in set(done)
    }
    refused = tuple(world.refused(oracle))
    schedule = world.schedule(filters, len(refused))
    return Plan(seed, mask, done, accepted, refused, table, schedule)


def _outcomes(oracle: Model, mask: int, filter_: MsrFilter, access: Access) -> frozenset[int]:
    trace = oracle.predict((enable_exits(mask), install(filter_), access))
    return possible(trace[2:])


def possible(step: Step) -> frozenset[int]:
    """Return the outcomes that the events (a pattern) of one access stand for."""
    first = step[0]
    if isinstance(first, RdmsrExit | WrmsrExit):
        return frozenset({EXITS[first.reason]})
    if first is whatever:
        return frozenset(range(STRANGE))
    if first is unfiltered:
        return UNFILTERED
    return frozenset({FAULTED if first == gp else COMPLETED})


class _World:
    """The MSRs of one stress and what the filters say to them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        bases = rng.sample(UNKNOWN_BASES, 3)
        pinned, varied, self.uncovered = (range(base, base + CLUSTER) for base in bases)
        clusters = [SYSCALLS, BASES, SYSENTERS]
        rng.shuffle(clusters)
        self.pinned = {each: _random_bits(rng, each) for each in (pinned, clusters[0])}
        self.varied = (varied, *clusters[1:])

    def filter(self, flags: int) -> MsrFilter:
        """Return a filter that says to the pinned MSRs what every filter does."""
        ranges = [each for msrs, bits in self.pinned.items() for each in self._cover(msrs, bits)]
        for msrs in self.varied:
            ranges += self._cover(msrs, _random_bits(self.rng, msrs))
        self.rng.shuffle(ranges)
        made, slots = MsrFilter(flags, tuple(ranges)), self.rng.randrange(3)
        return made.hole(slots) if slots else made

    def refused(self, oracle: Model) -> Iterator[tuple[MsrFilter, int]]:
        """Yield filters that must fail, each in another slot, and their errno (R06-R13)."""
        opposite = [
            each
            for msrs, bits in self.pinned.items()
            for each in self._cover(msrs, {kind: _inverted(one) for kind, one in bits.items()})
        ]
        for bad in (
            MsrRange(8, 0x100, 1, b"\0"),
            MsrRange(READ_WRITE, 0, MAX_NMSRS + 1, b"\0"),
            MsrRange(READ_WRITE, 0x100, 64, Pointer.UNMAPPED),
            MsrRange(WRITE, 0x100, 1, Pointer.KERNEL),
        ):
            ranges = opposite[: self.rng.randrange(len(opposite) + 1)]
            failing = MsrFilter(self.rng.randrange(2), (*ranges, bad)).hole(1)
            yield failing, REPORTED[oracle.filters.errors(failing)]

    def schedule(self, accepted: int, refused: int) -> tuple[int, ...]:
        """Return a prime number of installs: taken in turns, every VM gets all of them."""
        weights = [4] * accepted + [1] * refused
        numbers = self.rng.choices(range(accepted + refused), weights, k=127 - accepted)
        return (*range(accepted), *numbers)

    def access(self) -> Access:
        """Return a random access; the cheap ones (no exit if allowed) are a good half."""
        pinned_unknown, pinned_known = self.pinned
        varied_unknown, *varied_known = self.varied
        kinds = {
            pinned_known: 7,
            self.rng.choice(varied_known): 7,
            pinned_unknown: 2,
            varied_unknown: 3,
            self.uncovered: 2,
            range(Msr.APIC_ID, Msr.APIC_ID + 1): 1,
        }
        msrs = self.rng.choices(list(kinds), list(kinds.values()))[0]
        index = self.rng.choice(msrs[:12])
        if index == Msr.APIC_ID or self.rng.random() < 0.6:
            return Rdmsr(index)
        return Wrmsr(index, REPLY)

    def _cover(self, msrs: range, bits: Bits) -> Iterator[MsrRange]:
        """Say ``bits`` of ``msrs`` in one of several ways: one range, two halves, R and W apart."""
        half = len(msrs) // 16 * 8 if self.rng.random() < 0.5 else 0
        for part in filter(None, (msrs[:half], msrs[half:])):
            sliced = {kind: one[(part[0] - msrs[0]) // 8 :] for kind, one in bits.items()}
            alike = sliced[READ] == sliced[WRITE]
            flags = (READ_WRITE,) if alike and self.rng.random() < 0.7 else (READ, WRITE)
            for each in flags:
                kept = sliced[each & READ or WRITE][: bitmap_size(len(part))]
                yield MsrRange(each, part[0], len(part), kept)


def _random_bits(rng: random.Random, msrs: range) -> Bits:
    reads = rng.randbytes(bitmap_size(len(msrs)))
    return {READ: reads, WRITE: reads if rng.random() < 0.4 else rng.randbytes(len(reads))}


def _inverted(bits: bytes) -> bytes:
    return bytes(each ^ 0xFF for each in bits)


def groups(accesses: Iterable[Access]) -> dict[Access, int]:
    """Return the group of each access: 0 for MSRs unknown to KVM, else one for MSR and kind.

    A hardware bitmap answers passed-through MSRs, a bit for each kind, and it is brought up to
    date only at the next entry: among them, one may be seen under an older filter than another.
    """
    found: dict[tuple[int, type], int] = {}
    return {
        each: 0
        if is_unknown_to_kvm(each.index)
        else found.setdefault((each.index, type(each)), len(found) + 1)
        for each in accesses
    }


STORED = dict.fromkeys(STORABLE, REPLY)
"""What the host writes to the known MSRs at the start, so that reading one leaves ``REPLY``."""
