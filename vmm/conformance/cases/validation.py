"""What KVM_X86_SET_MSR_FILTER refuses and what it must accept: R06-R13."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from errno import EFAULT, EINVAL

from vmm.conformance.cases.words import (
    TELL,
    A,
    B,
    C,
    Row,
    allowed,
    bad_install,
    denied,
    done_install,
    play,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
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
    bitmap_of,
    bitmap_size,
    default_allow,
    default_deny,
)
from vmm.msr import MAX_NMSRS

BASE = 0x474F4080

GOOD_NMSRS = (1, 7, 8, 9, 63, 64, 65, 0x2FFF, 0x3000)
# 0xffffffc1 is the first count whose longs overflow 32 bits; 0x80000000 is negative as an int.
BAD_NMSRS = (0x3001, 0x3040, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFC0, 0xFFFFFFC1, U32)

_FLAG_BITS: dict[str, tuple[str, range, Callable[[int], MsrFilter]]] = {
    "filter_flag": ("R06", range(1, 32), lambda flag: MsrFilter(flag).deny(B)),
    "filter_flag_and_default_deny": ("R06", range(1, 32), lambda flag: MsrFilter(flag | 1).deny(B)),
    "range_flag": ("R07", range(2, 32), lambda flag: _range(flags=flag)),
    "range_flag_and_read": ("R07", range(2, 32), lambda flag: _range(flags=flag | READ)),
    "range_flag_and_write": ("R07", range(2, 32), lambda flag: _range(flags=flag | WRITE)),
    "range_flag_and_both": ("R07", range(2, 32), lambda flag: _range(flags=flag | READ_WRITE)),
}

_MIXED_FLAGS = {
    "all_filter_flags": ("R06", MsrFilter(U32).deny(B)),
    "all_but_the_valid_filter_flag": ("R06", MsrFilter(U32 - 1).deny(B)),
    "bad_flag_of_empty_filter": ("R06", MsrFilter(2)),
    "all_range_flags": ("R07", default_deny().range(B, 1, b"\0", U32)),
    "all_but_the_valid_range_flags": ("R07", default_deny().range(B, 1, b"\0", U32 - 3)),
    "no_range_flags": ("R08", default_deny().range(B, 1, b"\0", 0)),
    "no_range_flags_longest": ("R08", default_deny().range(B, MAX_NMSRS, b"\0" * 0x600, 0)),
    "no_range_flags_after_good_range": ("R08", default_deny().allow(B).range(C, 1, b"\1", 0)),
}

_IGNORED = {
    "bad_flags": MsrRange(0xFF, A, 0, b"\0" * 8),
    "all_flags": MsrRange(U32, A, 0, b"\0" * 8),
    "no_flags": MsrRange(0, A, 0, b"\0" * 8),
    "good_flags": MsrRange(READ_WRITE, A, 0, b"\0" * 8),
    "null_bitmap": MsrRange(READ_WRITE, A, 0, Pointer.NULL),
    "unmapped_bitmap": MsrRange(0xFF, A, 0, Pointer.UNMAPPED),
    "kernel_bitmap": MsrRange(0xFF, A, 0, Pointer.KERNEL),
    "highest_base": MsrRange(READ_WRITE, U32, 0, Pointer.UNMAPPED),
}


def _range(base: int = B, nmsrs: int = 1, bitmap: Bitmap = b"\0", flags: int = 3) -> MsrFilter:
    return default_deny().slot(MsrRange(flags, base, nmsrs, bitmap))


def _refused(filters: Iterable[MsrFilter], errno: int = EINVAL) -> tuple[Row, ...]:
    """Return the rows that send bad filters, and see the one before them still in force."""
    old = (TELL, done_install(default_allow().deny(A)), denied(A))
    return (*old, *(bad_install(bad, errno) for bad in filters), denied(A), allowed(B), allowed(C))


CASES = (
    *(
        Case(
            f"validation.{name}",
            f"Each undefined {name.replace('_', ' ')} (bits {bits[0]}..31, one at a time) is "
            "EINVAL and changes nothing.",
            checks,
            *play(*_refused(make(1 << bit) for bit in bits)),
        )
        for name, (checks, bits, make) in _FLAG_BITS.items()
    ),
    *(
        Case(
            f"validation.{name}",
            f"A filter is EINVAL and changes nothing: {name.replace('_', ' ')}.",
            checks,
            *play(*_refused([bad])),
        )
        for name, (checks, bad) in _MIXED_FLAGS.items()
    ),
    *(
        Case(
            f"validation.nmsrs_{nmsrs:#x}_denied",
            f"A range of {nmsrs:#x} MSRs is accepted and governs exactly [base, base + {nmsrs:#x}) "
            "(all denied).",
            "R09 R20 R17",
            *play(
                TELL,
                done_install(default_allow().range(BASE, nmsrs, b"\0" * bitmap_size(nmsrs))),
                allowed(BASE - 1),
                denied(BASE),
                write_denied(BASE + nmsrs - 1),
                denied(BASE + nmsrs - 1),
                allowed(BASE + nmsrs),
                write_allowed(BASE + nmsrs),
            ),
        )
        for nmsrs in GOOD_NMSRS
    ),
    *(
        Case(
            f"validation.nmsrs_{nmsrs:#x}_allowed",
            f"A range of {nmsrs:#x} MSRs governs exactly [base, base + {nmsrs:#x}) though every "
            "bit of its last long is set.",
            "R09 R20 R18",
            *play(
                TELL,
                done_install(default_deny().range(BASE, nmsrs, b"\xff" * bitmap_size(nmsrs))),
                denied(BASE - 1),
                allowed(BASE),
                write_allowed(BASE + nmsrs - 1),
                allowed(BASE + nmsrs - 1),
                denied(BASE + nmsrs),
                write_denied(BASE + nmsrs),
            ),
        )
        for nmsrs in GOOD_NMSRS
    ),
    *(
        Case(
            f"validation.nmsrs_{nmsrs:#x}_refused",
            f"A range of {nmsrs:#x} MSRs needs more than 0x600 bytes of bitmap: EINVAL.",
            "R09",
            *play(*_refused([_range(nmsrs=nmsrs, bitmap=b"\0" * 0x608)])),
        )
        for nmsrs in BAD_NMSRS
    ),
    *(
        Case(
            f"validation.bitmap_{pointer.name.lower()}",
            f"A bitmap pointer that leads nowhere ({pointer.name}) is EFAULT and changes nothing.",
            "R10",
            *play(*_refused((_range(nmsrs=n, bitmap=pointer) for n in (1, 64, 0x3000)), EFAULT)),
        )
        for pointer in Pointer
    ),
    *(
        Case(
            f"validation.bitmap_of_{nmsrs:#x}_at_the_edge",
            f"{size} bytes before an unmapped page hold a bitmap of {nmsrs:#x} MSRs: no more is "
            "read.",
            "R10 R19",
            *play(
                TELL,
                done_install(
                    default_allow().range(BASE, nmsrs, AtEdge(bitmap_of(nmsrs, [nmsrs - 1])))
                ),
                allowed(BASE + nmsrs - 1),
                denied(BASE + nmsrs - 2),
            ),
        )
        for nmsrs, size in ((64, 8), (65, 16), (128, 16), (0x3000, 0x600))
    ),
    *(
        Case(
            f"validation.bitmap_of_{nmsrs:#x}_over_the_edge",
            f"A bitmap of {nmsrs:#x} MSRs of which only {size} bytes can be read is EFAULT.",
            "R10",
            *play(*_refused([_range(nmsrs=nmsrs, bitmap=AtEdge(b"\xff" * size))], EFAULT)),
        )
        for nmsrs, size in ((65, 8), (129, 16), (0x3000, 0x5F8))
    ),
    *(
        Case(
            f"validation.no_msrs_{name}",
            f"A range of 0 MSRs is skipped ({name.replace('_', ' ')}) and the ranges after it "
            "count.",
            "R11",
            *play(
                TELL,
                done_install(MsrFilter(0, (ignored,)).deny(B)),
                allowed(A),
                denied(B),
                done_install(MsrFilter(1, (ignored,)).allow(B)),
                denied(A),
                allowed(B),
            ),
        )
        for name, ignored in _IGNORED.items()
    ),
    Case(
        "validation.empty_allow_removes_the_filter",
        "An empty filter with DEFAULT_ALLOW is accepted and ends all filtering.",
        "R12 R16",
        *play(
            TELL,
            done_install(default_deny().allow(B)),
            denied(A),
            write_denied(A),
            done_install(default_allow()),
            allowed(A),
            write_allowed(A),
        ),
    ),
    Case(
        "validation.sixteen_skipped_ranges_allow",
        "Sixteen ranges of 0 MSRs make an empty filter, which DEFAULT_ALLOW may have.",
        "R12 R11",
        *play(
            TELL,
            done_install(default_deny().allow(B)),
            denied(A),
            done_install(MsrFilter(0, (*_IGNORED.values(),) * 2)),
            allowed(A),
            allowed(B),
        ),
    ),
    Case(
        "validation.empty_deny_refused",
        "An empty filter with DEFAULT_DENY is EINVAL and changes nothing.",
        "R12",
        *play(*_refused([default_deny()])),
    ),
    Case(
        "validation.sixteen_skipped_ranges_deny",
        "Sixteen ranges of 0 MSRs make an empty filter, which is EINVAL with DEFAULT_DENY.",
        "R12 R11",
        *play(*_refused([MsrFilter(1, (*_IGNORED.values(),) * 2)])),
    ),
    *(
        Case(
            f"validation.deny_with_one_range_in_slot_{slot}",
            f"One range, in slot {slot}, is enough for DEFAULT_DENY.",
            "R12 R15 R18",
            *play(
                TELL,
                done_install(MsrFilter(1, (EMPTY_SLOT,) * slot).allow(B)),
                denied(A),
                allowed(B),
                denied(C),
            ),
        )
        for slot in (0, 15)
    ),
)
