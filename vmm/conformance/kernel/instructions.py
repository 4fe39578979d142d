"""What each instruction of ``execute`` works with, and where that can be seen afterwards."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vmm import modes, x86
from vmm.conformance.kernel.program import DONE_PORT
from vmm.conformance.kernel.single import Single
from vmm.conformance.language.domains import Instruction
from vmm.msr import Msr

LANDED_PORT = 0xD3
CR4_FSGSBASE, CR4_OSXSAVE = 1 << 16, 1 << 18
U32 = 0xFFFF_FFFF
AREA, AREA_SIZE = 0x20000, 0x1000
"""A page for each vCPU: XSAVES area, and the control word at its end."""
WORD = 0xF00
COMPACT_X87 = 1 << 63 | 1
OTHER = 0x1234_5000
LANDED, COUNTER = -1, -2
"""Stand for the address of ``stub_landed``, and for the MSR of this CPU's counter 0."""


@dataclass(frozen=True, slots=True)
class After:
    """The vCPU when its instruction has ended."""

    single: Single
    regs: Any
    sregs: Any

    def msr(self, index: int) -> int:
        """Return what the MSR holds now."""
        return self.single.vcpu.get_msrs([index]).get(index, 0)

    def word(self) -> int:
        """Return the control word that FNSTCW has written."""
        at = area_of(self.single) + WORD
        return int.from_bytes(self.single.memory.read(at, 2), "little") & ~0x40

    def saved(self) -> int:
        """Return the control word that XSAVES has written, in the form that it alone has."""
        area, memory = area_of(self.single), self.single.memory
        is_compact = int.from_bytes(memory.read(area + 520, 8), "little") == COMPACT_X87
        return int.from_bytes(memory.read(area, 2), "little") & ~0x40 if is_compact else 0


@dataclass(frozen=True, slots=True)
class Effect:
    """How the host sets a value, and how it finds it again: in registers, in MSRs, in memory."""

    found: Callable[[After], int]
    msrs: Callable[[int], dict[int, int]] = lambda _: {}
    regs: Callable[[int], dict[str, int]] = lambda _: {}
    sregs: Callable[[Any, int], None] = lambda _, __: None
    mode: str = "long"
    cr4: int = 0
    port: int = DONE_PORT


def area_of(single: Single) -> int:
    """Return where the vCPU's page is: XSAVES area, and the control word at its end."""
    return AREA + AREA_SIZE * single.vcpu.vcpu_id


def _swapped(after: After) -> int:
    """Return the new GS base, or 0 where KERNEL_GS_BASE does not hold the old one."""
    return int(after.sregs.gs.base) if after.msr(Msr.KERNEL_GS_BASE) == OTHER else 0


def _leaf(after: After) -> int:
    """Return the leaf if CPUID has the signature of KVM there (api.rst: KVM_CPUID_SIGNATURE)."""
    regs = after.regs
    signature = struct.pack("<III", regs.rbx & U32, regs.rcx & U32, regs.rdx & U32)
    return 0x4000_0000 if signature == b"KVMKVMKVM\0\0\0" else int(regs.rbx)


def _set_base(name: str) -> Callable[[Any, int], None]:
    def change(sregs: Any, value: int) -> None:
        getattr(sregs, name).base = value

    return change


def _selector(minus: int) -> Callable[[After], int]:
    return lambda after: (after.sregs.cs.selector & 0xFFFC) - minus


def _sysenter(value: int) -> dict[int, int]:
    return {
        Msr.IA32_SYSENTER_CS: value,
        Msr.IA32_SYSENTER_ESP: x86.STACK,
        Msr.IA32_SYSENTER_EIP: LANDED,
    }


EFFECTS: dict[Instruction, Effect] = {
    "rdtsc": Effect(
        found=lambda after: (after.regs.rdx & U32) >> 16,
        msrs=lambda value: {Msr.IA32_TSC: value << 48},
    ),
    "rdtscp": Effect(
        found=lambda after: int(after.regs.rcx), msrs=lambda value: {Msr.TSC_AUX: value}
    ),
    "rdpid": Effect(
        found=lambda after: int(after.regs.rax), msrs=lambda value: {Msr.TSC_AUX: value}
    ),
    "rdpmc": Effect(
        found=lambda after: after.regs.rax & 0x7FFF_FFFF, msrs=lambda value: {COUNTER: value}
    ),
    "cpuid": Effect(found=_leaf, regs=lambda value: {"rax": value}),
    "syscall": Effect(
        found=_selector(0),
        msrs=lambda value: {
            Msr.STAR: value << 32,
            Msr.LSTAR: LANDED,
            Msr.SYSCALL_MASK: 0,
        },
        port=LANDED_PORT,
    ),
    "sysretq": Effect(
        found=_selector(16),
        msrs=lambda value: {Msr.STAR: value << 48},
        regs=lambda _: {"rcx": LANDED, "r11": 2 | modes.IOPL3},
        port=LANDED_PORT,
    ),
    "sysenter": Effect(found=_selector(0), msrs=_sysenter, mode="protected", port=LANDED_PORT),
    "sysexit": Effect(
        found=_selector(16),
        msrs=lambda value: {Msr.IA32_SYSENTER_CS: value},
        regs=lambda _: {"rdx": LANDED, "rcx": x86.STACK},
        mode="protected",
        port=LANDED_PORT,
    ),
    "swapgs": Effect(
        found=_swapped,
        msrs=lambda value: {Msr.KERNEL_GS_BASE: value},
        sregs=lambda sregs, _: _set_base("gs")(sregs, OTHER),
    ),
    "rdfsbase": Effect(
        found=lambda after: int(after.regs.rax), sregs=_set_base("fs"), cr4=CR4_FSGSBASE
    ),
    "rdgsbase": Effect(
        found=lambda after: int(after.regs.rax), sregs=_set_base("gs"), cr4=CR4_FSGSBASE
    ),
    "wrfsbase": Effect(
        found=lambda after: int(after.sregs.fs.base),
        regs=lambda value: {"rax": value},
        cr4=CR4_FSGSBASE,
    ),
    "wrgsbase": Effect(
        found=lambda after: int(after.sregs.gs.base),
        regs=lambda value: {"rax": value},
        cr4=CR4_FSGSBASE,
    ),
    "xsaves": Effect(found=After.saved, regs=lambda _: {"rax": 1}, cr4=CR4_OSXSAVE),
    "xrstors": Effect(found=After.word, regs=lambda _: {"rax": 1}, cr4=CR4_OSXSAVE),
    "rsm": Effect(found=lambda after: int(after.sregs.fs.base), sregs=_set_base("fs")),
}
"""All of ``Instruction``: what each works with, and where that can be seen afterwards."""
