"""Which range decides, and what when none does: R17, R18, R20-R24."""

from __future__ import annotations

from vmm.conformance.cases.words import (
    TELL,
    TELL_FILTER,
    A,
    B,
    Row,
    allowed,
    denied,
    done_install,
    passes,
    play,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.filter import (
    READ,
    READ_WRITE,
    WRITE,
    MsrFilter,
    bitmap_of,
    default_allow,
    default_deny,
)

_ACCESS = {"read": READ, "write": WRITE, "both": READ_WRITE}
_DENY_8, _ALLOW_8 = b"\x00", b"\xff"

# What governs MSR A, and whether A may be read and written. The first range that contains the MSR
# and names the access wins; one that does not name the access is looked through.
_OVERLAPS: dict[str, tuple[str, MsrFilter, bool, bool]] = {
    "deny_then_allow": ("R23", default_allow().deny(A).allow(A), False, False),
    "allow_then_deny": ("R23", default_allow().allow(A).deny(A), True, True),
    "deny_then_allow_default_deny": ("R23", default_deny().deny(A).allow(A), False, False),
    "allow_then_deny_default_deny": ("R23", default_deny().allow(A).deny(A), True, True),
    "wide_deny_then_narrow_allow": (
        "R23",
        default_deny().range(A - 8, 64, b"\0" * 8).allow(A),
        False,
        False,
    ),
    "wide_allow_then_narrow_deny": (
        "R23",
        default_allow().range(A - 8, 64, b"\xff" * 8).deny(A),
        True,
        True,
    ),
    "narrow_deny_then_wide_allow": (
        "R23",
        default_allow().deny(A).range(A - 8, 64, b"\xff" * 8),
        False,
        False,
    ),
    "narrow_allow_then_wide_deny": (
        "R23",
        default_deny().allow(A).range(A - 8, 64, b"\0" * 8),
        True,
        True,
    ),
    "higher_base_in_lower_slot": (
        "R23",
        default_allow().range(A - 1, 8, _DENY_8).range(A - 4, 8, _ALLOW_8),
        False,
        False,
    ),
    "lower_base_in_lower_slot": (
        "R23",
        default_allow().range(A - 4, 8, _ALLOW_8).range(A - 1, 8, _DENY_8),
        True,
        True,
    ),
    "three_deep": ("R23", default_allow().allow(A).deny(A).deny(A), True, True),
    "slot_0_against_15_others": (
        "R23 R15",
        default_deny().deny(A).allow(*(A,) * 15),
        False,
        False,
    ),
    "slot_14_against_slot_15": (
        "R23 R15",
        default_allow().deny(*range(B, B + 14)).allow(A).deny(A),
        True,
        True,
    ),
    "hole_between": ("R23 R15", default_allow().deny(A).hole(5).allow(A), False, False),
    "neighbours_before": (
        "R23 R20",
        default_allow().range(A - 8, 8, _DENY_8).range(A + 1, 8, _DENY_8).allow(A),
        True,
        True,
    ),
    "read_deny_over_allow": (
        "R23 R24",
        default_deny().deny(A, access=READ).allow(A),
        False,
        True,
    ),
    "write_deny_over_allow": (
        "R23 R24",
        default_deny().deny(A, access=WRITE).allow(A),
        True,
        False,
    ),
    "read_allow_over_deny": (
        "R23 R24",
        default_allow().allow(A, access=READ).deny(A),
        True,
        False,
    ),
    "write_allow_over_deny": (
        "R23 R24",
        default_allow().allow(A, access=WRITE).deny(A),
        False,
        True,
    ),
    "one_range_for_each_access": (
        "R22 R24",
        default_deny().deny(A, access=READ).allow(A, access=WRITE),
        False,
        True,
    ),
    "one_range_for_each_access_swapped": (
        "R22 R24",
        default_allow().allow(A, access=WRITE).deny(A, access=READ),
        False,
        True,
    ),
    "same_access_twice_then_other": (
        "R23 R24",
        default_allow()
        .deny(A, access=WRITE)
        .allow(A, access=WRITE)
        .allow(A, access=READ)
        .deny(A, access=READ),
        True,
        False,
    ),
    "looked_through_to_default_deny": (
        "R24 R18",
        default_deny().allow(A, access=WRITE).allow(B),
        False,
        True,
    ),
    "looked_through_to_default_allow": (
        "R24 R17",
        default_allow().deny(A, access=READ).deny(B),
        False,
        True,
    ),
}

_BASES = (0, 1, 0x175, 0x474F4F01, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xDEADBEEF, 0xFFFFFFEF)


def _governed(read: bool, write: bool, index: int = A) -> tuple[Row, Row]:
    return (
        allowed(index) if read else denied(index),
        write_allowed(index) if write else write_denied(index),
    )


CASES = (
    Case(
        "matching.first_range_wins",
        "Where ranges overlap, the lowest slot that covers index and access type decides.",
        "R23",
        *play(
            TELL,
            done_install(
                default_allow().range(A, 8, b"\x0f").range(A + 2, 8, b"\xcc").deny(A + 9, A + 11)
            ),
            *(allowed(A + i) for i in range(4)),
            *(denied(A + i) for i in range(4, 8)),
            allowed(A + 8),  # bit 6 of the second range
            allowed(A + 9),  # bit 7: its deny range lies in a higher slot
            allowed(A + 10),
            denied(A + 11),
        ),
    ),
    *(
        Case(
            f"matching.{name}",
            f"The first range with the MSR and the access decides: {name.replace('_', ' ')}.",
            checks,
            *play(TELL, done_install(ranges), *_governed(read, write)),
        )
        for name, (checks, ranges, read, write) in _OVERLAPS.items()
    ),
    *(
        Case(
            f"matching.{name}_range_denies",
            f"A denying range for {name} governs that access and no other.",
            "R22 R17",
            *play(
                TELL,
                done_install(default_allow().deny(A, access=access)),
                *_governed(not access & READ, not access & WRITE),
                *_governed(True, True, A + 1),
            ),
        )
        for name, access in _ACCESS.items()
    ),
    *(
        Case(
            f"matching.{name}_range_allows",
            f"An allowing range for {name} governs that access and no other.",
            "R22 R18",
            *play(
                TELL,
                done_install(default_deny().allow(A, access=access)),
                *_governed(bool(access & READ), bool(access & WRITE)),
                *_governed(False, False, A + 1),
            ),
        )
        for name, access in _ACCESS.items()
    ),
    Case(
        "matching.default_allow",
        "An MSR outside every range is allowed under DEFAULT_ALLOW, read and write.",
        "R17",
        *play(
            TELL,
            done_install(default_allow().deny(B)),
            *_governed(True, True, A),
            *_governed(False, False, B),
            *_governed(True, True, 0xDEADBEEF),
        ),
    ),
    Case(
        "matching.default_deny",
        "An MSR outside every range is denied under DEFAULT_DENY, read and write.",
        "R18",
        *play(
            TELL,
            done_install(default_deny().allow(B)),
            *_governed(False, False, A),
            *_governed(True, True, B),
            *_governed(False, False, 0xDEADBEEF),
        ),
    ),
    *(
        Case(
            f"matching.base_{base:#x}",
            f"A range may begin at {base:#x}: base is any 32-bit index, of any alignment.",
            "R21 R20",
            *play(
                TELL_FILTER,
                done_install(default_allow().range(base, 9, bitmap_of(9, [4]))),
                denied(base),
                write_denied(base),
                passes(base + 4),
                denied(base + 8),
                passes(base + 9),
                *([passes(base - 1)] if base else []),
            ),
        )
        for base in _BASES
    ),
    Case(
        "matching.every_bit_of_the_index_counts",
        "An MSR whose index differs from a range's only one in any single bit is not in the range.",
        "R20 R21",
        *play(
            TELL_FILTER,
            done_install(default_deny().allow(A)),
            *(denied(A ^ 1 << bit) for bit in range(32)),
            done_install(default_allow().deny(A)),
            *(passes(A ^ 1 << bit) for bit in range(32)),
            denied(A),
        ),
    ),
    Case(
        "matching.index_0xffffffff",
        "The highest index is governed by the default action like any other.",
        "R18 R21",
        *play(TELL, done_install(default_deny().allow(A)), denied(0xFFFFFFFF), allowed(A)),
    ),
)
