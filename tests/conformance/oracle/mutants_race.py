"""Mistakes in races: what a kernel shows that swaps in halves, forgets vCPUs or holds its lock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EBUSY, EFAULT
from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.filters import NO_FILTER, Installed
from vmm.conformance.oracle.installs import InstallRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.races import NATIVE, RaceRules
from vmm.conformance.oracle.state import Stall, VmState, Wait
from vmm.filter import MsrFilter, MsrRange, bitmap_size

_begin, _resume = RaceRules.begin_install, RaceRules.resume_install


def _notes(vm: VmState, name: str) -> dict[Any, Any]:
    """Return what a mutant remembers of ``vm`` that a kernel without its mistake has no use for."""
    notes: dict[Any, Any] = vars(vm).setdefault(f"_{name}", {})
    return notes


def _under(model: Model, vm: VmState, access: s.Access, filter_: Installed | None) -> bool | None:
    """Return what ``filter_`` says, were it the VM's."""
    in_force, vm.filter = vm.filter, filter_
    allowed = RaceRules().allowed(model, vm, access)
    vm.filter = in_force
    return allowed


# --- b318e8decf6b: what an install shows while it is stalled --------------------------------------


def _built(model: Model, stall: Stall) -> Installed:
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
            vm.filter = early(vm.filter, _built(model, stall))

    return stall_rule


def _is_first(stall: Stall) -> bool:
    return all(each.nmsrs == 0 for each in stall.new.ranges[: stall.slot])


