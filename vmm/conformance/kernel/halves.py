"""Accesses that are stopped in the middle: at their exit, looked at, and completed in steps."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmm import x86
from vmm._native import ffi, lib
from vmm.conformance.host.limits import raise_if_exhausted
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.kernel.single import answer, is_single
from vmm.conformance.kernel.wire import variant
from vmm.conformance.language import script as words
from vmm.conformance.language.script import Event, Lost, done, interrupted
from vmm.errors import KvmError
from vmm.exits import DebugExit, Exit, InternalErrorExit, IoExit, OtherExit, RdmsrExit, WrmsrExit
from vmm.vcpu import Vcpu

ITS_OWN = ("rip", "rax", "rcx", "rdx")
"""The registers that an access reads or writes."""


class Halves:
    """The accesses of one script that have begun, by vCPU, and the words on what they left."""

    def __init__(self, vm: PooledVm) -> None:
        """Have no access begun."""
        self.vm = vm
        self.stopped: dict[int, words.Access] = {}
        self.last: dict[int, words.Access] = {}
        self._at_exit: dict[int, bytes] = {}
        """What a stopped access must leave as it was at its exit, by vCPU."""
        self._ended: dict[int, Event] = {}
        self._left_l2: dict[int, Event] = {}
        """How a stopped access that L1 got ended L2."""

    def move(self, vm: PooledVm) -> None:
        """Go on in another VM."""
        self.vm = vm

    def give_up(self, vcpu: int) -> None:
        """Take note that the vCPU is sent elsewhere: an access that is stopped does not end."""
        self.stopped.pop(vcpu, None)

    def begin(self, action: words.Begin) -> Event:
        access = action.access
        program = self.vm.program(access.vcpu)
        if not is_single(access):
            program.load([access])
        elif lost := self.vm.single(access.vcpu).load(access):
            return lost
        self._left_l2.pop(access.vcpu, None)
        self.stopped[access.vcpu] = self.last[access.vcpu] = access
        # A run that copies no registers out: the other path beside the batches'.
        program.vcpu.kvm_run.kvm_valid_regs = 0
        return self._run(access.vcpu)

    def get_regs(self, action: words.GetRegs) -> Event:
        program = self.vm.program(action.vcpu)
        regs = program.vcpu.get_regs()
        last = self.last.get(action.vcpu, words.Rdmsr(0))
        if is_single(last):
            at = self.vm.single(action.vcpu).at(last)
        else:
            at = program.instructions[variant(last)]
        is_stopped = action.vcpu in self.stopped and action.vcpu in self._at_exit
        changed = is_stopped and self._at_exit[action.vcpu] != _others(regs)
        return words.Regs(regs.rip - at, regs.rax, regs.rcx, regs.rdx, changed)

    def set_regs(self, action: words.SetRegs) -> Event:
        vcpu = self.vm.vcpu(action.vcpu)
        regs = vcpu.get_regs()
        regs.rip += action.rip
        regs.rax = regs.rax if action.rax is None else action.rax
        regs.rdx = regs.rdx if action.rdx is None else action.rdx
        regs.rcx = regs.rcx if action.rcx is None else action.rcx
        if action.via == "sync":
            vcpu.sync_regs()[0] = regs[0]
            vcpu.kvm_run.kvm_dirty_regs = lib.KVM_SYNC_X86_REGS
        else:
            vcpu.set_regs(regs)
        return done

    def get_vcpu_events(self, action: words.GetVcpuEvents) -> Event:
        events = self.vm.vcpu(action.vcpu).get_vcpu_events()
        exception = events.exception
        queued = exception.injected or exception.pending
        return words.VcpuEvents(bool(events.interrupt.shadow), exception.nr if queued else None)

    def get_taken(self, action: words.GetTaken) -> Event:
        last = self.last.get(action.vcpu, words.Rdmsr(0))
        return self.vm.single(action.vcpu).taken if is_single(last) else words.Taken(None)

    def rewrite(self, action: words.Rewrite) -> Event:
        vcpu = self.vm.vcpu(action.vcpu)
        getattr(vcpu, f"set_{action.what}")(getattr(vcpu, f"get_{action.what}")())
        return done

    def inject(self, action: words.Inject) -> Event:
        if action.vcpu in self.stopped:  # else nothing of the guest is there to take it
            self.vm.single(action.vcpu).inject(action.kind)
        return done

    def complete(self, action: words.Complete) -> Event:
        vcpu = self.vm.vcpu(action.vcpu)
        if action.reply:
            answer(vcpu, action.reply)
        with INTERRUPT[action.by](vcpu):
            return self._run(action.vcpu, asked=True)

    def finish(self, action: words.Finish) -> Event:
        if action.reply:
            answer(self.vm.vcpu(action.vcpu), action.reply)
        return self._run(action.vcpu)

    def _run(self, vcpu_id: int, *, asked: bool = False) -> Event:  # noqa: PLR0911 - one an end
        """Enter the guest, and again after an EINTR that was not ``asked`` for: it is another's."""
        program = self.vm.program(vcpu_id)
        while True:
            try:
                seen = program.vcpu.run()
                break
            except KvmError as error:
                raise_if_exhausted(error)
                if error.errno != errno.EINTR:
                    return Lost(str(error))
                if asked:
                    return interrupted
        if asked and isinstance(seen, DebugExit):
            return interrupted
        if isinstance(seen, RdmsrExit | WrmsrExit):
            self._at_exit[vcpu_id] = _others(program.vcpu.get_regs())
            return seen
        access = self.last[vcpu_id]
        if left := program.left(program.vcpu.kvm_run.exit_reason):
            self._left_l2[vcpu_id] = left
        if left := self._left_l2.get(vcpu_id):
            self.stopped.pop(vcpu_id, None)
            return left
        if is_single(access):
            if self.stopped.pop(vcpu_id, None):
                self._ended[vcpu_id] = self.vm.single(vcpu_id).outcome(access, seen)
            return self._ended[vcpu_id]
        if isinstance(seen, IoExit) and (outcome := program.outcome(access)):
            self.stopped.pop(vcpu_id, None)
            return outcome
        return foreign(seen)


