"""A vCPU that is an L1: switches the vendor's extensions on and has a stub enter L2."""

from __future__ import annotations

import errno
from typing import Any, Literal

from vmm.errors import KvmError
from vmm.guest import Guest, start_registers
from vmm.kvm import Kvm
from vmm.memory import GuestMemory
from vmm.nested import evmcs, svm, vmx
from vmm.nested.area import Area, Entry, Left, read_list
from vmm.vcpu import Vcpu

Vendor = Literal["svm", "vmx"]
_HAS = {"svm": svm, "vmx": vmx}


def vendor_of(kvm: Kvm) -> Vendor | None:
    """Return whose extensions this host's guests can have, or None: no nesting, or switched off."""
    cpuid = kvm.get_supported_cpuid()
    leaves = {each.function: each for each in cpuid.entries[0 : cpuid.nent]}
    for name in ("svm", "vmx"):
        row: Any = _HAS[name]
        leaf = leaves.get(row.CPUID_LEAF)
        if leaf is not None and getattr(leaf, row.CPUID_REGISTER) >> row.CPUID_BIT & 1:
            return "svm" if name == "svm" else "vmx"
    return None


class L1:
    """The nested area of one vCPU in L1, running a guest that has the stubs (``access``)."""

    def __init__(self, kvm: Kvm, vcpu: Vcpu, guest: Guest, memory: GuestMemory) -> None:
        """Switch the extensions on; ``KvmError`` where there are none, or KVM does not take it."""
        vendor = vendor_of(kvm)
        if vendor is None:
            raise KvmError(errno.ENOTSUP, "KVM_GET_SUPPORTED_CPUID", "no nested guests here")
        self.vcpu, self.guest, self.memory, self.vendor = vcpu, guest, memory, vendor
        self._area = Area.of(vcpu.vcpu_id)
        self._fields: dict[int, int] = {}
        self._has_evmcs = vendor == "vmx" and evmcs.is_offered(kvm, vcpu)
        sregs = vcpu.get_sregs()
        if vendor == "svm":
            sregs.efer |= svm.EFER_SVME
            vcpu.set_msrs({svm.MSR_VM_HSAVE_PA: self._area.host})
        else:
            sregs.cr4 |= vmx.CR4_VMXE
            vcpu.set_msrs({vmx.MSR_FEAT_CTL: vmx.FEAT_CTL_VMX})
            self._capabilities = self._read_capabilities()
            vmx.start(memory, vcpu.vcpu_id, self._capabilities)
        vcpu.set_sregs(sregs)
        if self._has_evmcs:
            evmcs.start(vcpu, memory)

    def prepare(self, entry: Entry) -> None:
        """Write the entry down and set the vCPU to the stub; the next run enters L2."""
        symbols = self.guest.symbols
        if self.vendor == "svm":
            svm.write(self.memory, entry)
            self._start_at(symbols["l1_svm"])
        elif self._has_evmcs and not entry.has_lists:  # which such a structure has not
            can = evmcs.capabilities(self._capabilities)
            table = vmx.fields(entry, self._area, symbols["l1_evmcs_exit"], can)
            again = evmcs.write(self.memory, entry, table)
            self.forget_entry()  # KVM writes back no VMCS that was current until then
            self._start_at(symbols["l1_evmcs_again" if again else "l1_evmcs"])
        else:
            table = vmx.fields(entry, self._area, symbols["l1_vmx_exit"], self._capabilities)
            vmx.write(self.memory, entry, table, self._fields)
            self._fields = table
            self._start_at(symbols["l1_evmcs_off" if self._has_evmcs else "l1_vmx"])

    def forget_entry(self) -> None:
        """Have the next entry write all its fields: the host has changed what they are."""
        self._fields = {}

    def forget_launch(self) -> None:
        """Have the next entry be a first one: the host has taken the VMCS away."""
        if self._has_evmcs:
            evmcs.forget(self.memory, self.vcpu.vcpu_id)

    def prepare_call(self) -> None:
        """Set the vCPU, in L2, to the call that L1 always gets."""
        self._start_at(self.guest.symbols["l2_vmmcall" if self.vendor == "svm" else "l2_vmcall"])

    def prepare_again(self) -> None:
        """Set the vCPU, in L2, to the stub: its first instruction is an exit for L1."""
        self._start_at(self.guest.symbols[f"l1_{self.vendor}"])

    def stored(self, count: int) -> tuple[int, ...]:
        """Return the values that the first ``count`` MSRs of the list for the exit have."""
        return read_list(self.memory, self._area.lists[1], count)

    def left(self) -> Left:
        """Return what L1 got."""
        read = svm.left if self.vendor == "svm" else vmx.left
        return read(self.memory, self.vcpu.vcpu_id)

    def _start_at(self, rip: int) -> None:
        at = {"rdi": self._area.base, "rsp": self._area.seen}
        self.vcpu.set_regs(start_registers(rip, self.vcpu.vcpu_id, **at))

    def _read_capabilities(self) -> dict[int, int]:
        # Without the true controls the other MSRs stand for them; one refused ends a whole read.
        return {
            index: value
            for each in vmx.CAPABILITIES
            for index, value in self.vcpu.get_msrs([each]).items()
        }
