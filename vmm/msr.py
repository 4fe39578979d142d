"""Names and numbers of the MSR filter's ABI: MSRs, exit reasons, limits."""

from __future__ import annotations

import enum

KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_CAP_X86_MSR_FILTER = 189
KVM_CAP_SPLIT_IRQCHIP = 121

KVM_MSR_FILTER_READ = 1
KVM_MSR_FILTER_WRITE = 2
KVM_MSR_FILTER_DEFAULT_ALLOW = 0
KVM_MSR_FILTER_DEFAULT_DENY = 1
KVM_MSR_FILTER_MAX_RANGES = 16
KVM_MSR_FILTER_MAX_BITMAP_SIZE = 0x600

MAX_NMSRS = KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8
"""The most MSRs one range can hold: the bitmap's limit is in bytes."""

X2APIC_FIRST, X2APIC_LAST = 0x800, 0x8FF
"""The window that no filter governs (api.rst 4.97; commit 9389b9d5d356)."""


class MsrExitReason(enum.IntFlag):
    """Why an MSR access went to userspace (``KVM_MSR_EXIT_REASON_*``); also the mask's bits."""

    INVAL = 1
    UNKNOWN = 2
    FILTER = 4


INVAL, UNKNOWN, FILTER = MsrExitReason.INVAL, MsrExitReason.UNKNOWN, MsrExitReason.FILTER


class Msr(enum.IntEnum):
    """The MSRs the cases and guests name, spelled as in the kernel's msr-index.h."""

    IA32_TSC = 0x10
    IA32_APICBASE = 0x1B
    IA32_FEAT_CTL = 0x3A
    IA32_TSC_ADJUST = 0x3B
    IA32_SPEC_CTRL = 0x48
    IA32_PRED_CMD = 0x49
    IA32_FLUSH_CMD = 0x10B
    IA32_SYSENTER_CS = 0x174
    IA32_SYSENTER_ESP = 0x175
    IA32_SYSENTER_EIP = 0x176
    IA32_MISC_ENABLE = 0x1A0
    IA32_XFD = 0x1C4
    IA32_XFD_ERR = 0x1C5
    IA32_DEBUGCTLMSR = 0x1D9
    IA32_LASTBRANCHFROMIP = 0x1DB
    IA32_LASTBRANCHTOIP = 0x1DC
    IA32_LASTINTFROMIP = 0x1DD
    IA32_LASTINTTOIP = 0x1DE
    IA32_CR_PAT = 0x277
    CORE_C1_RES = 0x660
    CORE_C3_RESIDENCY = 0x3FC
    CORE_C6_RESIDENCY = 0x3FD
    CORE_C7_RESIDENCY = 0x3FE
    IA32_RTIT_CTL = 0x570
    IA32_RTIT_STATUS = 0x571
    IA32_RTIT_CR3_MATCH = 0x572
    IA32_RTIT_OUTPUT_BASE = 0x560
    IA32_RTIT_OUTPUT_MASK = 0x561
    IA32_TSC_DEADLINE = 0x6E0
    IA32_XSS = 0xDA0
    APIC_ID = 0x802
    APIC_LVR = 0x803
    APIC_TASKPRI = 0x808
    APIC_EOI = 0x80B
    APIC_ICR = 0x830
    APIC_LVTT = 0x832
    EFER = 0xC0000080
    STAR = 0xC0000081
    LSTAR = 0xC0000082
    CSTAR = 0xC0000083
    SYSCALL_MASK = 0xC0000084
    FS_BASE = 0xC0000100
    GS_BASE = 0xC0000101
    KERNEL_GS_BASE = 0xC0000102
    TSC_AUX = 0xC0000103
    AMD64_SEV_ES_GHCB = 0xC0010130
    KVM_WALL_CLOCK = 0x11
    KVM_SYSTEM_TIME = 0x12
    KVM_WALL_CLOCK_NEW = 0x4B564D00
    KVM_SYSTEM_TIME_NEW = 0x4B564D01
    KVM_ASYNC_PF_EN = 0x4B564D02
    KVM_STEAL_TIME = 0x4B564D03
    KVM_PV_EOI_EN = 0x4B564D04
    KVM_POLL_CONTROL = 0x4B564D05
    HV_GUEST_OS_ID = 0x40000000
    HV_HYPERCALL = 0x40000001
    HV_VP_INDEX = 0x40000002
    XEN_HYPERCALL = 0x40000200


def msr_name(index: int) -> str:
    """Return ``STAR`` for a named MSR and ``0xdeadbeef`` for any other index."""
    try:
        return Msr(index).name
    except ValueError:
        return f"{index:#x}"


def msr_code(index: int) -> str:
    """Return ``Msr.STAR`` for a named MSR and ``0xdeadbeef`` for any other: what a case writes."""
    name = msr_name(index)
    return name if name.startswith("0x") else f"Msr.{name}"
