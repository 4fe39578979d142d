"""The actions of the host: its calls on the VM, its vCPUs and their MSRs.

What the guest does stands in ``accesses``, what is needed for races in ``races``; ``script`` brings
all words together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from vmm.bits import Bits, MsrIndex, u32, u64
from vmm.conformance.language.domains import Caller, Cap, File, Most, VcpuId
from vmm.conformance.language.word import Word
from vmm.filter import MsrFilter, Pointer
from vmm.msr import KVM_CAP_X86_USER_SPACE_MSR, MsrExitReason

KVM_X86_SET_MSR_FILTER, KVM_X86_SET_MSR_FILTER_COMPAT = 0x4188AEC6, 0x4104AEC6
KVM_CAP_X86_DISABLE_EXITS = 143
DISABLE_EXITS = {"mwait": 1, "hlt": 2, "pause": 4, "cstate": 8, "aperfmperf": 16}
"""What ``KVM_CAP_X86_DISABLE_EXITS`` lets a guest do by itself (api.rst 7.13)."""


@dataclass(frozen=True, slots=True, repr=False)
class EnableCap(Word):
    """``KVM_ENABLE_CAP`` on the VM (or vCPU) fd; ``args`` has up to four u64."""

    cap: Cap
    args: Annotated[tuple[u64, ...], Most(4)] = (0,)
    flags: u32 = 0
    on: File = "vm"

    def __repr__(self) -> str:
        if (self.cap, self.flags, self.on) == (KVM_CAP_X86_USER_SPACE_MSR, 0, "vm") and len(
            self.args
        ) == 1:
            mask = self.args[0]
            name = str(MsrExitReason(mask).name) if 0 < mask <= 7 else f"{mask:#x}"
            return f"enable_exits({name})"
        if (self.cap, self.flags, self.on, len(self.args)) == (
            KVM_CAP_X86_DISABLE_EXITS,
            0,
            "vm",
            1,
        ):
            return f"disable_exits({self.args[0]:#x})"
        return Word.__repr__(self)


def enable_exits(mask: u64) -> EnableCap:
    """Return the action that lets accesses failing for the reasons in ``mask`` exit."""
    return EnableCap(KVM_CAP_X86_USER_SPACE_MSR, (int(mask),))


def disable_exits(bits: u32) -> EnableCap:
    """Return the action that lets a VM without vCPUs do what ``bits`` say without an exit."""
    return EnableCap(KVM_CAP_X86_DISABLE_EXITS, (int(bits),))


@dataclass(frozen=True, slots=True, repr=False)
class Install(Word):
    """``KVM_X86_SET_MSR_FILTER``: well formed, or with another number, fd or argument pointer.

    ``on`` is "vm", "vcpu" or "system"; ``argp`` None means a readable struct that holds ``filter``,
    laid out as ``number`` says. ``caller`` is "self", "child" (a forked process: R03) or "compat"
    (the ia32 entry, ``int $0x80``: R04, R05).
    """

    filter: MsrFilter
    number: Annotated[int, Bits(32, of="ioctl")] = KVM_X86_SET_MSR_FILTER
    on: File = "vm"
    argp: Pointer | None = None
    caller: Caller = "self"

    def __repr__(self) -> str:
        if (self.number, self.caller) != (KVM_X86_SET_MSR_FILTER_COMPAT, "compat"):
            return Word.__repr__(self)
        rest = Word.__repr__(replace(self, number=KVM_X86_SET_MSR_FILTER, caller="self"))
        return rest.replace("install(", "install_compat(", 1)


def install_compat(filter: MsrFilter, argp: Pointer | None = None) -> Install:
    """Return the install as a 32-bit caller makes it: its struct, its number, its entry (R05)."""
    return Install(filter, KVM_X86_SET_MSR_FILTER_COMPAT, argp=argp, caller="compat")


@dataclass(frozen=True, slots=True, repr=False)
class ScribbleBitmaps(Word):
    """Overwrite, in user memory, every bitmap of the last install (R29)."""


@dataclass(frozen=True, slots=True, repr=False)
class CheckExtension(Word):
    """``KVM_CHECK_EXTENSION`` on the "system" or the "vm" fd."""

    cap: Cap
    on: Literal["system", "vm"] = "system"


Way = Literal["msrs", "one_reg"]
"""The ioctl that names an MSR to the host."""


@dataclass(frozen=True, slots=True, repr=False)
class GetMsr(Word):
    """``KVM_GET_MSRS`` of one MSR, or ``KVM_GET_ONE_REG`` (6.18 on)."""

    index: MsrIndex
    vcpu: VcpuId = 0
    by: Way = "msrs"


@dataclass(frozen=True, slots=True, repr=False)
class SetMsr(Word):
    """``KVM_SET_MSRS`` of one MSR, or ``KVM_SET_ONE_REG`` (6.18 on)."""

    positional = 2
    index: MsrIndex
    value: u64
    vcpu: VcpuId = 0
    by: Way = "msrs"


@dataclass(frozen=True, slots=True, repr=False)
class CreateIrqchip(Word):
    """``KVM_CREATE_IRQCHIP``, or what the kernel has in its place; only before any vCPU exists."""


@dataclass(frozen=True, slots=True, repr=False)
class CreateVcpu(Word):
    """``KVM_CREATE_VCPU``. A vCPU that no script creates exists from its first use.

    ``no_fd`` has the process at its limit of descriptors, so that the last step of it fails.
    """

    vcpu: VcpuId
    no_fd: bool = False


CPUID_BITS = {"tsc_deadline": (1, "ecx", 24)}
"""The CPUID features that a script can turn on and off: leaf, register, bit."""


@dataclass(frozen=True, slots=True, repr=False)
class SetCpuid(Word):
    """``KVM_SET_CPUID2``: all that the host supports, but ``feature`` as ``on`` says.

    Off, "everything" leaves long mode, NX and SYSCALL. Only before the vCPU first runs; an unknown
    feature is a ValueError.
    """

    feature: Literal["tsc_deadline", "everything"]
    on: bool
    vcpu: VcpuId = 0

    def __post_init__(self) -> None:
        """Refuse a feature that no reader of the script would know."""
        if self.feature not in (*CPUID_BITS, "everything"):
            known = ", ".join((*CPUID_BITS, "everything"))
            raise ValueError(f"no CPUID feature {self.feature!r}: there are {known}")


enable_cap, install = EnableCap, Install
scribble_bitmaps, check_extension = ScribbleBitmaps, CheckExtension
get_msr, set_msr, create_irqchip, create_vcpu = GetMsr, SetMsr, CreateIrqchip, CreateVcpu
set_cpuid = SetCpuid
