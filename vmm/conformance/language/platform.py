"""The words for what a guest is given beside MSRs, and for what else the host does to a vCPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vmm.bits import Bits, MsrIndex, u8, u32
from vmm.conformance.language.domains import VcpuId
from vmm.conformance.language.word import Word

# --- actions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class SetCpuidBits(Word):
    """``KVM_SET_CPUID2``: the vCPU's CPUID as it is, but ``bits`` of a register as ``on`` says.

    ``index`` is the subleaf; a leaf that is not there is added. Only before the vCPU first runs.
    """

    positional = 3
    leaf: u32
    register: Literal["eax", "ebx", "ecx", "edx"]
    bits: u32
    on: bool = True
    index: u32 = 0
    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class SendInit(Word):
    """``KVM_SIGNAL_MSI``: an INIT for the vCPU, which is pending from then on.

    ``KVM_SET_LAPIC`` of what ``KVM_GET_LAPIC`` returned comes before it: so KVM can find the APIC.
    """

    vcpu: VcpuId


@dataclass(frozen=True, slots=True, repr=False)
class GetMpState(Word):
    """``KVM_GET_MP_STATE``, which first does what is pending: an INIT resets the vCPU."""

    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class SetMpState(Word):
    """``KVM_SET_MP_STATE``: from 1 to 3 the vCPU waits, for an INIT, a SIPI, or out of HLT; 0 runs.

    At 4 it has its SIPI already, with the vector of the last one that was sent. Only 0 is known
    where no APIC is in the kernel; a state from 5 on is another architecture's.
    """

    state: Annotated[int, Bits(3)]
    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class SendSipi(Word):
    """``KVM_SIGNAL_MSI``: a SIPI for the vCPU, whose vector leads to code that writes to a port.

    KVM has to know the vCPU's APIC: ``send_init`` sees to that.
    """

    vcpu: VcpuId


@dataclass(frozen=True, slots=True, repr=False)
class FreshVm(Word):
    """The VM is closed, and a new one has a copy of its memory: no filter, no mask, new vCPUs.

    It is where a host goes on that restores a snapshot, or to which a guest migrates.
    """


@dataclass(frozen=True, slots=True, repr=False)
class WeighBitmaps(Word):
    """Whether this process's memory cgroup is charged for bitmaps that the kernel copies: 1, or 0.

    The same filter comes into many VMs of their own, and is taken away again.
    """


XEN_INTERCEPT = 2
"""``KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL`` (5.12 on): KVM makes the pages of hypercalls itself."""
HYPERCALL_PAGE = 0xF_0000
"""Where in its memory a guest has a page that nobody else uses."""


@dataclass(frozen=True, slots=True, repr=False)
class XenHvmConfig(Word):
    """``KVM_XEN_HVM_CONFIG``: the guest's WRMSR of ``msr`` has KVM write a page of hypercalls.

    The value written says where, and its low 12 bits which of the host's ``pages``: each page is
    0x64000000 and its number, again and again, 0x32000000 where EFER.LMA is 0. With flag 2 KVM
    makes the page itself. MSR 0 is none.
    """

    msr: MsrIndex
    pages: u8 = 0
    flags: u32 = 0


@dataclass(frozen=True, slots=True, repr=False)
class GetHypercallPage(Word):
    """The first 32 bits, of the page of the guest's memory at 0xf0000, that are not 0; or 0."""


# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class InternalError(Word):
    """``KVM_EXIT_INTERNAL_ERROR`` instead of the end of an access; the script ends with it."""

    suberror: u32


@dataclass(frozen=True, slots=True, repr=False)
class OtherExit(Word):
    """An exit that is none of an access's, by its ``KVM_EXIT_*``; the script ends with it."""

    exit_reason: u32


RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED, SIPI_RECEIVED = range(5)
"""``KVM_MP_STATE_*``: the states of a vCPU on x86."""
SIPI_VECTOR = 0xE0
"""Where a SIPI leads: 4 KiB times as much in the guest's memory, a page that nobody else uses."""


HV_INTERFACE, HV_SIGNATURE = 0x4000_0001, int.from_bytes(b"Hv#1", "little")
"""The CPUID leaf whose EAX says that a hypervisor has Hyper-V's interface (TLFS, chapter 2)."""


HV_NESTED, HV_NESTED_FEATURES = 0x4000_000A, 1 << 19 | 1 << 8 | 1
"""What Hyper-V offers an L1: bitmaps of MSRs that it can call clean, and on VMX an enlightened VMCS
of version 1, the lowest and the highest there is."""


def as_hyper_v(vcpu: int = 0) -> tuple[SetCpuidBits, SetCpuidBits, SetCpuidBits]:
    """Return the words that have a vCPU's CPUID offer Hyper-V's interface, in place of KVM's."""
    return (
        SetCpuidBits(HV_INTERFACE, "eax", (1 << 32) - 1, on=False, vcpu=vcpu),
        SetCpuidBits(HV_INTERFACE, "eax", HV_SIGNATURE, vcpu=vcpu),
        SetCpuidBits(HV_NESTED, "eax", HV_NESTED_FEATURES, vcpu=vcpu),
    )


set_cpuid_bits, send_init, get_mp_state = SetCpuidBits, SendInit, GetMpState
set_mp_state, send_sipi = SetMpState, SendSipi
fresh_vm, weigh_bitmaps = FreshVm, WeighBitmaps
xen_hvm_config, get_hypercall_page = XenHvmConfig, GetHypercallPage
internal_error, other_exit = InternalError, OtherExit
