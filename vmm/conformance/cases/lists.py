"""VMX's lists of MSRs: each entry is an access that the filter says, and no exit tells of it (R37).

Denied on entry, the entry fails with the number of the MSR in its list; denied on exit, the exit is
aborted. So where both ends are shown the abort comes last.
"""

from __future__ import annotations

from vmm.conformance.cases.words import (
    CALLS,
    HELD,
    TELL_FILTER,
    A,
    Row,
    denied,
    done_install,
    play,
    to_l1,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    ANY,
    Listed,
    done,
    enable_exits,
    enter_l2,
    entered,
    entry_failed,
    get_msr,
    got,
    l1_exit,
    leave_l2,
    listed,
    rdmsr,
    returned,
    shutdown,
    wrmsr,
    wrote,
)
from vmm.filter import READ, WRITE, default_allow, default_deny
from vmm.msr import Msr

_GS, _STAR, _TSC = Msr.KERNEL_GS_BASE, Msr.STAR, Msr.IA32_TSC
ABORTS: Row = (leave_l2(), shutdown)
LOADED = (_GS, Msr.STAR, Msr.LSTAR, Msr.CSTAR, Msr.SYSCALL_MASK)
"""MSRs that a list can load on every CPU: they have no field of a VMCS."""
PLACES = ((1, 1), (1, 3), (2, 3), (3, 3), (1, 32), (16, 32), (32, 32))
"""Which entry of how many is denied."""


def with_gs(at: int, count: int, value: int = 0x7000) -> tuple[Listed, ...]:
    """Return a list of ``count`` in which entry ``at`` is KERNEL_GS_BASE."""
    others = [listed(_STAR, number) for number in range(1, count)]
    return (*others[: at - 1], listed(_GS, value), *others[at - 1 :])


def stored(at: int, count: int, value: int = 0x5000) -> tuple[int, ...]:
    """Return what that list holds after an exit that stored KERNEL_GS_BASE, and 9 from STAR."""
    return (*(9,) * (at - 1), value, *(9,) * (count - at))


def entry_loads(at: int, count: int) -> tuple[Row, ...]:
    """Return an entry that fails under each filter that denies the write, and else succeeds."""
    enters = enter_l2(entry_load=with_gs(at, count))
    succeeds: tuple[Row, ...] = ((enters, entered), (get_msr(_GS), got(0x7000)), CALLS)
    fails: Row = (enters, entry_failed("msr_load", at))
    return (
        TELL_FILTER,
        *succeeds,
        done_install(default_allow().deny(_GS)),
        *(fails, fails),
        done_install(default_allow().deny(_GS, access=READ)),
        *succeeds,
        done_install(default_deny().allow(_STAR)),
        fails,
        done_install(default_deny().allow(_STAR).allow(_GS, access=WRITE)),
        *succeeds,
        denied(_GS),
    )


def exit_stores(at: int, count: int) -> tuple[Row, ...]:
    """Return exits that store, and then one that is aborted as the read is denied."""
    enters: Row = (enter_l2(exit_store=with_gs(at, count)), entered)
    stores: Row = (leave_l2(), l1_exit("hypercall", stored=stored(at, count)))
    sets: tuple[Row, ...] = ((wrmsr(_GS, 0x5000), wrote), (wrmsr(_STAR, 9), wrote))
    return (
        TELL_FILTER,
        *sets,
        *(enters, stores),
        done_install(default_deny().allow(_STAR).allow(_GS, access=READ)),
        *(enters, stores),
        done_install(default_allow().deny(_GS, access=WRITE)),
        *(write_denied(_GS, 1), enters, stores),
        done_install(default_allow().deny(_GS, access=READ)),
        *(denied(_GS), enters, ABORTS),
    )


