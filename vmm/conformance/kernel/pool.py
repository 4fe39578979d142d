"""A VM that serves many scripts: made once, reset between them."""

from __future__ import annotations

from typing import Any

from vmm.conformance.kernel.program import Program
from vmm.conformance.kernel.single import Single
from vmm.filter import MsrFilter
from vmm.guest import Guest
from vmm.kvm import Kvm
from vmm.memory import GuestMemory
from vmm.vcpu import Vcpu

OFF = MsrFilter.default_allow()


class PooledVm:
    """A VM with the ``access`` guest; vCPUs appear at their first use.

    ``keep`` says whether it can be used again: what a script creates cannot be taken away.
    """

    def __init__(self, kvm: Kvm, *, keep: bool) -> None:
        """Create the VM and its memory."""
        self.vm, self.keep, self.filtered = kvm.create_vm(), keep, False
        self.guest = Guest.load("access")
        self.memory: GuestMemory = self.guest.prepare(self.vm)
        self._programs: dict[int, Program] = {}
        self._singles: dict[int, Single] = {}
        self._states: dict[int, tuple[Any, Any]] = {}

    def reset(self) -> None:
        """Return to the start of a script: no mask, no filter, every vCPU as it was created."""
        if self.filtered:
            self.vm.set_msr_filter(OFF)
            self.filtered = False
        self.vm.enable_msr_exits(0)
        for vcpu_id, (sregs, events) in self._states.items():
            vcpu = self.vm.vcpus[vcpu_id]
            vcpu.set_sregs(sregs)
            vcpu.set_vcpu_events(events)

    def create_vcpu(self, vcpu_id: int) -> None:
        """Create the vCPU in the guest; EEXIST if there is one."""
        vcpu = self.guest.boot(self.vm, vcpu_id)
        self._programs[vcpu_id] = Program(vcpu, self.memory)
        self._states[vcpu_id] = vcpu.get_sregs(), vcpu.get_vcpu_events()

    def create_irqchip(self) -> None:
        """Create the in-kernel interrupt controller."""
        self.vm.create_any_irqchip()

    def program(self, vcpu_id: int) -> Program:
        """Return the program area of the vCPU, creating it at its first use."""
        if vcpu_id not in self._programs:
            self.create_vcpu(vcpu_id)
        return self._programs[vcpu_id]

    def single(self, vcpu_id: int) -> Single:
        """Return what executes single accesses on the vCPU, creating it at its first use."""
        if vcpu_id not in self._singles:
            self._singles[vcpu_id] = Single(self.vm, self.vcpu(vcpu_id), self.memory)
        return self._singles[vcpu_id]

    def vcpu(self, vcpu_id: int) -> Vcpu:
        """Return the vCPU, creating it at its first use."""
        return self.program(vcpu_id).vcpu

    def get_msr(self, vcpu_id: int, index: int) -> int | None:
        """Return the MSR's value for the host, or None when this host refuses it."""
        return self.vcpu(vcpu_id).get_msrs([index]).get(index)

    def successor(self) -> PooledVm:
        """Return a new VM with a copy of this one's memory, and without vCPUs."""
        fresh = PooledVm(self.vm.kvm, keep=False)
        fresh.memory.buffer[:] = self.memory.buffer[:]
        return fresh

    def close(self) -> None:
        """Destroy the VM."""
        self.vm.close()
