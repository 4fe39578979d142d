"""Every MSR that hardware can pass through, one by one, and a spread of the rest: R33, R72.

A fast path for an MSR that no list of names has, or a bitmap that a filter change does not reach,
shows here. TSC_DEADLINE stands alone: kernels known to let its write by (B12, B13) must not hide
another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

from vmm.conformance.cases.running import exits, runs, spins, stops
from vmm.conformance.cases.words import (
    STORAGE,
    TELL_FILTER,
    A,
    B,
    Row,
    denied,
    done_install,
    play,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    Ended,
    Kind,
    Sweep,
    done,
    enable_exits,
    rdmsr,
    run,
    sweep,
    swept,
    wrmsr,
    wrote,
)
from vmm.filter import MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, INVAL, UNKNOWN, X2APIC_FIRST, X2APIC_LAST, Msr

LOW, HIGH, AMD = 0, 0xC000_0000, 0xC001_0000
SIZE = 0x2000
SPACE = (LOW, HIGH, AMD)
"""What the bitmaps of both vendors can pass through: ``SIZE`` MSRs from each of these on."""

T = int(Msr.IA32_TSC_DEADLINE)
Part = tuple[int, int]
"""MSRs in a row: the first, and how many."""

WHOLE: tuple[Part, ...] = tuple((first, SIZE) for first in SPACE)
SHORT: tuple[Part, ...] = (
    *((0, 0x200), (0x3F0, 0x10), (0x560, 0x30), (0x660, 0x60), (0x7F0, 0x120)),
    *((HIGH + 0x80, 0x90), (AMD, 0x10), (AMD + 0x130, 0x10)),
)
"""Where most of what is passed through lies: enough for every run."""

OTHERS = {
    "hyper_v_and_xen": (0x4000_0000, 0x400, 1),
    "kvm": (0x4B56_4D00, 0x100, 1),
    "nobody": (0x2001, 0x400, 0x3F_FFF1),
}
"""MSRs outside the bitmaps, by first MSR, count and stride."""

DENY_ALL = default_deny().allow(A)
DENY_RANGES = default_allow().range(LOW, SIZE, bytes(SIZE // 8))
for _first in (HIGH, AMD):
    DENY_RANGES = DENY_RANGES.range(_first, SIZE, bytes(SIZE // 8))
TELL_ALL: Row = (enable_exits(INVAL | UNKNOWN | FILTER), done)
"""First row where most allowed MSRs are unknown: an exit costs less than a fault in the guest."""


def denies(action: Sweep) -> Row:
    """Return the row of a sweep of MSRs that the filter denies, but in the x2APIC's window."""
    end = action.first + action.stride * action.count
    edges = (action.first, X2APIC_FIRST, X2APIC_LAST + 1, end)
    at = [_number(action, edge) for edge in edges]
    runs = [
        run(action.first + action.stride * begin, stop - begin, ended)
        for (begin, stop), ended in zip(pairwise(at), ENDED, strict=True)
        if stop > begin
    ]
    return (action, swept(tuple(runs)))


ENDED: tuple[Ended, ...] = ("FILTER", "UNFILTERED", "FILTER")
"""How accesses before, in and after the x2APIC's window end where all is denied."""


