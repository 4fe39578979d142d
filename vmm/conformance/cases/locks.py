"""User memory is copied with no lock held: nothing waits for an install's page fault: R73, R75.

Before b318e8decf6b an install held kvm->lock while it read the bitmaps (B03 f): one page that does
not come, and KVM_CREATE_VCPU hangs with it.
"""

from __future__ import annotations

from errno import EEXIST, EINVAL

from vmm.conformance.cases.words import (
    DATA,
    NEW,
    OLD,
    STORAGE,
    TELL,
    TELL_FILTER,
    A,
    B,
    C,
    Row,
    allowed,
    as_new,
    as_old,
    denied,
    done_install,
    loses_its_bitmap,
    play,
    resumes,
    stalls,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    EnableCap,
    Event,
    check_extension,
    create_irqchip,
    create_vcpu,
    done,
    enable_exits,
    get_msr,
    got,
    gp,
    meanwhile,
    rdmsr,
    refused,
    rejected,
    returned,
    set_msr,
    wrmsr,
    wrote,
)
from vmm.filter import default_allow, default_deny
from vmm.msr import FILTER, KVM_CAP_X86_MSR_FILTER, UNKNOWN, Msr

_MASKS: dict[str, tuple[EnableCap, Event, tuple[Row, ...]]] = {
    "only_filter": (
        enable_exits(FILTER),
        done,
        (denied(A), (rdmsr(B), gp), (wrmsr(C, DATA), gp)),
    ),
    "only_unknown": (enable_exits(UNKNOWN), done, ((rdmsr(A), gp), allowed(B), write_allowed(C))),
    "none": (enable_exits(0), done, ((rdmsr(A), gp), (rdmsr(B), gp), (wrmsr(C, DATA), gp))),
    "an_undefined_bit": (enable_exits(8), rejected(EINVAL), as_old()),
}


CASES = (
    *(
        Case(
            f"locks.create_vcpu_in_slot_{slot}",
            f"KVM_CREATE_VCPU returns while an install waits for the bitmap of slot {slot}; the "
            "new vCPU obeys the old filter until the install ends.",
            "R73 R75 R70",
            *play(
                TELL,
                done_install(OLD),
                *as_old(),
                stalls(NEW, slot),
                (meanwhile(create_vcpu(1)), done),
                *as_old(1),
                *as_old(),
                resumes(),
                *as_new(1),
                *as_new(),
            ),
        )
        for slot in (0, 1)
    ),
    Case(
        "locks.create_vcpus",
        "Several vCPUs are made while an install waits for a bitmap; a number that is taken is "
        "EEXIST.",
        "R73 R75 R70",
        *play(
            TELL,
            done_install(OLD),
            stalls(NEW, 1),
            (create_vcpu(0), done),
            *as_old(0),
            *(
                row
                for vcpu in (1, 2, 3)
                for row in ((meanwhile(create_vcpu(vcpu)), done), *as_old(vcpu))
            ),
            (meanwhile(create_vcpu(2)), rejected(EEXIST)),
            resumes(),
            *(row for vcpu in (3, 2, 1, 0) for row in as_new(vcpu)),
        ),
    ),
    Case(
        "locks.create_vcpu_and_fail",
        "A vCPU made while an install waits goes on under the old filter when the install fails.",
        "R73 R75 R14",
        *play(
            TELL,
            done_install(OLD),
            stalls(NEW, 0),
            (meanwhile(create_vcpu(1)), done),
            *as_old(1),
            loses_its_bitmap(),
            *as_old(1),
            *as_old(),
        ),
    ),
    *(
        Case(
            f"locks.vcpu_made_before_{msr.name.lower()}_is_{name}",
            f"A vCPU made while an install waits has {msr.name} {was} from its first instruction, "
            f"and {name} once the install ends.",
            "R75 R72 R73 R70",
            *play(
                TELL_FILTER,
                done_install(old),
                stalls(new, 1),
                (create_vcpu(1), done),
                *rows[was],
                resumes(),
                *rows[name],
            ),
        )
        for msr in (Msr.STAR, Msr.FS_BASE, Msr.KERNEL_GS_BASE)
        for one in (STORAGE[msr][0],)
        for rows in (
            {
                "allowed": ((wrmsr(msr, one, vcpu=1), wrote), (rdmsr(msr, vcpu=1), returned(one))),
                "denied": (write_denied(msr, one, 1), denied(msr, 1)),
            },
        )
        for name, was, old, new in (
            ("denied", "allowed", default_allow().deny(A), default_allow().deny(B, msr)),
            ("allowed", "denied", default_allow().deny(A, msr), default_deny().allow(B, msr)),
        )
    ),
    Case(
        "locks.create_irqchip",
        "KVM_CREATE_IRQCHIP returns while an install waits, and so does a second one, with EEXIST.",
        "R73 R70",
        *play(
            TELL,
            done_install(OLD),
            stalls(NEW, 0),
            (meanwhile(create_irqchip()), done),
            (meanwhile(create_irqchip()), rejected(EEXIST)),
            (create_vcpu(0), done),
            *as_old(),
            resumes(),
            *as_new(),
        ),
    ),
    *(
        Case(
            f"locks.mask_of_{name}",
            f"A mask of {name.replace('_', ' ')} set while an install waits counts from the next "
            "access on.",
            "R73 R44 R46",
            *play(
                TELL,
                done_install(OLD),
                stalls(NEW, 0),
                *as_old(),
                (meanwhile(action), event),
                *meantime,
                resumes(),
                TELL,
                *as_new(),
            ),
        )
        for name, (action, event, meantime) in _MASKS.items()
    ),
    Case(
        "locks.mask_outlives_the_swap",
        "A mask set while an install waits is not undone when the install ends.",
        "R73 R44 R46",
        *play(
            TELL,
            done_install(OLD),
            stalls(NEW, 0),
            (meanwhile(enable_exits(FILTER)), done),
            denied(A),
            (rdmsr(B), gp),
            resumes(),
            (rdmsr(A), gp),
            denied(B),
            denied(C),
        ),
    ),
    Case(
        "locks.msrs_of_the_host",
        "KVM_GET_MSRS and KVM_SET_MSRS return while an install waits, filtered by neither filter.",
        "R73 R34",
        *play(
            TELL,
            done_install(default_allow().deny(Msr.STAR)),
            stalls(default_deny().deny(Msr.STAR).allow(A), 1),
            (set_msr(Msr.STAR, DATA), done),
            (get_msr(Msr.STAR), got(DATA)),
            (get_msr(A), refused),
            (check_extension(KVM_CAP_X86_MSR_FILTER, "vm"), got(1)),
            denied(Msr.STAR),
            allowed(B),
            resumes(),
            (get_msr(Msr.STAR), got(DATA)),
            denied(Msr.STAR),
            allowed(A),
            denied(B),
        ),
    ),
)
