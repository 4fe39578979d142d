"""What the contract says of vCPUs that wait: for an INIT, for a SIPI, or out of HLT (R71, R72).

Whatever a vCPU waits for, a filter that comes meanwhile is in force once it runs. One rule is one
small method, as in ``filters``. ``SleepingRules`` holds no state of its own.
"""

from __future__ import annotations

from errno import EINVAL

from vmm.conformance.language import script as s
from vmm.conformance.oracle.state import NO_REGS, Stage, VcpuState, VmState

INIT, SIPI = 5, 6
"""Delivery modes of an ICR."""


class SleepingRules:
    """R71, R72: vCPUs that do not run, and what has them run."""

    def set_mp_state(self, vm: VmState, action: s.SetMpState) -> s.Step:
        """Return EINVAL for what no APIC in the kernel is there for, and what x86 has not."""
        vcpu, state = vm.vcpu(action.vcpu), action.state
        if state > s.SIPI_RECEIVED or (state and not vm.has_irqchip):
            return (s.rejected(EINVAL),)
        if state in (s.INIT_RECEIVED, s.SIPI_RECEIVED) and self.may_bar_init(vcpu):
            return (s.whatever,)
        vcpu.has_sipi = state == s.SIPI_RECEIVED
        vcpu.mp_state = s.INIT_RECEIVED if vcpu.has_sipi else state
        vcpu.is_reset |= vcpu.in_reset and state == s.RUNNABLE
        return (s.done,)

    def may_bar_init(self, vcpu: VcpuState) -> bool:
        """Say whether the vCPU may be where a CPU takes no INIT: in SMM, as an L1, with an SMI."""
        in_smm = vcpu.access is not None and vcpu.access.mode == "smm"
        return in_smm or vcpu.entered is not None or s.SMI in vcpu.injected

    def send_sipi(self, vm: VmState, action: s.SendSipi) -> s.Step:
        """Return EINVAL where no APIC is there to take it; who waits for none takes none."""
        if not vm.has_irqchip:
            return (s.rejected(EINVAL),)
        self.sipi(vm.vcpu(action.vcpu))
        return (s.done,)

    def sipi(self, vcpu: VcpuState) -> None:
        """Note a SIPI, which counts for who waits for one."""
        vcpu.has_sipi |= vcpu.mp_state == s.INIT_RECEIVED

    def write(self, vm: VmState, access: s.Access) -> None:
        """R30: a guest's ICR in x2APIC mode, whatever the filter says, sends what it says."""
        if not isinstance(access, s.Wrmsr) or not vm.vcpu(access.vcpu).x2apic:
            return
        target = vm.vcpus.get(access.value >> 32)
        kind = access.value >> 8 & 7
        if target is None or target is vm.vcpu(access.vcpu):
            return
        if kind == SIPI:
            self.sipi(target)
        elif kind == INIT and target.slept_in:
            target.msrs.clear()
            target.mp_state, target.in_reset = s.INIT_RECEIVED, True
        elif kind == INIT:
            target.has_init = True

    def sleep(self, vm: VmState, action: s.Sleep) -> s.Step:
        """R74: asleep in ``KVM_RUN``, and no reader of the filter."""
        vcpu = vm.vcpu(action.vcpu)
        if vcpu.mp_state == s.RUNNABLE or vcpu.stage is Stage.AWAY:
            return (s.whatever,)
        vcpu.has_run = True
        if vcpu.has_sipi:
            return self.start(vcpu)
        vcpu.slept_in, vcpu.stage = vcpu.stage, Stage.AWAY
        return (s.blocked,)

    def wake(self, vm: VmState, action: s.Wake) -> s.Step:
        """R65: a signal ends ``KVM_RUN``, and nothing else."""
        vcpu = vm.vcpu(action.vcpu)
        if vcpu.slept_in is None:
            return (s.whatever,)
        vcpu.stage, vcpu.slept_in = vcpu.slept_in, None
        return (s.interrupted,)

    def await_sipi(self, vm: VmState, action: s.AwaitSipi) -> s.Step:
        """R72: it runs from its SIPI on."""
        vcpu = vm.vcpu(action.vcpu)
        if vcpu.slept_in is None:
            return (s.whatever,)
        if not vcpu.has_sipi:
            return (s.never,)
        vcpu.slept_in = None
        return self.start(vcpu)

    def start(self, vcpu: VcpuState) -> s.Step:
        """R72: 16-bit code after an INIT; who was not reset goes on nobody knows how."""
        vcpu.mp_state, vcpu.has_sipi, vcpu.is_reset = s.RUNNABLE, False, vcpu.in_reset
        vcpu.stage, vcpu.regs = Stage.UNSURE, NO_REGS
        return (s.started if vcpu.in_reset else s.whatever,)
