"""Mistakes in what an exit shows, how it is completed, and what the host may do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.host import HostRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import U32, U64, Stage, VcpuState, VmState, regs_before
from vmm.filter import READ, WRITE
from vmm.msr import FILTER

# --- the exit: kvm_msr_user_space() --------------------------------------------------------------


def _swapped(value: int) -> int:
    return (value & U32) << 32 | value >> 32 & U32


def _sign_extended(value: int) -> int:
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
        written=lambda self, access: _swapped(access.value),
    ),
    mutant(
        ExitRules,
        "written_sign_extended",
        "A WRMSR exit shows EAX sign-extended.",
        written=lambda self, access: _sign_extended(access.value),
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

# --- the completion: complete_fast_rdmsr(), complete_emulated_msr() ------------------------------


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
        delivered=lambda self, reply: _sign_extended(reply.value),
    ),
    mutant(
        ExitRules,
        "delivered_halves_swapped",
        "A RDMSR's EAX and EDX are exchanged.",
        delivered=lambda self, reply: _swapped(reply.value),
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

# --- between the exit and the end ----------------------------------------------------------------


def _eintr_only(self: ExitRules, vcpu: VcpuState, reply: s.Reply | None) -> s.Event:
    return s.interrupted


def _no_signal(self: Model, vm: VmState, action: s.Complete) -> s.Step:
    return (s.interrupted,) if action.by == "signal" else Model.complete(self, vm, action)


def _completes_twice(self: ExitRules, vcpu: VcpuState, reply: s.Reply | None) -> s.Event:
    if vcpu.stage is Stage.COMPLETED:
        vcpu.regs = replace(vcpu.regs, skew=vcpu.regs.skew + 2)
    return ExitRules.complete(self, vcpu, reply)


def _answered_twice(self: ExitRules, vcpu: VcpuState, reply: s.Reply | None) -> s.Event:
    if vcpu.stage is Stage.COMPLETED and reply is not None:
        vcpu.stage = Stage.EXITED
    return ExitRules.complete(self, vcpu, reply)


def _finished_by_the_last_answer(
    self: ExitRules, vcpu: VcpuState, reply: s.Reply | None
) -> s.Event:
    if vcpu.stage is Stage.COMPLETED and reply is not None:
        vcpu.stage = Stage.EXITED
    return ExitRules.finish(self, vcpu, reply)


def _replayed(self: ExitRules, vcpu: VcpuState, access: s.Access, reply: s.Reply) -> None:
    vcpu.outcome = self.exit(access, FILTER)
    vcpu.regs = regs_before(access)
    vcpu.stage = Stage.COMPLETED


def _no_data(self: ExitRules, vcpu: VcpuState, access: s.Access, reply: s.Reply) -> s.Regs:
    regs = ExitRules.regs_at_end(self, vcpu, access, reply)
    return replace(regs, rax=regs_before(access).rax, rdx=regs_before(access).rdx)


def _no_skip(self: ExitRules, vcpu: VcpuState, access: s.Access, reply: s.Reply) -> s.Regs:
    return replace(ExitRules.regs_at_end(self, vcpu, access, reply), skew=0)


def _data_on_error(self: ExitRules, vcpu: VcpuState, access: s.Access, reply: s.Reply) -> s.Regs:
    regs = ExitRules.regs_at_end(self, vcpu, access, reply)
    if isinstance(access, s.Wrmsr) or not self.is_error(reply):
        return regs
    return replace(regs, rax=reply.value & U32, rdx=reply.value >> 32 & U32)


STOPPING = (
    mutant(
        ExitRules,
        "rip_moved_at_exit",
        "RIP is behind the instruction at the exit.",
        regs_at_exit=lambda self, access: replace(regs_before(access), skew=2),
    ),
    mutant(
        ExitRules,
        "registers_cleared_at_exit",
        "RAX and RDX are 0 at the exit.",
        regs_at_exit=lambda self, access: replace(regs_before(access), rax=0, rdx=0),
    ),
    mutant(
        ExitRules,
        "upper_halves_cleared_at_exit",
        "The upper halves of RAX and RDX are 0 at the exit.",
        regs_at_exit=lambda self, access: replace(
            regs_before(access),
            rax=regs_before(access).rax & U32,
            rdx=regs_before(access).rdx & U32,
        ),
    ),
    mutant(
        ExitRules,
        "rcx_cut_at_exit",
        "The upper half of RCX is 0 at the exit.",
        regs_at_exit=lambda self, access: replace(regs_before(access), rcx=access.index),
    ),
    mutant(ExitRules, "two_skipped", "Completing skips two instructions.", length=lambda *_: 4),
    mutant(ExitRules, "one_byte_skipped", "Completing skips a byte.", length=lambda *_: 1),
    mutant(
        ExitRules,
        "interrupted_before_completion",
        "KVM_RUN that is interrupted returns before it completes the access.",
        complete=_eintr_only,
    ),
    mutant(
        Model,
        "signal_before_completion",
        "A pending signal ends KVM_RUN before it completes the access.",
        complete=_no_signal,
    ),
    mutant(
        ExitRules,
        "completed_twice",
        "The next KVM_RUN completes a completed access again.",
        complete=_completes_twice,
    ),
    mutant(
        ExitRules,
        "later_answer_counts",
        "An answer after the completion is delivered too.",
        complete=_answered_twice,
    ),
    mutant(
        ExitRules,
        "last_answer_counts",
        "An answer when the guest goes on is delivered too.",
        finish=_finished_by_the_last_answer,
    ),
    mutant(
        ExitRules,
        "completion_replayed",
        "An interrupted completion is forgotten and the access exits again.",
        end=_replayed,
    ),
    mutant(
        ExitRules,
        "completion_loses_data",
        "An interrupted completion moves RIP and delivers no data.",
        regs_at_end=_no_data,
    ),
    mutant(
        ExitRules,
        "completion_keeps_rip",
        "An interrupted completion delivers data and leaves RIP.",
        regs_at_end=_no_skip,
    ),
    mutant(
        ExitRules,
        "completion_delivers_on_error",
        "An interrupted completion with an error delivers the data.",
        regs_at_end=_data_on_error,
    ),
)

# --- the host: KVM_GET_MSRS, KVM_SET_MSRS --------------------------------------------------------


def _is_denied(model: Model, vm: VmState, index: int, kind: int) -> bool:
    return model.filters.allows(vm.filter, index, kind) is False


def _get_filtered(self: HostRules, model: Model, vm: VmState, action: s.GetMsr) -> s.Step:
    if _is_denied(model, vm, action.index, READ):
        return (s.refused,)
    return HostRules.get_msr(self, model, vm, action)


def _get_zeroes(self: HostRules, model: Model, vm: VmState, action: s.GetMsr) -> s.Step:
    if _is_denied(model, vm, action.index, READ):
        return (s.got(0),)
    return HostRules.get_msr(self, model, vm, action)


def _set_filtered(self: HostRules, model: Model, vm: VmState, action: s.SetMsr) -> s.Step:
    if _is_denied(model, vm, action.index, WRITE):
        return (s.refused,)
    return HostRules.set_msr(self, model, vm, action)


def _set_dropped(self: HostRules, model: Model, vm: VmState, action: s.SetMsr) -> s.Step:
    if _is_denied(model, vm, action.index, WRITE):
        return (s.done,)
    return HostRules.set_msr(self, model, vm, action)


HOST = (
    mutant(
        Model,
        "host_read_filtered",
        "KVM_GET_MSRS refuses a denied MSR.",
        get_msr=_get_filtered,
    ),
    mutant(
        Model,
        "host_read_of_denied_is_zero",
        "KVM_GET_MSRS returns 0 for a denied MSR.",
        get_msr=_get_zeroes,
    ),
    mutant(
        Model,
        "host_write_filtered",
        "KVM_SET_MSRS refuses a denied MSR.",
        set_msr=_set_filtered,
    ),
    mutant(
        Model,
        "host_write_of_denied_dropped",
        "KVM_SET_MSRS returns 1 for a denied MSR and leaves it.",
        set_msr=_set_dropped,
    ),
)
