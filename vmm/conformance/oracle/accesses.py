"""What the contract says of an access: who decides it, why it fails, what it does (R27, R50-R59).

One rule is one small method, as in ``filters``. ``AccessRules`` holds no state of its own and asks
the ``Rest`` of the Model what filters, levels and exits say.
"""

from __future__ import annotations

from typing import Protocol

from vmm.conformance.language import script as s
from vmm.conformance.oracle.effects import EffectRules
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.filters import FilterRules, Installed
from vmm.conformance.oracle.levels import LevelRules
from vmm.conformance.oracle.masks import MaskRules
from vmm.conformance.oracle.msrs import (
    EFER_RESERVED,
    LBR_MSRS,
    SMM_OWN,
    U32,
    U64,
    is_unknown_to_kvm,
)
from vmm.conformance.oracle.shadows import ShadowRules
from vmm.conformance.oracle.sleeping import SleepingRules
from vmm.conformance.oracle.state import IDLE, NO_REGS, Reason, Stage, Unsure, VcpuState, VmState
from vmm.conformance.oracle.xen import XenRules
from vmm.filter import READ, WRITE
from vmm.msr import FILTER, INVAL, UNKNOWN, Msr, MsrExitReason


class Rest(Protocol):
    """What accesses ask of the rest of the Model."""

    ignore_msrs: bool
    """What the parameter of that name says (R56)."""
    has_lbr: bool
    """Whether the last branch records can be turned on."""

    @property
    def filters(self) -> FilterRules:
        """What filters say."""

    @property
    def masks(self) -> MaskRules:
        """Who is told."""

    @property
    def exits(self) -> ExitRules:
        """What exits show."""

    @property
    def levels(self) -> LevelRules:
        """Who gets an access of L2."""

    @property
    def shadows(self) -> ShadowRules:
        """What comes before an access."""

    @property
    def effects(self) -> EffectRules:
        """What other instructions do."""

    @property
    def xen(self) -> XenRules:
        """What one MSR writes to memory."""

    @property
    def sleeping(self) -> SleepingRules:
        """What vCPUs wait for."""

    def allowed(self, vm: VmState, access: s.Access) -> bool | None:
        """Return what the filter in force says to an access; None: one of two may be."""

    def filter_of(self, vm: VmState, vcpu: int) -> Installed | None:
        """Return the filter that a vCPU obeys."""