def _others(regs: Any) -> bytes:
    """Return the registers and flags that no access changes; RF is the CPU's own."""
    names = (name for name, _ in ffi.typeof("struct kvm_regs").fields if name not in ITS_OWN)
    others = {name: getattr(regs, name) for name in names}
    others["rflags"] |= x86.RFLAGS_RF
    return bytes(ffi.buffer(ffi.new("struct kvm_regs *", others)))


def foreign(seen: Exit) -> Event:
    """Return the event of an exit that is no end of an access."""
    match seen:
        case InternalErrorExit():
            return words.InternalError(seen.suberror)
        case OtherExit():
            return words.OtherExit(seen.exit_reason)
        case _:
            return Lost(str(seen))


@contextmanager
def _immediate(vcpu: Vcpu) -> Iterator[None]:
    """Within: ``KVM_RUN`` completes what is pending and returns EINTR at once."""
    vcpu.kvm_run.immediate_exit = 1
    try:
        yield
    finally:
        vcpu.kvm_run.immediate_exit = 0


@contextmanager
def _signalled(vcpu: Vcpu) -> Iterator[None]:
    """Within: a signal is pending that only ``KVM_RUN`` does not block, so it ends with EINTR."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    vcpu.set_signal_mask(())
    signal.raise_signal(signal.SIGUSR2)
    try:
        yield
    finally:
        signal.sigtimedwait({signal.SIGUSR2}, 0)
        vcpu.set_signal_mask(None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


@contextmanager
def _debugged(vcpu: Vcpu) -> Iterator[None]:
    """Within: the host single-steps the guest, so ``KVM_RUN`` ends behind an instruction."""
    vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
    try:
        yield
    finally:
        vcpu.set_guest_debug(0)


INTERRUPT = {"immediate_exit": _immediate, "signal": _signalled, "debugger": _debugged}
