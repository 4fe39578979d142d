"""Mistakes between the exit and the end: what an interrupted completion leaves."""

from __future__ import annotations

from dataclasses import replace

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import U32
from vmm.conformance.oracle.state import Stage, VcpuState, VmState, regs_before
from vmm.msr import FILTER


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
