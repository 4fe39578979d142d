"""An L1 that says its bitmap is clean, as Hyper-V does: R36, R81, R72.

On SVM it says so in the VMCB, on VMX in an enlightened VMCS. KVM may keep the bitmap that it merged
for L2's last entry. But that is of L1's bitmap and of the filter, of which L1 knows nothing: after
an install KVM merges anew, whatever L1 says.
"""

from __future__ import annotations

from errno import EINVAL

from vmm.conformance.cases.words import (
    CALLS,
    ENTERS,
    HELD,
    OUT,
    RESTORES,
    SAVES,
    TELL_FILTER,
    A,
    Row,
    bad_install,
    denied,
    done_install,
    let,
    passes,
    play,
    resumes,
    stalls,
    to_l1,
    write_denied,
    write_passes,
    write_to_l1,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    as_hyper_v,
    await_install,
    begin_install,
    blocked,
    create_vcpu,
    done,
    enter_l2,
    entered,
    fresh_vm,
    l1_exit,
    leave_l2,
    listed,
    park,
    parked,
    rdmsr,
    release,
    released,
    returned,
    through,
)
from vmm.filter import READ, WRITE, MsrFilter, default_allow, default_deny
from vmm.msr import Msr

_GS, _STAR, _LSTAR = Msr.KERNEL_GS_BASE, Msr.STAR, Msr.LSTAR
X = Msr.EFER
"""An MSR with a bit in L1's bitmap that KVM never passes through."""

CLEAN: Row = (enter_l2(clean=True), entered)
PASSES_ALL = done_install(default_allow().deny(X))
"""All that hardware passes."""


def hyper_v(vcpu: int = 0) -> tuple[Row, ...]:
    """Return the rows that make a vCPU, with Hyper-V's interface in its CPUID."""
    made: Row = (create_vcpu(vcpu), done)
    return (made, *((each, done) for each in as_hyper_v(vcpu)))


START: tuple[Row, ...] = (*hyper_v(), TELL_FILTER, write_passes(Msr.HV_GUEST_OS_ID, 1))
"""An L1 that is Hyper-V: its CPUID offers that, and it says who it is."""


def _by_msr(msr: Msr, one: int, two: int) -> tuple[Case, ...]:
    """Return where a filter can come between two entries, for an MSR that hardware passes."""
    name, deny = msr.name.lower(), done_install(default_allow().deny(msr))
    stopped, lets = (denied(msr), write_denied(msr, two)), let(msr, one, two)
    rows: dict[str, tuple[str, tuple[Row, ...]]] = {
        "in_l1": (
            f"A filter that denies {msr.name} while L1 runs governs an L2 that L1 calls clean.",
            (
                *(ENTERS, *lets, CALLS, deny, CLEAN, *stopped, CALLS, CLEAN, *stopped, CALLS),
                *(PASSES_ALL, CLEAN, *lets, CALLS, CLEAN, *lets, CALLS),
                *(deny, CLEAN, *stopped, CALLS, ENTERS, *stopped, CALLS),
                *(PASSES_ALL, CLEAN, *lets, denied(X), CALLS),
            ),
        ),
        "in_l2": (
            f"A filter that denies {msr.name} in L2 governs the next entry that L1 calls clean.",
            (
                *(ENTERS, *lets, deny, CALLS, CLEAN, *stopped, CALLS, CLEAN, *stopped),
                *(PASSES_ALL, CALLS, CLEAN, *lets, deny, CALLS, CLEAN, *stopped, CALLS),
            ),
        ),
        "by_default": (
            f"A filter that denies all but others keeps {msr.name} from an L2 that L1 calls clean.",
            (
                *(ENTERS, CALLS, CLEAN, *lets, CALLS, done_install(default_deny().allow(A))),
                *(CLEAN, *stopped, CALLS, done_install(default_deny().allow(msr))),
                *(CLEAN, *lets, denied(X), CALLS),
            ),
        ),
    }
    return tuple(
        Case(f"clean.{name}_{when}", sentence, "R36 R72 R81", *play(*START, *script))
        for when, (sentence, script) in rows.items()
    )


_SOME = (through(_GS), through(_STAR, "read"))
_SOME_PASS: Row = (enter_l2(passes=_SOME), entered)
_SOME_CLEAN: Row = (enter_l2(passes=_SOME, clean=True), entered)
_NO_GS: Row = (enter_l2(passes=(through(_STAR),)), entered)
_NO_GS_CLEAN: Row = (enter_l2(passes=(through(_STAR),), clean=True), entered)
_DENY_GS = done_install(default_allow().deny(_GS))
_CALLED = l1_exit("hypercall")
_FAILS = bad_install(MsrFilter(2), EINVAL)


