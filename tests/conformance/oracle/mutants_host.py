"""Mistakes in the host's own accesses: KVM_GET_MSRS, KVM_SET_MSRS."""

from __future__ import annotations

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.host import HostRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VmState
from vmm.filter import READ, WRITE


def _is_denied(model: Model, vm: VmState, index: int, kind: int) -> bool:
    return model.filters.allows(vm.filter, index, kind) is False


def _get_filtered(self: HostRules, model: Model, vm: VmState, action: s.GetMsr) -> s.Step:
    if _is_denied(model, vm, action.index, READ):
        return (s.refused,)
    return HostRules.get_msr(self, model, vm, action)


def _get_zeroes(self: HostRules, model: Model, vm: VmState, action: s.GetMsr) -> s.Step:
    if _is_denied(model, vm, action.index, READ):
        return (s.got(0),)
    return HostRules.get_msr(self, model, vm, action)


def _set_filtered(self: HostRules, model: Model, vm: VmState, action: s.SetMsr) -> s.Step:
    if _is_denied(model, vm, action.index, WRITE):
        return (s.refused,)
    return HostRules.set_msr(self, model, vm, action)


def _set_dropped(self: HostRules, model: Model, vm: VmState, action: s.SetMsr) -> s.Step:
    if _is_denied(model, vm, action.index, WRITE):
        return (s.done,)
    return HostRules.set_msr(self, model, vm, action)


HOST = (
    mutant(
        Model,
        "host_read_filtered",
        "KVM_GET_MSRS refuses a denied MSR.",
        get_msr=_get_filtered,
    ),
    mutant(
        Model,
        "host_read_of_denied_is_zero",
        "KVM_GET_MSRS returns 0 for a denied MSR.",
        get_msr=_get_zeroes,
    ),
    mutant(
        Model,
        "host_write_filtered",
        "KVM_SET_MSRS refuses a denied MSR.",
        set_msr=_set_filtered,
    ),
    mutant(
        Model,
        "host_write_of_denied_dropped",
        "KVM_SET_MSRS returns 1 for a denied MSR and leaves it.",
        set_msr=_set_dropped,
    ),
)
