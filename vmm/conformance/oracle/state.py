"""What the Model remembers of a VM while it reads a script, and what it knows of single MSRs."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from vmm.conformance.language.script import ANY, Access, EnterL2, Event, Regs, Wrmsr, whatever
from vmm.conformance.oracle.filters import NO_FILTER, Installed
from vmm.filter import MsrFilter
from vmm.msr import Msr, MsrExitReason

U32, U64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
NO_REGS = Regs(ANY, ANY, ANY, ANY)

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


class Stage(enum.Enum):
    """How far a vCPU is in the access that ``begin`` started."""

    IDLE = enum.auto()
    EXITED = enum.auto()
    COMPLETED = enum.auto()
    UNSURE = enum.auto()
    AWAY = enum.auto()
    """Parked or spinning in a thread of its own, or closed."""


IDLE = Stage.IDLE


class Unsure(enum.Enum):
    """Instead of an exit reason: the contract does not say whether the access fails."""

    UNFILTERED = enum.auto()
    WHATEVER = enum.auto()


Reason = MsrExitReason | Unsure | None
"""Why an access fails (``None``: it succeeds), as far as the contract says."""


@dataclass(slots=True)
class VcpuState:
    """One vCPU: the MSR values that the contract determines, and the access it is stopped in."""

    msrs: dict[int, int] = field(default_factory=dict)
    stage: Stage = IDLE
    access: Access | None = None
    outcome: Event = whatever
    regs: Regs = NO_REGS
    touched: bool = False
    """Userspace changed RAX or RDX between the exit and its completion."""
    has_run: bool = False
    has_init: bool = False
    """An INIT is pending, or has reset the vCPU."""
    has_lbr_on: bool = False
    """The guest turned the last branch records on, where they are there."""
    moved: bool = False
    """Userspace changed RIP there (R67): nobody knows where the guest goes on."""
    x2apic: bool | None = False
    """In x2APIC mode, or not, or (None) nobody knows."""
    injected: tuple[int, ...] = ()
    """The vectors of what was injected since the exit."""
    taken: Event = whatever
    """The interrupt that the guest took before its last access ended."""
    l2: EnterL2 | None = None
    """How L1 entered the L2 that the vCPU is in, if it is in one."""
    entered: EnterL2 | None = None
    """How L1 entered an L2 last: what an entry calls clean is that one's."""
    is_misled: bool = False
    """L1 has called clean what is not as it was, and not said otherwise since."""

    def can_read(self, index: int) -> bool:
        """Say whether MSR ``index`` certainly can be read now."""
        if self.is_set_aside(index):
            return False
        return index in READABLE or (self.x2apic is True and index in X2APIC_READABLE)

    def can_hold(self, index: int, value: int) -> bool:
        """Say whether ``value`` certainly can be written to MSR ``index``, and only stays there."""
        if self.is_set_aside(index):
            return False
        fits = STORABLE.get(index) or (X2APIC_STORABLE.get(index) if self.x2apic else None)
        return fits is not None and fits(value)

    def is_set_aside(self, index: int) -> bool:
        """Say whether the vCPU is stopped in SMM, and MSR ``index`` is another one there."""
        if self.access is None or self.stage is IDLE:
            return False
        return index in SMM_OWN and self.access.mode == "smm"

    def place_apic(self, number: int, base: int) -> None:
        """Take over one of ``APIC_BASES``: in x2APIC mode the ID is the vCPU's ``number``."""
        self.x2apic = base & X2APIC_ENABLE != 0
        self.msrs |= {Msr.IA32_APICBASE: base, Msr.APIC_ID: number}
        self.msrs.pop(Msr.APIC_TASKPRI, None)

    def forget(self, index: int) -> None:
        """Drop what is known of an MSR after a write that may or may not have happened."""
        self.msrs.pop(index, None)
        if index == Msr.IA32_APICBASE:
            self.x2apic = None


@dataclass(slots=True)
class Stall:
    """An install that waits for the bitmap of ``slot``, or (not ``is_sure``) was refused before."""

    new: MsrFilter
    slot: int
    is_sure: bool


@dataclass(slots=True)
class Wait:
    """An install that has published and not returned: the parks it waits for, what it replaced."""

    readers: frozenset[int]
    old: Installed | None
    is_queued: bool
    """It may wait for another install's lock instead, and not have published (B17)."""
    is_sure: bool = True


@dataclass
class VmState:
    """One VM: the mask, the filter (``None``: one of two, nobody knows which), and its vCPUs."""

    mask: int = 0
    filter: Installed | None = NO_FILTER
    has_irqchip: bool = False
    vcpus: dict[int, VcpuState] = field(default_factory=dict)
    is_open: bool = True
    rivals: tuple[Installed | None, ...] = ()
    """Filters of which one may be in force in place of ``filter``: there the contract is silent."""
    stalls: dict[str, Stall] = field(default_factory=dict)
    waits: dict[str, Wait] = field(default_factory=dict)
    parked: dict[int, int] = field(default_factory=dict)
    """Which vCPUs are parked, each with the number of its park, of ``parks`` so far."""
    parks: int = 0
    spins: dict[int, Access] = field(default_factory=dict)
    saved: dict[int, EnterL2 | None] = field(default_factory=dict)
    """The L2 of each vCPU whose nested state the host has saved, or None for L1.

    A vCPU that was saved last where nobody knew its level has none.
    """
    held: dict[int, tuple[Access | None, Regs, Event]] = field(default_factory=dict)
    """Of each vCPU that was saved behind a completed access: the access, and what it left."""
    makes_vcpus: bool = False
    """The script makes the vCPUs itself."""

    def vcpu(self, number: int) -> VcpuState:
        """Return vCPU ``number``, which exists from its first use."""
        vcpu = self.vcpus.get(number)
        if vcpu is None:
            vcpu = self.vcpus[number] = VcpuState()
        return vcpu


def regs_before(access: Access) -> Regs:
    """Return the registers with which the guest executes ``access``, RIP at the instruction."""
    low = (access.value if isinstance(access, Wrmsr) else access.before) & U64
    if access.form == "immediate":  # RCX is another's: no MSR is looked for there
        return Regs(0, low, access.index & U32 ^ U32, access.high)
    return Regs(
        skew=0,
        rax=(access.high & U32) << 32 | low & U32,
        rcx=(access.rcx_high & U32) << 32 | access.index & U32,
        rdx=(access.high & ~U32 & U64) | low >> 32,
    )
