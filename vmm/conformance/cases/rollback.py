"""A failing install leaves the previous filter fully in force: R14 (b318e8decf6b, B03 c), R13.

Before that fix the ranges in front of the bad one and the new default action were already live, and
the old ranges were gone: each case looks at an MSR that only the old filter denies, at one that
only the new one would deny by a range, and at one that only its default action would deny.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL
from itertools import cycle

from vmm.conformance.cases.words import (
    TELL,
    A,
    B,
    C,
    allowed,
    bad_install,
    denied,
    done_install,
    fails_to_resume,
    loses_its_bitmap,
    play,
    stalls,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.filter import (
    READ_WRITE,
    U32,
    AtEdge,
    MsrFilter,
    MsrRange,
    Pointer,
    default_allow,
    default_deny,
)

BAD_RANGES = {
    "undefined_flag": (EINVAL, MsrRange(READ_WRITE | 4, C, 1, b"\0")),
    "highest_flag": (EINVAL, MsrRange(READ_WRITE | 1 << 31, C, 1, b"\0")),
    "no_flags": (EINVAL, MsrRange(0, C, 1, b"\0")),
    "one_msr_too_many": (EINVAL, MsrRange(READ_WRITE, C, 0x3001, b"\0" * 0x608)),
    "all_msrs": (EINVAL, MsrRange(READ_WRITE, 0, U32, b"\0" * 0x608)),
    "null_bitmap": (EFAULT, MsrRange(READ_WRITE, C, 1, Pointer.NULL)),
    "unmapped_bitmap": (EFAULT, MsrRange(READ_WRITE, C, 64, Pointer.UNMAPPED)),
    "kernel_bitmap": (EFAULT, MsrRange(READ_WRITE, C, 0x3000, Pointer.KERNEL)),
    "half_readable_bitmap": (EFAULT, MsrRange(READ_WRITE, C, 128, AtEdge(b"\0" * 8))),
}

_WHOLE_FILTERS = {
    "undefined_filter_flag": (EINVAL, MsrFilter(2).deny(B)),
    "undefined_filter_flag_and_deny": (EINVAL, MsrFilter(0x80000001).deny(B)),
    "empty_deny": (EINVAL, default_deny()),
}


def _with_bad(slot: int, bad: MsrRange, new: MsrFilter, fill: MsrRange) -> MsrFilter:
    """Return 16 ranges of which only ``slot`` is wrong: those round it would be good."""
    ranges = [fill] * 16
    ranges[slot] = bad
    return MsrFilter(new.flags, tuple(ranges))


_OLD = (denied(A), write_denied(A), allowed(B), write_allowed(C))
"""What default_allow().deny(A) says of what it denies, what a new range would, what none does."""

_DENY_B, _ALLOW_A = default_deny().deny(B).ranges[0], default_allow().allow(A).ranges[0]

CASES = (
    *(
        Case(
            f"rollback.{name}_in_slot_{slot}",
            f"A range with {name.replace('_', ' ')} in slot {slot} fails the whole install; the "
            "old filter stays whole.",
            "R14 R13",
            *play(
                TELL,
                done_install(default_allow().deny(A)),
                denied(A),
                bad_install(_with_bad(slot, bad, default_deny(), _DENY_B), errno),
                denied(A),
                write_denied(A),
                allowed(B),
                write_allowed(C),
            ),
        )
        for name, (errno, bad) in BAD_RANGES.items()
        for slot in range(16)
    ),
    *(
        Case(
            f"rollback.deny_stays_after_{name}",
            f"DEFAULT_DENY stays after a failed install of DEFAULT_ALLOW with {text}.",
            "R14",
            *play(
                TELL,
                done_install(default_deny().allow(B)),
                denied(A),
                bad_install(_with_bad(15, bad, default_allow(), _ALLOW_A), errno),
                denied(A),
                write_denied(A),
                allowed(B),
                denied(C),
            ),
        )
        for name, (errno, bad) in BAD_RANGES.items()
        for text in (name.replace("_", " "),)
    ),
    *(
        Case(
            f"rollback.{name}",
            f"A refused filter ({name.replace('_', ' ')}) leaves the old one whole.",
            "R14",
            *play(
                TELL,
                done_install(default_allow().deny(A)),
                denied(A),
                bad_install(bad, errno),
                denied(A),
                allowed(B),
                allowed(C),
            ),
        )
        for name, (errno, bad) in _WHOLE_FILTERS.items()
    ),
    *(
        Case(
            f"rollback.first_install_in_slot_{slot}",
            f"A first install that fails in slot {slot} leaves everything allowed.",
            "R14 R26",
            *play(
                TELL,
                bad_install(_with_bad(slot, bad, default_deny(), _DENY_B), errno),
                allowed(A),
                allowed(B),
                write_allowed(C),
            ),
        )
        for slot, (errno, bad) in (
            (0, BAD_RANGES["no_flags"]),
            (15, BAD_RANGES["undefined_flag"]),
            (1, BAD_RANGES["unmapped_bitmap"]),
            (14, BAD_RANGES["kernel_bitmap"]),
        )
    ),
    Case(
        "rollback.every_slot_in_turn",
        "Failures in each of the 16 slots, one after another, never touch the filter in force.",
        "R13 R14",
        *play(
            TELL,
            done_install(default_allow().deny(A)),
            denied(A),
            *(
                row
                for slot in range(16)
                for errno, bad in (BAD_RANGES["undefined_flag"], BAD_RANGES["null_bitmap"])
                for row in (
                    bad_install(_with_bad(slot, bad, default_deny(), _DENY_B), errno),
                    denied(A),
                    allowed(B),
                )
            ),
        ),
    ),
    Case(
        "rollback.good_install_after_a_failed_one",
        "After a failed install the next good one takes over as if nothing had happened.",
        "R14 R16",
        *play(
            TELL,
            done_install(default_allow().deny(A)),
            denied(A),
            bad_install(
                _with_bad(3, BAD_RANGES["null_bitmap"][1], default_deny(), _DENY_B), EFAULT
            ),
            denied(A),
            done_install(default_allow().deny(B)),
            allowed(A),
            denied(B),
        ),
    ),
    *(
        Case(
            f"rollback.after_a_stall_in_slot_{slot}_{name}_in_slot_{bad_slot}",
            f"An install that waited for slot {slot} and then meets {name.replace('_', ' ')} in "
            f"slot {bad_slot} changes nothing.",
            "R14 R70",
            *play(
                TELL,
                done_install(default_allow().deny(A)),
                stalls(_with_bad(bad_slot, bad, default_deny(), _DENY_B), slot),
                *_OLD,
                fails_to_resume(errno),
                *_OLD,
            ),
        )
        for slot, (name, (errno, bad)) in zip(range(15), cycle(BAD_RANGES.items()), strict=False)
        for bad_slot in sorted({slot + 1, 15})
    ),
    *(
        Case(
            f"rollback.bitmap_lost_in_slot_{slot}",
            f"An install whose bitmap of slot {slot} becomes unreadable while it is waited for is "
            "EFAULT and changes nothing.",
            "R14 R70 R10",
            *play(
                TELL,
                done_install(default_deny().allow(A)),
                stalls(MsrFilter(0, (_DENY_B,) * slot).deny(A, *[B] * (15 - slot)), slot),
                allowed(A),
                denied(B),
                denied(C),
                loses_its_bitmap(),
                allowed(A),
                denied(B),
                denied(C),
            ),
        )
        for slot in range(16)
    ),
)
