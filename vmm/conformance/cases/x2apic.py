"""The x2APIC window 0x800..0x8ff, which no filter governs, and its neighbours: R30-R32."""

from __future__ import annotations

from vmm.conformance.cases.words import (
    TELL,
    TELL_FILTER,
    A,
    Row,
    denied,
    done_install,
    passes,
    play,
    write_denied,
    write_passes,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    REPLY,
    create_irqchip,
    done,
    enable_exits,
    gp,
    rdmsr,
    returned,
    set_msr,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit
from vmm.filter import READ, WRITE, MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, INVAL, Msr

# Enabled (bit 11), x2APIC mode (bit 10), of the boot processor (bit 8), at the usual place.
X2APIC_ON = 0xFEE00D00
_X2APIC: tuple[Row, ...] = (
    (create_irqchip(), done),
    (set_msr(Msr.IA32_APICBASE, X2APIC_ON), done),
    TELL_FILTER,
)

# Filters that try to govern the whole x2APIC window and its neighbours.
_OVER_WINDOW: dict[str, MsrFilter] = {
    "default_deny": default_deny().allow(A),
    "one_range": default_allow().range(0x7FF, 0x102, b"\0" * 0x28),
    "one_range_default_deny": default_deny().range(0x7FF, 0x102, b"\0" * 0x28),
    "longest_range": default_allow().range(0, 0x3000, b"\0" * 0x600),
    "a_range_for_each_access": default_allow()
    .range(0x7FF, 0x102, b"\0" * 0x28, READ)
    .range(0x7FF, 0x102, b"\0" * 0x28, WRITE),
}

CASES = (
    *(
        Case(
            f"x2apic.on_under_{name}",
            "In x2APIC mode the MSRs 0x800..0x8ff work though the filter "
            f"({name.replace('_', ' ')}) denies them; 0x7ff and 0x900 do not.",
            "R30 R31",
            *play(
                *_X2APIC,
                done_install(over_window),
                denied(0x7FF),
                write_denied(0x7FF),
                (rdmsr(Msr.APIC_ID), returned(0)),
                (wrmsr(Msr.APIC_TASKPRI, 0x20), wrote),
                (rdmsr(Msr.APIC_TASKPRI), returned(0x20)),
                (wrmsr(Msr.APIC_EOI, 0), wrote),
                passes(0x800),
                passes(0x8FF),
                write_passes(0x8FF, 0),
                denied(0x900),
                write_denied(0x900),
            ),
        )
        for name, over_window in _OVER_WINDOW.items()
    ),
    *(
        Case(
            f"x2apic.off_under_{name}",
            "Without x2APIC mode, too, 0x800..0x8ff are never denied by the filter "
            f"({name.replace('_', ' ')}).",
            "R30 R31",
            *play(
                TELL_FILTER,
                done_install(over_window),
                denied(0x7FF),
                write_denied(0x7FF),
                *(passes(index) for index in (0x800, 0x801, Msr.APIC_ID, 0x880, 0x8FE, 0x8FF)),
                *(write_passes(index, 0) for index in (0x800, Msr.APIC_TASKPRI, 0x8FF)),
                denied(0x900),
                write_denied(0x900),
            ),
        )
        for name, over_window in _OVER_WINDOW.items()
    ),
    Case(
        "x2apic.whole_window",
        "No MSR of 0x800..0x8ff ever exits as FILTER; the MSRs on either side do.",
        "R30 R31",
        *play(
            *_X2APIC,
            done_install(_OVER_WINDOW["one_range_default_deny"]),
            denied(0x7FF),
            *(passes(index) for index in range(0x800, 0x900)),
            denied(0x900),
        ),
    ),
    *(
        Case(
            f"x2apic.{index:#x}_is_an_ordinary_msr",
            f"{index:#x}, next to the x2APIC window, is denied and allowed like any MSR.",
            "R31",
            *play(
                TELL_FILTER,
                done_install(default_allow().deny(index)),
                denied(index),
                write_denied(index),
                done_install(default_deny().allow(index)),
                passes(index),
                denied(index - 1 if index == 0x7FF else index + 1),
                passes(index + 1 if index == 0x7FF else index - 1),
            ),
        )
        for index in (0x7FF, 0x900)
    ),
    *(
        Case(
            f"x2apic.may_be_invalid_under_mask_{mask}",
            "A denied x2APIC register read in xAPIC mode exits as INVAL, not as FILTER.",
            "R32 R30",
            *play(
                (create_irqchip(), done),
                (enable_exits(mask), done),
                done_install(_OVER_WINDOW["one_range_default_deny"]),
                (rdmsr(Msr.APIC_ID), RdmsrExit(Msr.APIC_ID, INVAL), returned(REPLY)),
                denied(0x7FF) if mask & FILTER else (rdmsr(0x7FF), gp),
            ),
        )
        for mask in (int(INVAL), 7)
    ),
    Case(
        "x2apic.error_without_inval_exits",
        "An x2APIC register read in xAPIC mode is #GP when INVAL exits are off, denied or not.",
        "R32 R30 R50",
        *play(
            (create_irqchip(), done),
            TELL,
            (rdmsr(Msr.APIC_ID), gp),
            done_install(_OVER_WINDOW["one_range_default_deny"]),
            (rdmsr(Msr.APIC_ID), gp),
            denied(0x900),
        ),
    ),
)