def _number(action: Sweep, edge: int) -> int:
    """Return how many accesses of a sweep are of MSRs below ``edge``."""
    return min(max(-(-(edge - action.first) // action.stride), 0), action.count)


def allows(action: Sweep) -> Row:
    """Return the row of a sweep of MSRs that no filter denies, whatever the host makes of them."""
    return (action, swept((run(action.first, action.count, "UNFILTERED"),)))


def pieces(kind: Kind, parts: Iterable[Part], stride: int = 1, shift: int = 0) -> Iterator[Sweep]:
    """Yield the sweeps of ``parts``, every ``stride``th MSR; a write leaves TSC_DEADLINE out."""
    for first, count in parts:
        end = first + count
        cuts = (
            [(first, T), (T + 1, end)] if kind == "wrmsr" and first <= T < end else [(first, end)]
        )
        for start, stop in cuts:
            at = start + (shift - start) % stride
            yield sweep(kind, at, -(-(stop - at) // stride), stride)


def denied_all(
    *kinds: Kind, parts: tuple[Part, ...] = WHOLE, vcpu: int = 0, stride: int = 1, shift: int = 0
) -> tuple[Row, ...]:
    """Return the rows that sweep ``parts``, every MSR of which is denied."""
    swept_ = [each for kind in kinds for each in pieces(kind, parts, stride, shift)]
    return tuple(denies(replace(each, vcpu=vcpu)) for each in swept_)


def passing(parts: tuple[Part, ...], vcpu: int = 0) -> tuple[Row, ...]:
    """Return the rows that read every MSR of ``parts``, none of which is denied."""
    return tuple(allows(replace(each, vcpu=vcpu)) for each in pieces("rdmsr", parts))


def _every_other(bits: int) -> MsrFilter:
    """Return the filter whose bitmaps are ``bits`` again and again."""
    new = default_deny()
    for first in SPACE:
        new = new.range(first, SIZE, bytes([bits]) * (SIZE // 8))
    return new


def _halves(odd: int, parts: tuple[Part, ...]) -> tuple[Row, ...]:
    """Return the rows in which of ``parts`` only the ``odd`` (1) or even (0) MSRs are allowed."""
    return (
        TELL_ALL,
        done_install(_every_other(0xAA if odd else 0x55)),
        *(allows(each) for each in pieces("rdmsr", parts, 2, odd)),
        *denied_all("rdmsr", "wrmsr", parts=parts, stride=2, shift=1 - odd),
        denied(B),
    )


WRITES_STORAGE = tuple((wrmsr(msr, one), wrote) for msr, (one, _) in STORAGE.items())

KINDS: tuple[Kind, ...] = ("rdmsr", "wrmsr")
LENGTHS = {"": (SHORT, "most of what is passed through"), "_whole": (WHOLE, "every MSR")}
"""By the end of an id: what is swept in each run, and what only with --thorough."""

CASES = (
    *(
        Case(
            f"sweep.deny_all_{kind}",
            f"Each denied {kind.upper()} of what hardware can pass through exits as FILTER.",
            "R33 R30",
            *play(TELL_FILTER, done_install(DENY_ALL), *denied_all(kind)),
        )
        for kind in KINDS
    ),
    Case(
        "sweep.deny_all_deadline",
        "A denied WRMSR of TSC_DEADLINE, the one that the sweeps leave out, exits as FILTER.",
        "R33",
        *play(TELL_FILTER, done_install(DENY_ALL), denies(sweep("wrmsr", T, 1))),
    ),
    *(
        Case(
            f"sweep.deny_all_of_{name}",
            f"Denied MSRs outside the hardware's bitmaps exit as FILTER: {name.replace('_', ' ')}.",
            "R33 R39",
            *play(
                TELL_FILTER,
                done_install(DENY_ALL),
                *(denies(sweep(kind, first, count, stride)) for kind in KINDS),
            ),
        )
        for name, (first, count, stride) in OTHERS.items()
    ),
    *(
        case
        for tail, (parts, what) in LENGTHS.items()
        for case in (
            *(
                Case(
                    f"sweep.every_other_{name}{tail}",
                    f"Of {what}, where every other MSR is denied it is those that exit: {name} "
                    "ones pass.",
                    "R33 R19",
                    *play(*_halves(odd, parts)),
                    thorough=bool(tail),
                )
                for name, odd in (("odd", 1), ("even", 0))
            ),
            Case(
                f"sweep.denied_again{tail}",
                f"After deny and allow, the next filter's denial reaches {what}.",
                "R72 R33",
                *play(
                    TELL_ALL,
                    done_install(DENY_ALL),
                    denied(Msr.FS_BASE),
                    done_install(default_allow()),
                    *WRITES_STORAGE,
                    *passing(parts),
                    done_install(DENY_RANGES),
                    *denied_all(*KINDS, parts=parts),
                ),
                thorough=bool(tail),
            ),
            Case(
                f"sweep.after_a_running_vcpu_was_told{tail}",
                f"A vCPU told of a filter while it ran obeys it for {what}.",
                "R72 R71",
                *play(
                    TELL_ALL,
                    spins(rdmsr(Msr.FS_BASE, vcpu=1)),
                    runs(),
                    done_install(DENY_ALL),
                    exits(rdmsr(Msr.FS_BASE, vcpu=1)),
                    stops(),
                    *denied_all(*KINDS, parts=parts, vcpu=1),
                ),
                thorough=bool(tail),
            ),
            Case(
                f"sweep.allowed_while_a_vcpu_ran{tail}",
                f"A vCPU told of an allowing filter while it ran reaches {what}, until the next.",
                "R72 R71",
                *play(
                    TELL_ALL,
                    done_install(DENY_RANGES),
                    spins(rdmsr(Msr.FS_BASE, vcpu=1)),
                    exits(rdmsr(Msr.FS_BASE, vcpu=1)),
                    done_install(default_allow()),
                    runs(),
                    stops(),
                    *passing(parts, vcpu=1),
                    done_install(DENY_ALL),
                    *denied_all(*KINDS, parts=parts, vcpu=1),
                ),
                thorough=bool(tail),
            ),
        )
    ),
)
