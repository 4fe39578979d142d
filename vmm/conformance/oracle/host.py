"""What the contract says of the host's own calls: no filter is asked (R33, R34, R64, R68, R75).

One rule is one small method, as in ``filters``. ``HostRules`` holds no state of its own.
"""

from __future__ import annotations

from errno import EEXIST, EINVAL, EMFILE
from typing import Protocol

from vmm.conformance.language import script as s
from vmm.conformance.oracle.msrs import APIC_BASES, U64, is_unknown_to_kvm
from vmm.conformance.oracle.state import IDLE, Stage, VcpuState, VmState
from vmm.conformance.oracle.xen import XenRules
from vmm.msr import Msr

AFTER_INIT = s.Regs(s.ANY, 0, 0, s.ANY, changed=True)
"""Registers after an INIT: RDX says which CPU it is, and RIP is far from every instruction."""

MAX_SAFE_VCPU = 254
"""The highest vCPU number that every host accepts: an xAPIC has no more."""


class Rest(Protocol):
    """What the host's calls ask of the rest of the Model."""

    ignore_msrs: bool
    """What the parameter of that name says (R56)."""

    @property
    def xen(self) -> XenRules:
        """What one MSR writes to memory."""


OPENED: dict[int, set[int]] = {
    Msr.IA32_SPEC_CTRL: {1},
    Msr.IA32_DEBUGCTLMSR: {1},
    Msr.IA32_RTIT_CTL: {1},
    Msr.IA32_XFD: {1 << 18},
}
"""What turns on a feature that has KVM pass MSRs; a script that sets it needs the feature."""


class HostRules:
    """MSRs read and written by the host, the vCPUs that it makes, INIT and CPUID."""

    def get_msr(self, model: Rest, vm: VmState, action: s.GetMsr) -> s.Step:
        """R34, R28: never filtered; what was written last."""
        vcpu = vm.vcpu(action.vcpu)
        if is_unknown_to_kvm(action.index):
            return (self.host_unknown(model),)
        is_sure = vcpu.can_read(action.index)
        return (s.got(vcpu.msrs.get(action.index, s.ANY)) if is_sure else s.whatever,)

    def set_msr(self, model: Rest, vm: VmState, action: s.SetMsr) -> s.Step:
        """R34: never filtered."""
        vcpu, index, value = vm.vcpu(action.vcpu), action.index, action.value & U64
        if event := model.xen.by_host(vm, action):
            return (s.whatever if model.ignore_msrs else event,)
        if is_unknown_to_kvm(index):
            return (self.host_unknown(model),)
        if vcpu.can_hold(index, value):
            vcpu.msrs[index] = value
        elif index == Msr.IA32_APICBASE and value in APIC_BASES and vm.has_irqchip:
            vcpu.place_apic(action.vcpu, value)
        elif value in OPENED.get(index, ()):
            vcpu.forget(index)
        else:
            vcpu.forget(index)
            return (s.whatever,)
        return (s.done,)

    def host_unknown(self, model: Rest) -> s.Event:
        """R56 speaks of the guest's accesses only."""
        return s.whatever if model.ignore_msrs else s.refused

    def create_irqchip(self, vm: VmState, action: s.CreateIrqchip) -> s.Step:
        """Return EEXIST for a second one and EINVAL once there is a vCPU, as the kernel does."""
        if vm.has_irqchip or vm.vcpus:
            return (s.rejected(EEXIST if vm.has_irqchip else EINVAL),)
        vm.has_irqchip = True
        return (s.done,)

    def create_vcpu(self, vm: VmState, action: s.CreateVcpu) -> s.Step:
        """Return EEXIST for a number that is taken; a vCPU without a descriptor is none (R75)."""
        if action.vcpu in vm.vcpus:
            return (s.rejected(EEXIST),)
        if action.no_fd:
            return (s.rejected(EMFILE),)
        if not 0 <= action.vcpu <= MAX_SAFE_VCPU:
            return (s.whatever,)
        vm.vcpu(action.vcpu)
        return (s.done,)

    def send_init(self, vm: VmState, action: s.SendInit) -> s.Step:
        """Return EINVAL where no APIC is there to take it."""
        vcpu = vm.vcpu(action.vcpu)
        if not vm.has_irqchip:
            return (s.rejected(EINVAL),)
        vcpu.has_init = True
        return (s.done,)

    def get_mp_state(self, vm: VmState, action: s.GetMpState) -> s.Step:
        """R64, R68: an INIT that is pending resets the vCPU, and what it had begun is gone."""
        vcpu = vm.vcpu(action.vcpu)
        if not vcpu.has_init:
            is_known = vcpu.stage not in (Stage.UNSURE, Stage.AWAY) or vcpu.in_reset
            return (s.got(vcpu.mp_state) if is_known else s.whatever,)
        self.reset(vcpu)
        vcpu.is_reset = not action.vcpu
        vcpu.mp_state = s.INIT_RECEIVED if action.vcpu else s.RUNNABLE
        return (s.got(vcpu.mp_state),)

    def reset(self, vcpu: VcpuState) -> None:
        """R64, R68: nothing completes later what was begun before."""
        vcpu.has_init, vcpu.stage, vcpu.regs = False, Stage.UNSURE, AFTER_INIT
        vcpu.in_reset, vcpu.has_sipi = True, False
        vcpu.msrs.clear()

    def set_cpuid(self, vm: VmState, action: s.SetCpuid | s.SetCpuidBits) -> s.Step:
        """R33: no filter asks what a guest's CPUID says; only before the vCPU first runs."""
        vcpu = vm.vcpu(action.vcpu)
        return (s.whatever if vcpu.has_run or vcpu.stage is not IDLE else s.done,)
