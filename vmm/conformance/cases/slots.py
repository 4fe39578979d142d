"""The 16 slots, and what a new filter leaves of the old one: R15, R16."""

from __future__ import annotations

from vmm.conformance.cases.words import (
    TELL,
    A,
    B,
    C,
    allowed,
    denied,
    done_install,
    play,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.filter import (
    EMPTY_SLOT,
    MsrFilter,
    default_allow,
    default_deny,
)
from vmm.msr import KVM_MSR_FILTER_MAX_BITMAP_SIZE, MAX_NMSRS


def _holed(ranges: MsrFilter) -> MsrFilter:
    return MsrFilter(ranges.flags, tuple(slot for r in ranges.ranges for slot in (EMPTY_SLOT, r)))


_FIRSTS = tuple(0x474F_0000 + 0x4000 * slot for slot in range(16))
"""The first MSR of each slot's range, which are all of MSRs that no KVM knows."""


def _longest(start: MsrFilter, bitmap: bytes) -> MsrFilter:
    for first in _FIRSTS:
        start = start.range(first, MAX_NMSRS, bitmap)
    return start


CASES = (
    *(
        Case(
            f"slots.slot_{slot}",
            f"A range in slot {slot} counts, with {slot} holes before it.",
            "R15",
            *play(
                TELL,
                done_install(MsrFilter(0, (EMPTY_SLOT,) * slot).deny(A)),
                denied(A),
                write_denied(A),
                allowed(B),
                done_install(MsrFilter(1, (EMPTY_SLOT,) * slot).allow(A)),
                allowed(A),
                write_allowed(A),
                denied(B),
            ),
        )
        for slot in range(16)
    ),
    Case(
        "slots.all_slots",
        "All 16 slots count at once, each with its own MSR.",
        "R15",
        *play(
            TELL,
            done_install(default_allow().deny(*range(A, A + 32, 2))),
            *(row for i in range(16) for row in (denied(A + 2 * i), allowed(A + 2 * i + 1))),
        ),
    ),
    Case(
        "slots.all_of_the_longest",
        "All 16 slots may have the longest bitmap at once: nothing limits what they have together.",
        "R15 R09",
        *play(
            TELL,
            done_install(_longest(default_allow(), b"\0" * KVM_MSR_FILTER_MAX_BITMAP_SIZE)),
            *(denied(first + at) for first in _FIRSTS for at in (0, MAX_NMSRS - 1)),
            *(allowed(first - 1) for first in _FIRSTS),
            *(allowed(first + MAX_NMSRS) for first in _FIRSTS),
            done_install(_longest(default_deny(), b"\xff" * KVM_MSR_FILTER_MAX_BITMAP_SIZE)),
            *(allowed(first + at) for first in _FIRSTS for at in (0, MAX_NMSRS - 1)),
            *(denied(first - 1) for first in _FIRSTS),
        ),
    ),
    Case(
        "slots.every_other_slot",
        "Eight ranges with a hole before each count like eight ranges in a row.",
        "R15",
        *play(
            TELL,
            done_install(_holed(default_deny().allow(*range(A, A + 8)))),
            *(allowed(A + m) for m in range(8)),
            denied(A + 8),
        ),
    ),
    Case(
        "slots.new_ranges_replace_old",
        "A successful install replaces every range of the one before: nothing is merged.",
        "R16",
        *play(
            TELL,
            done_install(default_allow().deny(A, B)),
            denied(A),
            denied(B),
            done_install(default_allow().deny(C)),
            allowed(A),
            allowed(B),
            denied(C),
        ),
    ),
    Case(
        "slots.fewer_ranges_replace_more",
        "One range after sixteen leaves nothing of the other fifteen.",
        "R16 R15",
        *play(
            TELL,
            done_install(default_allow().deny(*range(A, A + 16))),
            *(denied(A + i) for i in range(16)),
            done_install(default_allow().deny(B)),
            *(allowed(A + i) for i in range(16)),
            denied(B),
        ),
    ),
    Case(
        "slots.new_default_replaces_old",
        "A successful install replaces the default action too, in both directions.",
        "R16 R17 R18",
        *play(
            TELL,
            done_install(default_deny().allow(A)),
            denied(C),
            allowed(A),
            done_install(default_allow().deny(A)),
            allowed(C),
            denied(A),
            done_install(default_deny().allow(A)),
            denied(C),
            allowed(A),
        ),
    ),
    Case(
        "slots.new_bits_replace_old",
        "The same range with another bitmap is governed by the new bitmap alone.",
        "R16 R19",
        *play(
            TELL,
            *(
                row
                for bits in (0x5A, 0xA5, 0x0F)
                for row in (
                    done_install(default_allow().range(A, 8, bytes([bits]))),
                    *((allowed if bits >> i & 1 else denied)(A + i) for i in range(8)),
                )
            ),
        ),
    ),
)
