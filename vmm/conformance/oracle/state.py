"""What the Model remembers of a VM while it reads a script."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vmm.conformance.language.script import (
    ANY,
    Access,
    EnterL2,
    Event,
    Regs,
    Wrmsr,
    XenHvmConfig,
    whatever,
)
from vmm.conformance.oracle.filters import NO_FILTER, Installed
from vmm.conformance.oracle.msrs import (
    READABLE,
    SMM_OWN,
    STORABLE,
    U32,
    U64,
    X2APIC_ENABLE,
    X2APIC_READABLE,
    X2APIC_STORABLE,
)
from vmm.filter import MsrFilter
from vmm.msr import Msr, MsrExitReason

NO_REGS = Regs(ANY, ANY, ANY, ANY, ANY)


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
    is_reset: bool = False
    """An INIT has reset the vCPU, which waits for no SIPI, and it has not run since."""
    in_reset: bool = False
    """An INIT has reset the vCPU, and nothing has set it up since."""
    mp_state: int = 0
    """What the vCPU waits for, by its ``KVM_MP_STATE_*``; 0: for nothing."""
    has_sipi: bool = False
    """The SIPI that it waits for is there."""
    slept_in: Stage | None = None
    """It sleeps in ``KVM_RUN``, and before it was in that stage."""
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
    is_svm: bool = False
    """An L1 did what only SVM has; where this is not set, nobody knows."""
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
    xen: XenHvmConfig | None = None
    """The MSR by which the guest has pages of hypercalls written, as the host has set it last."""
    is_xen_sure: bool = True
    """Every kernel takes that one."""
    page: int = 0
    """What the guest's memory has where such a page is to come."""
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
