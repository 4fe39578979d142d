"""The words for levels: a vCPU in L2, which its L1 entered, and what L1 gets of it.

L1 is a stub that shares its memory, map and tables with L2. In L2 every other word works on the
vCPU as it does in L1; what L1 gets ends L2, and the words after it find the vCPU in L1 again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vmm.bits import MsrIndex, u32, u64
from vmm.conformance.language.domains import Most, VcpuId
from vmm.conformance.language.events import Skew
from vmm.conformance.language.word import Word

# --- actions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Through(Word):
    """One MSR that L1 lets L2 reach: by RDMSR ("read"), by WRMSR ("write"), or by both."""

    positional = 2
    index: MsrIndex
    access: Literal["both", "read", "write"] = "both"


@dataclass(frozen=True, slots=True, repr=False)
class Listed(Word):
    """One entry of a VMX list of MSRs; ``value`` is what is loaded, and nothing to a store."""

    positional = 2
    index: MsrIndex
    value: u64 = 0


Passes = Literal["all", "none"] | tuple[Through, ...]
MsrList = Annotated[tuple[Listed, ...], Most(32)]


@dataclass(frozen=True, slots=True, repr=False)
class EnterL2(Word):
    """L1 enters L2, and the vCPU stops there before L2's first access: ``entered``.

    ``passes`` is what L1 does not intercept of the MSRs that its bitmap has bits for; all others
    are L1's. Without a ``bitmap`` L1 intercepts no MSR at all ("all", on SVM) or every one
    ("none", on VMX). The lists are VMX's. ``fields`` has the VMCB or VMCS switch every MSR it can.
    With ``clean`` L1 says, as Hyper-V does, that its bitmap is as at its last entry: to a vCPU
    whose CPUID has Hyper-V's interface and that has told who it is. On VMX such an L1 has an
    enlightened VMCS, and for lists, which that has not, a VMCS.
    """

    positional = 0
    passes: Passes = "all"
    bitmap: bool = True
    entry_load: MsrList = ()
    exit_store: MsrList = ()
    exit_load: MsrList = ()
    fields: bool = False
    clean: bool = False
    vcpu: VcpuId = 0

    def __post_init__(self) -> None:
        """Refuse a set of MSRs that nothing could tell from others."""
        if not self.bitmap and not isinstance(self.passes, str):
            raise ValueError("without a bitmap L1 passes 'all' or 'none'")
        if self.clean and (self.entry_load or self.exit_store or self.exit_load):
            raise ValueError("an L1 that calls its bitmap clean has no lists")


@dataclass(frozen=True, slots=True, repr=False)
class LeaveL2(Word):
    """L2 calls L1 (VMCALL, VMMCALL), which ends it; in L1 it is a call that KVM answers: done."""

    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class SaveNested(Word):
    """``KVM_GET_NESTED_STATE``, with registers and L1's memory: 1 where L2 is active, else 0."""

    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class RestoreNested(Word):
    """``KVM_SET_NESTED_STATE`` of what was saved last: the vCPU is again in L2, if it was then.

    The vCPU may be another one of the same number: that of a ``fresh_vm``.
    """

    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class LeaveNested(Word):
    """``KVM_SET_NESTED_STATE`` without an L2: the host takes the vCPU out of it, and L1 gets none.

    What it leaves is the L1 that could enter the same L2 again.
    """

    vcpu: VcpuId = 0


# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Entered(Word):
    """The vCPU is in L2."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class L1Exit(Word):
    """L1 got an exit of L2, which is over.

    ``index`` is ECX and ``value`` EDX:EAX, of a WRMSR; ``skew`` is L2's RIP, in bytes from the
    instruction. "entry" is an L2 that would enter one of its own. ``stored`` is what the list for
    the exit holds after it. ``number`` is the vendor's, of an exit that is none of these.
    """

    positional = 2
    reason: Literal["rdmsr", "wrmsr", "hypercall", "entry", "shutdown", "other"]
    index: MsrIndex = 0
    value: u64 = 0
    skew: Skew = 0
    stored: tuple[u64, ...] = ()
    number: u64 = 0


@dataclass(frozen=True, slots=True, repr=False)
class EntryFailed(Word):
    """L1 could not enter L2: for ``entry`` (from 1) of its list, for L2's state, or not at all.

    With "instruction", ``entry`` is the VM-instruction error.
    """

    positional = 2
    reason: Literal["msr_load", "state", "instruction"]
    entry: u32 = 0


@dataclass(frozen=True, slots=True, repr=False)
class Shutdown(Word):
    """The exit from L2 was aborted, which shuts the vCPU down (``KVM_EXIT_SHUTDOWN``)."""

    bare = True


through, listed = Through, Listed
enter_l2, leave_l2 = EnterL2, LeaveL2
save_nested, restore_nested, leave_nested = SaveNested, RestoreNested, LeaveNested
entered, shutdown = Entered(), Shutdown()
l1_exit, entry_failed = L1Exit, EntryFailed
