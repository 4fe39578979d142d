"""MSRs with a meaning of their own obey like any other, and what other testers assert: R33, R34.

XSS, POWER_CTL, RAPL, PAT and their like, MSRs that name guest memory, MSRs that CPUID has not; and
filters, replacements and vCPUs in the ways that VMMs use them.
"""

from __future__ import annotations

from errno import EMFILE

from vmm.conformance.cases.words import NEW as NEW_FILTER
from vmm.conformance.cases.words import OLD as OLD_FILTER
from vmm.conformance.cases.words import (
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
    passes,
    play,
    write_allowed,
    write_denied,
    write_passes,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    HYPERCALL_PAGE,
    Fault,
    as_hyper_v,
    begin,
    create_vcpu,
    done,
    enable_exits,
    fault,
    finish,
    get_hypercall_page,
    get_msr,
    get_regs,
    got,
    gp,
    rdmsr,
    refused,
    regs,
    rejected,
    returned,
    set_cpuid,
    set_msr,
    set_regs,
    value,
    wrmsr,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, MAX_NMSRS, Msr

PLATFORM = {
    "feature_control": 0x3A,
    "thread_count": 0x35,
    "microcode": 0x8B,
    "platform_info": 0xCE,
    "arch_capabilities": 0x10A,
    "misc_enable": Msr.IA32_MISC_ENABLE,
    "power_ctl": 0x1FC,
    "pat": Msr.IA32_CR_PAT,
    "perf_capabilities": 0x345,
    "rapl_unit": 0x606,
    "package_power_limit": 0x610,
    "package_energy": 0x611,
    "dram_energy": 0x619,
    "pp0_energy": 0x639,
    "pp1_energy": 0x641,
    "xss": Msr.IA32_XSS,
    "tsc_aux": Msr.TSC_AUX,
    "hwcr": 0xC001_0015,
}
"""MSRs of the platform, each by what it is."""

OPTIONAL = (
    *(Msr.IA32_SPEC_CTRL, Msr.IA32_PRED_CMD, Msr.IA32_FLUSH_CMD, Msr.IA32_XFD, Msr.IA32_XFD_ERR),
    *(Msr.IA32_XSS, Msr.TSC_AUX, Msr.IA32_TSC_ADJUST, 0x10A, 0x345, 0x6A0, 0x6A2, 0x6A4),
)
"""MSRs of features that a CPUID may have or not."""

SOMEWHERE = 0x9_0000
"""A page of the guest's memory that nothing else uses."""
SHARED = {
    "wall_clock": (Msr.KVM_WALL_CLOCK_NEW, SOMEWHERE),
    "old_wall_clock": (Msr.KVM_WALL_CLOCK, SOMEWHERE),
    "system_time": (Msr.KVM_SYSTEM_TIME_NEW, SOMEWHERE | 1),
    "old_system_time": (Msr.KVM_SYSTEM_TIME, SOMEWHERE | 1),
    "async_page_fault": (Msr.KVM_ASYNC_PF_EN, SOMEWHERE),
    "steal_time": (Msr.KVM_STEAL_TIME, SOMEWHERE | 1),
}
"""MSRs that name guest memory for KVM to write to, each with a value that does."""


def _denied_and_not(index: int, passing: Row, stopped: Row) -> tuple[Row, ...]:
    return (
        TELL_FILTER,
        passing,
        done_install(default_allow().deny(index)),
        stopped,
        done_install(default_deny().allow(A)),
        stopped,
        done_install(default_deny().allow(index)),
        passing,
        denied(B),
    )


def _large(slots: int) -> MsrFilter:
    """Return the filter with as many ranges of the most MSRs there can be, every third allowed."""
    bits = (b"\x49\x92\x24" * (MAX_NMSRS // 24))[: MAX_NMSRS // 8]
    new = default_deny()
    for slot in range(slots):
        new = new.range(0x474F_0000 + slot * 0x1_0000, MAX_NMSRS, bits)
    return new


def _looked_at(slot: int) -> tuple[Row, ...]:
    base = 0x474F_0000 + slot * 0x1_0000
    ends = MAX_NMSRS - MAX_NMSRS % 3
    return (
        *(allowed(base), denied(base + 1), denied(base + 2), write_allowed(base + 3)),
        *(write_denied(base + ends - 1), denied(base + MAX_NMSRS), denied(base - 1)),
    )


ONE_REG = Msr.KERNEL_GS_BASE
ONE, TWO = STORAGE[ONE_REG]
NO_FD: Row = (create_vcpu(1, no_fd=True), rejected(EMFILE))

_WRITES_MEMORY = {
    "wall_clock": Msr.KVM_WALL_CLOCK_NEW,
    "old_wall_clock": Msr.KVM_WALL_CLOCK,
    "system_time": Msr.KVM_SYSTEM_TIME_NEW,
    "steal_time": Msr.KVM_STEAL_TIME,
    "async_page_fault": Msr.KVM_ASYNC_PF_EN,
    "hyper_vs_hypercalls": Msr.HV_HYPERCALL,
    "hyper_vs_clock": 0x4000_0021,
    "hyper_vs_assist_page": 0x4000_0073,
}
"""MSRs whose value is an address of the guest's, and bit 0 to say that it counts."""
EMPTY: Row = (get_hypercall_page(), got(0))


def _exit_and_gp(msr: int) -> tuple[WrmsrExit, Fault]:
    return WrmsrExit(msr, FILTER, HYPERCALL_PAGE | 1), gp


CASES = (
    *(
        Case(
            f"named.read_{name}",
            f"RDMSR of {index:#x} ({name.replace('_', ' ')}) exits where it is denied, and only "
            "there.",
            "R33 R27",
            *play(*_denied_and_not(index, passes(index), denied(index))),
        )
        for name, index in PLATFORM.items()
    ),
    *(
        Case(
            f"named.write_{name}",
            f"WRMSR of {index:#x} ({name.replace('_', ' ')}) exits where it is denied, whatever it "
            "holds.",
            "R33",
            *play(
                TELL_FILTER,
                done_install(default_allow().deny(index)),
                write_denied(index),
                write_denied(index, 0),
                done_install(default_deny().allow(A)),
                write_denied(index),
                denied(index),
            ),
        )
        for name, index in PLATFORM.items()
    ),
    *(
        Case(
            f"named.shared_{name}",
            f"WRMSR that names guest memory ({name.replace('_', ' ')}) exits where it is denied.",
            "R39 R33",
            *play(
                *_denied_and_not(index, write_passes(index, content), write_denied(index, content))
            ),
        )
        for name, (index, content) in SHARED.items()
    ),
    Case(
        "named.not_in_cpuid",
        "MSRs of features that CPUID has not obey the filter as those of features that it has.",
        "R33",
        *play(
            (set_cpuid("everything", on=False), done),
            TELL_FILTER,
            done_install(default_deny().allow(A)),
            *(denied(index) for index in OPTIONAL),
            *(write_denied(index, 0) for index in OPTIONAL),
            done_install(default_allow().deny(B)),
            *(passes(index) for index in OPTIONAL),
            denied(B),
        ),
    ),
    *(
        Case(
            f"named.{slots}_ranges_of_the_most_msrs",
            f"A filter holds {slots} ranges of 0x3000 MSRs at a time.",
            "R15 R09 R19",
            *play(
                TELL,
                done_install(_large(slots)),
                *(row for slot in range(slots) for row in _looked_at(slot)),
            ),
        )
        for slots in (2, 5, 16)
    ),
    Case(
        "named.fs_then_gs",
        "A filter for GS_BASE in place of one for FS_BASE gives FS_BASE back.",
        "R16 R72",
        *play(
            TELL_FILTER,
            done_install(default_allow().deny(Msr.FS_BASE)),
            denied(Msr.FS_BASE),
            passes(Msr.GS_BASE),
            done_install(default_allow().deny(Msr.GS_BASE)),
            passes(Msr.FS_BASE),
            denied(Msr.GS_BASE),
            done_install(default_allow()),
            passes(Msr.FS_BASE),
            passes(Msr.GS_BASE),
            done_install(default_allow().deny(Msr.FS_BASE)),
            denied(Msr.FS_BASE),
        ),
    ),
    Case(
        "named.one_register_at_a_time",
        "KVM_GET_ONE_REG and KVM_SET_ONE_REG of an MSR ask no filter, like KVM_GET_MSRS.",
        "R34 R28",
        *play(
            TELL_FILTER,
            done_install(default_deny().allow(A)),
            (set_msr(ONE_REG, ONE, by="one_reg"), done),
            (get_msr(ONE_REG, by="one_reg"), got(ONE)),
            (get_msr(ONE_REG), got(ONE)),
            write_denied(ONE_REG, TWO),
            (get_msr(ONE_REG, by="one_reg"), got(ONE)),
            (set_msr(ONE_REG, TWO), done),
            (get_msr(ONE_REG, by="one_reg"), got(TWO)),
            (get_msr(B, by="one_reg"), refused),
            (set_msr(B, 1, by="one_reg"), refused),
            denied(ONE_REG),
        ),
    ),
    *(
        Case(
            f"named.rcx_set_at_the_exit_by_{via}",
            "RCX that userspace changes at an exit makes it no exit of another MSR.",
            "R53 R60",
            *play(
                TELL,
                done_install(OLD_FILTER),
                (begin(rdmsr(A)), RdmsrExit(A, FILTER)),
                (set_regs(rcx=C, via=via), done),
                *([(get_regs(), regs(0, rax=0, rcx=C, rdx=0))] if via == "ioctl" else []),
                (finish(value(7)), returned(7)),
                *as_old(),
            ),
        )
        for via in ("ioctl", "sync")
    ),
    *(
        Case(
            f"named.{name}_writes_no_memory",
            f"A denied write of {msr:#x}, which would have KVM write the guest's memory, leaves it "
            "as it is.",
            "R28 R39",
            *play(
                (create_vcpu(0), done),
                *((word, done) for word in as_hyper_v() if name.startswith("hyper_vs")),
                TELL_FILTER,
                write_passes(Msr.HV_GUEST_OS_ID, 1),
                done_install(default_allow().deny(msr)),
                write_denied(msr, HYPERCALL_PAGE | 1),
                EMPTY,
                (wrmsr(msr, HYPERCALL_PAGE | 1, reply=fault()), *_exit_and_gp(msr)),
                (enable_exits(0), done),
                (wrmsr(msr, HYPERCALL_PAGE | 1), gp),
                EMPTY,
                TELL_FILTER,
                passes(Msr.STAR),
                write_denied(msr, HYPERCALL_PAGE),
                passes(Msr.STAR),
                EMPTY,
            ),
        )
        for name, msr in _WRITES_MEMORY.items()
    ),
    Case(
        "named.vcpu_without_a_descriptor",
        "A vCPU whose creation fails at its descriptor is none, and disturbs no install.",
        "R75 R16",
        *play(
            (create_vcpu(0), done),
            TELL,
            NO_FD,
            done_install(OLD_FILTER),
            *[NO_FD] * 8,
            *as_old(),
            done_install(NEW_FILTER),
            *[NO_FD] * 8,
            *as_new(),
            (create_vcpu(1), done),
            *as_new(1),
            done_install(OLD_FILTER),
            *as_old(1),
            *as_old(),
        ),
    ),
)
