"""Mistakes under ``kvm.ignore_msrs=1`` (R56): too much is ignored, or too little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.model import Model
from vmm.msr import FILTER, INVAL, UNKNOWN

Rule = Callable[..., Any]


def _silent_before(mask_has: Callable[[int], bool]) -> Rule:
    def access(self: AccessRules, model: Model, vm: Any, access: s.Access) -> s.Step:
        if self.is_ignored(model, access.index & 0xFFFF_FFFF) and mask_has(vm.mask):
            return (self.ignored(vm.vcpu(access.vcpu), access),)
        return AccessRules.access(self, model, vm, access)

    return access


def _only(kind: type) -> Rule:
    def ignored(self: AccessRules, vcpu: Any, access: s.Access) -> s.Event:
        return AccessRules.ignored(self, vcpu, access) if isinstance(access, kind) else s.gp

    return ignored


def _silent_failures(reason: int) -> Rule:
    def failing(self: AccessRules, model: Model, vm: Any, access: s.Access, why: Any) -> s.Step:
        if model.ignore_msrs and why & reason:
            return (self.ignored(vm.vcpu(access.vcpu), access),)
        return AccessRules.failing(self, model, vm, access, why)

    return failing


def _stored(self: AccessRules, vcpu: Any, access: s.Access) -> s.Event:
    index = access.index & 0xFFFF_FFFF
    if isinstance(access, s.Wrmsr):
        vcpu.msrs[index] = access.value & 0xFFFF_FFFF_FFFF_FFFF
        return s.wrote
    return s.returned(vcpu.msrs.get(index, 0))


def _registers_kept(self: AccessRules, vcpu: Any, access: s.Access) -> s.Event:
    return s.wrote if isinstance(access, s.Wrmsr) else s.returned(access.before)


IGNORING = (
    mutant(
        Model,
        "ignored_before_the_filter",
        "With ignore_msrs an unknown MSR is ignored even where the filter denies it.",
        access=_silent_before(lambda _: True),
    ),
    mutant(
        Model,
        "ignored_before_the_filter_if_untold",
        "With ignore_msrs a denied access that nobody is told of is ignored, not #GP.",
        access=_silent_before(lambda mask: not mask & FILTER),
    ),
    mutant(
        Model,
        "unknown_exits_in_spite",
        "UNKNOWN exits happen in spite of ignore_msrs.",
        is_ignored=lambda self, model, index: False,
    ),
    mutant(
        Model,
        "ignored_only_if_untold",
        "ignore_msrs only replaces the #GP: where UNKNOWN is told, the access still exits.",
        failure=lambda self, model, vcpu, access: (
            UNKNOWN
            if self.is_ignored(model, access.index)
            else AccessRules.failure(self, model, vcpu, access)
        ),
        failing=lambda self, model, vm, access, why: (
            (s.wrote if isinstance(access, s.Wrmsr) else s.returned(0),)
            if model.ignore_msrs and why == UNKNOWN and not vm.mask & UNKNOWN
            else AccessRules.failing(self, model, vm, access, why)
        ),
    ),
    mutant(
        Model,
        "invalid_ignored",
        "ignore_msrs silences INVAL as well.",
        failing=_silent_failures(INVAL),
    ),
    mutant(
        Model,
        "denial_ignored",
        "ignore_msrs silences denials as well, of MSRs that KVM knows too.",
        failing=_silent_failures(FILTER),
    ),
    mutant(Model, "only_reads_ignored", "An unknown write is #GP.", ignored=_only(s.Rdmsr)),
    mutant(Model, "only_writes_ignored", "An unknown read is #GP.", ignored=_only(s.Wrmsr)),
    mutant(Model, "ignored_write_stored", "An ignored write can be read back.", ignored=_stored),
    mutant(
        Model,
        "ignored_read_keeps_registers",
        "An ignored read leaves the registers as they were.",
        ignored=_registers_kept,
    ),
)
