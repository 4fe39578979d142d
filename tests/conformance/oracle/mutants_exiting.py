"""Mistakes in what an exit shows: kvm_msr_user_space()."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.msrs import U32, U64


def swapped(value: int) -> int:
    return (value & U32) << 32 | value >> 32 & U32


def sign_extended(value: int) -> int:
    low = value & U32
    return low | (0xFFFF_FFFF_0000_0000 if low >> 31 else 0)


def _shows(**odd: Any) -> Any:
    return lambda self, access, reason: replace(ExitRules.exit(self, access, reason), **odd)


def _remember_error(self: Any, access: s.Access, reply: s.Reply) -> s.Event:
    self.error = reply.error & 0xFF
    return ExitRules.outcome(self, access, reply)


def _show_remembered(self: Any, access: s.Access, reason: Any) -> Any:
    return replace(ExitRules.exit(self, access, reason), error=getattr(self, "error", 0))


def _remember_data(self: Any, access: s.Access, reply: s.Reply) -> s.Event:
    self.data = reply.value & U64
    return ExitRules.outcome(self, access, reply)


def _remember_pad(self: Any, access: s.Access, reply: s.Reply) -> s.Event:
    self.pad = 0xA5A5_A5A5_A5A5_A5 if reply.scribble else 0
    return ExitRules.outcome(self, access, reply)


EXITING = (
    mutant(
        ExitRules,
        "index_of_rcx",
        "The exit's index has the upper half of RCX in it.",
        index=lambda self, access: access.rcx_high << 32 | access.index,
    ),
    mutant(
        ExitRules,
        "index_of_16_bits",
        "The exit's index is cut to 16 bits.",
        index=lambda self, access: access.index & 0xFFFF,
    ),
    mutant(
        ExitRules,
        "index_signed",
        "The exit's index is cut to 31 bits.",
        index=lambda self, access: access.index & 0x7FFF_FFFF,
    ),
    mutant(
        ExitRules,
        "written_low_half",
        "A WRMSR exit shows EAX alone.",
        written=lambda self, access: access.value & U32,
    ),
    mutant(
        ExitRules,
        "written_high_half",
        "A WRMSR exit shows EDX alone.",
        written=lambda self, access: access.value & ~U32 & U64,
    ),
    mutant(
        ExitRules,
        "written_halves_swapped",
        "A WRMSR exit shows EAX:EDX.",
        written=lambda self, access: swapped(access.value),
    ),
    mutant(
        ExitRules,
        "written_sign_extended",
        "A WRMSR exit shows EAX sign-extended.",
        written=lambda self, access: sign_extended(access.value),
    ),
    mutant(
        ExitRules,
        "written_with_upper_half",
        "A WRMSR exit shows the upper half of RAX mixed into EDX.",
        written=lambda self, access: (access.value | (access.high & U32) << 32) & U64,
    ),
    mutant(
        ExitRules,
        "read_shows_registers",
        "A RDMSR exit shows EDX:EAX as data.",
        data_of_a_read=lambda self, access: access.before,
    ),
    mutant(
        ExitRules,
        "read_shows_the_answer_before",
        "A RDMSR exit shows the data of the exit before.",
        outcome=_remember_data,
        data_of_a_read=lambda self, access: getattr(self, "data", 0),
    ),
    mutant(
        ExitRules,
        "error_set_at_exit",
        "The error byte is 1 at the exit.",
        exit=_shows(error=1),
    ),
    mutant(
        ExitRules,
        "error_of_the_exit_before",
        "The error byte still holds the answer of the exit before.",
        outcome=_remember_error,
        exit=_show_remembered,
    ),
    mutant(
        ExitRules,
        "pad_set_at_exit",
        "The padding is not zero at the exit.",
        exit=_shows(pad=1 << 48),
    ),
    mutant(
        ExitRules,
        "pad_of_the_exit_before",
        "The padding still holds what userspace wrote at the exit before.",
        outcome=_remember_pad,
        exit=lambda self, access, reason: replace(
            ExitRules.exit(self, access, reason), pad=getattr(self, "pad", 0)
        ),
    ),
)
