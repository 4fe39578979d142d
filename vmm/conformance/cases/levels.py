"""Accesses of an L2: L1 gets what it intercepts, and the filter says the rest (R36, R38)."""

from __future__ import annotations

from dataclasses import replace

from vmm.conformance.cases.passthrough import PASSED_THROUGH
from vmm.conformance.cases.words import (
    CALLS,
    ENTERS,
    HELD,
    NONE_PASSES,
    TELL,
    TELL_FILTER,
    A,
    Row,
    denied,
    done_install,
    in_l2,
    passes,
    play,
    to_l1,
    write_denied,
    write_passes,
    write_to_l1,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    Rdmsr,
    Wrmsr,
    done,
    enable_exits,
    enter_l2,
    entered,
    fault,
    get_msr,
    got,
    gp,
    rdmsr,
    returned,
    through,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import READ, WRITE, default_allow, default_deny
from vmm.msr import FILTER, Msr

EDGES = (0, 0x1FFF, 0xC000_0000, 0xC000_1FFF)
"""The first and last MSRs with a bit in either vendor's bitmap."""
AMDS = (0xC001_0000, 0xC001_0015, 0xC001_1FFF)
"""MSRs that have a bit in SVM's bitmap alone."""
_GS, _HELD = Msr.KERNEL_GS_BASE, HELD[Msr.KERNEL_GS_BASE][0]
OUTSIDE = (0x2000, 0xBFFF_FFFF, 0xC000_2000, 0xC001_2000, 0xFFFF_FFFE, A)


def reads(msr: int) -> tuple[Row, ...]:
    """Return denied and allowed reads in L2, by range and by default, each after its entry."""
    faults: Row = (rdmsr(msr, reply=fault()), RdmsrExit(msr, FILTER), gp)
    passing = (passes(msr), passes(msr))
    return (
        TELL_FILTER,
        *in_l2(*passing),
        done_install(default_allow().deny(msr, access=READ)),
        *in_l2(denied(msr), faults, denied(msr)),
        done_install(default_deny().allow(msr)),
        *in_l2(*passing),
        done_install(default_deny().allow(A)),
        *in_l2(denied(msr), faults),
        done_install(default_allow().deny(msr, access=WRITE)),
        *in_l2(*passing),
        write_denied(msr, 0),
    )


def writes(msr: int, one: int, two: int) -> tuple[Row, ...]:
    """Return the same for writes, of which only those that are allowed change the MSR."""
    faults: Row = (wrmsr(msr, two, reply=fault()), WrmsrExit(msr, FILTER, two), gp)
    allows = ((wrmsr(msr, one), wrote), (rdmsr(msr), returned(one)), (get_msr(msr), got(one)))
    return (
        TELL_FILTER,
        *in_l2(*allows),
        done_install(default_allow().deny(msr, access=WRITE)),
        *in_l2(write_denied(msr, two), faults, write_denied(msr, two)),
        done_install(default_deny().allow(msr)),
        *in_l2(*allows),
        done_install(default_deny().allow(A)),
        *in_l2(write_denied(msr, two), faults),
        done_install(default_allow().deny(msr, access=READ)),
        *in_l2((wrmsr(msr, two), wrote), (get_msr(msr), got(two)), denied(msr)),
    )


def each_entry(msr: int, data: int) -> tuple[Row, ...]:
    """Return reads and writes of an MSR that this host may not have, under filters in turns."""
    passing = in_l2(passes(msr), write_passes(msr, data), passes(msr))
    stopped = in_l2(denied(msr), write_denied(msr, data))
    return (
        TELL_FILTER,
        *passing,
        *(done_install(default_allow().deny(msr)), *stopped),
        *(done_install(default_deny().allow(msr)), *passing),
        *(done_install(default_deny().allow(A)), *stopped, NONE_PASSES, to_l1(msr)),
        *(NONE_PASSES, write_to_l1(msr, data), denied(msr)),
    )


def l1_first(msr: int, data: int) -> tuple[Row, ...]:
    """Return accesses that L1 gets, under each filter, and then those of L1 itself."""
    rows: list[Row] = [TELL_FILTER]
    for new in (default_allow(), default_allow().deny(msr), default_deny().allow(A)):
        rows += [done_install(new), NONE_PASSES, to_l1(msr), NONE_PASSES, write_to_l1(msr, data)]
    return (*rows, denied(msr), write_denied(msr, data), ENTERS, denied(msr))


def emulated(row: Row) -> Row:
    """Return the row with its access executed by KVM's emulator."""
    access = row[0]
    assert isinstance(access, Rdmsr | Wrmsr)
    return (replace(access, emulated=True), *row[1:])


def by_emulator(index: int) -> tuple[Row, ...]:
    """Return emulated accesses of a denied MSR: L1 is asked first, by kind, and then the filter."""
    read, write = emulated(denied(index)), emulated(write_denied(index, 5))
    l1_reads, l1_writes = emulated(to_l1(index)), emulated(write_to_l1(index, 5))
    return (
        *(TELL_FILTER, *ONLY_SVM, done_install(default_allow().deny(index))),
        *(ENTERS, read, write, CALLS),
        *(NONE_PASSES, l1_reads, NONE_PASSES, l1_writes),
        *((enter_l2(passes=(through(index, "read"),)), entered), read, l1_writes),
        *((enter_l2(passes=(through(index, "write"),)), entered), write, l1_reads),
        *(read, write),
    )


ONLY_SVM: tuple[Row, ...] = ((enter_l2(bitmap=False), entered), CALLS)
"""What only SVM has: from here on it is known whose bitmap L1's is."""

CASES = (
    *(
        Case(
            f"levels.read_{msr.name.lower()}",
            f"L2's RDMSR of {msr.name} obeys the filter where L1 lets it pass.",
            "R36",
            *play(*reads(msr)),
        )
        for msr in (Msr.IA32_TSC, *HELD)
    ),
    *(
        Case(
            f"levels.write_{msr.name.lower()}",
            f"L2's WRMSR of {msr.name} obeys the filter where L1 lets it pass.",
            "R36 R28",
            *play(*writes(msr, one, two)),
        )
        for msr, (one, two) in HELD.items()
    ),
    *(
        Case(
            f"levels.passed_{msr.name.lower()}",
            f"L2's accesses of {msr.name} obey the filter of each entry, as L1's own do.",
            "R36",
            *play(*each_entry(msr, data)),
        )
        for msr, data in PASSED_THROUGH.items()
        if msr not in (*HELD, Msr.AMD64_SEV_ES_GHCB)
    ),
    *(
        Case(
            f"levels.l1_first_{msr.name.lower()}",
            f"L1 gets L2's accesses of {msr.name} that it intercepts, whatever the filter says.",
            "R36",
            *play(*l1_first(msr, one)),
        )
        for msr, (one, _) in HELD.items()
    ),
    *(
        Case(
            f"levels.{kind}_alone_passes_{msr.name.lower()}",
            f"Where L1 lets {kind}s of {msr.name} pass, the filter says those, L1 gets the others.",
            "R36 R22",
            *play(
                TELL_FILTER,
                done_install(default_allow().deny(msr)),
                (enter_l2(passes=(through(msr, kind),)), entered),
                *((denied(msr), write_to_l1(msr, one)) if kind == "read" else ()),
                *((write_denied(msr, one), to_l1(msr)) if kind == "write" else ()),
                done_install(default_deny().allow(msr)),
                (enter_l2(passes=(through(msr, kind), through(A & 0x1FFF))), entered),
                (passes(msr) if kind == "read" else (wrmsr(msr, one), wrote)),
                (write_to_l1(msr, one) if kind == "read" else to_l1(msr)),
            ),
        )
        for kind in ("read", "write")
        for msr, (one, _) in HELD.items()
    ),
    *(
        Case(
            f"levels.in_the_bitmap_{index:#x}",
            f"L1's bitmap has a bit for {index:#x}, so a filter can stop what L1 lets pass.",
            "R36",
            *play(
                TELL_FILTER,
                done_install(default_allow().deny(index)),
                ENTERS,
                denied(index),
                write_denied(index, 0),
                CALLS,
                NONE_PASSES,
                to_l1(index),
                NONE_PASSES,
                write_to_l1(index),
            ),
        )
        for index in EDGES
    ),
    *(
        Case(
            f"levels.in_svms_bitmap_{index:#x}",
            f"SVM's bitmap has a bit for {index:#x} too, by which L1 lets it pass or gets it.",
            "R36",
            *play(
                TELL_FILTER,
                *ONLY_SVM,
                done_install(default_allow().deny(index)),
                *(ENTERS, denied(index), write_denied(index, 0), CALLS),
                *(NONE_PASSES, to_l1(index), NONE_PASSES, write_to_l1(index)),
                (enter_l2(passes=(through(index, "read"),)), entered),
                *(denied(index), write_to_l1(index)),
                (enter_l2(passes=(through(index, "write"),)), entered),
                *(write_denied(index), to_l1(index)),
                done_install(default_allow().deny(A)),
                *(ENTERS, passes(index), CALLS, denied(A)),
            ),
        )
        for index in AMDS
    ),
    *(
        Case(
            f"levels.outside_the_bitmap_{index:#x}",
            f"L1's bitmap has no bit for {index:#x}, so L1 gets its accesses, denied or not.",
            "R36",
            *play(
                TELL,
                *(ENTERS, to_l1(index), ENTERS, write_to_l1(index)),
                done_install(default_allow().deny(index)),
                *(ENTERS, to_l1(index), ENTERS, write_to_l1(index)),
                denied(index),
            ),
        )
        for index in OUTSIDE
    ),
    *(
        Case(
            f"levels.emulated_{index:#x}",
            f"L2's access of {index:#x} is L1's where L1 intercepts it, else the filter's, "
            "in KVM's emulator too.",
            "R36 R40",
            *play(*by_emulator(index)),
        )
        for index in (Msr.KERNEL_GS_BASE, Msr.STAR, *AMDS)
    ),
    Case(
        "levels.emulated_outside_the_bitmap",
        "KVM's emulator leaves to L1 what L1's bitmap has no bit for, denied or not.",
        "R36 R40",
        *play(
            *(TELL, *ONLY_SVM, ENTERS, emulated(to_l1(A)), ENTERS, emulated(write_to_l1(A))),
            done_install(default_allow().deny(A)),
            *(ENTERS, emulated(to_l1(A)), ENTERS, emulated(write_to_l1(A))),
            denied(A),
        ),
    ),
    Case(
        "levels.emulated_ends_in_l2",
        "What KVM's emulator executes of L2 is answered, failed and done as L1's own accesses are.",
        "R36 R40 R41 R42",
        *play(
            *(TELL, *ONLY_SVM, ENTERS),
            emulated((wrmsr(_GS, _HELD), wrote)),
            emulated((rdmsr(_GS), returned(_HELD))),
            (get_msr(_GS), got(_HELD)),
            *(CALLS, done_install(default_allow().deny(_GS)), ENTERS),
            emulated((rdmsr(_GS, reply=fault()), RdmsrExit(_GS, FILTER), gp)),
            emulated((wrmsr(_GS, 5, reply=fault()), WrmsrExit(_GS, FILTER, 5), gp)),
            emulated(denied(_GS)),
            (enable_exits(0), done),
            *(emulated((access, gp)) for access in (rdmsr(_GS), wrmsr(_GS, 5))),
            *(CALLS, (get_msr(_GS), got(_HELD))),
        ),
    ),
)