class AccessRules:
    """R27, R28, R35, R50-R52, R56, R59, R70: a RDMSR or WRMSR, and what else uses MSRs."""

    def access(self, model: Rest, vm: VmState, access: s.Access) -> s.Step:
        """R27, R50: an access succeeds or fails, and a failing one exits or is #GP."""
        vcpu = vm.vcpu(access.vcpu)
        vcpu.has_run, vcpu.taken = True, s.whatever
        if vcpu.is_reset and self.starts_anew(access):
            vcpu.is_reset, vcpu.stage, vcpu.regs = False, IDLE, NO_REGS
            vcpu.in_reset = False
        if (vcpu.stage is not IDLE and self.is_stuck(vcpu)) or model.shadows.is_early(access):
            vcpu.forget(access.index & U32)
            return (s.whatever,)
        if (left := model.levels.left_by(model, vm, access)) is not None:
            return left
        if not self.is_privileged(access):
            return (s.gp,)
        reason = self.reason(model, vm, vcpu, access)
        if isinstance(reason, MsrExitReason):
            return self.failing(model, vm, access, reason)
        if reason is Unsure.WHATEVER and self.is_between(vm, access):
            return (self.between(model, vm, vcpu, access),)
        model.xen.write(vm, access, reason)
        if access.index == Msr.APIC_ICR:
            model.sleeping.write(vm, access)
        return (self.perform(model, vcpu, access, reason),)

    def is_between(self, vm: VmState, access: s.Access) -> bool:
        """R70: a filter is published and on its way to the vCPU, and the one before is known."""
        is_known = bool(vm.waits) and not vm.rivals and vm.filter is not None
        return is_known and vm.vcpu(access.vcpu).l2 is None

    def between(self, model: Rest, vm: VmState, vcpu: VcpuState, access: s.Access) -> s.Event:
        """R70: as under the old filter or as under the new, whichever of them denies it."""
        kind = WRITE if isinstance(access, s.Wrmsr) else READ
        denied = _endings(self.failing(model, vm, access, self.denied(model, access)))
        failure = self.fails(model, vm, vcpu, access)
        model.xen.write(vm, access, Unsure.WHATEVER)
        if isinstance(failure, MsrExitReason):
            allowed = _endings(self.failing(model, vm, access, failure))
        else:
            allowed = _endings((self.perform(model, vcpu, access, failure),))
        if kind == WRITE:
            vcpu.forget(access.index & U32)
        is_now = model.filters.allows(model.filter_of(vm, access.vcpu), access.index & U32, kind)
        return s.either(denied, allowed) if is_now else s.either(allowed, denied)

    def is_privileged(self, access: s.Access) -> bool:
        """R59: at CPL3 the CPU itself raises #GP, whatever MSR it is, and nobody is asked."""
        return access.mode != "user"

    def starts_anew(self, access: s.Access) -> bool:
        """Say whether all of the vCPU's state is set for it: what an INIT left does not matter."""
        return access.mode in ("compat", "protected", "real", "user", "higher_half")

    def is_stuck(self, vcpu: VcpuState) -> bool:
        """Say whether the vCPU cannot start an access: the one before is pending or lost."""
        if vcpu.stage is Stage.COMPLETED and not vcpu.moved:
            vcpu.stage, vcpu.regs = IDLE, NO_REGS
            return False
        vcpu.stage = Stage.UNSURE
        return True

    def reason(self, model: Rest, vm: VmState, vcpu: VcpuState, access: s.Access) -> Reason:
        """R51: the filter decides first, and then KVM (R27)."""
        allowed = model.allowed(vm, access)
        if allowed is None:
            return Unsure.WHATEVER
        return self.fails(model, vm, vcpu, access) if allowed else self.denied(model, access)

    def denied(self, model: Rest, access: s.Access) -> MsrExitReason:
        """R51: exactly FILTER."""
        return FILTER

    def fails(self, model: Rest, vm: VmState, vcpu: VcpuState, access: s.Access) -> Reason:
        """R27: what KVM itself says to an allowed access."""
        if model.xen.is_about(access, vm):
            return model.xen.failure(vm, access)
        return self.failure(model, vcpu, access)

    def failure(self, model: Rest, vcpu: VcpuState, access: s.Access) -> Reason:
        """R52: why KVM itself fails the access, where that is unmistakable."""
        index = access.index & U32
        if is_unknown_to_kvm(index):
            return None if self.is_ignored(model, index) else self.unknown()
        if isinstance(access, s.Wrmsr):
            is_bad = index == Msr.EFER and access.value & EFER_RESERVED != 0
            is_sure = vcpu.can_hold(index, access.value & U64) or self.is_lbr(model, vcpu, index)
        else:
            is_bad = index == Msr.APIC_ID and vcpu.x2apic is False
            is_sure = vcpu.can_read(index) or self.is_lbr(model, vcpu, index)
        return self.invalid() if is_bad else None if is_sure else Unsure.UNFILTERED

    def is_lbr(self, model: Rest, vcpu: VcpuState, index: int) -> bool:
        """R27: records that are on can be read and written, and change by themselves."""
        return model.has_lbr and vcpu.has_lbr_on and index in LBR_MSRS

    def is_ignored(self, model: Rest, index: int) -> bool:
        """R56: ignore_msrs silences UNKNOWN, and nothing else."""
        return model.ignore_msrs and is_unknown_to_kvm(index)

    def unknown(self) -> MsrExitReason:
        """R52: KVM has no such MSR."""
        return UNKNOWN

    def invalid(self) -> MsrExitReason:
        """R52: KVM has it, and not for this value or in this mode."""
        return INVAL

    def failing(self, model: Rest, vm: VmState, access: s.Access, reason: MsrExitReason) -> s.Step:
        """R50, R28: no side effect either way."""
        if not model.masks.is_told(vm.mask, reason):
            return (s.gp,)
        return (model.exits.exit(access, reason), model.exits.outcome(access, access.reply))

    def perform(self, model: Rest, vcpu: VcpuState, access: s.Access, reason: Reason) -> s.Event:
        """R27: what an allowed access does to the MSR and returns, as far as it is certain."""
        index = access.index & U32
        if self.is_ignored(model, index) and reason is None:
            return model.exits.done(access, self.ignored(vcpu, access))
        if access.mode == "smm" and index in SMM_OWN and reason is None:
            return model.exits.done(access, self.set_aside(access))
        if isinstance(access, s.Wrmsr):
            if index == Msr.IA32_DEBUGCTLMSR:
                vcpu.has_lbr_on = access.value & 1 != 0
            if reason is None:
                if index not in LBR_MSRS:
                    vcpu.msrs[index] = access.value & U64
                return model.exits.done(access, s.wrote)
            vcpu.forget(index)
        elif reason is None:
            return model.exits.done(access, s.returned(vcpu.msrs.get(index, s.ANY)))
        return s.whatever if reason is Unsure.WHATEVER else s.unfiltered

    def set_aside(self, access: s.Access) -> s.Event:
        """R27: SMM starts with a segment state of its own, and RSM brings back what was before."""
        return s.wrote if isinstance(access, s.Wrmsr) else s.returned(0)

    def ignored(self, vcpu: VcpuState, access: s.Access) -> s.Event:
        """R56: a read returns 0, and a write is dropped."""
        return s.wrote if isinstance(access, s.Wrmsr) else s.returned(0)

    def execute(self, model: Rest, vm: VmState, action: s.Execute) -> s.Step:
        """R35: no filter is asked, no MSR is another one afterwards, and nothing exits."""
        vcpu = vm.vcpu(action.vcpu)
        vcpu.has_run = True
        if vcpu.stage is not IDLE and self.is_stuck(vcpu):
            return (s.whatever,)
        return model.effects.executed(vm, action)


def _endings(step: s.Step) -> tuple[s.Ending, ...]:
    return tuple(each for each in step if isinstance(each, s.Ending))
