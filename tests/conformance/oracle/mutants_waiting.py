"""Mistakes in waiting for the readers of the old filter."""

from __future__ import annotations

from mutant import mutant
from planting import notes_of, of_the_stale

from vmm.conformance.language import script as s
from vmm.conformance.oracle.filters import Installed
from vmm.conformance.oracle.installs import InstallRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.races import RaceRules
from vmm.conformance.oracle.running import RunningRules
from vmm.conformance.oracle.state import VmState, Wait


def _in_force_when_done(
    self: RaceRules, vm: VmState, name: str, old: Installed | None, events: s.Step
) -> s.Step:
    events = RaceRules.land(self, vm, name, old, events)
    if events == (s.blocked,):
        notes_of(vm, "late")[name] = vm.filter
        vm.filter = old
    return events


def _publish_when_done(self: RaceRules, model: Model, vm: VmState, name: str) -> s.Step:
    events = RaceRules.returns(self, model, vm, name)
    if events == (s.done,):
        vm.filter = notes_of(vm, "late").pop(name, vm.filter)
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


def _park_noting(self: RunningRules, model: Model, vm: VmState, action: s.Park) -> s.Step:
    notes_of(vm, "stale").pop(action.vcpu, None)
    notes_of(vm, "at_park")[action.vcpu] = vm.filter
    return RunningRules.park(self, model, vm, action)


def _release_stale(self: RunningRules, model: Model, vm: VmState, action: s.Release) -> s.Step:
    notes_of(vm, "stale")[action.vcpu] = notes_of(vm, "at_park").get(action.vcpu, vm.filter)
    return RunningRules.release(self, model, vm, action)


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
        allowed=of_the_stale,
    ),
    mutant(
        RaceRules,
        "enable_cap_waits_for_readers",
        "KVM_ENABLE_CAP waits for an install that waits for a reader.",
        may_wait=_mask_waits,
    ),
)
