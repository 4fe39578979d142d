"""Accesses of an L2: L1 gets what it intercepts, and the filter says the rest (R36, R38)."""

from __future__ import annotations

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
                # What only SVM has: from here on it is known that there is a third span of bits.
                *((enter_l2(bitmap=False), entered), CALLS),
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
)
