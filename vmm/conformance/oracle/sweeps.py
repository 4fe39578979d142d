"""What the contract says of sweeps: each of their accesses is an access like any other (R33).

One rule is one small method, as in ``filters``. ``SweepRules`` holds no state of its own and asks
the ``Rest`` of the Model what an access comes to.
"""

from __future__ import annotations

from typing import Protocol

from vmm.conformance.language import script as s
from vmm.conformance.oracle.levels import LevelRules
from vmm.conformance.oracle.state import IDLE, Reason, Unsure, VcpuState, VmState
from vmm.msr import MsrExitReason

UNSURE: dict[Unsure, s.Ended] = {Unsure.UNFILTERED: "UNFILTERED", Unsure.WHATEVER: "WHATEVER"}
NAMES: dict[MsrExitReason, s.Ended] = {
    MsrExitReason.INVAL: "INVAL",
    MsrExitReason.UNKNOWN: "UNKNOWN",
    MsrExitReason.FILTER: "FILTER",
}


class Rest(Protocol):
    """What sweeps ask of the rest of the Model: why an access fails, and who is told of it."""

    @property
    def levels(self) -> LevelRules:
        """Who gets an access of L2."""

    def allowed(self, vm: VmState, access: s.Access) -> bool | None:
        """Return what the filter in force says to an access; None: nobody knows."""

    def reason(self, vm: VmState, vcpu: VcpuState, access: s.Access) -> Reason:
        """Return why an access fails."""

    def is_told(self, mask: int, reason: MsrExitReason) -> bool:
        """Say whether userspace is told of a failure."""

    def perform(self, vcpu: VcpuState, access: s.Access, reason: Reason) -> s.Event:
        """Do an access that nothing stops."""


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

    def accesses(self, action: s.Sweep) -> list[s.Access]:
        """Return the accesses, each exit of which userspace lets succeed."""
        if action.access == "rdmsr":
            return [s.Rdmsr(index, vcpu=action.vcpu) for index in action.indices]
        return [s.Wrmsr(index, action.value, vcpu=action.vcpu) for index in action.indices]

    def ended(self, model: Rest, vm: VmState, vcpu: VcpuState, access: s.Access) -> s.Ended:
        """R50, R51: the reason why it exits, #GP where nobody is told, or how it is done."""
        reason = model.reason(vm, vcpu, access)
        if isinstance(reason, MsrExitReason):
            return NAMES[reason] if model.is_told(vm.mask, reason) else "GP"
        model.perform(vcpu, access, reason)
        return UNSURE[reason] if reason else "PASSED"
