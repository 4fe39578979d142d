"""What the contract says of vCPUs in threads of their own: parked, or spinning.

One rule is one small method, as in ``filters``. ``RunningRules`` holds no state of its own.
"""

from __future__ import annotations

from typing import Protocol

from vmm.conformance.language import script as s
from vmm.conformance.oracle import accesses
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.msrs import U32
from vmm.conformance.oracle.state import IDLE, Stage, Unsure, VmState
from vmm.msr import INVAL, UNKNOWN, MsrExitReason


class Rest(accesses.Rest, Protocol):
    """What running vCPUs ask of the rest of the Model: why accesses fail, and who is told."""

    @property
    def accesses(self) -> AccessRules:
        """Why accesses fail."""


class RunningRules:
    """R28, R50, R72, R74: what a vCPU does in the kernel while others go on."""

    def park(self, model: Rest, vm: VmState, action: s.Park) -> s.Step:
        """R74: inside the kernel's read side until it is released."""
        if vm.vcpu(action.vcpu).stage is not IDLE:
            return (s.whatever,)
        vm.vcpu(action.vcpu).stage, vm.vcpu(action.vcpu).has_run = Stage.AWAY, True
        vm.parks += 1
        vm.parked[action.vcpu] = vm.parks
        return (s.parked,)

    def release(self, model: Rest, vm: VmState, action: s.Release) -> s.Step:
        """R74."""
        if vm.parked.pop(action.vcpu, None) is None:
            return (s.whatever,)
        vm.vcpu(action.vcpu).stage = IDLE
        return (s.released,)

    def spin(self, model: Rest, vm: VmState, action: s.Spin) -> s.Step:
        """R72: a loop whose accesses obey each filter and each mask, soon after it is there."""
        vcpu, access = vm.vcpu(action.access.vcpu), action.access
        if vcpu.stage is not IDLE:
            return (s.whatever,)
        passes = vcpu.l2 and model.levels.intercepts(vcpu.l2, access) is False
        if vcpu.l2 and (vcpu.is_misled or not passes):
            return model.levels.unsure(vcpu)  # the first round ends L2, and the loop
        vcpu.stage, vcpu.has_run, vm.spins[access.vcpu] = Stage.AWAY, True, access
        return (s.spinning,)

    def stop_spin(self, model: Rest, vm: VmState, action: s.StopSpin) -> s.Step:
        """R28: nobody knows which accesses of the loop were the last that were allowed."""
        access = vm.spins.pop(action.vcpu, None)
        if access is None:
            return (s.whatever,)
        vcpu = vm.vcpu(action.vcpu)
        vcpu.stage = IDLE
        if isinstance(access, s.Wrmsr):
            vcpu.forget(access.index & U32)
        model.xen.write(vm, access, Unsure.WHATEVER)
        return (s.stopped,)

    def until_exits(self, model: Rest, vm: VmState, action: s.UntilExits) -> s.Step:
        """R72, R50: the exit of a spinning vCPU's accesses, if they are to exit now."""
        return (self.exit_of(model, vm, action.vcpu) or s.never,)

    def until_runs(self, model: Rest, vm: VmState, action: s.UntilRuns) -> s.Step:
        """R72, R50: a denied access that nobody is told of is #GP, and the loop goes on."""
        exit_ = self.exit_of(model, vm, action.vcpu)
        return (exit_ if exit_ == s.whatever else s.never if exit_ else s.ran,)

    def exit_of(self, model: Rest, vm: VmState, number: int) -> s.Event | None:
        """R72: the exit that a spinning vCPU's accesses take now, or ``whatever`` if unsure."""
        access = vm.spins.get(number)
        if access is None:
            return s.whatever
        reason = model.accesses.reason(model, vm, vm.vcpu(number), access)
        if isinstance(reason, MsrExitReason):
            return (
                model.exits.exit(access, reason) if model.masks.is_told(vm.mask, reason) else None
            )
        is_unsure = reason is Unsure.WHATEVER or (reason and vm.mask & (INVAL | UNKNOWN))
        return s.whatever if is_unsure else None
