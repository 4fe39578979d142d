"""``/dev/kvm`` and a VM: one method for each ioctl, named as the kernel names it.

Every method raises ``KvmError`` with the kernel's errno and the ioctl's name. Beside the checked
methods stands ``ioctl`` (for a VM, also ``compat_ioctl``): any number with any argument.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from vmm._native import ffi, lib
from vmm.errors import KvmError
from vmm.filter import MsrFilter
from vmm.ioctl import KvmFile, fits, struct_of
from vmm.memory import GuestMemory
from vmm.msr import KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_USER_SPACE_MSR
from vmm.placed import PlacedFilter
from vmm.structs import MAX_CPUID_ENTRIES
from vmm.vcpu import Vcpu

IOAPIC_PINS = 24
SMM_ADDRESS_SPACE = 1 << 16


class Kvm(KvmFile):
    """The system fd. ``KvmError`` names "open" and the path when the device cannot be opened."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        """Open ``path``; an API version other than 12 is ``KvmError`` with ENOTSUP."""
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmError(error.errno or errno.EIO, "open", path) from None
        try:
            version = self.get_api_version()
            if version != lib.KVM_API_VERSION:
                raise KvmError(errno.ENOTSUP, "KVM_GET_API_VERSION", f"version {version}")
            self.run_size = self.get_vcpu_mmap_size()
            self.supported_cpuid: Any = None
        except KvmError:
            self.close()
            raise

    def get_api_version(self) -> int:
        """Return ``KVM_GET_API_VERSION``: 12."""
        return self.ioctl(lib.KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION")

    def get_vcpu_mmap_size(self) -> int:
        """Return the bytes of a vCPU's shared ``kvm_run`` area."""
        return self.ioctl(lib.KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE")

    def check_extension(self, cap: int) -> int:
        """Return what the system fd reports for ``cap``: 0 when it is missing."""
        return self.ioctl(lib.KVM_CHECK_EXTENSION, cap, "KVM_CHECK_EXTENSION")

    def get_supported_cpuid(self) -> Any:
        """Return ``struct kvm_cpuid2`` with all that this host can give a guest."""
        cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": MAX_CPUID_ENTRIES})
        cpuid.nent = MAX_CPUID_ENTRIES
        self.pointed(lib.KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID")
        return cpuid

    def get_msr_index_list(self) -> tuple[int, ...]:
        """Return the indices that ``KVM_GET_MSRS`` of a vCPU serves on this host."""
        msrs = ffi.new("struct kvm_msr_list *", {"indices": 1024})
        msrs.nmsrs = 1024
        self.pointed(lib.KVM_GET_MSR_INDEX_LIST, msrs, "KVM_GET_MSR_INDEX_LIST")
        return tuple(msrs.indices[0 : msrs.nmsrs])

    def create_vm(self) -> Vm:
        """Return a new VM without memory, vCPUs or interrupt controller.

        A signal interrupts the kernel at it (``mm_take_all_locks``): it is asked again then.
        """
        while True:
            try:
                return Vm(self, self.ioctl(lib.KVM_CREATE_VM, 0, "KVM_CREATE_VM"))
            except KvmError as error:
                if error.errno != errno.EINTR:
                    raise


class Vm(KvmFile):
    """A VM: made by ``Kvm.create_vm``; closing it closes its vCPUs and unmaps its memory."""

    def __init__(self, kvm: Kvm, fd: int) -> None:
        """Take over the VM's ``fd``."""
        self.kvm, self.fd, self._pid = kvm, fd, os.getpid()
        self.vcpus: dict[int, Vcpu] = {}
        self.memories: list[GuestMemory] = []
        # What the guest can reach must stay mapped while a vCPU may run, even without this object.
        self._given: dict[int, GuestMemory] = {}

    def check_extension(self, cap: int) -> int:
        """Return what this VM's fd reports for ``cap``."""
        return self.ioctl(lib.KVM_CHECK_EXTENSION, cap, "KVM_CHECK_EXTENSION")

    def enable_msr_exits(self, reasons: int) -> None:
        """Let accesses that fail for ``reasons`` (a mask) exit; 0 lets none (api.rst 7.22)."""
        self.enable_cap(KVM_CAP_X86_USER_SPACE_MSR, reasons)

    def set_msr_filter(self, filter_: MsrFilter) -> None:
        """Replace the whole filter; on failure the old one stays in force (api.rst 4.97, R14)."""
        self._must_be_open("KVM_X86_SET_MSR_FILTER")
        placed = PlacedFilter(filter_)
        try:
            self.set_msr_filter_at(placed.address)
        finally:
            placed.close()

    def set_msr_filter_at(self, address: int) -> None:
        """Send ``KVM_X86_SET_MSR_FILTER`` with a struct that already lies at ``address``."""
        self.ioctl(lib.KVM_X86_SET_MSR_FILTER, address, "KVM_X86_SET_MSR_FILTER")

    def compat_ioctl(self, number: int, arg: int, name: str = "compat ioctl") -> int:
        """Send any ioctl through the ia32 entry (``int $0x80``); ``arg`` has 32 bits."""
        number, arg = fits("a compat number", number, 32), fits("a compat argument", arg, 32)
        return self._send(lib.mw_ioctl_compat, number, arg, name)

    def set_user_memory_region(
        self, slot: int, memory: GuestMemory, size: int | None = None
    ) -> None:
        """Give the guest ``memory`` as ``slot``; with size 0 take the slot away."""
        if not isinstance(memory, GuestMemory):
            raise TypeError(f"memory must be a GuestMemory, not {memory!r}")
        memory.must_be_open("KVM_SET_USER_MEMORY_REGION")
        size = memory.size if size is None else fits("size", size, 64)
        if size > memory.size:
            raise ValueError(f"size {size:#x} is more than the memory has: {memory.size:#x}")
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot, region.guest_phys_addr = fits("slot", slot, 32), memory.base
        region.memory_size = size
        region.userspace_addr = memory.address
        self.pointed(lib.KVM_SET_USER_MEMORY_REGION, region, "KVM_SET_USER_MEMORY_REGION")
        if size:
            self._given[slot] = memory

    def add_memory(self, base: int, size: int) -> GuestMemory:
        """Return ``size`` new bytes of guest RAM at guest-physical ``base``, in the next slot."""
        self._must_be_open("KVM_SET_USER_MEMORY_REGION")
        memory = GuestMemory(base, size)
        try:
            self.set_user_memory_region(len(self.memories), memory)
        except BaseException:
            memory.close()
            raise
        self.memories.append(memory)
        return memory

    def map_in_smm(self, memory: GuestMemory) -> None:
        """Give the guest memory that it has to its SMM too, whose address space is another one.

        ``KVM_CAP_MULTI_ADDRESS_SPACE`` (api.rst 4.35); a second time changes nothing.
        """
        self._must_be_open("map_in_smm")
        slot = SMM_ADDRESS_SPACE | self.memories.index(memory)
        if slot not in self._given:
            self.set_user_memory_region(slot, memory)

    def create_irqchip(self) -> None:
        """Create the in-kernel interrupt controllers; only before the first vCPU."""
        self.ioctl(lib.KVM_CREATE_IRQCHIP, 0, "KVM_CREATE_IRQCHIP")

    def create_any_irqchip(self) -> None:
        """Create the interrupt controllers; a kernel without CONFIG_KVM_IOAPIC has but the APICs.

        Such a kernel reports KVM_CAP_IRQCHIP all the same and answers KVM_CREATE_IRQCHIP with
        ENOTTY; the local APICs come with KVM_CAP_SPLIT_IRQCHIP (api.rst 7.5) there.
        """
        try:
            self.create_irqchip()
        except KvmError as error:
            if error.errno != errno.ENOTTY:
                raise
            self.enable_cap(KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS)

    def signal_msi(self, address: int, data: int) -> int:
        """Send a message to in-kernel APICs (api.rst 4.70); return how many took it."""
        fields = {"address_lo": fits("signal_msi: address", address, 32)}
        fields["data"] = fits("signal_msi: data", data, 32)
        msi = ffi.new("struct kvm_msi *", fields)
        return self.pointed(lib.KVM_SIGNAL_MSI, msi, "KVM_SIGNAL_MSI")

    def xen_hvm_config(self, config: Any) -> None:
        """Set ``struct kvm_xen_hvm_config``: the MSR of hypercall pages (api.rst 4.28)."""
        struct_of("struct kvm_xen_hvm_config", config, "KVM_XEN_HVM_CONFIG")
        self.pointed(lib.KVM_XEN_HVM_CONFIG, config, "KVM_XEN_HVM_CONFIG")

    def set_tss_addr(self, address: int) -> None:
        """Give VMX three pages below 4 GiB for guests in real mode (api.rst 4.29)."""
        self.ioctl(lib.KVM_SET_TSS_ADDR, address, "KVM_SET_TSS_ADDR")

    def create_vcpu(self, vcpu_id: int = 0) -> Vcpu:
        """Return the new vCPU ``vcpu_id``; an existing id is EEXIST."""
        fd = self.ioctl(lib.KVM_CREATE_VCPU, vcpu_id, "KVM_CREATE_VCPU")
        try:
            vcpu = Vcpu(fd, vcpu_id, self.kvm.run_size)
        except KvmError:
            os.close(fd)
            raise
        vcpu.memories = self._given
        self.vcpus[vcpu_id] = vcpu
        if self.fd < 0:  # another thread has closed the VM, and may not have seen this one
            vcpu.close()
            raise self._closed("KVM_CREATE_VCPU")
        return vcpu

    def close(self) -> None:
        """Close vCPUs and VM, then unmap the guest's memory."""
        for vcpu in list(self.vcpus.values()):
            vcpu.close()
        super().close()
        for memory in list(self.memories):
            memory.close()
        self.memories.clear()
