"""Mistakes with an L2 that the host saves, takes away and brings back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EBUSY
from typing import Any

from mutant import mutant
from planting import notes_of, unasked, window_filtered

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.filters import NO_FILTER
from vmm.conformance.oracle.levels import LevelRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import Stage, VcpuState, VmState
from vmm.msr import Msr, MsrExitReason

_PASSED = (Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE, Msr.STAR, Msr.LSTAR, Msr.CSTAR)
L2 = s.EnterL2 | None


def _takes(change: Callable[[VmState, VcpuState, L2], L2]) -> Any:
    """Return the rule of a kernel that takes a vCPU to another L2 than it was told."""

    def taken_to(self: LevelRules, vm: VmState, vcpu: VcpuState, l2: L2) -> s.Step:
        return LevelRules.taken_to(self, vm, vcpu, change(vm, vcpu, l2))

    return taken_to


def _as_before(*, opens: bool = False) -> dict[str, Any]:
    """Return the rules of a kernel whose restored L2 has the filter under which its vCPU last ran.

    Until it ends (B36). ``opens`` says that the old filter can also deny what is allowed now.
    """

    def taken_to(vm: VmState, vcpu: VcpuState, l2: L2) -> L2:
        notes_of(vm)[id(vcpu), "l2"] = l2
        notes_of(vm)[id(vcpu), "old"] = notes_of(vm).get((id(vcpu), "ran"), NO_FILTER)
        return l2

    def step(self: Model, vm: VmState, action: s.Action) -> s.Step:
        if isinstance(action, s.RestoreNested):
            taken_to(vm, vm.vcpu(action.vcpu), vm.saved[action.vcpu])
        return Model.step(self, vm, action)

    def reason(
        self: AccessRules, model: Model, vm: VmState, vcpu: VcpuState, access: s.Access
    ) -> Any:
        said, notes = AccessRules.reason(self, model, vm, vcpu, access), notes_of(vm)
        notes[id(vcpu), "ran"] = vm.filter
        if vcpu.l2 is None or vcpu.l2 is not notes.get((id(vcpu), "l2")):
            return said
        denied_now = said == MsrExitReason.FILTER
        if access.index not in _PASSED or denied_now == opens:
            return said
        now, vm.filter = vm.filter, notes[id(vcpu), "old"]
        said = AccessRules.reason(self, model, vm, vcpu, access)
        vm.filter = now
        return said

    return {"step": step, "reason": reason}


def _with_what_was_saved(what: str) -> dict[str, Any]:
    """Return the rule of a kernel that takes ``what`` of a VM for a part of nested state."""

    def step(self: Model, vm: VmState, action: s.Action) -> s.Step:
        if isinstance(action, s.SaveNested):
            notes_of(vm)[what] = getattr(vm, what)
        if isinstance(action, s.RestoreNested):
            setattr(vm, what, notes_of(vm).get(what, getattr(vm, what)))
        return Model.step(self, vm, action)

    return {"step": step}


def _loses(kind: type, what: str, value: Any) -> dict[str, Any]:
    """Return the rule of a kernel in which a word takes a part of the VM back to its start."""

    def step(self: Model, vm: VmState, action: s.Action) -> s.Step:
        left = Model.step(self, vm, action)
        if isinstance(action, kind):
            setattr(vm, what, value)
        return left

    return {"step": step}


def _fresh_with(*names: str) -> Any:
    """Return the rule of a kernel whose new VM has something of the one before."""

    def fresh_vm(self: Model, vm: VmState) -> s.Step:
        kept = {name: getattr(vm, name) for name in names}
        left = Model.fresh_vm(self, vm)
        for name, value in kept.items():
            setattr(vm, name, value)
        return left

    return fresh_vm


def _fresh_without_saved(self: Model, vm: VmState) -> s.Step:
    left = Model.fresh_vm(self, vm)
    vm.saved = dict.fromkeys(vm.saved)
    return left


def _saves(change: Callable[[VmState, VcpuState], object], value: int | None = None) -> Any:
    """Return the rule of a kernel in which a save changes what is saved, or says ``value``."""

    def by_host(self: LevelRules, vm: VmState, vcpu: VcpuState, action: Any) -> s.Step:
        left = LevelRules.by_host(self, vm, vcpu, action)
        if not isinstance(action, s.SaveNested):
            return left
        change(vm, vcpu)
        return left if value is None else (s.got(value),)

    return by_host


def _set(name: str, value: Any) -> Callable[[VmState, VcpuState], None]:
    def change(vm: VmState, vcpu: VcpuState) -> None:
        setattr(vcpu, name, value)

    return change


def _the_last_entrys(self: Model, vm: VmState, action: s.Action) -> s.Step:
    if isinstance(action, s.EnterL2):
        notes_of(vm)[action.vcpu] = action
    if isinstance(action, s.RestoreNested) and vm.saved[action.vcpu]:
        vm.saved[action.vcpu] = notes_of(vm).get(action.vcpu, vm.saved[action.vcpu])
    return Model.step(self, vm, action)


def _after(change: Callable[[VcpuState], object]) -> Any:
    """Return the rule of a kernel in which a vCPU that is taken somewhere is changed besides."""

    def taken_to(self: LevelRules, vm: VmState, vcpu: VcpuState, l2: L2) -> s.Step:
        left = LevelRules.taken_to(self, vm, vcpu, l2)
        change(vcpu)
        return left

    return taken_to


def _zeroes(vcpu: VcpuState) -> None:
    vcpu.msrs = dict.fromkeys(vcpu.msrs, 0)


def _faults(vcpu: VcpuState) -> None:
    vcpu.outcome = s.gp


def _tells_l1(self: LevelRules, vm: VmState, vcpu: VcpuState, l2: L2) -> s.Step:
    was, left = vcpu.l2, LevelRules.taken_to(self, vm, vcpu, l2)
    return (s.L1Exit("other"),) if was and not l2 else left


def _busy(self: LevelRules, vm: VmState, vcpu: VcpuState, l2: L2) -> s.Step:
    if vcpu.l2 and l2:
        return (s.rejected(EBUSY),)
    return LevelRules.taken_to(self, vm, vcpu, l2)


def _is_restored(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
    return vcpu.l2 is not None and access.vcpu in vm.saved


RESTORED = (
    mutant(Model, "restored_as_before", "A restored L2 escapes a filter (B36).", **_as_before()),
    mutant(
        *(Model, "restored_stays_closed", "A restored L2 is denied what no filter denies."),
        **_as_before(opens=True),
    ),
    mutant(
        Model, "restored_unfiltered", "No filter stops a restored L2.", reason=unasked(_is_restored)
    ),
    mutant(
        Model,
        "restored_window",
        "A restored L2's x2APIC is filtered.",
        reason=window_filtered(_is_restored),
    ),
    mutant(
        Model, "filter_is_saved", "A restore brings a filter.", **_with_what_was_saved("filter")
    ),
    mutant(Model, "mask_is_saved", "A restore brings a mask.", **_with_what_was_saved("mask")),
    mutant(
        *(Model, "out_loses_filter", "Taking L2 away takes the filter."),
        **_loses(s.LeaveNested, "filter", NO_FILTER),
    ),
    mutant(
        *(Model, "back_loses_filter", "A restore takes the filter."),
        **_loses(s.RestoreNested, "filter", NO_FILTER),
    ),
    mutant(
        Model,
        "out_loses_mask",
        "Taking L2 away clears the mask.",
        **_loses(s.LeaveNested, "mask", 0),
    ),
    mutant(
        Model, "back_loses_mask", "A restore clears the mask.", **_loses(s.RestoreNested, "mask", 0)
    ),
    mutant(
        Model,
        "save_loses_filter",
        "A save takes the filter.",
        **_loses(s.SaveNested, "filter", NO_FILTER),
    ),
    mutant(Model, "fresh_filter", "A new VM has a filter.", fresh_vm=_fresh_with("filter")),
    mutant(Model, "fresh_mask", "A new VM has a mask.", fresh_vm=_fresh_with("mask")),
    mutant(Model, "fresh_vcpus", "A new VM has vCPUs.", fresh_vm=_fresh_with("vcpus")),
    mutant(Model, "fresh_level", "In a new VM L2 is L1.", fresh_vm=_fresh_without_saved),
    mutant(Model, "the_last_entrys", "L1 passes what it last did.", step=_the_last_entrys),
    mutant(LevelRules, "back_to_l1", "A restore leads to L1.", taken_to=_takes(lambda *_: None)),
    mutant(
        *(LevelRules, "stays_in_l2", "What is in L2 stays there."),
        taken_to=_takes(lambda _, vcpu, l2: l2 or vcpu.l2),
    ),
    mutant(
        *(LevelRules, "back_passes_all", "L1 passes everything to what is restored."),
        taken_to=_takes(lambda _, vcpu, l2: l2 and replace(l2, passes="all", bitmap=True)),
    ),
    mutant(
        *(LevelRules, "back_passes_none", "L1 passes nothing to what is restored."),
        taken_to=_takes(lambda _, vcpu, l2: l2 and replace(l2, passes="none")),
    ),
    mutant(
        *(LevelRules, "back_has_a_bitmap", "L1 has a bitmap for what is restored."),
        taken_to=_takes(lambda _, vcpu, l2: l2 and replace(l2, bitmap=True)),
    ),
    mutant(LevelRules, "out_tells_l1", "Taking L2 away is an exit for L1.", taken_to=_tells_l1),
    mutant(LevelRules, "back_is_busy", "An L2 that runs cannot be restored.", taken_to=_busy),
    mutant(LevelRules, "back_zeroes", "A restore clears MSRs.", taken_to=_after(_zeroes)),
    mutant(LevelRules, "back_faults", "A restore turns an end to #GP.", taken_to=_after(_faults)),
    mutant(LevelRules, "save_ends_l2", "A save ends L2.", by_host=_saves(_set("l2", None))),
    mutant(LevelRules, "save_says_l2", "A save says L2.", by_host=_saves(lambda *_: None, 1)),
    mutant(LevelRules, "save_says_l1", "A save says L1.", by_host=_saves(lambda *_: None, 0)),
    mutant(
        *(LevelRules, "save_loses_access", "A save ends an access that waits."),
        by_host=_saves(_set("stage", Stage.IDLE)),
    ),
    mutant(
        *(LevelRules, "save_faults", "A save turns an end to #GP."),
        by_host=_saves(_set("outcome", s.gp)),
    ),
)
