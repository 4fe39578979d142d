"""One access by itself, in any mode: the host sets the whole state of the vCPU, and reads it back.

The guest's part is a stub of ``guests/stubs.inc``. Once the access has ended the vCPU is in 64-bit
CPL0 again, as the programs of ``program`` find it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

from vmm import modes
from vmm.conformance.host.limits import raise_if_exhausted
from vmm.conformance.kernel.program import DONE_PORT
from vmm.conformance.kernel.wire import FAULTED, operands, outcome_of
from vmm.conformance.language.script import (
    INTERRUPT,
    NMI,
    SMI,
    Access,
    Event,
    Lost,
    Rdmsr,
    Regs,
    Reply,
    Taken,
    is_plain,
)
from vmm.decode import RDMSR, WRMSR
from vmm.errors import KvmError
from vmm.exits import Exit, IoExit, RdmsrExit, WrmsrExit
from vmm.guest import Guest, start_registers
from vmm.kvm import Vm
from vmm.memory import GuestMemory
from vmm.vcpu import Vcpu

TRAP_PORT, SMM_PORT = 0xD1, 0xD2
SAVED_RIP = 0x3_FF78
"""Where an SMI saves RIP with SMBASE at 0x30000 (APM volume 2, "SMRAM State-Save Area")."""
LOOPS = 4
"""How often the guest goes round at its end for an interrupt that is still to come."""
FORMS = {"rdmsr": "rdmsr", "wrmsr": "wrmsrns"}
"""What the forms that are not of every CPU are called."""
IMMEDIATE = 5
"""Where in such an instruction the MSR stands: behind VEX, opcode and register."""
FLAGS = 0x8D5
"""The flags of arithmetic, all set: no access changes one."""
OTHERS = {"rsi": 0x51515151, "rdi": 0x47474747, "rbp": 0x42424242}
"""What is in registers that have nothing to do with an access."""
MOST_EXITS = 16
"""Exits of one access after which it is taken to come back for ever."""


def is_single(access: Access) -> bool:
    """Say whether an access is executed by a stub, not by a program."""
    return not is_plain(access)


class Single:
    """Executes the accesses of one vCPU that ``is_single`` names, each in its own mode."""

    def __init__(self, vm: Vm, vcpu: Vcpu, memory: GuestMemory) -> None:
        """Use the stubs of the ``access`` guest in ``memory``."""
        self.vm, self.vcpu, self.memory = vm, vcpu, memory
        self.guest = Guest.load("access")
        self.taken, self.injected = Taken(None), 0

    def load(self, access: Access) -> Lost | None:
        """Set the vCPU to the start of ``access``; ``Lost`` if SMM could not be entered."""
        self.taken, self.injected = Taken(None), 0
        if access.mode == "smm" and (lost := self.enter_smm()):
            return lost
        self.change(lambda sregs: modes.enter(sregs, access.mode, self.vcpu.vcpu_id))
        if access.after != "nothing":
            self._leave_shadow()
        rcx, rax, rdx = operands(access)
        mode = modes.MODES[access.mode]
        if access.form == "immediate":
            self.memory.write(self.at(access) + IMMEDIATE, access.index.to_bytes(4, "little"))
        self.start(
            self._symbol(access),
            mode,
            rbx=self.vcpu.get_sregs().ss.selector,
            rcx=rcx,
            rax=rax,
            rdx=rdx,
            rflags=2 | FLAGS | mode.rflags | access.single_step << 8,
            **OTHERS,
        )
        return None

    def _leave_shadow(self) -> None:
        """End the shadow that a fault may have left: in one, STI begins none."""
        events = self.vcpu.get_vcpu_events()
        events.interrupt.shadow = 0
        self.vcpu.set_vcpu_events(events)

    def at(self, access: Access) -> int:
        """Return RIP at the instruction itself."""
        at = self.guest.symbols[f"{self._symbol(access)}_at"]
        return at - modes.MODES[access.mode].code

    def run(self, access: Access) -> list[Event]:
        """Execute ``access``, each exit answered with its reply; return its events."""
        events: list[Event] = []
        if lost := self.load(access):
            return [lost]
        while len(events) < MOST_EXITS:
            seen = self.enter()
            if not isinstance(seen, RdmsrExit | WrmsrExit):
                return [*events, self.outcome(access, seen)]
            events += [seen, *self._changed(access)]
            answer(self.vcpu, access.reply)
        return [*events, Lost("more exits than accesses")]

    def outcome(self, access: Access, seen: Exit) -> Event:
        """Return what the access has left when ``seen`` ended it, and leave its mode."""
        event = self._outcome(access, self._past_interrupts(access, seen))
        return (not isinstance(event, Lost) and self._leave(access)) or event

    def enter(self) -> Exit:
        """Run the vCPU to its next exit, whatever signals come."""
        while True:
            try:
                return self.vcpu.run()
            except KvmError as error:
                raise_if_exhausted(error)
                if error.errno != errno.EINTR:
                    raise

    def _outcome(self, access: Access, seen: Exit) -> Event:
        regs = self.vcpu.get_regs()
        if not isinstance(seen, IoExit) or seen.port not in (DONE_PORT, TRAP_PORT):
            return Lost(str(seen))
        fault = rip = 0
        if seen.port == TRAP_PORT:
            vector, frame = self.trap(modes.MODES[access.mode])
            fault, rip = (FAULTED | vector) << 32 | frame.error_code, frame.rip
        return outcome_of(access, regs.rax, regs.rdx, fault, rip - self.at(access))

    def _past_interrupts(self, access: Access, seen: Exit) -> Exit:
        """Return from each interrupt that the guest took, and go on to what ends the access."""
        mode, patience = modes.MODES[access.mode], LOOPS
        while isinstance(seen, IoExit):
            if seen.port == SMM_PORT and self.injected > 0:
                self._note_smi(access)
                seen = self.enter()
                continue
            vector, frame = self.trap(mode) if seen.port == TRAP_PORT else (None, None)
            if frame and vector in (NMI, INTERRUPT):
                self.injected -= 1
                self.taken = Taken(vector, frame.rip - self.at(access))
                self._return(mode, frame)
            elif self.injected < 1 or not (patience := patience - 1):
                break
            seen = self.enter()
        return seen

    def inject(self, kind: str) -> None:
        """Queue an NMI, an SMI, or an interrupt that must find RFLAGS.IF set."""
        if kind == "smi":
            self.vm.map_in_smm(self.memory)
            self.vcpu.smi()
        elif kind == "nmi":
            self.vcpu.nmi()
        else:
            self.vcpu.interrupt(INTERRUPT)
        self.injected += 1

    def _note_smi(self, access: Access) -> None:
        """Take note of an SMI, whose handler goes back by itself to where it came."""
        rip = int.from_bytes(self.memory.buffer[SAVED_RIP : SAVED_RIP + 8], "little")
        self.injected -= 1
        self.taken = Taken(SMI, rip - self.at(access))

    def _return(self, mode: modes.Mode, frame: modes.Frame) -> None:
        """Have the handler of an interrupt return; KVM's emulator has no IRET in protected mode."""
        regs = self.vcpu.get_regs()
        if mode.word == "Q":
            regs.rip = self.guest.symbols["stub_iretq"]
        else:
            regs.rip, regs.rflags = frame.rip, frame.rflags
            regs.rsp += 3 * struct.calcsize(mode.word)
            events = self.vcpu.get_vcpu_events()
            events.nmi.masked = 0
            self.vcpu.set_vcpu_events(events)
        self.vcpu.set_regs(regs)

    def trap(self, mode: modes.Mode) -> tuple[int, modes.Frame]:
        """Return the vector at whose stub the vCPU is, and what the exception pushed."""
        regs = self.vcpu.get_regs()
        first = mode.handler(self.guest.symbols["traps"])
        vector = (regs.rip - first) // modes.TRAP_SIZE
        return vector, mode.frame(self.memory, self.vcpu.vcpu_id, regs.rsp, vector)

    def _leave(self, access: Access) -> Lost | None:
        if access.mode == "smm":
            self.start("stub_rsm", modes.MODES["smm"])
            seen = self.enter()
            if not isinstance(seen, IoExit) or seen.port != DONE_PORT:
                return Lost(f"RSM: {seen}")
        self.change(lambda sregs: modes.leave(sregs, self.vcpu.vcpu_id))
        self.start("stub_done", modes.MODES["long"])
        return None

    def enter_smm(self) -> Lost | None:
        """Have the vCPU stop in SMM, from where RSM leads to ``stub_done`` in 64-bit mode."""
        self.start("stub_done", modes.MODES["long"])
        try:
            self.vm.map_in_smm(self.memory)
            self.vcpu.smi()
        except KvmError as error:
            raise_if_exhausted(error)
            return Lost(str(error))
        seen = self.enter()
        at_entry = isinstance(seen, IoExit) and seen.port == SMM_PORT
        return None if at_entry else Lost(f"SMI: {seen}")

    def start(self, symbol: str, mode: modes.Mode, **registers: int) -> None:
        """Set all registers: RIP to ``symbol``, RSP to an empty stack, the rest as given, or 0."""
        vcpu_id = self.vcpu.vcpu_id
        entry = self.guest.symbols[symbol] - mode.code
        rsp = mode.stack(vcpu_id)
        self.vcpu.set_regs(start_registers(entry, vcpu_id, **{"rsp": rsp, **registers}))

    def change(self, change: Callable[[Any], None]) -> None:
        """Change ``struct kvm_sregs``."""
        sregs = self.vcpu.get_sregs()
        change(sregs)
        self.vcpu.set_sregs(sregs)

    def _symbol(self, access: Access) -> str:
        name = "rdmsr" if isinstance(access, Rdmsr) else "wrmsr"
        if access.form == "rex":
            return f"stub_rex_{'emulated_' * access.emulated}{name}"
        if access.form != "register":
            return f"stub_{'immediate_' * (access.form == 'immediate')}{FORMS[name]}"
        before = "" if access.after == "nothing" else f"after_{access.after}_"
        return f"stub_{before}{'emulated_' * access.emulated}{name}"

    def _changed(self, access: Access) -> list[Event]:
        """Return the registers at an exit if they are not as the access left them (R57)."""
        regs = self.vcpu.get_regs()
        at = self.at(access)
        if (regs.rip, regs.rcx, regs.rax, regs.rdx) == (at, *operands(access)):
            return []
        return [Regs(regs.rip - at, regs.rax, regs.rcx, regs.rdx)]


def answer(vcpu: Vcpu, reply: Reply) -> None:
    """Write a reply, and what the kernel must ignore if the reply says so, to ``kvm_run``."""
    vcpu.reply(reply.value)
    if reply.error:
        vcpu.fail(reply.error)
    if reply.scribble:
        vcpu.kvm_run.exit_reason ^= RDMSR ^ WRMSR
        msr = vcpu.kvm_run.msr
        msr.reason = msr.index = 0xA5A5A5A5
        msr.pad = b"\xa5" * 7
