"""What kernels do where the contract is silent: recorded, never failed. R10, R13, R25, R67, R76."""

from __future__ import annotations

from vmm.conformance.cases.words import (
    DATA,
    TELL,
    A,
    B,
    allowed,
    denied,
    done_install,
    play,
    write_denied,
)
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.script import (
    Action,
    begin,
    complete,
    enable_exits,
    get_regs,
    install,
    rdmsr,
    set_regs,
    value,
    weigh_bitmaps,
    wrmsr,
)
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
from vmm.msr import FILTER, UNKNOWN

TOP = 0xFFFF_FFF0
_TELL = enable_exits(FILTER | UNKNOWN)

# Two things wrong at once: which errno names the order in which the kernel looks.
_FLAGS, _NONE = MsrRange(8, A, 1, b"\0"), MsrRange(0, A, 1, b"\0")
_SIZE = MsrRange(READ_WRITE, A, 0x3001, b"\0" * 0x608)
_FAULT = MsrRange(READ_WRITE, A, 1, Pointer.NULL)
_COMPETING: dict[str, MsrFilter] = {
    "flags_and_bitmap_of_one_range": MsrFilter(0, (MsrRange(8, A, 1, Pointer.NULL),)),
    "no_flags_and_bitmap_of_one_range": MsrFilter(0, (MsrRange(0, A, 1, Pointer.UNMAPPED),)),
    "size_and_bitmap_of_one_range": MsrFilter(0, (MsrRange(3, A, 0x3001, Pointer.NULL),)),
    "bitmap_then_flags": MsrFilter(0, (_FAULT, _FLAGS)),
    "flags_then_bitmap": MsrFilter(0, (_FLAGS, _FAULT)),
    "bitmap_then_size": MsrFilter(0, (_FAULT, _SIZE)),
    "bitmap_first_flags_last": MsrFilter(0, (_FAULT, *(_FAULT,) * 14, _NONE)),
    "filter_flag_and_bitmap": MsrFilter(2, (_FAULT,)),
}

# A range that would end at 2^32 and its neighbours: (base, nmsrs, an index inside it).
_WRAPS = {
    "reaches_the_top": (TOP, 16, TOP + 8),
    "one_msr_at_the_top": (U32, 1, U32),
    "goes_past_the_top": (TOP, 32, TOP + 8),
    "wraps_over_index_0": (TOP, 32, 4),
}

_REGISTERS = {
    "rip_0": {"rip": 0},
    "rip_2": {"rip": 2},
    "rax_rdx": {"rax": 0x0123_4567_89AB_CDEF, "rdx": 0xFEDC_BA98_7654_3210},
}


def _observed(*actions: Action) -> list[Action]:
    return [_TELL, *actions]


CASES = (
    *(
        Case(
            f"quirks.short_bitmap_of_{nmsrs}_at_the_edge",
            f"A bitmap of {nmsrs} MSRs of which only {size} bytes can be read is refused, or not: "
            "the kernel reads whole longs.",
            "R10",
            _observed(
                install(default_deny().range(A, nmsrs, AtEdge(b"\xff" * size))), rdmsr(A), rdmsr(B)
            ),
            OBSERVE,
        )
        for nmsrs, size in ((1, 1), (8, 1), (33, 5), (65, 9), (0x2FF9, 0x5FF))
    ),
    *(
        Case(
            f"quirks.errors_{name}",
            f"Of two errors at once one is reported ({name.replace('_', ' ')}): which is the "
            "kernel's order.",
            "R13",
            _observed(install(default_allow().deny(B)), rdmsr(B), install(bad), rdmsr(B)),
            OBSERVE,
        )
        for name, bad in _COMPETING.items()
    ),
    *(
        Case(
            f"quirks.range_{name}",
            f"A denying range that ends at or beyond 2^32 ({name.replace('_', ' ')}) is accepted, "
            "and denies or does not.",
            "R25",
            _observed(
                install(default_allow().range(base, nmsrs, b"\0" * 8)),
                rdmsr(index),
                wrmsr(index, DATA),
            ),
            OBSERVE,
        )
        for name, (base, nmsrs, index) in _WRAPS.items()
    ),
    *(
        Case(
            f"quirks.{access}_registers_set_by_{via}_{name}",
            f"Registers set by userspace ({via}, {name.replace('_', ' ')}) between the exit of a "
            f"{access} and its completion reach the guest, or do not.",
            "R67",
            _observed(
                install(default_allow().deny(A)),
                begin(rdmsr(A) if access == "read" else wrmsr(A, DATA)),
                set_regs(via=via, **changes),
                complete(value(DATA)),
                get_regs(),
            ),
            OBSERVE,
        )
        for access in ("read", "write")
        for via in ("ioctl", "sync")
        for name, changes in _REGISTERS.items()
    ),
    Case(
        "quirks.bitmaps_charged",
        "The copied bitmaps are charged to the memory cgroup of who installs them, or are not.",
        "R76",
        [weigh_bitmaps()],
        OBSERVE,
    ),
    Case(
        "quirks.range_below_the_top",
        "A range that ends at 0xffffffff, one short of 2^32, governs its MSRs.",
        "R25 R20 R21",
        *play(
            TELL,
            done_install(default_allow().range(TOP, 15, b"\0" * 8)),
            denied(TOP),
            denied(TOP + 14),
            write_denied(TOP + 14),
            allowed(TOP + 15),
            allowed(TOP - 1),
        ),
    ),
)
