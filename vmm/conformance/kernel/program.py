"""A run of consecutive accesses as one program for the ``access`` guest: write it, run it, read it.

The layout of a step is in ``guests/abi.inc``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from vmm import x86
from vmm._native import ffi, lib
from vmm.conformance.host.limits import exhausted
from vmm.conformance.kernel.wire import (
    EXIT,
    RESULT,
    SPARE_EXITS,
    STEP,
    broken_off,
    events_of,
    handlers,
    instructions,
    pack_reply,
    read_exits,
    read_outcome,
    step_words,
)
from vmm.conformance.language.script import Access, Event, Lost
from vmm.decode import EXITS
from vmm.exits import IoExit
from vmm.guest import Guest, start_registers
from vmm.memory import GuestMemory
from vmm.vcpu import Vcpu

STEP_SIZE = STEP.size
MAX_STEPS = x86.PROGRAM_SIZE // STEP_SIZE - 1
DONE_PORT = 0xD0
SWEEP_FAULTS = 0x1000
"""Where in a program's area a sweep notes faults: far behind its program."""


def _in_l1(result: int) -> Event | None:
    """Return None: a vCPU that is in no L2 leaves none."""
    return None


class Program:
    """The program area of one vCPU: executes up to ``MAX_STEPS`` accesses at a time."""

    def __init__(self, vcpu: Vcpu, memory: GuestMemory) -> None:
        """Use the area that ``vmm.x86`` gives ``vcpu`` in ``memory``."""
        self.vcpu, self.guest = vcpu, Guest.load("access")
        self.base = x86.program_of(vcpu.vcpu_id)
        self._at = self.base - memory.base
        self._memory = memory.buffer
        self._handlers = handlers(self.guest)
        self.instructions = instructions(self.guest)
        self._replies = ffi.new("struct mw_reply[]", MAX_STEPS)
        self._log = ffi.new("struct mw_exit[]", MAX_STEPS + SPARE_EXITS)
        self._batch = ffi.new("struct mw_batch *")
        self._batch.fd, self._batch.run, self._batch.program = vcpu.fd, vcpu.kvm_run, self.base
        self._batch.replies, self._batch.log = self._replies, self._log
        self._start = start_registers(self.guest.entry, vcpu.vcpu_id)
        # A guest that never leaves must let interrupts in: some emulators of a CPU take it out of
        # the guest for one of the host's only then.
        flags = x86.RFLAGS_FIXED | x86.RFLAGS_IF
        self._start_loop = start_registers(self.guest.entry, vcpu.vcpu_id, rflags=flags)
        self.left: Callable[[int], Event | None] = _in_l1
        """What a run that ended with an exit reason left of L2, if it ended L2 (``Levels``)."""

    def load(self, accesses: Sequence[Access]) -> None:
        """Write the program and set the vCPU to its start."""
        words: list[int] = []
        for each in accesses:
            words += step_words(each, self._handlers)
        self._write([*words, self._handlers[-1]])

    def load_touch(self, address: int) -> None:
        """Write the program that reads the guest's memory at ``address``, and no MSR."""
        touch = self.guest.symbols["op_touch"]
        self._write([touch, address, 0, 0, 0, 0, 0, 0, self._handlers[-1]])

    def load_sweep(
        self, access: str, first: int, count: int, stride: int, value: int
    ) -> Callable[[], bytes]:
        """Write the loop over ``count`` MSRs; what is returned reads which of them faulted.

        That is a byte each, in order: 0, or the vector of the fault.
        """
        symbols, at = self.guest.symbols, self._at + SWEEP_FAULTS
        operands = (first, value & 0xFFFFFFFF, value >> 32, count, stride & 0xFFFFFFFF)
        faults = self.base + SWEEP_FAULTS - 1  # the last one's byte is the first
        goes_on = symbols[f"sweep_{access}_faulted"]
        words = [symbols[f"op_sweep_{access}"], *operands, faults, 0, 0, 0, 0, goes_on]
        self._memory[at : at + count] = bytes(count)
        self._write([*words, self._handlers[-1]])
        return lambda: bytes(self._memory[at : at + count])[::-1]

    def load_loop(self, access: Access) -> None:
        """Write the program that goes round ``access`` for ever, counting in ``rounds``."""
        self.load([access])
        again = self.guest.symbols["op_again"]
        counter = self.base + 2 * STEP_SIZE
        loop = struct.pack("<8Q", again, counter, self.base, 0, 0, 0, 0, 0) + bytes(8)
        self._memory[self._at + STEP_SIZE : self._at + STEP_SIZE + len(loop)] = loop
        self.vcpu.set_regs(self._start_loop)

    def rounds(self) -> int:
        """Return how often the loop has gone round."""
        at = self._at + 2 * STEP_SIZE
        return int.from_bytes(self._memory[at : at + 8], "little")

    def _write(self, words: list[int]) -> None:
        self.vcpu.set_regs(self._start)  # first: Busy where a guest still reads what would change
        image = struct.pack(f"<{len(words)}Q", *words)
        self._memory[self._at : self._at + len(image)] = image

    def run(self, accesses: Sequence[Access]) -> list[Event]:
        """Execute the accesses, each exit answered with its own reply; return all events.

        One that L1 gets is the last of L2, and those after it are executed in L1.
        """
        events: list[Event] = []
        at = 0
        while at < len(accesses):
            seen, executed = self._drain(accesses[at : at + MAX_STEPS])
            events += seen
            if isinstance(events[-1], Lost):
                break
            at += executed
        return events

    def _drain(self, accesses: Sequence[Access]) -> tuple[list[Event], int]:
        self.load(accesses)
        replies = b"".join([pack_reply(each.reply) for each in accesses])
        ffi.memmove(self._replies, replies, len(replies))
        self._batch.n_replies, self._batch.log_size = len(accesses), len(accesses) + SPARE_EXITS
        with self.vcpu.entered():
            end = lib.mw_drain(self._batch)
        log = bytes(ffi.buffer(self._log, self._batch.n_exits * EXIT.size))
        exits = read_exits(log, accesses, self.instructions)
        outcomes = [self.outcome(access, number) for number, access in enumerate(accesses)]
        if None in outcomes and (left := self.left(end)):
            executed = outcomes.index(None) + 1
            return events_of(exits, [*outcomes[: executed - 1], left], ""), executed
        return events_of(exits, outcomes, self.how_ended(end)), len(accesses)

    def outcome(self, access: Access, number: int = 0) -> Event | None:
        """Return what step ``number`` recorded, or None if the guest has not executed it."""
        at = self._at + (number + 1) * STEP_SIZE
        return read_outcome(access, bytes(self._memory[at - RESULT.size : at]), self.instructions)

    def instruction_near(self, rip: int) -> int:
        """Return where the RDMSR or WRMSR stands that is nearest to ``rip``."""
        places = (at for name, at in self.guest.symbols.items() if name.endswith("msr_at"))
        return min(places, key=lambda at: abs(rip - at))

    def how_ended(self, result: int) -> str:
        """Return "" if the guest ran to the program's end, else what ended it instead.

        ``ExhaustedError`` where the host had not enough of something to run it.
        """
        if result < 0 and (error := exhausted(-result, "KVM_RUN")):
            raise error
        if why := broken_off(result):
            return why
        kind = EXITS.get(result)
        seen = kind(self.vcpu.kvm_run) if kind else f"exit reason {result}"
        return "" if isinstance(seen, IoExit) and seen.port == DONE_PORT else str(seen)

    def enter(self) -> int:
        """Enter the guest once; return the exit reason or -errno, for ``how_ended``."""
        with self.vcpu.entered():
            return int(lib.mw_run(self.vcpu.fd, self.vcpu.kvm_run))
