"""A filter change is whole: every vCPU sees the old filter or the new one, nothing between: R70.

An install stops in the bitmap of its k-th slot. Before b318e8decf6b the VM then had no filter at
all (B03 a), or the new filter's first k ranges under its default action (B03 b).
"""

from __future__ import annotations

from collections.abc import Iterable

from vmm.conformance.cases.passthrough import PASSED_THROUGH
from vmm.conformance.cases.words import (
    DATA,
    STORAGE,
    TELL,
    TELL_FILTER,
    A,
    B,
    C,
    Row,
    allowed,
    denied,
    done_install,
    passes,
    play,
    resumes,
    stalls,
    write_allowed,
    write_denied,
    write_passes,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import Caller
from vmm.conformance.language.script import (
    begin,
    fault,
    finish,
    gp,
    rdmsr,
    returned,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit
from vmm.filter import (
    EMPTY_SLOT,
    READ,
    READ_WRITE,
    WRITE,
    MsrFilter,
    MsrRange,
    default_allow,
    default_deny,
)
from vmm.msr import FILTER, MAX_NMSRS, Msr

ALLOW, DENY = 0, 1
DEFAULTS = {"default_allow": ALLOW, "default_deny": DENY}

BASE, APART = 0x474F5000, 16
"""Slot k has the four MSRs from BASE + k * APART on; the twelve after them lie in no range."""

OLD, NEW = 0b1010, 0b0110
"""The bits of every slot: denied by both, allowed by both, denied by old only, by new only."""


def sixteen(default: int, bits: int) -> MsrFilter:
    """Return the filter whose 16 slots have ``bits`` for their four MSRs each."""
    four = bytes([bits])
    slots = tuple(MsrRange(READ_WRITE, BASE + k * APART, 4, four) for k in range(16))
    return MsrFilter(default, slots)


def under(default: int, bits: int, slots: Iterable[int], vcpu: int = 0) -> Iterable[Row]:
    """Return reads and writes of the MSRs of ``slots``, and of one behind each, under a filter."""
    for slot in slots:
        for bit in range(5):
            index = BASE + slot * APART + bit
            allows = bits >> bit & 1 if bit < 4 else default == ALLOW
            yield allowed(index, vcpu) if allows else denied(index, vcpu)
            yield write_allowed(index, vcpu=vcpu) if allows else write_denied(index, vcpu=vcpu)


def _swap(slot: int, old: int, new: int, caller: Caller = "self") -> tuple[Row, ...]:
    """Return the old filter, the new one stalled in ``slot``, and the new one in force.

    Looked at are the slots round the one that is waited for, and the first and the last.
    """
    near = sorted({0, 15, *range(max(slot - 1, 0), min(slot + 2, 16))})
    return (
        TELL,
        done_install(sixteen(old, OLD)),
        *under(old, OLD, [slot], vcpu=1),
        stalls(sixteen(new, NEW), slot, caller=caller),
        *under(old, OLD, near),
        *under(old, OLD, [slot], vcpu=1),
        resumes(),
        *under(new, NEW, near),
        *under(new, NEW, [slot], vcpu=1),
    )


_NOTHING_DENIED, _ALL_DENIED = default_allow().deny(A), default_deny().allow(A)

CASES = (
    *(
        Case(
            f"stalled.{name}_in_slot_{slot}",
            f"While an install with {name.replace('_', ' ')} waits for the bitmap of slot {slot} "
            "every access is as before; then all is as it says.",
            "R70 R71",
            *play(*_swap(slot, 1 - new, new)),
        )
        for name, new in DEFAULTS.items()
        for slot in range(16)
    ),
    *(
        Case(
            f"stalled.same_{name}_in_slot_{slot}",
            f"Two filters with {name.replace('_', ' ')} change places whole, whose bitmap of slot "
            f"{slot} is waited for.",
            "R70 R71",
            *play(*_swap(slot, default, default)),
        )
        for name, default in DEFAULTS.items()
        for slot in (0, 8, 15)
    ),
    *(
        Case(
            f"stalled.compat_{name}_in_slot_{slot}",
            f"A 32-bit caller's install with {name.replace('_', ' ')}, waiting for the bitmap of "
            f"slot {slot}, has changed nothing.",
            "R70 R71 R05",
            *play(*_swap(slot, 1 - new, new, "compat")),
        )
        for name, new in DEFAULTS.items()
        for slot in (0, 1, 8, 15)
    ),
    *(
        Case(
            f"stalled.first_install_{name}_in_slot_{slot}",
            f"A first install with {name.replace('_', ' ')} that waits for the bitmap of slot "
            f"{slot} filters nothing yet.",
            "R70 R26",
            *play(
                TELL,
                stalls(sixteen(new, NEW), slot),
                *under(ALLOW, 0b1111, (0, 15)),
                resumes(),
                *under(new, NEW, (0, 15)),
            ),
        )
        for name, new in DEFAULTS.items()
        for slot in (0, 15)
    ),
    *(
        Case(
            f"stalled.behind_holes_{name}",
            f"An install with {name.replace('_', ' ')} that waits for the only bitmap it has, in "
            "slot 15, has changed nothing.",
            "R70 R15",
            *play(
                TELL,
                done_install(old),
                *before,
                stalls(MsrFilter(new, (EMPTY_SLOT,) * 15).range(A, 1, bytes([new])), 15),
                *before,
                resumes(),
                *after,
            ),
        )
        for name, old, before, new, after in (
            ("default_allow", _ALL_DENIED, (allowed(A), denied(B)), 0, (denied(A), allowed(B))),
            ("default_deny", _NOTHING_DENIED, (denied(A), allowed(B)), 1, (allowed(A), denied(B))),
        )
    ),
    Case(
        "stalled.longest_bitmap",
        "No bit of the longest bitmap counts before all of it has been copied.",
        "R70 R09",
        *play(
            TELL,
            done_install(default_allow().range(BASE, MAX_NMSRS, b"\0" * 0x600)),
            denied(BASE),
            stalls(default_deny().range(BASE, MAX_NMSRS, b"\xff" * 0x600), 0),
            *(denied(BASE + bit) for bit in (0, 63, 64, 0x17FF, 0x1800, MAX_NMSRS - 1)),
            allowed(BASE + MAX_NMSRS),
            resumes(),
            *(allowed(BASE + bit) for bit in (0, 63, 64, 0x17FF, 0x1800, MAX_NMSRS - 1)),
            denied(BASE + MAX_NMSRS),
        ),
    ),
    Case(
        "stalled.reads_and_writes_apart",
        "A filter that denies reads gives way to one that denies writes, both at once.",
        "R70 R22",
        *play(
            TELL,
            done_install(default_allow().deny(A, B, access=READ)),
            stalls(default_allow().deny(A, B, access=WRITE), 1),
            *(row for msr in (A, B) for row in (denied(msr), write_allowed(msr))),
            resumes(),
            *(row for msr in (A, B) for row in (allowed(msr), write_denied(msr))),
        ),
    ),
    Case(
        "stalled.lower_slot_takes_over",
        "A new range in a lower slot does not decide before the one above it is read.",
        "R70 R23",
        *play(
            TELL,
            done_install(default_deny().deny(A).allow(A, B)),
            stalls(default_deny().allow(A).deny(A, B), 1),
            denied(A),
            allowed(B),
            denied(C),
            resumes(),
            allowed(A),
            denied(B),
            denied(C),
        ),
    ),
    Case(
        "stalled.mask_of_zero",
        "Without exits the guest's #GPs tell: denied until the install ends, and denied after it.",
        "R70 R50",
        *play(
            done_install(default_allow().deny(Msr.STAR)),
            (rdmsr(Msr.STAR), gp),
            stalls(default_allow().deny(A, Msr.LSTAR), 1),
            (rdmsr(Msr.STAR), gp),
            (wrmsr(Msr.LSTAR, STORAGE[Msr.LSTAR][0]), wrote),
            resumes(),
            (rdmsr(Msr.LSTAR), gp),
            (wrmsr(Msr.STAR, STORAGE[Msr.STAR][1]), wrote),
        ),
    ),
    Case(
        "stalled.passed_through_msrs_to_deny",
        "MSRs that hardware passes through stay with the guest until the install that denies them "
        "ends.",
        "R70 R72",
        *play(
            TELL_FILTER,
            *((wrmsr(msr, one), wrote) for msr, (one, _) in STORAGE.items()),
            stalls(default_deny().allow(A, B), 1),
            *((rdmsr(msr), returned(one)) for msr, (one, _) in STORAGE.items()),
            *(passes(msr) for msr in PASSED_THROUGH),
            *(write_passes(msr, data) for msr, data in PASSED_THROUGH.items()),
            resumes(),
            *(denied(msr) for msr in PASSED_THROUGH),
            *(write_denied(msr, data) for msr, data in PASSED_THROUGH.items()),
        ),
    ),
    Case(
        "stalled.passed_through_msrs_to_allow",
        "MSRs that hardware could pass through stay denied until the install that allows them "
        "ends.",
        "R70 R72 R28",
        *play(
            TELL_FILTER,
            *((wrmsr(msr, one), wrote) for msr, (one, _) in STORAGE.items()),
            done_install(default_deny().allow(A)),
            stalls(default_allow().deny(A, B), 1),
            *(denied(msr) for msr in PASSED_THROUGH),
            *(write_denied(msr, two) for msr, (_, two) in STORAGE.items()),
            resumes(),
            *((rdmsr(msr), returned(one)) for msr, (one, _) in STORAGE.items()),
            *(passes(msr) for msr in PASSED_THROUGH),
            denied(A),
        ),
    ),
    Case(
        "stalled.exit_before_and_answer_after",
        "An access that exited under the old filter is answered under the new one, and not asked "
        "again.",
        "R70 R64",
        *play(
            TELL,
            done_install(default_allow().deny(A)),
            stalls(default_allow().deny(C, B), 1),
            (begin(rdmsr(A)), RdmsrExit(A, FILTER)),
            (begin(rdmsr(A, vcpu=1)), RdmsrExit(A, FILTER)),
            resumes(),
            (finish(value(DATA)), returned(DATA)),
            (finish(fault(), vcpu=1), gp),
            allowed(A),
            allowed(A, 1),
            denied(B),
            denied(B, 1),
        ),
    ),
)
