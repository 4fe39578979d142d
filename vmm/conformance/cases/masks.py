"""Which failing access exits: R43-R45, R50."""

from __future__ import annotations

from errno import EINVAL

from vmm.conformance.cases.words import (
    BAD_EFER,
    DATA,
    DENY_A,
    LOW,
    TELL_FILTER,
    A,
    B,
    Row,
    allowed,
    denied,
    done_install,
    exits_as,
    play,
    write_allowed,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    Access,
    create_irqchip,
    done,
    enable_cap,
    enable_exits,
    gp,
    rdmsr,
    rejected,
    wrmsr,
    wrote,
)
from vmm.exits import WrmsrExit
from vmm.filter import default_allow
from vmm.msr import (
    FILTER,
    INVAL,
    KVM_CAP_X86_USER_SPACE_MSR,
    UNKNOWN,
    Msr,
    MsrExitReason,
)

_CAP = KVM_CAP_X86_USER_SPACE_MSR
_DENY_STAR = done_install(default_allow().deny(Msr.STAR))
"""Unlike A, STAR is there where no filter denies it: its #GP is a filter's."""

# Ways to fail that hold on every host. A read of 0x802 is invalid in xAPIC mode (R32); only an
# in-kernel irqchip makes that a mode at all.
_IRQCHIP: Row = (create_irqchip(), done)
_FAILING: dict[str, tuple[str, tuple[Row, ...], Access, MsrExitReason]] = {
    "filter.read": ("R50 R51", (DENY_A,), rdmsr(A), FILTER),
    "filter.write": ("R50 R51", (DENY_A,), wrmsr(A, DATA), FILTER),
    "filter.stored_read": ("R50 R51", (_DENY_STAR,), rdmsr(Msr.STAR), FILTER),
    "filter.stored_write": ("R50 R51", (_DENY_STAR,), wrmsr(Msr.STAR, DATA), FILTER),
    "unknown.read": ("R50 R52", (), rdmsr(B), UNKNOWN),
    "unknown.write": ("R50 R52", (), wrmsr(B, DATA), UNKNOWN),
    "inval.read": ("R50 R52 R32", (_IRQCHIP,), rdmsr(Msr.APIC_ID), INVAL),
    "inval.write": ("R50 R52", (), wrmsr(Msr.EFER, BAD_EFER), INVAL),
}


def _mask_name(mask: int) -> str:
    return str(MsrExitReason(mask).name) if mask else "none"


def _mask_kept(*refused: Row) -> tuple[Row, ...]:
    """Return rows that fail to change the mask FILTER, and see that it is still that."""
    return (TELL_FILTER, *refused, DENY_A, denied(A), (rdmsr(B), gp))


CASES = (
    *(
        Case(
            f"masks.{_mask_name(mask).replace('|', '_').lower()}.{name}",
            f"The failing access {name} {'exits' if mask & reason else 'is #GP(0)'} when the mask "
            f"is {_mask_name(mask)}.",
            checks,
            *play(
                *before,
                (enable_exits(mask), done),
                exits_as(reason, access) if mask & reason else (access, gp),
            ),
        )
        for mask in range(8)
        for name, (checks, before, access, reason) in _FAILING.items()
    ),
    *(
        Case(
            f"masks.undefined_bits_{low}_to_{high - 1}",
            f"Each of the undefined mask bits {low}..{high - 1} is EINVAL and leaves the mask.",
            "R43",
            *play(*_mask_kept(*((enable_exits(1 << i), rejected(EINVAL)) for i in bits))),
        )
        for low, high in ((3, 8), (8, 32), (32, 64))
        for bits in (range(low, high),)
    ),
    *(
        Case(
            f"masks.{mask:#x}_refused",
            f"The mask {mask:#x} has undefined bits beside defined ones: EINVAL, and it stays.",
            "R43 R44",
            *play(*_mask_kept((enable_exits(mask), rejected(EINVAL)))),
        )
        for mask in (0xF, 0x8000_0002, 0x1_0000_0002, 1 << 63 | 7, (1 << 64) - 1)
    ),
    *(
        Case(
            f"masks.capability_flags_{flags:#x}_refused",
            f"KVM_ENABLE_CAP with flags {flags:#x} is EINVAL and leaves the mask.",
            "R43 R44",
            *play(*_mask_kept((enable_cap(_CAP, (int(UNKNOWN),), flags=flags), rejected(EINVAL)))),
        )
        for flags in (1, 2, 0x8000_0000)
    ),
    Case(
        "masks.capability_is_not_the_vcpus",
        "KVM_CAP_X86_USER_SPACE_MSR belongs to the VM: on a vCPU it is refused, the mask stays.",
        "R43 R45",
        *play(*_mask_kept((enable_cap(_CAP, (int(UNKNOWN),), on="vcpu"), rejected(EINVAL)))),
    ),
    Case(
        "masks.other_arguments_ignored",
        "KVM_ENABLE_CAP ignores args[1..3]: args[0] alone is the mask.",
        "R43",
        *play(
            (enable_cap(_CAP, (int(FILTER), LOW, 1 << 63, (1 << 64) - 1)), done),
            DENY_A,
            denied(A),
            (rdmsr(B), gp),
        ),
    ),
    Case(
        "masks.replaced",
        "A second KVM_ENABLE_CAP replaces the mask: nothing is ORed in.",
        "R44",
        *play(
            TELL_FILTER,
            DENY_A,
            denied(A),
            (rdmsr(B), gp),
            (enable_exits(UNKNOWN), done),
            (rdmsr(A), gp),
            allowed(B),
            (enable_exits(INVAL), done),
            (rdmsr(A), gp),
            (rdmsr(B), gp),
            (wrmsr(Msr.EFER, BAD_EFER), WrmsrExit(Msr.EFER, INVAL, BAD_EFER), wrote),
        ),
    ),
    Case(
        "masks.zero_disables",
        "The mask 0 ends all MSR exits at the next access, and a mask set again restores them.",
        "R44",
        *play(
            (enable_exits(7), done),
            DENY_A,
            denied(A),
            allowed(B),
            (enable_exits(0), done),
            (rdmsr(A), gp),
            (rdmsr(B), gp),
            (wrmsr(Msr.EFER, BAD_EFER), gp),
            (enable_exits(7), done),
            denied(A),
            write_allowed(B),
        ),
    ),
    Case(
        "masks.of_every_vcpu",
        "The mask is the VM's: it holds for vCPUs made before and after, and changes for all.",
        "R45 R44",
        *play(
            DENY_A,
            (rdmsr(A, vcpu=0), gp),
            TELL_FILTER,
            denied(A, vcpu=0),
            denied(A, vcpu=1),
            (enable_exits(UNKNOWN), done),
            (rdmsr(A, vcpu=1), gp),
            allowed(B, vcpu=1),
            allowed(B, vcpu=0),
        ),
    ),
)
