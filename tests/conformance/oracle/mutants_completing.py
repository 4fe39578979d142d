"""Mistakes in completing an access: complete_fast_rdmsr(), complete_emulated_msr()."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mutant import mutant
from mutants_exiting import sign_extended, swapped

from vmm.conformance.language import script as s
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.msrs import U32
from vmm.conformance.oracle.state import regs_before


def _error_ignored(kind: type) -> Any:
    def outcome(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
        forgiven = replace(reply, error=0) if isinstance(access, kind) else reply
        return ExitRules.outcome(self, access, forgiven)

    return outcome


def _is_error(rule: Any) -> Any:
    return lambda self, reply: rule(reply.error & 0xFF)


def _halves(value: int) -> tuple[int, int]:
    return value & U32, value >> 32 & U32


def _faults_after_delivery(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    if isinstance(access, s.Wrmsr):
        return s.gp
    return replace(s.gp, registers=_halves(reply.value))


def _fault_zeroes(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    return replace(s.gp, registers=(0, 0)) if isinstance(access, s.Rdmsr) else s.gp


def _fault_clears_upper_halves(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    regs = regs_before(access)
    if regs.rax <= U32 and regs.rdx <= U32:
        return s.gp
    return replace(s.gp, registers=(regs.rax & U32, regs.rdx & U32))


def _keeps_upper_halves(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    event = ExitRules.outcome(self, access, reply)
    return replace(event, high=access.high) if isinstance(event, s.Returned) else event


def _write_loads_registers(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    event = ExitRules.outcome(self, access, reply)
    if isinstance(access, s.Rdmsr) or event != s.wrote or reply.value == access.value:
        return event
    return s.Wrote(_halves(reply.value))


def _write_clears_upper_halves(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    event = ExitRules.outcome(self, access, reply)
    changed = event == s.wrote and access.high
    return s.Wrote(_halves(regs_before(access).rax)) if changed else event


def _scribbled_is(event: s.Event, kind: type = object) -> Any:
    def outcome(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
        if reply.scribble and isinstance(access, kind):
            return event
        return ExitRules.outcome(self, access, reply)

    return outcome


COMPLETING = (
    mutant(
        ExitRules,
        "error_1_only",
        "Only an error byte of 1 is an error.",
        is_error=_is_error(lambda error: error == 1),
    ),
    mutant(
        ExitRules,
        "error_bit_0_only",
        "Only the lowest bit of the error byte counts.",
        is_error=_is_error(lambda error: error & 1 != 0),
    ),
    mutant(
        ExitRules,
        "error_signed",
        "An error byte from 128 on is no error.",
        is_error=_is_error(lambda error: 0 < error < 128),
    ),
    mutant(
        ExitRules,
        "error_inverted",
        "An error byte of 0 is the error.",
        is_error=_is_error(lambda error: error == 0),
    ),
    mutant(
        ExitRules,
        "read_error_ignored",
        "The error byte does not count for a RDMSR.",
        outcome=_error_ignored(s.Rdmsr),
    ),
    mutant(
        ExitRules,
        "write_error_ignored",
        "The error byte does not count for a WRMSR.",
        outcome=_error_ignored(s.Wrmsr),
    ),
    mutant(
        ExitRules,
        "fault_skips",
        "#GP is raised with RIP behind the instruction.",
        faulted=lambda self, access, reply: replace(s.gp, skew=2),
    ),
    mutant(
        ExitRules,
        "fault_with_error_code",
        "The error byte becomes #GP's error code.",
        faulted=lambda self, access, reply: replace(s.gp, error_code=reply.error & 0xFF),
    ),
    mutant(
        ExitRules,
        "fault_is_undefined_opcode",
        "An error raises #UD.",
        faulted=lambda self, access, reply: s.Fault(6),
    ),
    mutant(
        ExitRules,
        "fault_delivers_data",
        "An error on RDMSR changes RAX and RDX to the data all the same.",
        faulted=_faults_after_delivery,
    ),
    mutant(
        ExitRules,
        "fault_zeroes_registers",
        "An error on RDMSR clears RAX and RDX.",
        faulted=_fault_zeroes,
    ),
    mutant(
        ExitRules,
        "fault_clears_upper_halves",
        "An error clears the upper halves of RAX and RDX.",
        faulted=_fault_clears_upper_halves,
    ),
    mutant(
        ExitRules,
        "delivered_low_half",
        "A RDMSR's EDX is 0.",
        delivered=lambda self, reply: reply.value & U32,
    ),
    mutant(
        ExitRules,
        "delivered_sign_extended",
        "A RDMSR's EDX is the sign of EAX.",
        delivered=lambda self, reply: sign_extended(reply.value),
    ),
    mutant(
        ExitRules,
        "delivered_halves_swapped",
        "A RDMSR's EAX and EDX are exchanged.",
        delivered=lambda self, reply: swapped(reply.value),
    ),
    mutant(
        ExitRules,
        "upper_halves_kept",
        "A RDMSR leaves the upper halves of RAX and RDX.",
        outcome=_keeps_upper_halves,
    ),
    mutant(
        ExitRules,
        "write_loads_registers",
        "Completing a WRMSR loads RAX and RDX from the data.",
        outcome=_write_loads_registers,
    ),
    mutant(
        ExitRules,
        "write_clears_upper_halves",
        "Completing a WRMSR clears the upper halves of RAX and RDX.",
        outcome=_write_clears_upper_halves,
    ),
    mutant(
        ExitRules,
        "scribbled_read_fails",
        "A RDMSR whose reason and index were overwritten is #GP.",
        outcome=_scribbled_is(s.gp, s.Rdmsr),
    ),
    mutant(
        ExitRules,
        "scribbled_write_fails",
        "A WRMSR whose reason and index were overwritten is #GP.",
        outcome=_scribbled_is(s.gp, s.Wrmsr),
    ),
)
