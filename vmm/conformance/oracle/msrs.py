"""What the Model knows of single MSRs: which there are, and what each holds."""

from __future__ import annotations

from collections.abc import Callable

from vmm.msr import Msr

U32, U64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF

EFER_RESERVED = 0xFFFF_FFFF_0000_00FC
"""EFER bits that no CPU defines: bits 2..7 and the upper half.

APM vol. 2, "Extended Feature Enable Register"; of Intel's bits (SDM vol. 3, "Extended Feature
Enable Register") none is among them.
"""


def is_unknown_to_kvm(index: int) -> bool:
    """Say whether KVM certainly has no MSR ``index``, so that an access fails as UNKNOWN (R52).

    Hardware numbers its MSRs from 0, 0xc0000000 and 0xc0010000, Hyper-V and Xen from 0x40000000,
    KVM (and its vendor modules) from 0x4b564d00. Nothing else is any MSR that KVM emulates.
    """
    return not (
        index < 0x2_0000
        or 0xC000_0000 <= index < 0xD000_0000
        or 0x4000_0000 <= index < 0x4001_0000
        or 0x4B56_0000 <= index < 0x4B57_0000
    )


def _is_any(value: int) -> bool:
    return True


def _is_canonical(value: int) -> bool:
    # Both vendors: #GP unless bits 63..47 are equal (SDM vol. 3, "Canonicality Checking"; APM
    # vol. 2, "Canonical Address Form"). 48 bits, also where the host has LA57: an address between
    # the two is the host's business.
    return value >> 47 in (0, 0x1_FFFF)


def _is_32_bits(value: int) -> bool:
    # FMASK: Intel reserves its upper half (SDM vol. 3, "SYSCALL and SYSRET"). SYSENTER_ESP and
    # _EIP: AMD keeps 32 bits (APM vol. 2, "SYSENTER and SYSEXIT MSRs"), Intel what is canonical.
    return value <= U32


def _is_16_bits(value: int) -> bool:
    # SYSENTER_CS: AMD keeps the selector alone, bits 15..0 (APM, as above); Intel keeps 32 bits,
    # the size of the field in the VMCS (SDM vol. 3, appendix B), and uses 16.
    return value <= 0xFFFF


STORABLE: dict[int, Callable[[int], bool]] = {
    # All of its fields are selectors and an address of legacy mode, which nobody checks when it is
    # written; Intel calls the lower half reserved, and holds it.
    Msr.STAR: _is_any,
    Msr.LSTAR: _is_canonical,
    Msr.CSTAR: _is_canonical,
    Msr.SYSCALL_MASK: _is_32_bits,
    Msr.FS_BASE: _is_canonical,
    Msr.GS_BASE: _is_canonical,
    Msr.KERNEL_GS_BASE: _is_canonical,
    Msr.IA32_SYSENTER_CS: _is_16_bits,
    Msr.IA32_SYSENTER_ESP: _is_32_bits,
    Msr.IA32_SYSENTER_EIP: _is_32_bits,
}
"""MSRs that every x86-64 CPU has and that only hold what was written, by which values they hold."""


def fitting(index: int, value: int) -> int:
    """Return ``value``, or as many of its low bits as an MSR of ``STORABLE`` certainly holds."""
    fits = STORABLE.get(index, _is_any)
    return next(cut for bits in (64, 47, 32, 16) if fits(cut := value & (1 << bits) - 1))


LVT_MASKED, LVT_TIMER = 1 << 16, 0x6_00FF
"""A timer that never interrupts, and what else a write may set: its mode and its vector.

SDM vol. 3, "APIC Timer": bits 18..17 are the mode, of which 11 is reserved. Other bits are reserved
or read-only, and a WRMSR that sets a reserved one is #GP in x2APIC mode ("x2APIC Register
Accesses"). KVM clears a mode that the guest's CPUID does not have, so that nothing is known of what
is read back.
"""

ICR_FIXED = 0xFF_0000_40FF
"""An interrupt to one CPU by its APIC ID: its vector, and the level, which is to be 1.

SDM vol. 3, "Interrupt Command Register": vectors 0 to 15 are illegal; delivery mode, destination
mode, trigger and shorthand 0 are fixed, physical, edge and none.
"""

X2APIC_STORABLE: dict[int, Callable[[int], bool]] = {
    # All 8 bits are the SDM's; but where CR8 is not intercepted (a TPR shadow, AMD's V_TPR) KVM
    # takes the priority class alone back from CR8: bits 7..4.
    Msr.APIC_TASKPRI: lambda value: value & ~0xF0 == 0,
    # Any other value is #GP on both (SDM vol. 3, "x2APIC Register Address Space").
    Msr.APIC_EOI: lambda value: value == 0,
    Msr.APIC_LVTT: lambda value: value & ~LVT_TIMER == LVT_MASKED and value >> 17 != 3,
    Msr.APIC_ICR: lambda value: value & ~ICR_FIXED == 0 and value & 0xF0 != 0,
}
"""The same for the registers of an APIC in x2APIC mode; EOI takes a zero and holds nothing."""

READABLE = frozenset({Msr.EFER, Msr.IA32_APICBASE, Msr.IA32_TSC, *STORABLE})
"""MSRs that can be read on every x86-64, also where the value is the host's business.

EFER comes with long mode, IA32_APICBASE and the TSC with every CPU that has it.
"""

SMM_OWN = frozenset({Msr.FS_BASE, Msr.GS_BASE, Msr.EFER})
"""MSRs that the CPU sets aside when it enters SMM, 0 there until RSM brings them back."""

X2APIC_READABLE = frozenset({Msr.APIC_ID, Msr.APIC_TASKPRI})
"""The same for an APIC in x2APIC mode."""


LBR_MSRS = range(0x1DB, 0x1DF)
"""The last branch and exception records of a CPU without a stack of them."""

APIC_BASES = frozenset({0xFEE0_0800, 0xFEE0_0900, 0xFEE0_0C00, 0xFEE0_0D00})
"""IA32_APICBASE: enabled at its usual place, in xAPIC or x2APIC mode, boot processor or not."""
X2APIC_ENABLE = 1 << 10
