"""Mistakes that only an emulated or a stepped access meets (R40-R42, R66; B04, B10 are real)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mutant import mutant
from planting import Where, unasked

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VcpuState, VmState
from vmm.msr import FILTER, UNKNOWN, Msr


def _emulated(kind: type) -> Where:
    return lambda vm, vcpu, access: access.emulated and isinstance(access, kind)


def _failure(self: AccessRules, model: Model, vcpu: VcpuState, access: s.Access) -> Any:
    is_base = access.index in (Msr.FS_BASE, Msr.GS_BASE)
    return (
        UNKNOWN if access.emulated and is_base else AccessRules.failure(self, model, vcpu, access)
    )


def _failing(self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any) -> s.Step:
    if access.emulated and reason is FILTER:
        return (s.gp,)
    return AccessRules.failing(self, model, vm, access, reason)


def _twice(self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any) -> s.Step:
    events = AccessRules.failing(self, model, vm, access, reason)
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


def _undone(access: s.Access, event: s.Event) -> s.Event:
    return ExitRules.done(ExitRules(), replace(access, single_step=False), event)


def _late(self: ExitRules, access: s.Access, event: s.Event) -> s.Event:
    done = ExitRules.done(self, access, event)
    return replace(done, skew=6) if access.single_step and isinstance(done, s.Fault) else done


def _no_db_on_exit(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    return ExitRules.outcome(self, replace(access, single_step=False), reply)


def _db_on_error(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    if access.single_step and self.is_error(reply):
        return self.done(access, s.wrote)
    return ExitRules.outcome(self, access, reply)


EMULATOR = (
    mutant(
        ExitRules,
        "step_lost",
        "Nothing follows a stepped access.",
        done=lambda self, access, event: _undone(access, event),
    ),
    mutant(ExitRules, "step_late", "The #DB is an instruction late.", done=_late),
    mutant(ExitRules, "step_lost_at_exit", "Completing forgets the #DB.", outcome=_no_db_on_exit),
    mutant(ExitRules, "step_on_error", "A failed access has a #DB.", outcome=_db_on_error),
    mutant(
        Model, "emulated_read_unfiltered", "The emulator reads.", reason=unasked(_emulated(s.Rdmsr))
    ),
    mutant(
        Model,
        "emulated_write_unfiltered",
        "The emulator writes.",
        reason=unasked(_emulated(s.Wrmsr)),
    ),
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
