"""What the contract says of an exit: what it shows, how the access ends, and what lies between.

One rule is one small method, as in ``filters``. ``ExitRules`` holds no state of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vmm.conformance.language import script as s
from vmm.conformance.oracle.msrs import U32, U64
from vmm.conformance.oracle.state import NO_REGS, Stage, VcpuState, regs_before
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.msr import INVAL, UNKNOWN, MsrExitReason

DB = 1
"""The vector of the debug exception."""
UNANSWERED = s.Reply(0)
"""What an exit that nobody answers completes with: its ``data`` and ``error`` are 0 (R54, R55)."""


class ExitRules:
    """The exit (R53-R55), its completion (R60-R64), and stopping between the two (R57, R65)."""

    def exit(self, access: s.Access, reason: MsrExitReason) -> RdmsrExit | WrmsrExit:
        """R53-R55: ECX, and EDX:EAX of a write; all else is zero."""
        if isinstance(access, s.Wrmsr):
            return WrmsrExit(self.index(access), reason, self.written(access))
        return RdmsrExit(self.index(access), reason, self.data_of_a_read(access))

    def index(self, access: s.Access) -> int:
        """R53: the upper half of RCX does not count."""
        return access.index & U32

    def written(self, access: s.Wrmsr) -> int:
        """R54: both halves, and the upper halves of RAX and RDX do not count."""
        return access.value & U64

    def data_of_a_read(self, access: s.Rdmsr) -> int:
        """R54."""
        return 0

    def outcome(self, access: s.Access, reply: s.Reply) -> s.Event:
        """R60-R63: the access done with what userspace replied, or #GP."""
        if self.is_error(reply):
            return self.faulted(access, reply)
        is_write = isinstance(access, s.Wrmsr)
        return self.done(access, s.wrote if is_write else s.returned(self.delivered(reply)))

    def done(self, access: s.Access, event: s.Event) -> s.Event:
        """R66: an access that is done, if the guest steps, is followed by #DB at once."""
        if not access.single_step:
            return event
        before = regs_before(access)
        after: Any = before.rax, before.rdx
        if isinstance(event, s.Returned):
            after = s.ANY if event.value is s.ANY else self.loaded(access, event.value)
        registers = None if after == (before.rax, before.rdx) else after
        return s.Fault(DB, skew=self.length(access), registers=registers)

    def loaded(self, access: s.Access, value: int) -> tuple[int, int]:
        """R60, R62, R58: EDX:EAX and no more, or all of RAX alone."""
        if access.form == "immediate":
            return value, regs_before(access).rdx
        return value & U32, value >> 32

    def is_error(self, reply: s.Reply) -> bool:
        """R61: any non-zero byte."""
        return reply.error & 0xFF != 0

    def faulted(self, access: s.Access, reply: s.Reply) -> s.Event:
        """R61-R63: #GP(0) at the instruction, no register changed."""
        return s.gp

    def delivered(self, reply: s.Reply) -> int:
        """R60: both halves."""
        return reply.value & U64

    # --- between the exit and the end ----------------------------------------------------------

    def begin(self, vcpu: VcpuState, access: s.Access, events: s.Step, mask: int) -> s.Event:
        """Stop after the first of an access's ``events``; unsure if there may be more of them."""
        vcpu.access = access
        if len(events) > 1:
            vcpu.stage, vcpu.regs = Stage.EXITED, self.regs_at_exit(access)
            vcpu.touched = vcpu.moved = False
        elif self.may_exit(events[0], mask):
            # It may have exited for a reason of KVM's own, and then it has not ended.
            vcpu.stage = Stage.UNSURE
            return s.whatever
        return events[0]

    def may_exit(self, event: s.Event, mask: int) -> bool:
        """Say whether an access that left ``event``, a pattern, may have exited for some reason."""
        if event == s.unfiltered:
            return mask & (INVAL | UNKNOWN) != 0
        return event == s.whatever or isinstance(event, s.Either)

    def regs_at_exit(self, access: s.Access) -> s.Regs:
        """R57: at the instruction, as the guest had them."""
        return regs_before(access)

    def set_regs(self, vcpu: VcpuState, action: s.SetRegs) -> s.Event:
        """R67: what the vCPU holds until it is completed."""
        given = {"rax": action.rax, "rdx": action.rdx, "rcx": action.rcx}
        new: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if vcpu.stage is not Stage.EXITED:
            if self.is_plain_end(vcpu, action):
                vcpu.regs, vcpu.outcome = replace(vcpu.regs, **new), s.whatever
            else:
                vcpu.stage, vcpu.regs = Stage.UNSURE, NO_REGS
            return s.done
        if action.via != "ioctl":  # the kernel takes them over only when it is entered
            new = dict.fromkeys(new, s.ANY)
        vcpu.touched |= bool(new.keys() & {"rax", "rdx"})
        vcpu.moved |= action.rip != 0
        vcpu.regs = replace(vcpu.regs, skew=s.ANY if vcpu.moved else vcpu.regs.skew, **new)
        return s.done

    def is_plain_end(self, vcpu: VcpuState, action: s.SetRegs) -> bool:
        """R65: nothing is pending behind a completed access, unless an exception is queued."""
        is_over = vcpu.stage is Stage.COMPLETED and not vcpu.moved
        is_quiet = isinstance(vcpu.outcome, s.Returned | s.Wrote)
        return is_over and is_quiet and action.via == "ioctl" and action.rip == 0

    def complete(self, vcpu: VcpuState, reply: s.Reply | None) -> s.Event:
        """R65: completes first, then EINTR; with nothing pending, EINTR only (R64)."""
        if vcpu.stage is Stage.EXITED and vcpu.access is not None:
            self.end(vcpu, vcpu.access, reply or UNANSWERED)
        return s.interrupted

    def is_stepped(self, vcpu: VcpuState, reply: s.Reply | None) -> bool:
        """R66: a debugger's step is one instruction that ends well, and no #DB of the guest."""
        if vcpu.stage is not Stage.EXITED or vcpu.access is None or vcpu.injected:
            return False
        return not vcpu.access.single_step and not self.is_error(reply or UNANSWERED)

    def end(self, vcpu: VcpuState, access: s.Access, reply: s.Reply) -> None:
        """R65, R68: all of the access's effects are in the vCPU's state."""
        vcpu.outcome = self.outcome_of(vcpu, access, reply)
        vcpu.regs = self.regs_at_end(vcpu, access, reply)
        vcpu.stage = Stage.COMPLETED

    def outcome_of(self, vcpu: VcpuState, access: s.Access, reply: s.Reply) -> s.Event:
        """R67: registers that userspace changed itself are nobody's promise."""
        outcome = self.outcome(access, reply)
        if vcpu.moved:
            return s.whatever
        if vcpu.touched and isinstance(outcome, s.Wrote | s.Fault):
            return replace(outcome, registers=s.ANY)
        return outcome

    def regs_at_end(self, vcpu: VcpuState, access: s.Access, reply: s.Reply) -> s.Regs:
        """R60-R65: one instruction further, data delivered; on an error all is as at the exit.

        The #GP is only queued here: KVM delivers it when it enters the guest, which it did not.
        """
        regs = replace(vcpu.regs, rax=s.ANY, rdx=s.ANY) if vcpu.touched else vcpu.regs
        if self.is_error(reply):
            return regs
        regs = replace(regs, skew=s.ANY if vcpu.moved else self.length(access))
        if isinstance(access, s.Wrmsr):
            return regs
        rax, rdx = self.loaded(access, self.delivered(reply))
        return replace(regs, rax=rax, rdx=regs.rdx if access.form == "immediate" else rdx)

    def length(self, access: s.Access) -> int:
        """R64: RDMSR and WRMSR are two bytes, WRMSRNS three, and one instruction is skipped."""
        return {"register": 2, "wrmsrns": 3, "immediate": 9, "rex": 3}[access.form]

    def finish(self, vcpu: VcpuState, reply: s.Reply | None) -> s.Event:
        """R64: the access ends once, whether answered here or by ``complete``."""
        if vcpu.stage is Stage.EXITED and vcpu.access is not None:
            self.end(vcpu, vcpu.access, reply or UNANSWERED)
        event = vcpu.outcome if vcpu.stage is Stage.COMPLETED else s.whatever
        is_lost = vcpu.stage is Stage.UNSURE or vcpu.moved
        vcpu.stage, vcpu.regs = Stage.UNSURE if is_lost else Stage.IDLE, NO_REGS
        return event
