"""Discovery, the ioctl itself, and the state before anything was set: R01-R03, R26, R46, R47."""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOTTY

from vmm.conformance.cases.words import (
    BAD_EFER,
    DATA,
    TELL,
    A,
    B,
    allowed,
    denied,
    done_install,
    play,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    ANY,
    check_extension,
    done,
    enable_cap,
    enable_exits,
    got,
    gp,
    install,
    rdmsr,
    rejected,
    wrmsr,
)
from vmm.filter import Pointer, default_allow, default_deny
from vmm.msr import FILTER, KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR, Msr

_CAPS = {"user_space_msr": KVM_CAP_X86_USER_SPACE_MSR, "msr_filter": KVM_CAP_X86_MSR_FILTER}

_OTHER_NUMBERS = {
    "a_byte_more": 0x4189AEC6,
    "a_byte_less": 0x4187AEC6,
    "no_size": 0x4000AEC6,
    # The 32-bit layout is 260 bytes; only the compat entry knows it (R05).
    "the_compat_size": 0x4104AEC6,
}

_IN_FORCE = default_allow().deny(A)
_OTHER = default_deny().deny(B)

CASES = (
    *(
        Case(
            f"plumbing.capability_{name}",
            f"KVM_CHECK_EXTENSION({cap}) returns 1 on /dev/kvm and on the VM.",
            "R01",
            *play((check_extension(cap, "system"), got(1)), (check_extension(cap, "vm"), got(1))),
        )
        for name, cap in _CAPS.items()
    ),
    Case(
        "plumbing.filter_capability_cannot_be_enabled",
        "KVM_CAP_X86_MSR_FILTER announces an ioctl: KVM_ENABLE_CAP refuses it and sets no mask.",
        "R01 R47",
        *play(
            (enable_cap(KVM_CAP_X86_MSR_FILTER, (7,)), rejected(EINVAL)),
            done_install(_IN_FORCE),
            (rdmsr(A), gp),
        ),
    ),
    *(
        Case(
            f"plumbing.unreadable_argument_{pointer.name.lower()}",
            f"An argument pointer that leads nowhere ({pointer.name}) is EFAULT and the filter "
            "in force stays.",
            "R02 R14",
            *play(
                TELL,
                done_install(_IN_FORCE),
                denied(A),
                (install(_OTHER, argp=pointer), rejected(EFAULT)),
                denied(A),
                allowed(B),
            ),
        )
        for pointer in Pointer
    ),
    Case(
        "plumbing.unreadable_argument_first",
        "A first install whose argument cannot be read is EFAULT and leaves all MSRs unfiltered.",
        "R02 R26",
        *play(
            TELL,
            (install(_OTHER, argp=Pointer.UNMAPPED), rejected(EFAULT)),
            allowed(A),
            write_allowed(B),
        ),
    ),
    *(
        Case(
            f"plumbing.number_with_{name}",
            f"The ioctl number {number:#x}, which has another size, is ENOTTY and installs "
            "nothing.",
            "R03",
            *play(
                TELL,
                done_install(_IN_FORCE),
                denied(A),
                (install(_OTHER, number=number), rejected(ENOTTY)),
                denied(A),
                allowed(B),
            ),
        )
        for name, number in _OTHER_NUMBERS.items()
    ),
    *(
        Case(
            f"plumbing.not_an_ioctl_of_the_{fd}",
            f"KVM_X86_SET_MSR_FILTER is refused on the {fd} file descriptor and installs nothing.",
            "R03",
            # EINVAL or ENOTTY: how an fd answers an ioctl that is not its own is not contract.
            *play(
                TELL,
                done_install(_IN_FORCE),
                denied(A),
                (install(_OTHER, on=fd), rejected(ANY)),
                denied(A),
                allowed(B),
            ),
        )
        for fd in ("vcpu", "system")
    ),
    Case(
        "plumbing.never_called_filters_nothing",
        "Before any KVM_X86_SET_MSR_FILTER every MSR is unfiltered.",
        "R26",
        *play(TELL, allowed(A), write_allowed(A), allowed(0xDEADBEEF), write_allowed(0xDEADBEEF)),
    ),
    Case(
        "plumbing.empty_allow_filters_nothing",
        "An empty filter with DEFAULT_ALLOW is the same as none.",
        "R26 R12",
        *play(
            TELL,
            done_install(default_allow()),
            allowed(A),
            write_allowed(A),
            allowed(0xDEADBEEF),
            write_allowed(0xDEADBEEF),
        ),
    ),
    Case(
        "plumbing.default_mask_is_zero",
        "Without KVM_ENABLE_CAP no failing access exits, whatever the reason: the guest gets #GP.",
        "R47 R50",
        *play(
            (rdmsr(A), gp),
            (wrmsr(A, DATA), gp),
            (wrmsr(Msr.EFER, BAD_EFER), gp),
            done_install(_IN_FORCE),
            (rdmsr(A), gp),
            (wrmsr(A, DATA), gp),
        ),
    ),
    Case(
        "plumbing.filter_before_mask",
        "A filter may be installed before FILTER exits are enabled, and denies all the while.",
        "R46 R50",
        *play(
            done_install(_IN_FORCE),
            (rdmsr(A), gp),
            (enable_exits(FILTER), done),
            denied(A),
            (enable_exits(0), done),
            (rdmsr(A), gp),
        ),
    ),
    Case(
        "plumbing.mask_before_filter",
        "FILTER exits may be enabled before a filter exists, and outlive its removal.",
        "R46 R12",
        *play(
            (enable_exits(FILTER), done),
            (rdmsr(A), gp),
            done_install(_IN_FORCE),
            denied(A),
            write_denied(A),
            done_install(default_allow()),
            (rdmsr(A), gp),
            done_install(_IN_FORCE),
            denied(A),
        ),
    ),
)
