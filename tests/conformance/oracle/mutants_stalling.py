"""Mistakes in an install that stalls: what it shows, and what waits for it (b318e8decf6b)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mutant import mutant
from planting import said_under

from vmm.conformance.language import script as s
from vmm.conformance.oracle.filters import NO_FILTER, Installed
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.races import RaceRules
from vmm.conformance.oracle.state import Stall, VmState
from vmm.filter import MsrFilter


def built_so_far(model: Model, stall: Stall) -> Installed:
    """Return the new filter as far as it is there: its default and the ranges before the stall."""
    new = MsrFilter(stall.new.flags, stall.new.ranges[: stall.slot])
    return model.filters.installed(None, new)


def _shows(
    early: Callable[[Installed, Installed], Installed],
    when: Callable[[Stall], bool] = lambda stall: True,
) -> Any:
    """Return the rule by which a stall leaves ``early(old, built)`` in force."""

    def stall_rule(self: RaceRules, model: Model, vm: VmState, stall: Stall) -> None:
        if vm.filter and when(stall):
            vm.filter = early(vm.filter, built_so_far(model, stall))

    return stall_rule


def _is_first(stall: Stall) -> bool:
    return all(each.nmsrs == 0 for each in stall.new.ranges[: stall.slot])


def _writes_early(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
    if isinstance(access, s.Wrmsr):
        for stall in vm.stalls.values():
            return said_under(model, vm, access, model.filters.installed(None, stall.new))
    return RaceRules.allowed(self, model, vm, access)


def _one_vcpu_early(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
    if access.vcpu:
        for stall in vm.stalls.values():
            return said_under(model, vm, access, built_so_far(model, stall))
    return RaceRules.allowed(self, model, vm, access)


def _holds_lock(*words: type) -> Any:
    def may_wait(self: RaceRules, vm: VmState, action: s.Action, events: s.Step) -> s.Step:
        if vm.stalls and isinstance(action, words):
            return (s.blocked,)
        return RaceRules.may_wait(self, vm, action, events)

    return may_wait


def _judges_late(self: RaceRules, model: Model, vm: VmState, action: s.BeginInstall) -> s.Step:
    events = RaceRules.begin_install(self, model, vm, action)
    was_early = isinstance(events[0], s.Rejected) and action.caller != "child"
    if action.stall_at is None or not was_early:
        return events
    if not self.stalls(model, action.filter, action.stall_at):
        return events
    vm.stalls[action.name] = Stall(action.filter, -1, True)
    return (s.stalled,)


STALLING = (
    mutant(
        RaceRules,
        "stall_in_the_first_range_allows_all",
        "While the first bitmap is copied, no filter is in force (B03 a).",
        stall=_shows(lambda old, built: NO_FILTER, _is_first),
    ),
    mutant(
        RaceRules,
        "stall_shows_what_is_built",
        "While a bitmap is copied, the new default and the ranges before are in force (B03 b).",
        stall=_shows(lambda old, built: built, lambda stall: not _is_first(stall)),
    ),
    mutant(
        RaceRules,
        "stall_shows_the_new_default",
        "While a bitmap is copied, the old ranges have the new default action.",
        stall=_shows(lambda old, built: old._replace(default_allows=built.default_allows)),
    ),
    mutant(
        RaceRules,
        "stall_shows_new_ranges_only",
        "While a bitmap is copied, the ranges before it have the old default action.",
        stall=_shows(lambda old, built: old._replace(ranges=built.ranges)),
    ),
    mutant(
        RaceRules,
        "stall_shows_new_ranges_first",
        "While a bitmap is copied, the ranges before it are in front of the old ones.",
        stall=_shows(lambda old, built: old._replace(ranges=built.ranges + old.ranges)),
    ),
    mutant(
        RaceRules,
        "stall_shows_new_ranges_last",
        "While a bitmap is copied, the ranges before it are behind the old ones.",
        stall=_shows(lambda old, built: old._replace(ranges=old.ranges + built.ranges)),
    ),
    mutant(
        RaceRules,
        "stall_in_the_last_slot_shows_what_is_built",
        "While the bitmap of slot 15 is copied, the first 15 ranges are in force.",
        stall=_shows(lambda old, built: built, lambda stall: stall.slot == 15),
    ),
    mutant(
        RaceRules,
        "stall_denies_all",
        "While a bitmap is copied, every access is denied.",
        stall=_shows(lambda old, built: Installed(False, ())),
    ),
    mutant(
        RaceRules,
        "writes_obey_a_stalled_filter",
        "While an install is stalled, writes obey the new filter already.",
        allowed=_writes_early,
    ),
    mutant(
        RaceRules,
        "other_vcpus_obey_a_stalled_filter",
        "While an install is stalled, vCPUs other than 0 obey what is built of it.",
        allowed=_one_vcpu_early,
    ),
    mutant(
        RaceRules,
        "create_vcpu_waits_for_a_stall",
        "KVM_CREATE_VCPU waits for an install that is stalled (B03 f).",
        may_wait=_holds_lock(s.CreateVcpu),
    ),
    mutant(
        RaceRules,
        "create_irqchip_waits_for_a_stall",
        "KVM_CREATE_IRQCHIP waits for an install that is stalled.",
        may_wait=_holds_lock(s.CreateIrqchip),
    ),
    mutant(
        RaceRules,
        "enable_cap_waits_for_a_stall",
        "KVM_ENABLE_CAP waits for an install that is stalled.",
        may_wait=_holds_lock(s.EnableCap),
    ),
    mutant(
        RaceRules,
        "installs_wait_for_a_stall",
        "An install waits for another one that is stalled.",
        may_wait=_holds_lock(s.Install),
    ),
    mutant(
        RaceRules,
        "bad_ranges_judged_late",
        "A bad range before the stalled one is reported only after all bitmaps are there.",
        begin_install=_judges_late,
    ),
)
