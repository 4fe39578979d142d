"""Mistakes at the end of a stall, where several installs may be in flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EBUSY
from typing import Any

from mutant import mutant
from mutants_stalling import built_so_far
from planting import notes_of, of_the_stale, said_under

from vmm.conformance.language import script as s
from vmm.conformance.oracle.filters import NO_FILTER, Installed
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.races import RaceRules
from vmm.conformance.oracle.state import Stall, VmState
from vmm.filter import MsrFilter, MsrRange, bitmap_size


def _at_resume(rule: Callable[[RaceRules, Model, VmState, Stall], Stall | s.Step | None]) -> Any:
    """Return a resume in which ``rule`` changes what is resumed or answers in its place."""

    def resume(self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall) -> s.Step:
        stall = vm.stalls.get(action.name)
        if stall is None or action.fails or self.errors(model, stall.new.ranges):
            return RaceRules.resume_install(self, model, vm, action)
        said = rule(self, model, vm, stall)
        if isinstance(said, tuple):
            del vm.stalls[action.name]
            return said
        vm.stalls[action.name] = said or stall
        return RaceRules.resume_install(self, model, vm, action)

    return resume


def _at_failure(left: Callable[[Model, VmState, Stall], Installed | None]) -> Any:
    """Return a resume that leaves ``left`` in force when it fails."""

    def resume(self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall) -> s.Step:
        stall = vm.stalls.get(action.name)
        events = RaceRules.resume_install(self, model, vm, action)
        if stall and isinstance(events[0], s.Rejected):
            vm.filter = left(model, vm, stall)
        return events

    return resume


def _note_stall(self: RaceRules, model: Model, vm: VmState, stall: Stall) -> None:
    begun = notes_of(vm, "begun")
    begun[id(stall)] = len(begun), vm.filter, set(vm.vcpus), stall


def _begun(vm: VmState, stall: Stall) -> tuple[int, Installed | None, set[int]]:
    """Return which stall it was, and the filter and the vCPUs of the VM when it began."""
    number, filter_, vcpus, _ = notes_of(vm, "begun")[id(stall)]
    return number, filter_, vcpus


def _of_all_in_flight(self: RaceRules, model: Model, vm: VmState, stall: Stall) -> Stall:
    others = [each.new.ranges for each in vm.stalls.values() if each is not stall]
    return replace(stall, new=_with(stall.new, *sum(others, ())))


def _with(new: MsrFilter, *ranges: MsrRange) -> MsrFilter:
    return replace(new, ranges=(*new.ranges, *ranges)[:16])


def _with_the_overtaker(self: RaceRules, model: Model, vm: VmState, stall: Stall) -> Stall | None:
    if vm.filter is None or vm.filter == _begun(vm, stall)[1]:
        return None
    kept = [MsrRange(h.flags, h.base, h.end - h.base, h.bits) for h in vm.filter.ranges]
    return replace(stall, new=_with(stall.new, *kept))


def _last_started(self: RaceRules, model: Model, vm: VmState, stall: Stall) -> s.Step | None:
    number, newest = _begun(vm, stall)[0], notes_of(vm, "newest")
    if newest.get(0, -1) > number:
        return (s.done,)
    newest[0] = number
    return None


def _if_overtaken(answer: s.Event) -> Any:
    def rule(self: RaceRules, model: Model, vm: VmState, stall: Stall) -> s.Step | None:
        return (answer,) if vm.filter != _begun(vm, stall)[1] else None

    return rule


def _zeroed(range_: MsrRange) -> MsrRange:
    return replace(range_, bitmap=bytes(bitmap_size(range_.nmsrs)))


def _late_bitmap_lost(self: RaceRules, model: Model, vm: VmState, stall: Stall) -> Stall:
    ranges = [
        _zeroed(each) if number == stall.slot else each
        for number, each in enumerate(stall.new.ranges)
    ]
    return replace(stall, new=replace(stall.new, ranges=tuple(ranges)))


def _late_ranges_lost(self: RaceRules, model: Model, vm: VmState, stall: Stall) -> Stall:
    return replace(stall, new=replace(stall.new, ranges=stall.new.ranges[: stall.slot + 1]))


def _late_errors_pass(
    self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall
) -> s.Step:
    stall = vm.stalls.get(action.name)
    if stall and not action.fails and stall.is_sure:
        good = [each for each in stall.new.ranges if not model.filters.range_errors(each)]
        stall.new = replace(stall.new, ranges=tuple(good))
    return RaceRules.resume_install(self, model, vm, action)


def _failed_copy_denies(
    self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall
) -> s.Step:
    stall = vm.stalls.get(action.name)
    if stall and action.fails and stall.is_sure:
        vm.stalls[action.name] = _late_bitmap_lost(self, model, vm, stall)
    return RaceRules.resume_install(self, model, vm, replace(action, fails=False))


def _stale_after_resume(is_stale: Callable[[int], bool]) -> dict[str, Any]:
    """Return the rules under which vCPUs never see a filter that was stalled."""

    def resume(self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall) -> s.Step:
        old = vm.filter
        events = RaceRules.resume_install(self, model, vm, action)
        if events[0] in (s.done, s.blocked):
            notes_of(vm, "stale").update({vcpu: old for vcpu in vm.vcpus if is_stale(vcpu)})
        return events

    return {"resume_install": resume, "allowed": of_the_stale}


def _newborn_early(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
    for stall in vm.stalls.values():
        if access.vcpu not in _begun(vm, stall)[2]:
            return said_under(model, vm, access, model.filters.installed(None, stall.new))
    return RaceRules.allowed(self, model, vm, access)


def _newborn_stale(self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall) -> s.Step:
    stall, old = vm.stalls.get(action.name), vm.filter
    events = RaceRules.resume_install(self, model, vm, action)
    if stall and events[0] in (s.done, s.blocked):
        newborn = set(vm.vcpus) - _begun(vm, stall)[2]
        notes_of(vm, "stale").update(dict.fromkeys(newborn, old))
    return events


RESUMING = (
    mutant(
        RaceRules,
        "resumed_failure_clears",
        "An install that fails after it was stalled leaves no filter.",
        resume_install=_at_failure(lambda model, vm, stall: NO_FILTER),
    ),
    mutant(
        RaceRules,
        "resumed_failure_half_applied",
        "An install that fails after it was stalled leaves its default and its first ranges.",
        resume_install=_at_failure(lambda model, vm, stall: built_so_far(model, stall)),
    ),
    mutant(
        RaceRules,
        "resumed_failure_restores",
        "An install that fails after it was stalled puts back the filter from when it began.",
        stall=_note_stall,
        resume_install=_at_failure(lambda model, vm, stall: _begun(vm, stall)[1]),
    ),
    mutant(
        RaceRules,
        "bitmap_that_never_came_denies",
        "A bitmap that cannot be read after all counts as one of zeroes.",
        resume_install=_failed_copy_denies,
    ),
    mutant(
        RaceRules,
        "late_bitmap_lost",
        "A bitmap that had to be waited for counts as one of zeroes.",
        resume_install=_at_resume(_late_bitmap_lost),
    ),
    mutant(
        RaceRules,
        "late_ranges_lost",
        "The ranges behind one that had to be waited for are not installed.",
        resume_install=_at_resume(_late_ranges_lost),
    ),
    mutant(
        RaceRules,
        "late_ranges_not_judged",
        "Bad ranges behind one that had to be waited for are skipped.",
        resume_install=_late_errors_pass,
    ),
    mutant(
        RaceRules,
        "installs_in_flight_merge",
        "An install takes the ranges of the others in flight along.",
        resume_install=_at_resume(_of_all_in_flight),
    ),
    mutant(
        RaceRules,
        "overtaken_install_merges",
        "An install that was overtaken puts its ranges in front of the overtaker's.",
        stall=_note_stall,
        resume_install=_at_resume(_with_the_overtaker),
    ),
    mutant(
        RaceRules,
        "last_started_wins",
        "Of the installs in flight the one that began last stays, whichever ends last.",
        stall=_note_stall,
        resume_install=_at_resume(_last_started),
    ),
    mutant(
        RaceRules,
        "overtaken_install_is_lost",
        "An install that was overtaken returns 0 and changes nothing.",
        stall=_note_stall,
        resume_install=_at_resume(_if_overtaken(s.done)),
    ),
    mutant(
        RaceRules,
        "overtaken_install_ebusy",
        "An install that was overtaken is EBUSY.",
        stall=_note_stall,
        resume_install=_at_resume(_if_overtaken(s.rejected(EBUSY))),
    ),
    mutant(
        RaceRules,
        "vcpu_0_stale_after_a_stall",
        "vCPU 0 never sees a filter whose install was stalled.",
        **_stale_after_resume(lambda vcpu: vcpu == 0),
    ),
    mutant(
        RaceRules,
        "other_vcpus_stale_after_a_stall",
        "vCPUs other than 0 that there were never see a filter whose install was stalled.",
        **_stale_after_resume(lambda vcpu: vcpu != 0),
    ),
    mutant(
        RaceRules,
        "vcpu_made_in_a_stall_is_early",
        "A vCPU made while an install is stalled has the new filter at once.",
        stall=_note_stall,
        allowed=_newborn_early,
    ),
    mutant(
        RaceRules,
        "vcpu_made_in_a_stall_is_stale",
        "A vCPU made while an install is stalled keeps the filter it was made under (B21).",
        stall=_note_stall,
        resume_install=_newborn_stale,
        allowed=of_the_stale,
    ),
)
