"""What an L2 does besides single accesses: its registers, its steps, its entry, its neighbours."""

from __future__ import annotations

from vmm.conformance.cases.words import (
    CALLS,
    DATA,
    ENTERS,
    GARBAGE,
    HELD,
    NONE_PASSES,
    STORAGE,
    TELL,
    TELL_FILTER,
    A,
    allowed,
    denied,
    done_install,
    in_l2,
    passes,
    play,
    to_l1,
    write_allowed,
    write_denied,
    write_to_l1,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    REPLY,
    Fault,
    begin,
    complete,
    done,
    enable_exits,
    enter_l2,
    entered,
    fault,
    finish,
    get_msr,
    get_regs,
    got,
    gp,
    interrupted,
    l1_exit,
    leave_l2,
    rdmsr,
    regs,
    returned,
    set_msr,
    through,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import WRITE, default_allow, default_deny
from vmm.msr import FILTER, UNKNOWN, Msr

DB = 1

DB = 1
STEPPED = Fault(DB, skew=2, registers=(7, 0))
"""How a single-stepped RDMSR ends that was answered with 7."""
_GS, _STAR = Msr.KERNEL_GS_BASE, Msr.STAR
_DEADLINE = Msr.IA32_TSC_DEADLINE
_EDGE = 0x1FFF
"""An MSR of the bitmap that no hardware passes: each access asks the filter."""

CASES = (
    Case(
        "l2.no_bitmap_intercepts_nothing",
        "Where L1 intercepts no MSR at all, the filter says every access of L2.",
        "R36",
        *play(
            TELL,
            done_install(default_allow().deny(A, _GS)),
            (enter_l2(bitmap=False), entered),
            denied(A),
            write_denied(A),
            denied(_GS),
            allowed(A + 1),
            write_allowed(A + 1),
            CALLS,
            done_install(default_deny().allow(A)),
            (enter_l2(bitmap=False), entered),
            allowed(A),
            denied(A + 1),
            denied(_GS),
        ),
    ),
    Case(
        "l2.no_bitmap_intercepts_everything",
        "Where L1 has no bitmap for its intercepts it gets every access of L2.",
        "R36",
        *play(
            TELL,
            done_install(default_allow().deny(A, _GS)),
            *((enter_l2(passes="none", bitmap=False), entered), to_l1(A)),
            *((enter_l2(passes="none", bitmap=False), entered), to_l1(_GS)),
            *((enter_l2(passes="none", bitmap=False), entered), write_to_l1(_STAR)),
            denied(A),
        ),
    ),
    Case(
        "l2.tsc_deadline_is_filtered",
        "No short way past the filter, or past L1, is open to a WRMSR of TSC_DEADLINE by L2.",
        "R36 R33",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(A, _DEADLINE)),
            ENTERS,
            write_denied(_DEADLINE, 0),
            denied(_DEADLINE),
            write_denied(_DEADLINE, 1 << 43),
            CALLS,
            *(NONE_PASSES, write_to_l1(_DEADLINE, 0)),
            *(NONE_PASSES, write_to_l1(_DEADLINE, 1 << 43)),
            denied(A),
        ),
    ),
    Case(
        "l2.x2apic_window_is_exempt",
        "No filter stops L2 in the x2APIC window, and L1 can.",
        "R30 R36",
        *play(
            TELL_FILTER,
            done_install(default_deny().allow(A)),
            ENTERS,
            denied(0x7FF),
            *(passes(each) for each in (0x800, Msr.APIC_ID, 0x83F, 0x8FF)),
            denied(0x900),
            CALLS,
            NONE_PASSES,
            to_l1(Msr.APIC_ID),
        ),
    ),
    *(
        Case(
            f"l2.untold_{name}",
            f"A denied access of L2 is #GP in L2 while the mask is {mask:#x}.",
            "R36 R50",
            *play(
                (enable_exits(mask), done),
                done_install(default_allow().deny(*HELD)),
                ENTERS,
                *((rdmsr(msr), gp) for msr in HELD),
                *((wrmsr(msr, one), gp) for msr, (one, _) in HELD.items()),
                *((enable_exits(FILTER), done), denied(_GS), (enable_exits(0), done)),
                *((rdmsr(_GS), gp), CALLS),
            ),
        )
        for name, mask in (("mask_0", 0), ("mask_unknown", UNKNOWN), ("mask_inval", 1))
    ),
    Case(
        "l2.registers_of_a_read",
        "A denied RDMSR of L2 is answered with both halves, and clears the upper ones.",
        "R36 R60 R62",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_EDGE, _GS)),
            ENTERS,
            *(
                row
                for msr in (_EDGE, _GS)
                for row in (
                    (rdmsr(msr, DATA, GARBAGE), RdmsrExit(msr, FILTER), returned(REPLY)),
                    (
                        rdmsr(msr, DATA, GARBAGE, reply=value(1 << 63)),
                        *(RdmsrExit(msr, FILTER), returned(1 << 63)),
                    ),
                    (rdmsr(msr, DATA, GARBAGE, reply=fault(0x80)), RdmsrExit(msr, FILTER), gp),
                )
            ),
            CALLS,
        ),
    ),
    Case(
        "l2.registers_of_a_write",
        "A denied WRMSR of L2 shows EDX:EAX and changes no register.",
        "R36 R54 R63",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_EDGE, _GS)),
            ENTERS,
            *(
                (wrmsr(msr, one, GARBAGE, reply=reply), WrmsrExit(msr, FILTER, one), end)
                for msr, one in ((_EDGE, DATA), (_GS, STORAGE[_GS][0]))
                for reply, end in ((value(0), wrote), (fault(), gp))
            ),
            (wrmsr(A, DATA, GARBAGE), l1_exit("wrmsr", A, value=DATA)),
        ),
    ),
    Case(
        "l2.halves",
        "An exit of L2 can be looked at and completed in steps, and L2 goes on.",
        "R36 R57 R65",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_GS)),
            ENTERS,
            (begin(rdmsr(_GS)), RdmsrExit(_GS, FILTER)),
            (get_regs(), regs(0, rax=0, rcx=_GS, rdx=0)),
            (complete(value(7 << 32 | 5)), interrupted),
            (get_regs(), regs(2, rax=5, rcx=_GS, rdx=7)),
            (finish(), returned(7 << 32 | 5)),
            (begin(wrmsr(_GS, 9)), WrmsrExit(_GS, FILTER, 9)),
            (complete(fault(), by="signal"), interrupted),
            (get_regs(), regs(0, rax=9, rcx=_GS, rdx=0)),
            (finish(), gp),
            denied(_GS),
            (begin(rdmsr(A)), l1_exit("rdmsr", A)),
        ),
    ),
    Case(
        "l2.one_value_for_both",
        "What no entry switches is one MSR for L1 and L2: values cross levels, denied writes not.",
        "R36 R28 R34",
        *play(
            TELL_FILTER,
            (wrmsr(_GS, 0x1000), wrote),
            ENTERS,
            (rdmsr(_GS), returned(0x1000)),
            (wrmsr(_GS, 0x2000), wrote),
            (get_msr(_GS), got(0x2000)),
            CALLS,
            (rdmsr(_GS), returned(0x2000)),
            done_install(default_allow().deny(_GS, access=WRITE)),
            ENTERS,
            write_denied(_GS, 0x3000),
            (rdmsr(_GS), returned(0x2000)),
            (set_msr(_GS, 0x4000), done),
            (rdmsr(_GS), returned(0x4000)),
            CALLS,
            (rdmsr(_GS), returned(0x4000)),
        ),
    ),
    Case(
        "l2.single_step",
        "A stepping L2 gets its #DB right after a completed access.",
        "R36 R66",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_GS)),
            ENTERS,
            (
                rdmsr(_GS, single_step=True, reply=value(7)),
                *(RdmsrExit(_GS, FILTER), STEPPED),
            ),
            denied(_GS),
            CALLS,
        ),
    ),
    Case(
        "l2.entry_is_l1s",
        "An L2 that would enter a guest of its own is L1's exit, whatever the filter says.",
        "R36",
        *play(
            TELL_FILTER,
            done_install(default_deny().allow(A)),
            ENTERS,
            (enter_l2(), l1_exit("entry")),
            ENTERS,
            CALLS,
            (leave_l2(), done),
            denied(_GS),
        ),
    ),
    Case(
        "l2.other_vcpu",
        "One filter governs an L1 and another vCPU's L2, which has its own bitmap.",
        "R36 R71",
        *play(
            TELL_FILTER,
            passes(_GS),
            passes(_GS, 1),
            done_install(default_allow().deny(_GS)),
            (enter_l2(vcpu=1), entered),
            denied(_GS),
            denied(_GS, 1),
            NONE_PASSES,
            denied(_GS, 1),
            to_l1(_GS),
            denied(_GS),
            (leave_l2(1), l1_exit("hypercall")),
            denied(_GS, 1),
        ),
    ),
    *(
        Case(
            f"l2.fields_under_{name}",
            "Entry and exit switch EFER, PAT and what else has a field, under a filter that denies "
            f"{name.replace('_', ' ')}.",
            "R38",
            *play(
                TELL_FILTER,
                done_install(new),
                *((enter_l2(fields=True), entered), denied(_GS), CALLS),
                *((enter_l2(passes="none", fields=True), entered), to_l1(_GS)),
                *((enter_l2(fields=True), entered), denied(Msr.EFER), CALLS),
                denied(Msr.EFER),
            ),
        )
        for name, new in (
            ("everything", default_deny().allow(A)),
            ("all_that_is_switched", default_allow().deny(Msr.EFER, Msr.IA32_CR_PAT, *HELD)),
        )
    ),
    Case(
        "l2.filter_changes_between_entries",
        "A filter that is installed while L1 runs governs the next L2, both ways.",
        "R36 R72",
        *play(
            TELL_FILTER,
            *in_l2(*(passes(msr) for msr in HELD)),
            done_install(default_allow().deny(*HELD)),
            *in_l2(*(denied(msr) for msr in HELD)),
            done_install(default_allow()),
            *in_l2(*(passes(msr) for msr in HELD)),
            done_install(default_deny().allow(A)),
            *in_l2(*(denied(msr) for msr in HELD)),
            *in_l2(*(write_denied(msr, one) for msr, (one, _) in HELD.items())),
        ),
    ),
    Case(
        "l2.bitmap_changes_between_entries",
        "What L1 passed once it can intercept at the next entry, and the other way round.",
        "R36",
        *play(
            TELL_FILTER,
            *in_l2(*(passes(msr) for msr in HELD)),
            *(row for msr in HELD for row in (NONE_PASSES, to_l1(msr))),
            *(
                row
                for msr in HELD
                for row in ((enter_l2(passes=(through(msr),)), entered), passes(msr), CALLS)
            ),
            done_install(default_allow().deny(_GS)),
            *(NONE_PASSES, to_l1(_STAR), ENTERS, denied(_GS)),
        ),
    ),
)
