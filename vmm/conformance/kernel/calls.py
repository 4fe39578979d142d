"""What the host calls on a VM and its vCPUs, where no access of the guest is in its middle."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from vmm._native import lib
from vmm.conformance.host.memory_cgroup import charges_bitmaps
from vmm.conformance.kernel.platform import (
    PAGE,
    change,
    cpuid_with,
    no_descriptor,
    xen_config,
)
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.language import script as words
from vmm.conformance.language.script import (
    KVM_X86_SET_MSR_FILTER_COMPAT,
    Event,
    done,
    refused,
)
from vmm.errors import KvmError
from vmm.placed import COMPAT, NATIVE, Missing, PlacedFilter, bad_address
from vmm.vcpu import Vcpu

MSI_BASE, MSI_INIT, MSI_SIPI = 0xFEE0_0000, 5 << 8, 6 << 8 | words.SIPI_VECTOR
"""The address of a message to an APIC (its ID in bits 12 to 19), and the data of an INIT."""


class Calls:
    """The ioctls of one script, and the filters that it placed; ``close`` gives these back."""

    def __init__(self, vm: PooledVm) -> None:
        """Have nothing placed yet."""
        self.vm = vm
        self._placed: list[PlacedFilter] = []
        self._blobs: list[Any] = []
        self.cpuid: dict[int, Any] = {}
        """What each vCPU was given last."""

    def move(self, vm: PooledVm) -> None:
        """Go on in another VM, whose vCPUs have been given no CPUID."""
        self.vm = vm
        self.cpuid.clear()

    def close(self) -> None:
        """Free the filters."""
        for each in self._placed:
            each.close()

    # --- the VM -----------------------------------------------------------------------------

    def check_extension(self, action: words.CheckExtension) -> Event:
        return words.Got(self._file(action.on).check_extension(action.cap))

    def enable_cap(self, action: words.EnableCap) -> Event:
        self._file(action.on).enable_cap(action.cap, *action.args, flags=action.flags)
        return done

    def send(self, action: words.Install, missing: Missing | None) -> Event:
        """Place the filter as the ioctl's number says and send it as the caller does.

        What succeeds returns 0, and nothing else that is not negative.
        """
        layout = COMPAT if action.number == KVM_X86_SET_MSR_FILTER_COMPAT else NATIVE
        low = action.caller == "compat" or layout is COMPAT
        placed = PlacedFilter(action.filter, layout, low=low, missing=missing)
        placed.fill_holes()
        self._placed.append(placed)
        self.vm.filtered = True
        address = placed.address if action.argp is None else bad_address(action.argp)
        result = SEND[action.caller](self._file(action.on), action.number, address)
        return words.Got(result) if result else done

    def scribble_bitmaps(self) -> Event:
        for placed in self._placed[-1:]:
            placed.scribble()
        return done

    def create_irqchip(self) -> Event:
        self.vm.create_irqchip()
        return done

    def create_vcpu(self, action: words.CreateVcpu) -> Event:
        if not action.no_fd:
            self.vm.create_vcpu(action.vcpu)
            return done
        try:
            with no_descriptor():
                self.vm.create_vcpu(action.vcpu)
        except KvmError as error:  # the limit is the script's own
            return words.Rejected(error.errno or 0)
        return done

    def set_cpuid(self, action: words.SetCpuid) -> Event:
        cpuid = cpuid_with(self.vm.vm.kvm, action.feature, action.on)
        self.vm.vcpu(action.vcpu).set_cpuid2(cpuid)
        self.cpuid[action.vcpu] = cpuid
        return done

    def set_cpuid_bits(self, action: words.SetCpuidBits) -> Event:
        cpuid = self.cpuid.get(action.vcpu) or self.vm.vm.kvm.get_supported_cpuid()
        change(cpuid, action)
        self.vm.vcpu(action.vcpu).set_cpuid2(cpuid)
        self.cpuid[action.vcpu] = cpuid
        return done

    def weigh_bitmaps(self) -> Event:
        charged = charges_bitmaps(self.vm.vm.kvm)
        if charged is None:
            return words.Lost("the memory cgroup is not at rest")
        return words.Got(int(charged))

    def xen_hvm_config(self, action: words.XenHvmConfig) -> Event:
        config, blobs = xen_config(action.msr, action.pages, action.flags)
        self._blobs += blobs  # the kernel reads them whenever the guest writes the MSR
        self.vm.vm.xen_hvm_config(config)
        return done

    def get_hypercall_page(self) -> Event:
        page = bytes(self.vm.memory.buffer[words.HYPERCALL_PAGE : words.HYPERCALL_PAGE + PAGE])
        parts = (int.from_bytes(page[at : at + 4], "little") for at in range(0, PAGE, 4))
        return words.Got(next(filter(None, parts), 0))

    def send_init(self, action: words.SendInit) -> Event:
        self.vm.vcpu(action.vcpu).set_lapic(self.vm.vcpu(action.vcpu).get_lapic())
        self.vm.vm.signal_msi(MSI_BASE | action.vcpu << 12, MSI_INIT)
        return done

    def send_sipi(self, action: words.SendSipi) -> Event:
        self.vm.vm.signal_msi(MSI_BASE | action.vcpu << 12, MSI_SIPI)
        return done

    def set_mp_state(self, action: words.SetMpState) -> Event:
        self.vm.vcpu(action.vcpu).set_mp_state(action.state)
        return done

    def _file(self, on: str) -> Any:
        if on == "vcpu":
            return self.vm.vcpu(0)
        return self.vm.vm if on == "vm" else self.vm.vm.kvm

    # --- a vCPU -----------------------------------------------------------------------------

    def get_msr(self, action: words.GetMsr) -> Event:
        if action.by == "one_reg":
            return self._one_reg(lambda vcpu: vcpu.get_msr_by_one_reg(action.index), action.vcpu)
        value = self.vm.get_msr(action.vcpu, action.index)
        return refused if value is None else words.Got(value)

    def set_msr(self, action: words.SetMsr) -> Event:
        index, value = action.index, action.value
        if action.by == "one_reg":
            return self._one_reg(lambda vcpu: vcpu.set_msr_by_one_reg(index, value), action.vcpu)
        count = self.vm.vcpu(action.vcpu).set_msrs({index: value})
        return done if count else refused

    def _one_reg(self, work: Callable[[Vcpu], int | None], vcpu: int) -> Event:
        try:
            value = work(self.vm.vcpu(vcpu))
        except KvmError as error:
            if error.errno == errno.EINVAL:
                return refused
            raise
        return done if value is None else words.Got(value)


def from_child(file: Any, number: int, address: int) -> int:
    """Send the ioctl from a forked child, whose memory is not the VM's (R03).

    ``OSError``, which is none of the kernel's answers, where there is no child or it was killed.
    """
    ended = lib.mw_ioctl_in_child(file.fd, number, address, False)
    if ended < 0:
        raise OSError(-ended, f"{os.strerror(-ended)}: a child that installs cannot be had")
    if ended and not os.WIFEXITED(ended):
        raise OSError(errno.EINTR, f"the child that installs was killed by {os.WTERMSIG(ended)}")
    if ended:
        raise KvmError(os.waitstatus_to_exitcode(ended), "ioctl", "in a child")
    return 0


SEND: dict[str, Callable[[Any, int, int], int]] = {
    "self": lambda file, number, address: file.ioctl(number, address),
    "compat": lambda file, number, address: file.compat_ioctl(number, address),
    "child": from_child,
}
