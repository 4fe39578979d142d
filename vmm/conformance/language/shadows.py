"""Words for what comes between an exit and its completion: interrupts, and the host's own work.

An access that follows STI or MOV SS (``after``) runs in their interrupt shadow, which its
completion must end (R66, R42).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vmm.bits import Bits, u8
from vmm.conformance.language.domains import VcpuId, VcpuPart
from vmm.conformance.language.word import Word

NMI, INTERRUPT, SMI = 2, 32, 0xFF
"""The vectors of what ``inject`` sends; an SMI, which has none, is told as one no interrupt has."""

# --- actions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class GetVcpuEvents(Word):
    """``KVM_GET_VCPU_EVENTS`` of a vCPU that is stopped in an access."""

    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class Rewrite(Word):
    """The host reads a state of the vCPU and sets the very same: ``KVM_GET_*``, ``KVM_SET_*``.

    The vCPU may be stopped in an access or between two. "lapic" is EINVAL without an in-kernel APIC
    (api.rst 4.57).
    """

    what: VcpuPart
    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class Inject(Word):
    """``KVM_NMI``, ``KVM_INTERRUPT`` with vector 32, or ``KVM_SMI``: for a vCPU that is stopped.

    It is stopped in an access that the host has put in its place: in another mode, or ``after``
    something. Handlers only return, by IRET or RSM. An interrupt needs RFLAGS.IF, which "sti" and
    "sti_nop" set.
    """

    kind: Literal["nmi", "interrupt", "smi"]
    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class GetTaken(Word):
    """Which interrupt, or SMI (0xff), the guest has taken since its access began."""

    vcpu: VcpuId = 0


# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class VcpuEvents(Word):
    """``shadow``: interrupts are held off by STI or MOV SS; ``exception`` is queued, if any."""

    shadow: bool
    exception: u8 | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Taken(Word):
    """The guest took an interrupt of ``vector`` (None: it took none), where RIP was ``skew``."""

    vector: u8 | None
    skew: Annotated[int, Bits(64, signed=True)] = 0


get_vcpu_events, rewrite, inject, get_taken = GetVcpuEvents, Rewrite, Inject, GetTaken
vcpu_events, taken = VcpuEvents, Taken
