"""Mistakes in telling vCPUs that stay in the guest of a new filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mutant import mutant
from planting import notes_of, said_under

from vmm.conformance.language import script as s
from vmm.conformance.oracle.installs import InstallRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.races import RaceRules
from vmm.conformance.oracle.running import RunningRules
from vmm.conformance.oracle.state import VmState


def _spin_noting(self: RunningRules, model: Model, vm: VmState, action: s.Spin) -> s.Step:
    vcpu = action.access.vcpu
    notes_of(vm, "at_spin")[vcpu] = model.allowed(vm, action.access), vm.mask
    return RunningRules.spin(self, model, vm, action)


def _stuck(allowed: bool, of: Callable[[s.Access], bool] = lambda access: True) -> dict[str, Any]:
    """Return the rules under which a spinning vCPU that was once ``allowed`` (or not) stays so."""

    def rule(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
        now = RaceRules.allowed(self, model, vm, access)
        if access.vcpu not in vm.spins or not of(access):
            return now
        seen = notes_of(vm, "seen").setdefault(
            access.vcpu, {notes_of(vm, "at_spin")[access.vcpu][0]}
        )
        seen.add(now)
        return allowed if allowed in seen else now

    return {"spin": _spin_noting, "allowed": rule}


def _old_mask(self: RunningRules, model: Model, vm: VmState, number: int) -> s.Event | None:
    mask = vm.mask
    vm.mask = notes_of(vm, "at_spin").get(number, (None, mask))[1]
    exit_ = RunningRules.exit_of(self, model, vm, number)
    vm.mask = mask
    return exit_


def _spinners_early(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
    for stall in vm.stalls.values():
        if access.vcpu in vm.spins:
            return said_under(model, vm, access, model.filters.installed(None, stall.new))
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
