"""Mistakes that only an emulated access meets (R40-R42; B04 and B10 are real ones)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mutant import mutant

from vmm.conformance import script as s
from vmm.conformance.model import Model
from vmm.conformance.model_exit import ExitRules
from vmm.conformance.model_state import VcpuState, VmState
from vmm.msr import FILTER, UNKNOWN, Msr


def _unfiltered(kind: type) -> Any:
    def reason(self: Model, vm: VmState, vcpu: VcpuState, access: s.Access) -> Any:
        if access.emulated and isinstance(access, kind):
            return self.failure(vcpu, access)
        return Model.reason(self, vm, vcpu, access)

    return reason


def _failure(self: Model, vcpu: VcpuState, access: s.Access) -> Any:
    is_base = access.index in (Msr.FS_BASE, Msr.GS_BASE)
    return UNKNOWN if access.emulated and is_base else Model.failure(self, vcpu, access)


def _failing(self: Model, vm: VmState, access: s.Access, reason: Any) -> s.Step:
    if access.emulated and reason is FILTER:
        return (s.gp,)
    return Model.failing(self, vm, access, reason)


def _twice(self: Model, vm: VmState, access: s.Access, reason: Any) -> s.Step:
    events = Model.failing(self, vm, access, reason)
    return events if not access.emulated or events == (s.gp,) else (events[0], *events)


def _no_error(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    lenient = replace(reply, error=0) if access.emulated else reply
    return ExitRules.outcome(self, access, lenient)


def _stays(self: ExitRules, vcpu: VcpuState, access: s.Access, reply: s.Reply) -> s.Regs:
    regs = ExitRules.regs_at_end(self, vcpu, access, reply)
    return replace(regs, skew=0) if access.emulated else regs


def _halves_kept(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    outcome = ExitRules.outcome(self, access, reply)
    if access.emulated and isinstance(outcome, s.Returned):
        return replace(outcome, high=access.high)
    return outcome


EMULATOR = (
    mutant(Model, "emulated_read_unfiltered", "The emulator reads.", reason=_unfiltered(s.Rdmsr)),
    mutant(Model, "emulated_write_unfiltered", "The emulator writes.", reason=_unfiltered(s.Wrmsr)),
    mutant(Model, "emulated_base_unknown", "The emulator does not know FS_BASE.", failure=_failure),
    mutant(Model, "emulated_no_exit", "A denied emulated access is #GP at once.", failing=_failing),
    mutant(Model, "emulated_twice", "An emulated access exits a second time.", failing=_twice),
    mutant(
        ExitRules, "emulated_error_ignored", "The emulator succeeds on errors.", outcome=_no_error
    ),
    mutant(
        ExitRules, "emulated_not_skipped", "RIP stays at an emulated access.", regs_at_end=_stays
    ),
    mutant(
        ExitRules,
        "emulated_halves_kept",
        "An emulated read leaves the upper halves.",
        outcome=_halves_kept,
    ),
)
