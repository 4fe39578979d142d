"""A vCPU in another mode than 64-bit CPL0: what the host sets so that any code can run there.

Each mode finds the same memory (``x86``), a stack of its vCPU's own, and for each vector a stub of
4 bytes (the ``traps`` of a guest), reached through a table of that mode's own form.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vmm import x86
from vmm.memory import GuestMemory

IVT, LONG_TRAPS, PROTECTED_TRAPS = 0, 0x2400, 0x2800
TRAPS, TRAP_SIZE = 33, 4
REAL_CODE, REAL_LIMIT = 0x10000, 0xFFFF
SMM_ENTRY = 0x38000
IOPL3 = 3 << 12

PUSH_AN_ERROR = frozenset({8, *range(10, 15), 17, 21, 29, 30})
"""The vectors that push an error code, but in real mode."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What an exception left on the stack."""

    error_code: int
    rip: int
    rflags: int = 0


@dataclass(frozen=True, slots=True)
class Mode:
    """One mode: how it changes ``struct kvm_sregs`` of long mode, and what an exception pushes.

    ``code`` and ``rflags`` are what to subtract from an address for RIP, and what to set.
    """

    change: Callable[[Any, int], None]
    word: str
    code: int = 0
    rflags: int = 0

    @property
    def is_real(self) -> bool:
        """Say whether code, stack and handlers are in segments of 16-bit code."""
        return self.word == "H"

    def stack(self, vcpu_id: int) -> int:
        """Return RSP when nothing is on the stack."""
        return x86.STACK_SIZE if self.is_real else _top(vcpu_id)

    def handler(self, address: int) -> int:
        """Return RIP at what an exception leads to, which is in the higher half in no mode."""
        return address - self.code if self.is_real else address

    def frame(self, memory: GuestMemory, vcpu_id: int, rsp: int, vector: int) -> Frame:
        """Return what exception ``vector`` has pushed, up to ``rsp``."""
        linear = rsp + (_top(vcpu_id) - x86.STACK_SIZE if self.is_real else 0)
        words = struct.Struct(f"<4{self.word}")
        pushed = words.unpack(memory.read(linear, words.size))
        has_error = vector in PUSH_AN_ERROR and not self.is_real
        error, rest = (pushed[0], pushed[1:]) if has_error else (0, pushed)
        return Frame(error, rip=rest[0], rflags=rest[2])


def write_traps(memory: GuestMemory, traps: int) -> None:
    """Write the tables that lead to the stubs at ``traps``, one for each kind of mode."""
    handlers = range(traps, traps + TRAPS * TRAP_SIZE, TRAP_SIZE)
    memory.write(IVT, b"".join(_real_vectors(handlers)))
    memory.write(LONG_TRAPS, b"".join(map(x86.long_gate, handlers)))
    memory.write(PROTECTED_TRAPS, b"".join(map(_protected_gate, handlers)))


def enter(sregs: Any, mode: str, vcpu_id: int) -> None:
    """Make ``sregs`` those of ``mode``; FS and GS keep their bases, as these are MSRs too."""
    leave(sregs, vcpu_id)
    sregs.idt.base, sregs.idt.limit = LONG_TRAPS, TRAPS * 16 - 1
    MODES[mode].change(sregs, vcpu_id)


def leave(sregs: Any, vcpu_id: int) -> None:
    """Make ``sregs`` those of 64-bit CPL0 again, as a vCPU starts, but the bases of FS and GS."""
    bases = sregs.fs.base, sregs.gs.base
    x86.enter_long_mode(sregs, vcpu_id)
    sregs.fs.base, sregs.gs.base = bases


def _top(vcpu_id: int) -> int:
    return x86.STACK + x86.STACK_SIZE * (vcpu_id + 1)


def _real_vectors(handlers: range) -> Iterator[bytes]:
    for handler in handlers:
        yield struct.pack("<HH", handler - REAL_CODE, REAL_CODE >> 4)


def _protected_gate(handler: int) -> bytes:
    low, high = handler & 0xFFFF, handler >> 16
    return struct.pack("<HHBBH", low, x86.CODE32, 0, x86.PRESENT_INTERRUPT_GATE, high)


def _long(_: Any, __: int) -> None:
    """Change nothing."""


def _user(sregs: Any, _: int) -> None:
    for segment in (sregs.ds, sregs.es, sregs.ss):
        x86.flat_segment(segment, x86.USER_DATA, kind=3, long_mode=0)
    x86.flat_segment(sregs.cs, x86.USER_CODE64, kind=11, long_mode=1)


def _compat(sregs: Any, _: int) -> None:
    x86.flat_segment(sregs.cs, x86.CODE32, kind=11, long_mode=0)


def _protected(sregs: Any, vcpu_id: int) -> None:
    _compat(sregs, vcpu_id)
    sregs.cr0 = x86.CR0_PE | x86.CR0_ET | x86.CR0_NE
    sregs.cr3 = sregs.cr4 = sregs.efer = 0
    sregs.idt.base, sregs.idt.limit = PROTECTED_TRAPS, TRAPS * 8 - 1


def _real(sregs: Any, vcpu_id: int) -> None:
    _protected(sregs, vcpu_id)
    sregs.cr0 = x86.CR0_ET | x86.CR0_NE
    _real_segment(sregs.cs, REAL_CODE, kind=11)
    _real_segment(sregs.ss, _top(vcpu_id) - x86.STACK_SIZE)
    for segment in (sregs.ds, sregs.es):
        _real_segment(segment, 0)
    for segment in (sregs.fs, sregs.gs):
        _real_segment(segment, 0, at=segment.base)
    sregs.idt.base, sregs.idt.limit = IVT, TRAPS * 4 - 1


def _real_segment(segment: Any, base: int, kind: int = 3, at: int | None = None) -> None:
    x86.flat_segment(segment, 0, kind, long_mode=0)
    segment.selector, segment.base = base >> 4, base if at is None else at
    segment.limit, segment.db, segment.g = REAL_LIMIT, 0, 0


MODES: dict[str, Mode] = {
    "long": Mode(_long, "Q"),
    "compat": Mode(_compat, "Q"),
    "user": Mode(_user, "Q", rflags=IOPL3),
    "protected": Mode(_protected, "I"),
    "real": Mode(_real, "H", code=REAL_CODE),
    "higher_half": Mode(_long, "Q", code=-x86.HIGHER_HALF),
    "smm": Mode(_real, "H", code=REAL_CODE),
}
"""By the names that the words of the language give them."""
