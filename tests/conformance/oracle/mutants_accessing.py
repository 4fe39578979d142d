"""Mistakes in what becomes of an access: kvm_emulate_rdmsr(), kvm_emulate_wrmsr()."""

from __future__ import annotations

from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import is_unknown_to_kvm
from vmm.conformance.oracle.state import Reason, VcpuState, VmState
from vmm.msr import (
    FILTER,
    INVAL,
    UNKNOWN,
    MsrExitReason,
)


def _only_exits(kind: type, vcpu: int | None = None) -> Any:
    def failing(
        self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
    ) -> s.Step:
        if isinstance(access, kind) and vcpu in (None, access.vcpu):
            return AccessRules.failing(self, model, vm, access, reason)
        return (s.gp,)

    return failing


def _untold_is_skipped(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any
) -> s.Step:
    if model.masks.is_told(vm.mask, reason):
        return AccessRules.failing(self, model, vm, access, reason)
    return (s.wrote if isinstance(access, s.Wrmsr) else s.returned(0),)


def _untold_is_done(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any
) -> s.Step:
    vcpu = vm.vcpu(access.vcpu)
    if reason != FILTER or model.masks.is_told(vm.mask, reason):
        return AccessRules.failing(self, model, vm, access, reason)
    return (self.perform(model, vcpu, access, self.failure(model, vcpu, access)),)


def _write_happens(told: bool | None) -> Any:
    def failing(
        self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
    ) -> s.Step:
        if told in (None, model.masks.is_told(vm.mask, reason)) and isinstance(access, s.Wrmsr):
            vm.vcpu(access.vcpu).msrs[access.index] = access.value
        return AccessRules.failing(self, model, vm, access, reason)

    return failing


def _reply_is_kept(kind: type) -> Any:
    def failing(
        self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
    ) -> s.Step:
        if model.masks.is_told(vm.mask, reason) and isinstance(access, kind):
            vm.vcpu(access.vcpu).msrs[access.index] = access.reply.value
        return AccessRules.failing(self, model, vm, access, reason)

    return failing


def _read_for_real(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
) -> s.Step:
    events = AccessRules.failing(self, model, vm, access, reason)
    known = vm.vcpu(access.vcpu).msrs
    if isinstance(events[-1], s.Returned) and access.index in known:
        return (*events[:-1], s.returned(known[access.index]))
    return events


def _ignore_unknown(
    self: AccessRules, model: Model, vcpu: VcpuState, access: s.Access, reason: Reason
) -> s.Event:
    if is_unknown_to_kvm(access.index):
        return s.wrote if isinstance(access, s.Wrmsr) else s.returned(0)
    return AccessRules.perform(self, model, vcpu, access, reason)


def _never_unknown(self: AccessRules, model: Model, vcpu: VcpuState, access: s.Access) -> Reason:
    return (
        None if is_unknown_to_kvm(access.index) else AccessRules.failure(self, model, vcpu, access)
    )


def _write_dropped(
    self: AccessRules, model: Model, vcpu: VcpuState, access: s.Access, reason: Reason
) -> s.Event:
    kept = dict(vcpu.msrs)
    event = AccessRules.perform(self, model, vcpu, access, reason)
    vcpu.msrs = kept
    return event


def _unknown_first(self: AccessRules, model: Model, access: s.Access) -> MsrExitReason:
    return UNKNOWN if is_unknown_to_kvm(access.index) else FILTER


def _invalid_first(self: AccessRules, model: Model, access: s.Access) -> MsrExitReason:
    reason = AccessRules.failure(self, model, VcpuState(), access)
    return INVAL if reason == INVAL else FILTER


ACCESSING = (
    mutant(
        Model,
        "denied_is_invalid",
        "A denied access has the reason INVAL.",
        denied=lambda self, model, access: INVAL,
    ),
    mutant(
        Model,
        "denied_is_unknown",
        "A denied access has the reason UNKNOWN.",
        denied=lambda self, model, access: UNKNOWN,
    ),
    mutant(
        Model,
        "unknown_before_filter",
        "A denied access of an MSR that KVM does not know has the reason UNKNOWN.",
        denied=_unknown_first,
    ),
    mutant(
        Model,
        "invalid_before_filter",
        "A denied access that would be invalid has the reason INVAL.",
        denied=_invalid_first,
    ),
    mutant(
        Model,
        "reasons_added",
        "A denied access of an unknown MSR has both reasons.",
        denied=lambda self, model, access: _unknown_first(self, model, access) | FILTER,
    ),
    mutant(
        Model,
        "unknown_is_invalid",
        "An unknown MSR has the reason INVAL (before the first release).",
        unknown=lambda self: INVAL,
    ),
    mutant(
        Model,
        "unknown_is_filter",
        "An unknown MSR has the reason FILTER.",
        unknown=lambda self: FILTER,
    ),
    mutant(
        Model,
        "invalid_is_unknown",
        "An invalid access has the reason UNKNOWN.",
        invalid=lambda self: UNKNOWN,
    ),
    mutant(
        Model,
        "invalid_is_filter",
        "An invalid access has the reason FILTER.",
        invalid=lambda self: FILTER,
    ),
    mutant(
        Model,
        "unknown_ignored",
        "Unknown MSRs read as zero, as with ignore_msrs.",
        failure=_never_unknown,
        perform=_ignore_unknown,
    ),
    mutant(Model, "reads_only_exit", "A WRMSR never exits.", failing=_only_exits(s.Rdmsr)),
    mutant(Model, "writes_only_exit", "A RDMSR never exits.", failing=_only_exits(s.Wrmsr)),
    mutant(
        Model,
        "mask_of_vcpu_0",
        "The mask holds for vCPU 0 alone.",
        failing=_only_exits(object, 0),
    ),
    mutant(
        Model,
        "untold_access_skipped",
        "A failing access that does not exit is skipped without #GP.",
        failing=_untold_is_skipped,
    ),
    mutant(
        Model,
        "untold_denial_ignored",
        "The filter denies nothing unless FILTER exits are enabled.",
        failing=_untold_is_done,
    ),
    mutant(
        Model,
        "denied_write_happens",
        "A denied WRMSR reaches the MSR.",
        failing=_write_happens(None),
    ),
    mutant(
        Model,
        "denied_write_happens_untold",
        "A denied WRMSR that does not exit is #GP and reaches the MSR.",
        failing=_write_happens(False),
    ),
    mutant(
        Model,
        "denied_write_happens_at_completion",
        "A denied WRMSR reaches the MSR when userspace has answered.",
        failing=_write_happens(True),
    ),
    mutant(
        Model,
        "read_reply_stored",
        "What userspace answers a denied RDMSR is stored in the MSR.",
        failing=_reply_is_kept(s.Rdmsr),
    ),
    mutant(
        Model,
        "write_reply_stored",
        "What userspace leaves as data of a denied WRMSR is stored in the MSR.",
        failing=_reply_is_kept(s.Wrmsr),
    ),
    mutant(
        Model,
        "denied_read_is_real",
        "A denied RDMSR returns the MSR's own value, whatever userspace answers.",
        failing=_read_for_real,
    ),
    mutant(
        Model,
        "allowed_write_dropped",
        "An allowed WRMSR does not reach the MSR.",
        perform=_write_dropped,
    ),
)