def _loads(value: int) -> Row:
    """Return an entry with a list, which an L1 on VMX has for a VMCS alone."""
    return (enter_l2(entry_load=(listed(_GS, value),)), entered)


def _half(kind: int, msr: int) -> tuple[Row, Row]:
    """Return a read and a write of which a filter denies one."""
    if kind == READ:
        return denied(msr), write_passes(msr, 3)
    return passes(msr), write_denied(msr, 4)


CASES = (
    *(case for msr, values in HELD.items() for case in _by_msr(msr, *values)),
    Case(
        "clean.first_entry",
        "A first entry that L1 calls clean is one as any other: its bitmap counts, and the filter.",
        "R36",
        *play(
            *(*START, _DENY_GS, _SOME_CLEAN, denied(_GS), passes(_STAR), write_to_l1(_STAR, 1)),
            *(_SOME_CLEAN, denied(_GS), to_l1(_LSTAR)),
        ),
    ),
    Case(
        "clean.l1_still_gets_its_own",
        "What L1 intercepts stays L1's through changes of the filter, and what it passes is asked.",
        "R36 R72",
        *play(
            *(*START, _SOME_PASS, passes(_GS), to_l1(_LSTAR), _SOME_CLEAN, passes(_STAR)),
            *(write_to_l1(_STAR, 1), done_install(default_allow().deny(_GS, _LSTAR)), _SOME_CLEAN),
            *(denied(_GS), write_denied(_GS, 1), to_l1(_LSTAR), _SOME_CLEAN, write_to_l1(_STAR, 2)),
            *(PASSES_ALL, _SOME_CLEAN, passes(_GS), passes(_STAR), to_l1(_LSTAR), _SOME_CLEAN),
            *(write_to_l1(_LSTAR, 3), done_install(default_deny().allow(_STAR)), _SOME_CLEAN),
            *(denied(_GS), passes(_STAR), to_l1(Msr.TSC_AUX)),
        ),
    ),
    Case(
        "clean.bitmap_that_is_not",
        "An L1 that changes its bitmap and does not call it clean gets what it asks for.",
        "R36",
        *play(
            *(*START, ENTERS, passes(_LSTAR), CALLS, CLEAN, passes(_LSTAR), CALLS),
            *(_SOME_PASS, to_l1(_LSTAR), _SOME_CLEAN, to_l1(_LSTAR), ENTERS, passes(_LSTAR)),
            *(_DENY_GS, CALLS, CLEAN, denied(_GS), CALLS, _SOME_PASS, denied(_GS), to_l1(_LSTAR)),
        ),
    ),
    Case(
        "clean.bitmap_of_hardware_that_is_not",
        "An L1 that no longer passes what hardware passed, and does not say clean, gets it.",
        "R36",
        *play(
            *(*START, ENTERS, *let(_GS, 1, 2), CALLS, _NO_GS, to_l1(_GS), _NO_GS_CLEAN),
            *(write_to_l1(_GS, 3), ENTERS, *let(_GS, 4, 5), CALLS, CLEAN, *let(_GS, 6, 7), CALLS),
            *(_DENY_GS, _NO_GS, to_l1(_GS), ENTERS, denied(_GS), CALLS, CLEAN, denied(_GS), CALLS),
        ),
    ),
    Case(
        "clean.after_a_list",
        "An entry with a list, for which L1 has a VMCS, keeps no filter from a later clean one.",
        "R36 R37 R72",
        *play(
            *(*START, ENTERS, *let(_GS, 1, 2), CALLS, _loads(7), (rdmsr(_GS), returned(7))),
            *(_DENY_GS, CALLS, CLEAN, denied(_GS), passes(_STAR), CALLS, CLEAN, denied(_GS), CALLS),
            *(PASSES_ALL, _loads(9), CALLS, CLEAN, (rdmsr(_GS), returned(9)), *let(_GS, 3, 4)),
            *(CALLS, _loads(5), CALLS, _DENY_GS, CLEAN, denied(_GS), CALLS),
        ),
    ),
    *(
        Case(
            f"clean.{name}s_alone",
            f"A filter that denies {name}s alone does so in an L2 that L1 calls clean.",
            "R36 R22 R72",
            *play(
                *(*START, ENTERS, *let(_GS, 1, 2), CALLS),
                *(done_install(default_allow().deny(_GS, _STAR, access=kind)), CLEAN),
                *(row for msr in (_GS, _STAR) for row in _half(kind, msr)),
                *(CALLS, PASSES_ALL, CLEAN, *let(_GS, 5, 6), denied(X), CALLS),
            ),
        )
        for name, kind in (("read", READ), ("write", WRITE))
    ),
    Case(
        "clean.install_that_fails",
        "An install that fails leaves an L2 that L1 calls clean under the filter that was there.",
        "R14 R36",
        *play(
            *(*START, _DENY_GS, ENTERS, denied(_GS), passes(_STAR), CALLS),
            *(_FAILS, CLEAN, denied(_GS), passes(_STAR), _FAILS, CALLS, CLEAN, denied(_GS)),
            *(passes(_STAR), CALLS),
        ),
    ),
    Case(
        "clean.installed_twice",
        "Of two filters between two entries the last governs an L2 that L1 calls clean.",
        "R72 R81",
        *play(
            *(*START, ENTERS, passes(_GS), CALLS, _DENY_GS, PASSES_ALL, CLEAN, passes(_GS)),
            *(PASSES_ALL, _DENY_GS, CALLS, CLEAN, denied(_GS), passes(_STAR)),
            *(PASSES_ALL, CALLS, done_install(default_allow().deny(_STAR)), CLEAN, denied(_STAR)),
            *(passes(_GS), CALLS),
        ),
    ),
    Case(
        "clean.l1_has_run_under_it",
        "A filter that L1 itself has met between two entries governs an L2 that it calls clean.",
        "R72 R36",
        *play(
            *(*START, ENTERS, passes(_GS), CALLS, _DENY_GS, denied(_GS), CLEAN, denied(_GS)),
            *(CALLS, PASSES_ALL, passes(_GS), CLEAN, passes(_GS), CALLS, passes(_GS), denied(X)),
        ),
    ),
    Case(
        "clean.two_vcpus",
        "A filter governs the next L2 of each vCPU, though both L1s call their own bitmaps clean.",
        "R71 R81 R36",
        *play(
            *(*hyper_v(), *hyper_v(1), TELL_FILTER, write_passes(Msr.HV_GUEST_OS_ID, 1)),
            *(ENTERS, passes(_GS), (enter_l2(passes=_SOME, vcpu=1), entered), passes(_STAR, 1)),
            *(_DENY_GS, CALLS, CLEAN, denied(_GS), passes(_LSTAR), (leave_l2(1), _CALLED)),
            *((enter_l2(passes=_SOME, clean=True, vcpu=1), entered), denied(_GS, 1)),
            *((rdmsr(_LSTAR, vcpu=1), l1_exit("rdmsr", _LSTAR)), denied(_GS), CALLS, CLEAN),
            denied(_GS),
        ),
    ),
    Case(
        "clean.stalled_install",
        "While an install waits for its bitmap an L2 called clean is under the old filter.",
        "R70 R72 R81",
        *play(
            *(*START, ENTERS, passes(_GS), CALLS, stalls(default_allow().deny(_GS), 0), CLEAN),
            *(passes(_GS), CALLS, CLEAN, passes(_GS), CALLS, resumes(), CLEAN, denied(_GS), CALLS),
            *(CLEAN, denied(_GS)),
        ),
    ),
    Case(
        "clean.while_it_is_on_its_way",
        "An entry called clean that comes before an install has returned keeps nothing from later.",
        "R72 R81",
        *play(
            *(*hyper_v(), (create_vcpu(1), done), TELL_FILTER),
            *(write_passes(Msr.HV_GUEST_OS_ID, 1), ENTERS, passes(_GS), CALLS, (park(1), parked)),
            *((begin_install(default_allow().deny(_GS)), blocked), CLEAN, CALLS, CLEAN, CALLS),
            *((release(1), released), (await_install(), done), CLEAN, denied(_GS), CALLS),
        ),
    ),
    Case(
        "clean.restored",
        "An L2 that is restored and left is called clean at its next entry, under a new filter.",
        "R81 R72",
        *play(
            *(*START, ENTERS, passes(_GS), SAVES, OUT, RESTORES, passes(_GS), CALLS, _DENY_GS),
            *(CLEAN, denied(_GS), SAVES, OUT, PASSES_ALL, passes(_GS), RESTORES, passes(_GS)),
            *(CALLS, CLEAN, passes(_GS), _DENY_GS, CALLS, CLEAN, denied(_GS), CALLS),
        ),
    ),
    Case(
        "clean.restored_in_a_fresh_vm",
        "In another VM, an L1 calls clean what it passed before it was moved: the filter counts.",
        "R75 R81",
        *play(
            *(*START, ENTERS, passes(_GS), SAVES, (fresh_vm(), done), *START, RESTORES),
            *(passes(_GS), CALLS, CLEAN, passes(_GS), CALLS, _DENY_GS, CLEAN, denied(_GS), CALLS),
        ),
    ),
)
