"""An L2 that the host restores obeys the filter that is in force then: B36 (R81, R72).

A VMM that restores a snapshot installs the filter and sets the nested state, in either order,
before the vCPU runs again. Hardware then has a bitmap for L2 that KVM merged of L1's and its own.
"""

from __future__ import annotations

from vmm.conformance.cases.passthrough import PASSED_THROUGH
from vmm.conformance.cases.words import (
    CALLS,
    ENTERS,
    HELD,
    NONE_PASSES,
    OUT,
    RESTORES,
    SAVES,
    TELL,
    TELL_FILTER,
    A,
    Row,
    bad_install,
    denied,
    done_install,
    let,
    passes,
    play,
    to_l1,
    write_denied,
    write_passes,
    write_to_l1,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    begin,
    complete,
    create_vcpu,
    done,
    enable_exits,
    enter_l2,
    entered,
    finish,
    fresh_vm,
    get_msr,
    get_regs,
    got,
    gp,
    interrupted,
    l1_exit,
    leave_l2,
    leave_nested,
    rdmsr,
    regs,
    restore_nested,
    returned,
    save_nested,
    set_regs,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit
from vmm.filter import READ, WRITE, default_allow, default_deny
from vmm.msr import FILTER, Msr

_GS, _STAR = Msr.KERNEL_GS_BASE, Msr.STAR
X, Y = Msr.EFER, 0xFE
"""MSRs with a bit in L1's bitmap that KVM never passes through."""
FRESH: Row = (fresh_vm(), done)


def stopped(msr: int, data: int) -> tuple[Row, ...]:
    """Return a read and a write that a filter denies."""
    return (denied(msr), write_denied(msr, data))


def _by_msr(msr: Msr, one: int, two: int) -> tuple[Case, ...]:
    """Return where a filter can come in a save and a restore, for an MSR that hardware passes."""
    name, deny = msr.name.lower(), done_install(default_allow().deny(msr))
    default = done_install(default_deny().allow(A))
    ends = (*stopped(msr, two), CALLS, *stopped(msr, one), ENTERS, *stopped(msr, two), CALLS)
    rows: dict[str, tuple[str, str, tuple[Row, ...]]] = {
        "before": (
            "R81 R36",
            f"A filter that denied {msr.name} before L2 was saved still does once it is restored.",
            (deny, ENTERS, *stopped(msr, one), SAVES, OUT, *stopped(msr, one), RESTORES, *ends),
        ),
        "between": (
            "R81 R72",
            f"A filter that denies {msr.name} while L2 is away governs the L2 that is restored.",
            (ENTERS, *let(msr, one, two), SAVES, OUT, deny, RESTORES, *ends),
        ),
        "between_by_default": (
            "R81 R72",
            f"A filter that denies all but others while L2 is away keeps {msr.name} from it.",
            (ENTERS, *let(msr, one, two), SAVES, OUT, default, RESTORES, *ends),
        ),
        "between_and_in_force": (
            "R81 R72",
            f"A filter that denies {msr.name} and that L1 has run under governs a restored L2.",
            (ENTERS, *let(msr, one, two), SAVES, OUT, deny, *stopped(msr, one), RESTORES, *ends),
        ),
        "after": (
            "R81 R72",
            f"A filter that denies {msr.name} comes after the restore and before L2 runs.",
            (ENTERS, *let(msr, one, two), SAVES, OUT, RESTORES, deny, *ends),
        ),
        "again_between": (
            "R81 R70",
            f"A filter that allows {msr.name} again while L2 is away governs the L2 restored.",
            (
                *(deny, ENTERS, *stopped(msr, one), SAVES, OUT),
                *(done_install(default_deny().allow(msr)), RESTORES),
                *(*let(msr, one, two), denied(X), CALLS, *let(msr, two, one)),
            ),
        ),
        "in_a_fresh_vm": (
            "R81 R75",
            f"A filter that denies {msr.name} comes first in the VM that an L2 is restored in.",
            (
                *(ENTERS, *let(msr, one, two), SAVES, FRESH, TELL_FILTER),
                *(deny, RESTORES, *ends),
            ),
        ),
        "after_in_a_fresh_vm": (
            "R81 R75",
            f"A filter that denies {msr.name} comes last in the VM that an L2 is restored in.",
            (
                *(ENTERS, *let(msr, one, two), SAVES, FRESH, TELL_FILTER),
                *(RESTORES, deny, *ends),
            ),
        ),
        "no_more_in_a_fresh_vm": (
            "R81 R26",
            f"A VM that an L2 is restored in has no filter: {msr.name} is allowed there.",
            (
                *(deny, ENTERS, *stopped(msr, one), SAVES, FRESH, TELL_FILTER),
                *(RESTORES, *let(msr, one, two), CALLS, *let(msr, two, one)),
            ),
        ),
    }
    return tuple(
        Case(f"restored.{name}_{when}", sentence, checks, *play(TELL_FILTER, *script))
        for when, (checks, sentence, script) in rows.items()
    )


def _maybe(msr: Msr, data: int) -> Case:
    """Return the case of an MSR that this host may not have."""
    either = (passes(msr), write_passes(msr, data), passes(msr))
    return Case(
        f"restored.{msr.name.lower()}",
        f"An L2 that is restored obeys the filter of {msr.name} that came while it was away.",
        "R81 R72",
        *play(
            *(TELL_FILTER, ENTERS, *either, SAVES, OUT),
            *(done_install(default_allow().deny(msr)), RESTORES, *stopped(msr, data)),
            *(SAVES, OUT, done_install(default_deny().allow(msr)), RESTORES, *either),
            *(SAVES, FRESH, TELL_FILTER, done_install(default_deny().allow(A)), RESTORES),
            *(*stopped(msr, data), CALLS, *stopped(msr, data)),
        ),
    )


CASES = (
    *(case for msr, values in HELD.items() for case in _by_msr(msr, *values)),
    *(
        _maybe(msr, data)
        for msr, data in PASSED_THROUGH.items()
        if msr not in (*HELD, Msr.AMD64_SEV_ES_GHCB)
    ),
    Case(
        "restored.tsc",
        "An L2 that is restored obeys a filter of reads of the TSC, which hardware passes.",
        "R81 R72",
        *play(
            *(TELL_FILTER, ENTERS, passes(Msr.IA32_TSC), SAVES, OUT),
            *(done_install(default_allow().deny(Msr.IA32_TSC, access=READ)), RESTORES),
            *(denied(Msr.IA32_TSC), CALLS, denied(Msr.IA32_TSC)),
        ),
    ),
    Case(
        "restored.what_no_hardware_passes",
        "An L2 that is restored obeys the filter in force, of MSRs that KVM itself handles.",
        "R81",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(X)), ENTERS, denied(X), passes(Y)),
            *(SAVES, OUT, done_install(default_allow().deny(Y)), RESTORES),
            *(passes(X), write_denied(Y, 0), denied(Y)),
            *(SAVES, done_install(default_deny().allow(Y)), RESTORES, denied(X), passes(Y)),
            *(SAVES, FRESH, TELL_FILTER, RESTORES, passes(X), passes(Y)),
            *(done_install(default_allow().deny(X)), denied(X), passes(Y), CALLS, denied(X)),
        ),
    ),
    Case(
        "restored.while_it_runs",
        "An L2 that is restored over itself obeys the filter that came before, run under or not.",
        "R81 R72",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(_STAR)), ENTERS),
            *(denied(_STAR), passes(_GS), SAVES, RESTORES, denied(_STAR), passes(_GS)),
            *(SAVES, done_install(default_allow().deny(_STAR, _GS)), RESTORES),
            *(denied(_GS), denied(_STAR), CALLS, denied(_GS), ENTERS, denied(_GS)),
        ),
    ),
    Case(
        "restored.reads_and_writes_apart",
        "A filter that comes while L2 is away denies reads of one MSR and writes of another.",
        "R81 R22",
        *play(
            *(TELL_FILTER, ENTERS, passes(_GS), passes(_STAR), SAVES, OUT),
            done_install(default_allow().deny(_GS, access=READ).deny(_STAR, access=WRITE)),
            *(RESTORES, denied(_GS), write_passes(_GS, 0x1000), passes(_STAR)),
            *(write_denied(_STAR, 1), CALLS, denied(_GS), write_denied(_STAR, 1)),
        ),
    ),
    Case(
        "restored.l1_first",
        "L1 gets what it intercepts from an L2 that is restored, whatever the filter says.",
        "R36 R81",
        *play(
            *(TELL_FILTER, NONE_PASSES, SAVES, OUT),
            *(done_install(default_allow().deny(_GS)), denied(_GS), RESTORES, to_l1(_GS)),
            *(RESTORES, write_to_l1(_STAR, 1), RESTORES, to_l1(A), denied(_GS)),
        ),
    ),
    Case(
        "restored.another_entry_between",
        "What L1 let pass is the saved L2's, though another L2 came in between.",
        "R36 R81",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(_GS)), ENTERS, denied(_GS), SAVES),
            *(CALLS, NONE_PASSES, to_l1(_STAR), RESTORES, denied(_GS), passes(_STAR), CALLS),
        ),
    ),
    Case(
        "restored.without_a_bitmap",
        "Where L1 intercepts no MSR, an L2 that is restored obeys the filter in force.",
        "R81 R36",
        *play(
            *(TELL, (enter_l2(bitmap=False), entered), passes(_GS), SAVES, OUT),
            *(done_install(default_allow().deny(_GS, A)), RESTORES, denied(_GS), denied(A)),
            *(SAVES, FRESH, TELL, RESTORES, passes(_GS)),
            *(done_install(default_allow().deny(_GS)), denied(_GS), CALLS),
        ),
    ),
    Case(
        "restored.refused_install",
        "An install that is refused while L2 is away changes nothing for the L2 restored.",
        "R14 R81",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(_STAR)), ENTERS, denied(_STAR)),
            *(passes(_GS), SAVES, OUT, bad_install(default_deny().range(A, 1, b"\0", 8), 22)),
            *(RESTORES, denied(_STAR), passes(_GS), CALLS, denied(_STAR), passes(_GS)),
        ),
    ),
    Case(
        "restored.x2apic_window",
        "No filter stops an L2 that is restored in the x2APIC window.",
        "R30 R81",
        *play(
            *(TELL_FILTER, ENTERS, SAVES, OUT, done_install(default_deny().allow(A)), RESTORES),
            *(denied(0x7FF), passes(0x800), passes(Msr.APIC_ID), passes(0x8FF), denied(0x900)),
            CALLS,
        ),
    ),
    Case(
        "restored.untold",
        "A denied access of an L2 that is restored is #GP in it while no reason is told of.",
        "R50 R81",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(_GS, X)), ENTERS, denied(_GS)),
            *(SAVES, OUT, (enable_exits(0), done), RESTORES, (rdmsr(_GS), gp), (rdmsr(X), gp)),
            *((wrmsr(_GS, 1), gp), TELL_FILTER, denied(_GS), CALLS),
        ),
    ),
    Case(
        "restored.no_mask_in_a_fresh_vm",
        "The mask of exits is a VM's own: where an L2 is restored in another it starts as 0.",
        "R47 R50",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(_GS)), ENTERS, denied(_GS), SAVES),
            # One that hardware passes through would show B36 instead.
            *(FRESH, done_install(default_allow().deny(X)), RESTORES, (rdmsr(X), gp)),
            *(TELL_FILTER, denied(X), CALLS),
        ),
    ),
    Case(
        "restored.saved_in_l1",
        "A vCPU that was saved in L1 is in L1 again once it is restored, and obeys the filter.",
        "R72 R34",
        *play(
            *(TELL_FILTER, (save_nested(), got(0)), ENTERS, passes(_GS)),
            *(done_install(default_allow().deny(_GS)), RESTORES, denied(_GS)),
            *((save_nested(), got(0)), (leave_nested(), done), denied(_GS), ENTERS, denied(_GS)),
            *(SAVES, CALLS, (save_nested(), got(0)), FRESH, TELL_FILTER, RESTORES, passes(_GS)),
            *(ENTERS, done_install(default_allow().deny(X)), denied(X), CALLS),
        ),
    ),
    Case(
        "restored.entered_after",
        "A vCPU put back from L2 to where no L2 ever was enters one, which obeys the filter.",
        "R36 R34",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(X)), (save_nested(), got(0)), ENTERS),
            *(denied(X), RESTORES, denied(X), ENTERS, denied(X), passes(Y), CALLS, denied(X)),
        ),
    ),
    Case(
        "restored.saved_at_an_exit",
        "Saving an L2 whose access waits for its answer changes neither the access nor its end.",
        "R57 R36",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(X, _GS)), ENTERS),
            *((begin(rdmsr(X)), RdmsrExit(X, FILTER)), SAVES),
            *((get_regs(), regs(0, rax=0, rcx=X, rdx=0)), (finish(value(7)), returned(7))),
            *(
                (begin(rdmsr(_GS)), RdmsrExit(_GS, FILTER)),
                SAVES,
                (complete(value(9)), interrupted),
            ),
            *(SAVES, (get_regs(), regs(2, rax=9, rcx=_GS, rdx=0)), (finish(), returned(9)), CALLS),
        ),
    ),
    Case(
        "restored.saved_at_an_end",
        "An L2 whose access is completed can be saved, restored, and go on with what it was told.",
        "R65 R81",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(_GS)), ENTERS),
            *((begin(rdmsr(_GS)), RdmsrExit(_GS, FILTER)), (complete(value(9)), interrupted)),
            *(SAVES, OUT, done_install(default_allow().deny(X)), RESTORES),
            *((finish(), returned(9)), denied(X), CALLS),
        ),
    ),
    Case(
        "restored.registers",
        "An L2 that is restored goes on with the registers it was saved with, not with later ones.",
        "R65 R81",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(X)), ENTERS),
            *((begin(rdmsr(X)), RdmsrExit(X, FILTER)), (complete(value(9)), interrupted), SAVES),
            *((set_regs(rax=5, rdx=6, rcx=7), done), (get_regs(), regs(2, rax=5, rcx=7, rdx=6))),
            *(OUT, RESTORES, (get_regs(), regs(2, rax=9, rcx=X, rdx=0))),
            *((finish(), returned(9)), denied(X), CALLS),
        ),
    ),
    Case(
        "restored.values",
        "What a MSR holds that no entry switches stays through a save and a restore.",
        "R28 R34",
        *play(
            *(TELL_FILTER, ENTERS, (wrmsr(_GS, 0x1000), wrote), SAVES, OUT),
            *((rdmsr(_GS), returned(0x1000)), (wrmsr(_GS, 0x2000), wrote)),
            # L1 runs under it first: what B36 lets a restored L2 write is no news here.
            *(done_install(default_allow().deny(_GS, access=WRITE)), write_denied(_GS, 0x2500)),
            *(RESTORES, (rdmsr(_GS), returned(0x2000)), (get_msr(_GS), got(0x2000))),
            *(write_denied(_GS, 0x3000), (rdmsr(_GS), returned(0x2000)), CALLS),
        ),
    ),
    Case(
        "restored.two_vcpus",
        "Of two vCPUs in L2, one restored and one not, each obeys a filter from its next entry on.",
        "R81 R71",
        *play(
            *(TELL_FILTER, ENTERS, passes(X), (enter_l2(vcpu=1), entered), passes(X, 1)),
            *(SAVES, OUT, done_install(default_allow().deny(X)), denied(X, 1), RESTORES),
            *(denied(X), denied(X, 1), (save_nested(1), got(1)), (restore_nested(1), done)),
            *(denied(X, 1), CALLS, denied(X), denied(X, 1)),
            *((leave_l2(1), l1_exit("hypercall")), denied(X, 1)),
        ),
    ),
    Case(
        "restored.made_before_the_filter",
        "In a fresh VM the vCPU is there first, then the filter, then L2: it obeys the filter.",
        "R75 R81",
        *play(
            *((create_vcpu(0), done), TELL_FILTER, ENTERS, passes(_GS), passes(_STAR), SAVES),
            *(FRESH, TELL_FILTER, (create_vcpu(0), done)),
            *(done_install(default_allow().deny(_GS, _STAR)), RESTORES),
            *(denied(_GS), write_denied(_STAR, 1), CALLS, denied(_GS), denied(_STAR)),
        ),
    ),
    Case(
        "restored.made_after_the_filter",
        "In a fresh VM the filter is there first, then the vCPU, then L2: it obeys the filter.",
        "R75 R81",
        *play(
            *((create_vcpu(0), done), TELL_FILTER, ENTERS, passes(_GS), passes(_STAR), SAVES),
            *(FRESH, TELL_FILTER, done_install(default_allow().deny(_GS, _STAR))),
            *((create_vcpu(0), done), RESTORES),
            *(denied(_GS), write_denied(_STAR, 1), CALLS, denied(_GS), denied(_STAR)),
        ),
    ),
)
