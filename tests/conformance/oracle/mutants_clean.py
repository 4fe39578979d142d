"""Mistakes with an L1 that calls its bitmap clean: what KVM had merged before is kept too long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mutant import mutant
from planting import notes_of, unasked

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.filters import NO_FILTER
from vmm.conformance.oracle.levels import LevelRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VcpuState, VmState
from vmm.msr import Msr, MsrExitReason

_PASSED = (Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE, Msr.STAR, Msr.LSTAR, Msr.CSTAR)
Change = Callable[[VmState, s.EnterL2], s.EnterL2]


def _kept(
    forgotten: Callable[[VmState, s.Action], bool],
    *,
    opens: bool = False,
    kinds: tuple[type, ...] = (s.Rdmsr, s.Wrmsr),
) -> dict[str, Any]:
    """Return the rules of a kernel that does not merge anew at a clean entry after some installs.

    ``forgotten`` says which: at the others the vCPU is told to merge. ``opens`` says that it is the
    old filter's no that is kept.
    """

    def step(self: Model, vm: VmState, action: s.Action) -> s.Step:
        notes = notes_of(vm)
        if isinstance(action, s.Install) and not forgotten(vm, action):
            notes["merge"] = {*vm.vcpus}
        if isinstance(action, s.EnterL2) and vm.vcpu(action.vcpu).l2 is None:
            number = action.vcpu
            if not action.clean or number in notes.get("merge", ()) or number not in notes:
                notes[number] = vm.filter
            notes.setdefault("merge", set()).discard(number)
        return Model.step(self, vm, action)

    def reason(
        self: AccessRules, model: Any, vm: VmState, vcpu: VcpuState, access: s.Access
    ) -> Any:
        said = AccessRules.reason(self, model, vm, vcpu, access)
        is_kept = vcpu.l2 is not None and vcpu.l2.clean and isinstance(access, kinds)
        if not is_kept or access.index not in _PASSED:
            return said
        if (said == MsrExitReason.FILTER) == opens:
            return said
        now, vm.filter = vm.filter, notes_of(vm).get(access.vcpu, NO_FILTER)
        said = AccessRules.reason(self, model, vm, vcpu, access)
        vm.filter = now
        return said

    return {"step": step, "reason": reason}


def _in_l2(vm: VmState, _: s.Action) -> bool:
    return any(vcpu.l2 for vcpu in vm.vcpus.values())


def _in_l1(vm: VmState, action: s.Action) -> bool:
    return not _in_l2(vm, action)


def _by_default(_: VmState, action: s.Action) -> bool:
    return isinstance(action, s.Install) and bool(action.filter.flags)


def _by_range(vm: VmState, action: s.Action) -> bool:
    return not _by_default(vm, action)


def _enters(change: Change) -> dict[str, Any]:
    """Return the rule of a kernel that takes a clean entry for another one."""

    def enter(self: LevelRules, model: Any, vm: VmState, action: s.EnterL2) -> s.Step:
        left = LevelRules.enter(self, model, vm, action)
        vcpu = vm.vcpu(action.vcpu)
        if action.clean and vcpu.l2 is action:
            vcpu.l2 = change(vm, action)
        return left

    return {"enter": enter}


def _the_other_vcpus(vm: VmState, action: s.EnterL2) -> s.EnterL2:
    others = [v.entered for n, v in vm.vcpus.items() if n != action.vcpu and v.entered]
    return replace(action, passes=others[0].passes) if others else action


def _fails(self: LevelRules, model: Any, vm: VmState, action: s.EnterL2) -> s.Step:
    left = LevelRules.enter(self, model, vm, action)
    if not action.clean or left != (s.entered,):
        return left
    vm.vcpu(action.vcpu).l2 = None
    return (s.entry_failed("state"),)


def _is_clean(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
    return vcpu.l2 is not None and vcpu.l2.clean


CLEAN = (
    mutant(
        Model, "clean_as_before", "No install counts for a clean entry.", **_kept(lambda *_: True)
    ),
    mutant(
        *(Model, "clean_stays_closed", "A clean L2 is denied what no filter denies any more."),
        **_kept(lambda *_: True, opens=True),
    ),
    mutant(
        *(Model, "clean_after_l2", "What is installed in L2 does not count for a clean entry."),
        **_kept(_in_l2),
    ),
    mutant(
        *(Model, "clean_after_l1", "What is installed in L1 does not count for a clean entry."),
        **_kept(_in_l1),
    ),
    mutant(
        *(Model, "clean_by_default", "A default does not count for a clean entry."),
        **_kept(_by_default),
    ),
    mutant(
        *(Model, "clean_by_range", "Ranges do not count for a clean entry."), **_kept(_by_range)
    ),
    mutant(
        *(Model, "clean_reads", "Reads of a clean L2 are as before."),
        **_kept(lambda *_: True, kinds=(s.Rdmsr,)),
    ),
    mutant(
        *(Model, "clean_writes", "Writes of a clean L2 are as before."),
        **_kept(lambda *_: True, kinds=(s.Wrmsr,)),
    ),
    mutant(Model, "clean_unfiltered", "No filter stops a clean L2.", reason=unasked(_is_clean)),
    mutant(
        *(LevelRules, "clean_passes_all", "L1 that calls its bitmap clean passes everything."),
        **_enters(lambda _, action: replace(action, passes="all")),
    ),
    mutant(
        *(LevelRules, "clean_passes_none", "L1 that calls its bitmap clean passes nothing."),
        **_enters(lambda _, action: replace(action, passes="none")),
    ),
    mutant(
        *(LevelRules, "clean_without_bitmap", "L1 that calls its bitmap clean has none."),
        **_enters(lambda _, action: replace(action, passes="all", bitmap=False)),
    ),
    mutant(
        *(LevelRules, "clean_of_another", "A clean bitmap is the other vCPU's."),
        **_enters(_the_other_vcpus),
    ),
    mutant(LevelRules, "clean_fails", "An entry that says clean fails.", enter=_fails),
)
