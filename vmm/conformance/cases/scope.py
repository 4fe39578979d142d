"""What a filter governs and what it does not: R27, R28, R34, R39, R56."""

from __future__ import annotations

from vmm.conformance.cases.words import (
    BAD_EFER,
    DATA,
    STORAGE,
    TELL_FILTER,
    A,
    allowed,
    denied,
    done_install,
    passes,
    play,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    done,
    enable_exits,
    get_msr,
    got,
    gp,
    rdmsr,
    returned,
    set_msr,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import READ, READ_WRITE, WRITE, default_allow, default_deny
from vmm.msr import FILTER, INVAL, Msr

# What a guest can be denied of the paravirt MSRs, with a value that would have an effect.
_PARAVIRT = {
    Msr.KVM_WALL_CLOCK: 0x1000,
    Msr.KVM_SYSTEM_TIME: 0x1001,
    Msr.KVM_WALL_CLOCK_NEW: 0x1000,
    Msr.KVM_SYSTEM_TIME_NEW: 0x1001,
    Msr.KVM_ASYNC_PF_EN: 0x1001,
    Msr.KVM_STEAL_TIME: 0x1001,
    Msr.KVM_PV_EOI_EN: 0x1001,
    Msr.KVM_POLL_CONTROL: 0,
    Msr.HV_GUEST_OS_ID: 1,
    Msr.HV_HYPERCALL: 0x1001,
    Msr.HV_VP_INDEX: 0,
    Msr.XEN_HYPERCALL: 0x1000,
}

CASES = (
    *(
        Case(
            f"scope.denied_write_of_{msr.name.lower()}",
            f"A denied WRMSR of {msr.name} changes nothing that KVM_GET_MSRS shows, whether it "
            "exits and succeeds, exits and fails, or is #GP.",
            "R28 R34",
            *play(
                TELL_FILTER,
                (set_msr(msr, old), done),
                done_install(default_allow().deny(msr, access=WRITE)),
                write_denied(msr, new),
                (get_msr(msr), got(old)),
                (rdmsr(msr), returned(old)),
                (enable_exits(0), done),
                (wrmsr(msr, new), gp),
                (get_msr(msr), got(old)),
            ),
        )
        for msr, (old, new) in STORAGE.items()
    ),
    *(
        Case(
            f"scope.denied_read_of_{msr.name.lower()}",
            f"A denied RDMSR of {msr.name} returns what userspace supplies and leaves the MSR.",
            "R28",
            *play(
                TELL_FILTER,
                (set_msr(msr, old), done),
                done_install(default_allow().deny(msr, access=READ)),
                (rdmsr(msr, reply=value(DATA)), RdmsrExit(msr, FILTER), returned(DATA)),
                (get_msr(msr), got(old)),
                (wrmsr(msr, new), wrote),
                denied(msr),
                (get_msr(msr), got(new)),
            ),
        )
        for msr, (old, new) in STORAGE.items()
    ),
    *(
        Case(
            f"scope.allowed_{msr.name.lower()}",
            f"An allowed {msr.name} keeps what the guest writes, under a filter as without one.",
            "R27 R19",
            *play(
                (enable_exits(7), done),
                (wrmsr(msr, old), wrote),
                (rdmsr(msr), returned(old)),
                done_install(default_deny().allow(msr)),
                (rdmsr(msr), returned(old)),
                (wrmsr(msr, new), wrote),
                (rdmsr(msr), returned(new)),
                (get_msr(msr), got(new)),
                denied(A),
            ),
        )
        for msr, (old, new) in STORAGE.items()
    ),
    Case(
        "scope.allowed_msrs_fail_as_without_a_filter",
        "An allowed access fails as KVM fails it: UNKNOWN and INVAL exits, or #GP without them.",
        "R27 R50",
        *play(
            (enable_exits(7), done),
            done_install(default_deny().allow(A, Msr.EFER)),
            allowed(A),
            write_allowed(A),
            (wrmsr(Msr.EFER, BAD_EFER), WrmsrExit(Msr.EFER, INVAL, BAD_EFER), wrote),
            (enable_exits(FILTER), done),
            (rdmsr(A), gp),
            (wrmsr(A, DATA), gp),
            (wrmsr(Msr.EFER, BAD_EFER), gp),
        ),
    ),
    *(
        Case(
            f"scope.host_access_of_{msr.name.lower()}",
            f"KVM_GET_MSRS and KVM_SET_MSRS reach {msr.name} though the guest is denied it.",
            "R34",
            *play(
                TELL_FILTER,
                (set_msr(msr, new), done),
                (get_msr(msr), got(new)),
                done_install(default_deny().allow(A)),
                denied(msr),
                (set_msr(msr, old), done),
                (get_msr(msr), got(old)),
                write_denied(msr, 0),
                (set_msr(msr, new), done),
                (get_msr(msr), got(new)),
                denied(msr),
                done_install(default_allow()),
                (rdmsr(msr), returned(new)),
            ),
        )
        for msr, (old, new) in STORAGE.items()
    ),
    *(
        Case(
            f"scope.paravirt_{msr.name.lower()}",
            f"The filter decides on {msr.name} ({msr:#x}) before KVM handles it.",
            "R39 R51 R56",
            *play(
                (enable_exits(7), done),
                done_install(default_allow().deny(msr)),
                denied(msr),
                write_denied(msr, data),
                (enable_exits(0), done),
                (rdmsr(msr), gp),
                (wrmsr(msr, data), gp),
                (enable_exits(7), done),
                done_install(default_deny().range(msr, 1, b"\0", READ_WRITE)),
                denied(msr),
                write_denied(msr, data),
            ),
        )
        for msr, data in _PARAVIRT.items()
    ),
    Case(
        "scope.paravirt_not_denied",
        "A paravirt MSR that the filter allows is KVM's business, in any range and by default.",
        "R39 R27",
        *play(
            TELL_FILTER,
            done_install(default_deny().allow(Msr.KVM_SYSTEM_TIME_NEW)),
            passes(Msr.KVM_SYSTEM_TIME_NEW),
            denied(Msr.KVM_WALL_CLOCK_NEW),
            done_install(default_allow().deny(Msr.KVM_SYSTEM_TIME_NEW)),
            passes(Msr.KVM_WALL_CLOCK_NEW),
            denied(Msr.KVM_SYSTEM_TIME_NEW),
        ),
    ),
)
