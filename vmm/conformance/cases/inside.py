"""What happens while a vCPU is in L2: filters come and go, others wait, descriptors close (R81)."""

from __future__ import annotations

from collections.abc import Callable

from vmm.conformance.cases.parked import parks, releases
from vmm.conformance.cases.words import (
    CALLS,
    ENTERS,
    HELD,
    TELL,
    TELL_FILTER,
    A,
    B,
    Row,
    allowed,
    bad_install,
    denied,
    done_install,
    passes,
    play,
    resumes,
    stalls,
    to_l1,
    write_denied,
    write_passes,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    await_install,
    begin,
    begin_install,
    blocked,
    close_vcpu,
    close_vm,
    complete,
    create_vcpu,
    done,
    enable_exits,
    enter_l2,
    entered,
    finish,
    gp,
    interrupted,
    l1_exit,
    leave_l2,
    listed,
    meanwhile,
    ran,
    rdmsr,
    returned,
    spin,
    spinning,
    stop_spin,
    stopped,
    until_exits,
    until_runs,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit
from vmm.filter import READ, WRITE, MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, Msr

_GS, _STAR = Msr.KERNEL_GS_BASE, Msr.STAR
X, Y, Z = Msr.EFER, 0xFE, Msr.IA32_APICBASE
"""MSRs with a bit in L1's bitmap that KVM never passes through; 0xfe, MTRRcap, is only read."""
OLD, NEW = default_allow().deny(X), default_deny().allow(X).deny(Y)

ENTERS_1: Row = (enter_l2(vcpu=1), entered)
CALLS_1: Row = (leave_l2(1), l1_exit("hypercall"))


def as_old(vcpu: int = 0) -> tuple[Row, ...]:
    """Return what OLD lets through: all but X."""
    return (denied(X, vcpu), write_passes(Y, 0, vcpu), passes(Z, vcpu))


def as_new(vcpu: int = 0) -> tuple[Row, ...]:
    """Return what NEW lets through: X alone."""
    return (passes(X, vcpu), write_denied(Y, 0, vcpu), denied(Z, vcpu))


DENIALS: dict[str, Callable[[int, int], MsrFilter]] = {
    "range": lambda msr, access: default_allow().deny(msr, access=access),
    "default": lambda msr, access: default_deny().allow(A),
}
"""The two ways to deny one MSR."""

CASES = (
    *(
        Case(
            f"inside.read_of_{msr.name.lower()}_denied_by_{how}",
            f"A filter that denies RDMSR of {msr.name} by {how} governs the L2 that runs.",
            "R81",
            *play(
                TELL_FILTER,
                *(ENTERS, passes(msr)),
                done_install(deny(msr, READ)),
                *(denied(msr), denied(msr), CALLS),
                *(denied(msr), ENTERS, denied(msr), CALLS),
            ),
        )
        for msr in (Msr.IA32_TSC, *HELD)
        for how, deny in DENIALS.items()
    ),
    *(
        Case(
            f"inside.write_of_{msr.name.lower()}_denied_by_{how}",
            f"A filter that denies WRMSR of {msr.name} by {how} governs the L2 that runs.",
            "R81",
            *play(
                TELL_FILTER,
                *(ENTERS, (wrmsr(msr, one), wrote)),
                done_install(deny(msr, WRITE)),
                *(write_denied(msr, two), write_denied(msr, two), CALLS),
                *(write_denied(msr, one), ENTERS, write_denied(msr, one), CALLS),
            ),
        )
        for msr, (one, two) in HELD.items()
        for how, deny in DENIALS.items()
    ),
    *(
        Case(
            f"inside.{msr.name.lower()}_allowed",
            f"A filter that allows {msr.name} again, read and written, governs the L2 that runs.",
            "R81 R70",
            *play(
                TELL_FILTER,
                done_install(default_allow().deny(msr)),
                *(ENTERS, denied(msr), write_denied(msr, two)),
                done_install(default_deny().allow(msr)),
                *((wrmsr(msr, one), wrote), (rdmsr(msr), returned(one)), denied(X)),
                done_install(default_allow()),
                *((wrmsr(msr, two), wrote), (rdmsr(msr), returned(two)), CALLS),
            ),
        )
        for msr, (one, two) in HELD.items()
    ),
    Case(
        "inside.what_no_hardware_passes",
        "Each access of an MSR that no hardware passes obeys the filter in force, in L2 too.",
        "R81 R72",
        *play(
            TELL_FILTER,
            *(ENTERS, passes(X), done_install(OLD), *as_old(), done_install(NEW), *as_new()),
            *(done_install(OLD), *as_old(), done_install(default_allow()), passes(X)),
            *(done_install(NEW), *as_new(), CALLS),
        ),
    ),
    Case(
        "inside.refused_install",
        "An install that is refused while L2 runs changes nothing for it.",
        "R81 R14",
        *play(
            TELL_FILTER,
            done_install(OLD),
            *(ENTERS, *as_old(), passes(_GS)),
            bad_install(default_deny().allow(X).range(A, 1, b"\0", 8), 22),
            *(*as_old(), passes(_GS), CALLS, *as_old()),
        ),
    ),
    Case(
        "inside.without_a_bitmap",
        "Where L1 intercepts no MSR, a filter that comes while L2 runs governs it, both ways.",
        "R81",
        *play(
            TELL_FILTER,
            (enter_l2(bitmap=False), entered),
            *(passes(_GS), passes(_STAR)),
            done_install(default_allow().deny(_GS, _STAR, A)),
            *(denied(_GS), write_denied(_STAR, 0), denied(A)),
            done_install(default_deny().allow(_GS)),
            *(passes(_GS), denied(_STAR), CALLS),
        ),
    ),
    Case(
        "inside.mask_changes",
        "A mask that is set while L2 runs counts from its next access on.",
        "R81 R44 R50",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_GS, X)),
            *(ENTERS, denied(_GS), denied(X)),
            (enable_exits(0), done),
            *((rdmsr(_GS), gp), (rdmsr(X), gp), (wrmsr(_GS, 1), gp)),
            (enable_exits(FILTER), done),
            *(denied(_GS), denied(X), CALLS),
        ),
    ),
    Case(
        "inside.two_vcpus",
        "A filter that comes while one vCPU is in L2 governs it and the other's L1 at once.",
        "R81 R71",
        *play(
            TELL_FILTER,
            *(passes(_GS), ENTERS_1, passes(_GS, 1), passes(X, 1)),
            done_install(default_allow().deny(_GS, X)),
            *(denied(_GS), denied(X), denied(X, 1), denied(_GS, 1)),
            *(CALLS_1, denied(_GS, 1)),
        ),
    ),
    Case(
        "inside.both_in_l2",
        "A filter that comes while two vCPUs are in L2 governs both, and each at its next entry.",
        "R81 R71",
        *play(
            TELL_FILTER,
            *(ENTERS, ENTERS_1, passes(X), passes(X, 1)),
            done_install(default_allow().deny(_GS, X)),
            *(denied(X), denied(X, 1), CALLS, ENTERS, denied(_GS)),
            *(CALLS_1, ENTERS_1, denied(_GS, 1)),
            done_install(default_allow()),
            *(passes(X), passes(X, 1), passes(_GS), passes(_GS, 1)),
            *(CALLS, CALLS_1, passes(_GS, 1), passes(_GS)),
            done_install(default_deny().allow(A)),
            *(denied(X), denied(X, 1)),
        ),
    ),
    Case(
        "inside.install_between_exit_and_end",
        "A filter that comes while an access of L2 waits for its answer governs the next one.",
        "R81 R68",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(X)),
            *(ENTERS, (begin(rdmsr(X)), RdmsrExit(X, FILTER))),
            done_install(default_allow().deny(Y)),
            *((complete(value(3)), interrupted), (finish(), returned(3))),
            *(denied(Y), passes(X), CALLS),
        ),
    ),
    *(
        Case(
            f"inside.stalled_at_{slot}",
            f"While an install waits for bitmap {slot}, L2 obeys the old filter, and then the new.",
            "R81 R70",
            *play(
                TELL_FILTER,
                done_install(OLD),
                *(ENTERS, *as_old()),
                stalls(NEW, slot),
                *(*as_old(), CALLS, ENTERS, *as_old()),
                resumes(),
                *(*as_new(), CALLS, *as_new()),
            ),
        )
        for slot in (0, 1)
    ),
    Case(
        "inside.parked",
        "An install waits for an L2 that is parked inside the kernel, and governs it afterwards.",
        "R81 R74",
        *play(
            TELL,
            done_install(default_allow().deny(A, X)),
            *(denied(A), allowed(B), ENTERS_1, denied(X, 1), passes(Z, 1), parks(1)),
            (begin_install(default_allow().deny(B, Z)), blocked),
            *(allowed(A), denied(B)),
            releases(1),
            (await_install(), done),
            *(denied(Z, 1), passes(X, 1), CALLS_1, denied(Z, 1), allowed(A, 1)),
        ),
    ),
    Case(
        "inside.made_meanwhile",
        "A vCPU that is made while another is in L2 enters an L2 that obeys the same filter.",
        "R81 R75",
        *play(
            (create_vcpu(0), done),
            TELL_FILTER,
            *(ENTERS, passes(X)),
            done_install(default_allow().deny(X, _GS)),
            (meanwhile(create_vcpu(1)), done),
            *(denied(X), denied(_GS, 1), ENTERS_1, denied(_GS, 1), denied(X, 1), CALLS_1),
        ),
    ),
    Case(
        "inside.running",
        "An L2 in a loop obeys each filter soon, where its accesses ask the filter.",
        "R81 R72",
        *play(
            TELL_FILTER,
            ENTERS_1,
            (spin(rdmsr(X, vcpu=1)), spinning),
            done_install(default_allow().deny(X)),
            (until_exits(1), RdmsrExit(X, FILTER)),
            done_install(default_allow()),
            (until_runs(1), ran),
            (stop_spin(1), stopped),
            *(CALLS_1, done_install(OLD), denied(X, 1)),
        ),
    ),
    Case(
        "inside.running_is_let_go",
        "An L2 in a loop of denied accesses runs freely soon after a filter allows them.",
        "R81 R72",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_GS)),
            ENTERS_1,
            (spin(rdmsr(_GS, vcpu=1)), spinning),
            (until_exits(1), RdmsrExit(_GS, FILTER)),
            done_install(default_allow()),
            (until_runs(1), ran),
            (stop_spin(1), stopped),
            *(CALLS_1, done_install(OLD), denied(X, 1)),
        ),
    ),
    Case(
        "inside.vm_closed",
        "A closed VM lives as long as its vCPU, whose L2 still obeys the filter and can be left.",
        "R81 R76",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_GS)),
            *(ENTERS, denied(_GS), (close_vm(), done), denied(_GS), CALLS),
            *(denied(_GS), ENTERS, denied(_GS), to_l1(A), (close_vcpu(0), done)),
        ),
    ),
    Case(
        "inside.closed",
        "VM and vCPU can be closed while the vCPU is in L2 under a filter.",
        "R76",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_GS, _STAR)),
            *(ENTERS, denied(_STAR), (close_vm(), done), (close_vcpu(0), done)),
        ),
    ),
    # B14: with slub_debug=P on the kernel's command line a read of a freed filter is a splat.
    Case(
        "inside.closed_with_lists",
        "VM and vCPU can be closed in an L2 whose exit would load a denied MSR.",
        "R76 R37",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(_GS, _STAR)),
            (enter_l2(exit_load=(listed(_GS, 1),), exit_store=(listed(_GS),)), entered),
            *(denied(_STAR), (close_vm(), done), (close_vcpu(0), done)),
        ),
    ),
)