def exit_loads(at: int, count: int) -> tuple[Row, ...]:
    """Return exits that load, and then one that is aborted as the write is denied."""
    enters: Row = (enter_l2(exit_load=with_gs(at, count)), entered)
    loads: tuple[Row, ...] = (enters, CALLS, (get_msr(_GS), got(0x7000)))
    return (
        TELL_FILTER,
        *((wrmsr(_GS, 0x5000), wrote), *loads, (rdmsr(_GS), returned(0x7000))),
        done_install(default_deny().allow(_STAR).allow(_GS, access=WRITE)),
        *((wrmsr(_GS, 0x5000), wrote), *loads),
        done_install(default_allow().deny(_GS, access=READ)),
        *((wrmsr(_GS, 0x5000), wrote), *loads),
        done_install(default_allow().deny(_GS, access=WRITE)),
        *(write_denied(_GS, 1), enters, ABORTS),
    )


LISTS = {"entry_load": entry_loads, "exit_store": exit_stores, "exit_load": exit_loads}


CASES = (
    *(
        Case(
            f"lists.{name}_{at}_of_{count}",
            f"Entry {at} of {count} of the list for {name.replace('_', ' ')} obeys each filter.",
            "R37",
            *play(*rows(at, count)),
        )
        for name, rows in LISTS.items()
        for at, count in PLACES
    ),
    *(
        Case(
            f"lists.entry_load_of_{msr.name.lower()}",
            f"{msr.name} in the list for entry fails it while its write is denied.",
            "R37",
            *play(
                TELL_FILTER,
                done_install(default_allow().deny(msr)),
                (enter_l2(entry_load=(listed(msr, one),)), entry_failed("msr_load", 1)),
                done_install(default_deny().allow(msr)),
                (enter_l2(entry_load=(listed(msr, one),)), entered),
                (rdmsr(msr), returned(one)),
                CALLS,
                denied(A),
            ),
        )
        for msr, (one, _) in HELD.items()
        if msr in LOADED
    ),
    *(
        Case(
            f"lists.exit_{way}_of_{msr.name.lower()}",
            f"{msr.name} in the list for exit {way} aborts the exit while it is denied.",
            "R37",
            *play(
                TELL_FILTER,
                (wrmsr(msr, one), wrote),
                (enter_l2(**{f"exit_{way}": (listed(msr, two),)}), entered),  # type: ignore[arg-type]
                (leave_l2(), l1_exit("hypercall", stored=(one,) if way == "store" else ())),
                (get_msr(msr), got(two if way == "load" else one)),
                done_install(default_deny().allow(A)),
                denied(msr),
                (enter_l2(**{f"exit_{way}": (listed(msr, two),)}), entered),  # type: ignore[arg-type]
                ABORTS,
            ),
        )
        for way in ("store", "load")
        for msr, (one, two) in HELD.items()
        if msr in LOADED
    ),
    *(
        Case(
            f"lists.mask_{mask:#x}_has_no_say",
            f"With mask {mask:#x} too a denied list fails the entry or aborts the exit.",
            "R37 R50",
            *play(
                (enable_exits(mask), done),
                done_install(default_allow().deny(_GS)),
                (enter_l2(entry_load=with_gs(2, 3)), entry_failed("msr_load", 2)),
                (enter_l2(entry_load=with_gs(1, 1)), entry_failed("msr_load", 1)),
                (enter_l2(), entered),
                to_l1(A),
                (enter_l2(exit_load=with_gs(2, 3)), entered),
                ABORTS,
            ),
        )
        for mask in (0, 1, 2, 4, 7)
    ),
    *(
        Case(
            f"lists.{way}_with_an_access_that_l1_gets",
            f"An access that L1 gets is an exit like any other: a denied {way} aborts it.",
            "R37 R36",
            *play(
                TELL_FILTER,
                (wrmsr(_GS, 5), wrote),
                (enter_l2(**{way: with_gs(1, 1)}), entered),  # type: ignore[arg-type]
                (rdmsr(A), l1_exit("rdmsr", A, stored=(5,) if way == "exit_store" else ())),
                done_install(default_allow().deny(_GS)),
                denied(_GS),
                (enter_l2(**{way: with_gs(1, 1)}), entered),  # type: ignore[arg-type]
                (rdmsr(A), shutdown),
            ),
        )
        for way in ("exit_store", "exit_load")
    ),
    *(
        Case(
            f"lists.{way}_denied_in_l2",
            f"A filter that comes while L2 runs is asked at the exit: a denied {way} aborts it.",
            "R37 R72",
            *play(
                TELL_FILTER,
                (enter_l2(**{way: with_gs(1, 1)}), entered),  # type: ignore[arg-type]
                done_install(default_allow().deny(_GS)),
                (rdmsr(A), shutdown),
            ),
        )
        for way in ("exit_store", "exit_load")
    ),
    *(
        Case(
            f"lists.{way}_allowed_in_l2",
            f"A filter that goes while L2 runs is asked no more: {way} is done.",
            "R37 R72",
            *play(
                TELL_FILTER,
                (wrmsr(_GS, 5), wrote),
                done_install(default_allow().deny(_GS)),
                denied(_GS),
                (enter_l2(**{way: with_gs(1, 1)}), entered),  # type: ignore[arg-type]
                done_install(default_allow()),
                (rdmsr(A), l1_exit("rdmsr", A, stored=(5,) if way == "exit_store" else ())),
                (get_msr(_GS), got(5 if way == "exit_store" else 0x7000)),
            ),
        )
        for way in ("exit_store", "exit_load")
    ),
    Case(
        "lists.failed_entry_loads_for_l1",
        "An entry that fails for its list comes with the list for exit load, denied or not.",
        "R37",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_STAR)),
            (
                enter_l2(entry_load=(listed(_STAR, 1),), exit_load=(listed(_GS, 0x7000),)),
                entry_failed("msr_load", 1),
            ),
            (rdmsr(_GS), returned(0x7000)),
            denied(_STAR),
            (
                enter_l2(entry_load=(listed(_STAR, 1),), exit_load=(listed(_STAR, 1),)),
                shutdown,
            ),
        ),
    ),
    Case(
        "lists.before_the_denied",
        "Entries before the denied one are loaded, and those after it are not.",
        "R37 R28",
        *play(
            TELL_FILTER,
            *((wrmsr(each, 0), wrote) for each in (_STAR, Msr.LSTAR, _GS)),
            done_install(default_allow().deny(_GS)),
            (
                enter_l2(entry_load=(listed(_STAR, 7), listed(_GS, 8), listed(Msr.LSTAR, 9))),
                entry_failed("msr_load", 2),
            ),
            *((rdmsr(_STAR), returned(7)), (rdmsr(Msr.LSTAR), returned(0))),
            *((get_msr(_GS), got(0)), denied(_GS)),
        ),
    ),
    *(
        Case(
            f"lists.{msr.name.lower()}_is_never_loaded",
            f"{msr.name} has a field of the VMCS: a list with it fails the entry under any filter.",
            "R37",
            *play(
                TELL_FILTER,
                (enter_l2(entry_load=(listed(msr),)), entry_failed("msr_load", 1)),
                done_install(default_deny().allow(msr)),
                (enter_l2(entry_load=(listed(msr),)), entry_failed("msr_load", 1)),
                denied(A),
            ),
        )
        for msr in (Msr.FS_BASE, Msr.GS_BASE)
    ),
    Case(
        "lists.tsc_on_entry",
        "IA32_TSC in the list for entry fails it while its write is denied.",
        "R37",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_TSC)),
            (enter_l2(entry_load=(listed(_TSC, 1 << 40),)), entry_failed("msr_load", 1)),
            denied(_TSC),
        ),
    ),
    Case(
        "lists.tsc_on_exit",
        "IA32_TSC in the list for exit store aborts the exit while its read is denied.",
        "R37",
        *play(
            TELL_FILTER,
            (enter_l2(exit_store=(listed(_TSC),)), entered),
            (leave_l2(), l1_exit("hypercall", stored=(ANY,))),
            done_install(default_allow().deny(_TSC)),
            denied(_TSC),
            (enter_l2(exit_store=(listed(_TSC),)), entered),
            ABORTS,
        ),
    ),
)
