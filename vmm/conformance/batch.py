"""A run of consecutive accesses as one program for the ``access`` guest: write it, run it, read it.

The layout of a step is in ``guests/abi.inc``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmm import x86
from vmm._native import ffi, lib
from vmm.conformance.script import (
    Access,
    Event,
    Fault,
    Lost,
    Rdmsr,
    Regs,
    Reply,
    Returned,
    Wrote,
    gp,
    wrote,
)
from vmm.exits import IoExit, RdmsrExit, WrmsrExit
from vmm.guest import Guest, start_registers
from vmm.memory import GuestMemory
from vmm.msr import MsrExitReason
from vmm.vcpu import EXITS, Vcpu

STEP_SIZE, STEP_WORDS = 64, 8
MAX_STEPS = x86.PROGRAM_SIZE // STEP_SIZE - 1
FAULTED = 1 << 31
DONE_PORT = 0xD0
CANARIES = 0x5AFEC0DE5AFEC0DE, 0xDEADC0DEDEADC0DE, 0xBADC0FFEBADC0FFE
LOW, HIGH = 0xFFFFFFFF, 0xFFFFFFFF00000000
REPLY = struct.Struct("<QBB6x")
EXIT = struct.Struct("<IIQIIQQQQQ")
SPARE_EXITS = 16
"""Room in the log beyond one exit for each access: an access that is replayed shows itself."""


class Program:
    """The program area of one vCPU: executes up to ``MAX_STEPS`` accesses at a time."""

    def __init__(self, vcpu: Vcpu, memory: GuestMemory) -> None:
        """Use the area that ``vmm.x86`` gives ``vcpu`` in ``memory``."""
        self.vcpu, self.guest = vcpu, Guest.load("access")
        self.base = x86.program_of(vcpu.vcpu_id)
        self._at = self.base - memory.base
        self._memory = memory.buffer
        symbols = self.guest.symbols
        self._handlers = symbols["op_rdmsr"], symbols["op_wrmsr"], symbols["op_done"]
        self.instructions = symbols["rdmsr_at"], symbols["wrmsr_at"]
        self._replies = ffi.new("struct mw_reply[]", MAX_STEPS)
        self._log = ffi.new("struct mw_exit[]", MAX_STEPS + SPARE_EXITS)
        self._batch = ffi.new("struct mw_batch *")
        self._batch.fd, self._batch.run, self._batch.program = vcpu.fd, vcpu.kvm_run, self.base
        self._batch.replies, self._batch.log = self._replies, self._log
        self._start = start_registers(self.guest.entry, vcpu.vcpu_id)

    def load(self, accesses: Sequence[Access]) -> None:
        """Write the program and set the vCPU to its start."""
        rdmsr, wrmsr, end = self._handlers
        words: list[int] = []
        for each in accesses:
            rcx, rax, rdx = operands(each)
            canary = _canary(rax, rdx)
            handler = rdmsr if isinstance(each, Rdmsr) else wrmsr
            words += (handler, rcx, rax, rdx, canary, canary, 0, 0)
        image = struct.pack(f"<{len(words) + 1}Q", *words, end)
        self._memory[self._at : self._at + len(image)] = image
        self.vcpu.set_regs(self._start)

    def run(self, accesses: Sequence[Access]) -> list[Event]:
        """Execute the accesses, each exit answered with its own reply; return all events."""
        events: list[Event] = []
        for first in range(0, len(accesses), MAX_STEPS):
            events += self._drain(accesses[first : first + MAX_STEPS])
            if isinstance(events[-1], Lost):
                break
        return events

    def _drain(self, accesses: Sequence[Access]) -> list[Event]:
        self.load(accesses)
        replies = b"".join([pack_reply(each.reply) for each in accesses])
        ffi.memmove(self._replies, replies, len(replies))
        self._batch.n_replies, self._batch.log_size = len(accesses), len(accesses) + SPARE_EXITS
        end = lib.mw_drain(self._batch)
        exits = self._exits(accesses)
        ended = self.how_ended(end)
        events: list[Event] = []
        for number, access in enumerate(accesses):
            events += exits.get(number, ())
            events.append(self.outcome(access, number) or Lost(ended or "the step was skipped"))
            if isinstance(events[-1], Lost):
                return events
        return [*events[:-1], Lost(ended)] if ended else events

    def outcome(self, access: Access, number: int = 0) -> Event | None:
        """Return what step ``number`` recorded, or None if the guest has not executed it."""
        at = self._at + number * STEP_SIZE
        _, _, rax, rdx, after_rax, after_rdx, fault, rip = struct.unpack_from(
            "<8Q", self._memory, at
        )
        same = (after_rax, after_rdx) == (rax, rdx)
        if fault >> 32 & FAULTED:
            skew = rip - self.instructions[not isinstance(access, Rdmsr)]
            changed = None if same else (after_rax, after_rdx)
            seen = Fault(fault >> 32 & 0xFF, fault & LOW, skew, changed)
            return gp if seen == gp else seen
        if _canary(rax, rdx) in (after_rax, after_rdx):
            return None
        if isinstance(access, Rdmsr):
            high = after_rdx & HIGH | after_rax >> 32
            return Returned((after_rdx & LOW) << 32 | after_rax & LOW, high)
        return wrote if same else Wrote((after_rax, after_rdx))

    def how_ended(self, result: int) -> str:
        """Return "" if the guest ran to the program's end, else what ended it instead."""
        if result < 0:
            import os

            return f"KVM_RUN: {os.strerror(-result)}"
        if result in (lib.KVM_EXIT_X86_RDMSR, lib.KVM_EXIT_X86_WRMSR):
            return "more exits than accesses"
        kind = EXITS.get(result)
        seen = kind(self.vcpu.kvm_run) if kind else f"exit reason {result}"
        return "" if isinstance(seen, IoExit) and seen.port == DONE_PORT else str(seen)

    def _exits(self, accesses: Sequence[Access]) -> dict[int, list[Event]]:
        exits: dict[int, list[Event]] = {}
        raw = ffi.buffer(self._log, self._batch.n_exits * EXIT.size)
        for kind, step, head, reason, index, data, rip, rax, rcx, rdx in EXIT.iter_unpack(raw):
            here = exits.setdefault(step, [])
            made = RdmsrExit if kind == lib.KVM_EXIT_X86_RDMSR else WrmsrExit
            here.append(made(index, MsrExitReason(reason), data, head & 0xFF, head >> 8))
            is_write = made is WrmsrExit
            if rip != self.instructions[is_write] or (rcx, rax, rdx) != operands(accesses[step]):
                here.append(Regs(rip - self.instructions[is_write], rax, rcx, rdx))
        return exits


def operands(access: Access) -> tuple[int, int, int]:
    """Return RCX, RAX and RDX as they are before the access."""
    value = access.before if isinstance(access, Rdmsr) else access.value
    rcx = access.rcx_high << 32 | access.index
    return rcx, (access.high & LOW) << 32 | value & LOW, access.high & HIGH | value >> 32


def _canary(rax: int, rdx: int) -> int:
    """Return what a result is before the guest wrote it: no access of this step can leave it."""
    return next(each for each in CANARIES if each not in (rax, rdx))


def pack_reply(reply: Reply) -> bytes:
    """Return the reply as ``struct mw_reply``."""
    return REPLY.pack(reply.value, reply.error, reply.scribble)