def _writes_early(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
    if isinstance(access, s.Wrmsr):
        for stall in vm.stalls.values():
            return _under(model, vm, access, model.filters.installed(None, stall.new))
    return RaceRules.allowed(self, model, vm, access)


def _one_vcpu_early(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
    if access.vcpu:
        for stall in vm.stalls.values():
            return _under(model, vm, access, _built(model, stall))
    return RaceRules.allowed(self, model, vm, access)


def _holds_lock(*words: type) -> Any:
    def may_wait(self: RaceRules, vm: VmState, action: s.Action, events: s.Step) -> s.Step:
        if vm.stalls and isinstance(action, words):
            return (s.blocked,)
        return RaceRules.may_wait(self, vm, action, events)

    return may_wait


def _judges_late(self: RaceRules, model: Model, vm: VmState, action: s.BeginInstall) -> s.Step:
    events = _begin(self, model, vm, action)
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

# --- the end of a stall: several installs in flight -----------------------------------------------


def _at_resume(rule: Callable[[RaceRules, Model, VmState, Stall], Stall | s.Step | None]) -> Any:
    """Return a resume in which ``rule`` changes what is resumed or answers in its place."""

    def resume(self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall) -> s.Step:
        stall = vm.stalls.get(action.name)
        if stall is None or action.fails or self.errors(model, stall.new.ranges):
            return _resume(self, model, vm, action)
        said = rule(self, model, vm, stall)
        if isinstance(said, tuple):
            del vm.stalls[action.name]
            return said
        vm.stalls[action.name] = said or stall
        return _resume(self, model, vm, action)

    return resume


def _at_failure(left: Callable[[Model, VmState, Stall], Installed | None]) -> Any:
    """Return a resume that leaves ``left`` in force when it fails."""

    def resume(self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall) -> s.Step:
        stall = vm.stalls.get(action.name)
        events = _resume(self, model, vm, action)
        if stall and isinstance(events[0], s.Rejected):
            vm.filter = left(model, vm, stall)
        return events

    return resume


def _note_stall(self: RaceRules, model: Model, vm: VmState, stall: Stall) -> None:
    begun = _notes(vm, "begun")
    begun[id(stall)] = len(begun), vm.filter, set(vm.vcpus), stall


def _begun(vm: VmState, stall: Stall) -> tuple[int, Installed | None, set[int]]:
    """Return which stall it was, and the filter and the vCPUs of the VM when it began."""
    number, filter_, vcpus, _ = _notes(vm, "begun")[id(stall)]
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
    number, newest = _begun(vm, stall)[0], _notes(vm, "newest")
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
    return _resume(self, model, vm, action)


def _failed_copy_denies(
    self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall
) -> s.Step:
    stall = vm.stalls.get(action.name)
    if stall and action.fails and stall.is_sure:
        vm.stalls[action.name] = _late_bitmap_lost(self, model, vm, stall)
    return _resume(self, model, vm, replace(action, fails=False))


def _stale_after_resume(is_stale: Callable[[int], bool]) -> dict[str, Any]:
    """Return the rules under which vCPUs never see a filter that was stalled."""

    def resume(self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall) -> s.Step:
        old = vm.filter
        events = _resume(self, model, vm, action)
        if events[0] in (s.done, s.blocked):
            _notes(vm, "stale").update({vcpu: old for vcpu in vm.vcpus if is_stale(vcpu)})
        return events

    return {"resume_install": resume, "allowed": _of_the_stale}


def _of_the_stale(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
    stale = _notes(vm, "stale")
    if access.vcpu in stale:
        return _under(model, vm, access, stale[access.vcpu])
    return RaceRules.allowed(self, model, vm, access)


def _newborn_early(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
    for stall in vm.stalls.values():
        if access.vcpu not in _begun(vm, stall)[2]:
            return _under(model, vm, access, model.filters.installed(None, stall.new))
    return RaceRules.allowed(self, model, vm, access)


def _newborn_stale(self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall) -> s.Step:
    stall, old = vm.stalls.get(action.name), vm.filter
    events = _resume(self, model, vm, action)
    if stall and events[0] in (s.done, s.blocked):
        newborn = set(vm.vcpus) - _begun(vm, stall)[2]
        _notes(vm, "stale").update(dict.fromkeys(newborn, old))
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
        resume_install=_at_failure(lambda model, vm, stall: _built(model, stall)),
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
        allowed=_of_the_stale,
    ),
)

# --- readers of the old filter --------------------------------------------------------------------


def _in_force_when_done(
    self: RaceRules, vm: VmState, name: str, old: Installed | None, events: s.Step
) -> s.Step:
    events = RaceRules.land(self, vm, name, old, events)
    if events == (s.blocked,):
        _notes(vm, "late")[name] = vm.filter
        vm.filter = old
    return events


def _publish_when_done(self: RaceRules, model: Model, vm: VmState, name: str) -> s.Step:
    events = RaceRules.returns(self, model, vm, name)
    if events == (s.done,):
        vm.filter = _notes(vm, "late").pop(name, vm.filter)
    return events


def _failing_waits(
    self: RaceRules, vm: VmState, name: str, old: Installed | None, events: s.Step
) -> s.Step:
    if vm.parked and isinstance(events[0], s.Rejected):
        events = (s.blocked,)
    return RaceRules.land(self, vm, name, old, events)


def _never_returns(self: RaceRules, model: Model, vm: VmState, name: str) -> s.Step:
    return (s.blocked,) if name in vm.waits else RaceRules.returns(self, model, vm, name)


def _returns_anyway(self: RaceRules, model: Model, vm: VmState, name: str) -> s.Step:
    events = RaceRules.returns(self, model, vm, name)
    return (s.done,) if events == (s.blocked,) else events


def _first_free(self: InstallRules, vm: VmState, wait: Wait) -> bool:
    return bool(wait.readers) and wait.readers <= set(vm.parked.values())


def _park_noting(self: RaceRules, model: Model, vm: VmState, action: s.Park) -> s.Step:
    _notes(vm, "stale").pop(action.vcpu, None)
    _notes(vm, "at_park")[action.vcpu] = vm.filter
    return RaceRules.park(self, model, vm, action)


def _release_stale(self: RaceRules, model: Model, vm: VmState, action: s.Release) -> s.Step:
    _notes(vm, "stale")[action.vcpu] = _notes(vm, "at_park").get(action.vcpu, vm.filter)
    return RaceRules.release(self, model, vm, action)


def _mask_waits(self: RaceRules, vm: VmState, action: s.Action, events: s.Step) -> s.Step:
    if vm.waits and isinstance(action, s.EnableCap):
        return (s.blocked,)
    return RaceRules.may_wait(self, vm, action, events)


WAITING = (
    mutant(
        InstallRules,
        "install_waits_for_nobody",
        "An install returns, and frees the old filter, while a vCPU may be using it.",
        has_readers=lambda self, vm: False,
    ),
    mutant(
        InstallRules,
        "install_waits_for_the_gone",
        "An install waits for a vCPU that was inside the kernel some time before.",
        has_readers=lambda self, vm: vm.parks > 0,
    ),
    mutant(
        RaceRules,
        "blocked_install_not_in_force",
        "A filter is in force only when its install has returned.",
        land=_in_force_when_done,
        returns=_publish_when_done,
    ),
    mutant(
        RaceRules,
        "failing_install_waits",
        "An install that fails waits for readers all the same.",
        land=_failing_waits,
    ),
    mutant(
        RaceRules,
        "blocked_install_never_returns",
        "An install that waits for a reader never returns.",
        returns=_never_returns,
    ),
    mutant(
        RaceRules,
        "blocked_install_gives_up_waiting",
        "An install waits for a reader for some time only.",
        returns=_returns_anyway,
    ),
    mutant(
        InstallRules,
        "first_reader_frees",
        "An install returns when the first of several readers is gone.",
        is_held=_first_free,
    ),
    mutant(
        RaceRules,
        "reader_stays_stale",
        "A vCPU that was inside the kernel during an install keeps the old filter.",
        park=_park_noting,
        release=_release_stale,
        allowed=_of_the_stale,
    ),
    mutant(
        RaceRules,
        "enable_cap_waits_for_readers",
        "KVM_ENABLE_CAP waits for an install that waits for a reader.",
        may_wait=_mask_waits,
    ),
)

# --- who installs ---------------------------------------------------------------------------------


def _refused_but_clears(self: InstallRules, model: Model, vm: VmState, action: s.Install) -> s.Step:
    if self.is_foreign(action):
        vm.filter = NO_FILTER
    return InstallRules.install(self, model, vm, action)


def _compat(change: Callable[[MsrFilter], MsrFilter]) -> Any:
    """Return the rule by which a 32-bit caller's filter arrives changed."""
    return lambda self, action: change(action.filter) if action.number != NATIVE else action.filter


def _each_range(change: Callable[[MsrRange], MsrRange]) -> Any:
    return _compat(lambda new: replace(new, ranges=tuple(map(change, new.ranges))))


def _half(range_: MsrRange) -> MsrRange:
    if not isinstance(range_.bitmap, bytes):
        return range_
    return replace(range_, bitmap=range_.bitmap[: bitmap_size(range_.nmsrs) // 2])


def _read_anyway(range_: MsrRange) -> MsrRange:
    return replace(range_, bitmap=range_.bitmap if isinstance(range_.bitmap, bytes) else b"")


def _shifted(new: MsrFilter) -> MsrFilter:
    # 16-byte ranges read in steps of 24: every third one is met, and the rest is noise.
    return replace(new, ranges=new.ranges[:1] + new.ranges[3::3])


CALLING = (
    mutant(
        InstallRules,
        "child_installs",
        "A forked child may install.",
        is_foreign=lambda self, action: False,
    ),
    mutant(
        Model,
        "child_clears",
        "The EIO of a forked child ends all filtering.",
        install=_refused_but_clears,
    ),
    mutant(
        InstallRules,
        "compat_enotty",
        "The compat number is ENOTTY for a 32-bit caller.",
        numbers=lambda self, caller: (NATIVE,),
    ),
    mutant(
        InstallRules,
        "compat_number_for_all",
        "The compat number installs for a 64-bit caller.",
        numbers=lambda self, caller: InstallRules.numbers(self, "compat"),
    ),
    mutant(
        InstallRules,
        "compat_native_enotty",
        "The native number is ENOTTY for a 32-bit caller.",
        numbers=lambda self, caller: tuple(
            each
            for each in InstallRules.numbers(self, caller)
            if (each == NATIVE) != (caller == "compat")
        ),
    ),
    mutant(
        InstallRules,
        "compat_range_flags_not_judged",
        "A 32-bit caller's range flags are cut to the two that exist.",
        argument=_each_range(lambda each: replace(each, flags=each.flags & 3 or 3)),
    ),
    mutant(
        InstallRules,
        "compat_filter_flags_not_judged",
        "A 32-bit caller's filter flags are cut to the one that exists.",
        argument=_compat(lambda new: replace(new, flags=new.flags & 1)),
    ),
    mutant(
        InstallRules,
        "compat_size_not_judged",
        "A 32-bit caller's range that is too large is cut to the limit.",
        argument=_each_range(lambda each: replace(each, nmsrs=min(each.nmsrs, 0x3000))),
    ),
    mutant(
        InstallRules,
        "compat_bad_bitmap_denies",
        "A 32-bit caller's bitmap that cannot be read counts as one of zeroes.",
        argument=_each_range(_read_anyway),
    ),
    mutant(
        InstallRules,
        "compat_half_the_bitmap",
        "Of a 32-bit caller's bitmap the first half is copied.",
        argument=_each_range(_half),
    ),
    mutant(
        InstallRules,
        "compat_wrong_layout",
        "A 32-bit caller's ranges are read in steps of 24 bytes instead of 16.",
        argument=_compat(_shifted),
    ),
    mutant(
        InstallRules,
        "compat_first_range_only",
        "Of a 32-bit caller's ranges only the first one counts.",
        argument=_compat(lambda new: replace(new, ranges=new.ranges[:1])),
    ),
    mutant(
        InstallRules,
        "compat_last_slot_lost",
        "A 32-bit caller's slot 15 is left out.",
        argument=_compat(lambda new: replace(new, ranges=new.ranges[:15])),
    ),
    mutant(
        InstallRules,
        "compat_default_lost",
        "A 32-bit caller's filter always allows by default.",
        argument=_compat(lambda new: replace(new, flags=new.flags & ~1)),
    ),
    mutant(
        InstallRules,
        "compat_base_is_signed",
        "A 32-bit caller's base loses its highest bit.",
        argument=_each_range(lambda each: replace(each, base=each.base & 0x7FFF_FFFF)),
    ),
)

# --- spinning vCPUs -------------------------------------------------------------------------------


def _spin_noting(self: RaceRules, model: Model, vm: VmState, action: s.Spin) -> s.Step:
    vcpu = action.access.vcpu
    _notes(vm, "at_spin")[vcpu] = self.allowed(model, vm, action.access), vm.mask
    return RaceRules.spin(self, model, vm, action)


def _stuck(allowed: bool, of: Callable[[s.Access], bool] = lambda access: True) -> dict[str, Any]:
    """Return the rules under which a spinning vCPU that was once ``allowed`` (or not) stays so."""

    def rule(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
        now = RaceRules.allowed(self, model, vm, access)
        if access.vcpu not in vm.spins or not of(access):
            return now
        seen = _notes(vm, "seen").setdefault(access.vcpu, {_notes(vm, "at_spin")[access.vcpu][0]})
        seen.add(now)
        return allowed if allowed in seen else now

    return {"spin": _spin_noting, "allowed": rule}


def _old_mask(self: RaceRules, model: Model, vm: VmState, number: int) -> s.Event | None:
    mask = vm.mask
    vm.mask = _notes(vm, "at_spin").get(number, (None, mask))[1]
    exit_ = RaceRules.exit_of(self, model, vm, number)
    vm.mask = mask
    return exit_


def _spinners_early(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
    for stall in vm.stalls.values():
        if access.vcpu in vm.spins:
            return _under(model, vm, access, model.filters.installed(None, stall.new))
    return RaceRules.allowed(self, model, vm, access)


SPINNING = (
    mutant(
        RaceRules,
        "spinning_vcpu_never_denied",
        "A vCPU whose access was once allowed keeps running while it stays in the guest.",
        **_stuck(allowed=True),
    ),
    mutant(
        RaceRules,
        "spinning_vcpu_never_allowed",
        "A vCPU whose access was once denied keeps exiting.",
        **_stuck(allowed=False),
    ),
    mutant(
        RaceRules,
        "spinning_writes_never_denied",
        "A vCPU that only writes keeps running while it stays in the guest.",
        **_stuck(True, lambda access: isinstance(access, s.Wrmsr)),
    ),
    mutant(
        RaceRules,
        "spinning_reads_never_denied",
        "A vCPU that only reads keeps running while it stays in the guest.",
        **_stuck(True, lambda access: isinstance(access, s.Rdmsr)),
    ),
    mutant(
        RaceRules,
        "other_spinning_vcpus_never_denied",
        "Of the vCPUs in the guest only vCPU 0 is told of a new filter.",
        **_stuck(True, lambda access: access.vcpu != 0),
    ),
    mutant(
        RaceRules,
        "spinning_vcpu_0_never_denied",
        "Of the vCPUs in the guest vCPU 0 is not told of a new filter.",
        **_stuck(True, lambda access: access.vcpu == 0),
    ),
    mutant(
        RaceRules,
        "spinning_vcpu_keeps_the_mask",
        "A vCPU keeps the mask under which it entered the guest.",
        spin=_spin_noting,
        exit_of=_old_mask,
    ),
    mutant(
        RaceRules,
        "spinning_vcpu_obeys_a_stall",
        "A vCPU in the guest obeys a filter whose install is stalled.",
        allowed=_spinners_early,
    ),
    mutant(
        InstallRules,
        "spinning_vcpu_blocks_installs",
        "An install waits for a vCPU that stays in the guest.",
        has_readers=lambda self, vm: bool(vm.parked or vm.spins),
    ),
)

# --- descriptors ----------------------------------------------------------------------------------


def _close_leaving(**left: Any) -> Any:
    def close_vm(self: RaceRules, model: Model, vm: VmState, action: s.CloseVm) -> s.Step:
        vars(vm).update(left)
        return RaceRules.close_vm(self, model, vm, action)

    return close_vm


def _close_kills(self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall) -> s.Step:
    if vm.is_open:
        return _resume(self, model, vm, action)
    del vm.stalls[action.name]
    return (s.rejected(EFAULT),)


CLOSING = (
    mutant(
        RaceRules,
        "closed_vm_loses_its_filter",
        "Closing the VM's descriptor ends all filtering of its vCPUs.",
        close_vm=_close_leaving(filter=NO_FILTER),
    ),
    mutant(
        RaceRules,
        "closed_vm_loses_its_mask",
        "Closing the VM's descriptor clears the mask.",
        close_vm=_close_leaving(mask=0),
    ),
    mutant(
        RaceRules,
        "closed_vm_cancels_installs",
        "Closing the VM's descriptor makes an install in flight fail.",
        resume_install=_close_kills,
    ),
)

RACES = (*STALLING, *RESUMING, *WAITING, *CALLING, *SPINNING, *CLOSING)
