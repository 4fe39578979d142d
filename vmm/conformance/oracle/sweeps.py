"""What the contract says of sweeps: each of their accesses is an access like any other (R33).

One rule is one small method, as in ``filters``. ``SweepRules`` holds no state of its own and asks
the ``Rest`` of the Model what an access comes to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vmm.conformance.language import script as s
from vmm.conformance.oracle import accesses
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.state import IDLE, Unsure, VcpuState, VmState
from vmm.msr import MsrExitReason

UNSURE: dict[Unsure, s.Ended] = {Unsure.UNFILTERED: "UNFILTERED", Unsure.WHATEVER: "WHATEVER"}
NAMES: dict[MsrExitReason, s.Ended] = {
    MsrExitReason.INVAL: "INVAL",
    MsrExitReason.UNKNOWN: "UNKNOWN",
    MsrExitReason.FILTER: "FILTER",
}


class Rest(accesses.Rest, Protocol):
    """What sweeps ask of the rest of the Model: why an access fails, and what it does."""

    @property
    def accesses(self) -> AccessRules:
        """What each access comes to."""


class SweepRules:
    """R33, R72: no MSR is special, but those of the x2APIC window (R30)."""

    def step(self, model: Rest, vm: VmState, action: s.Sweep) -> s.Step:
        """Return how every access of the sweep ends."""
        vcpu = vm.vcpu(action.vcpu)
        vcpu.has_run = True
        if vcpu.stage is not IDLE:
            return (s.whatever,)
        ended = []
        for each in self.accesses(action):
            if (left := model.levels.left_by(model, vm, each)) is not None:
                return left
            ended.append(self.ended(model, vm, vcpu, each))
        return (s.runs_of(action, ended),)

    def accesses(self, action: s.Sweep) -> Iterator[s.Access]:
        """Return the accesses, each exit of which userspace lets succeed."""
        if action.access == "rdmsr":
            return (s.Rdmsr(index, vcpu=action.vcpu) for index in action.indices)
        return (s.Wrmsr(index, action.value, vcpu=action.vcpu) for index in action.indices)

    def ended(self, model: Rest, vm: VmState, vcpu: VcpuState, access: s.Access) -> s.Ended:
        """R50, R51: the reason why it exits, #GP where nobody is told, or how it is done."""
        reason = model.accesses.reason(model, vm, vcpu, access)
        if isinstance(reason, MsrExitReason):
            return NAMES[reason] if model.masks.is_told(vm.mask, reason) else "GP"
        model.xen.write(vm, access, reason)
        model.accesses.perform(model, vcpu, access, reason)
        return UNSURE[reason] if reason else "PASSED"
