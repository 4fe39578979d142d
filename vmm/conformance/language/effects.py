"""The word for an instruction that uses MSRs as a side effect, and its event (R35)."""

from __future__ import annotations

from dataclasses import dataclass

from vmm.bits import u64
from vmm.conformance.language.domains import Instruction, VcpuId
from vmm.conformance.language.word import Word

_BASE, _SELECTOR, _CONTROL = 0x7FFF_FFFF_FFFF, 0x7FF8, 0xF3F
CARRIED: dict[Instruction, int] = {
    "rdtsc": 0x7FFF,
    "rdtscp": 0xFFFF_FFFF,
    "rdpid": 0xFFFF_FFFF,
    "rdpmc": 0x7FFF_FFFF,
    "cpuid": 0x4000_0000,
    "syscall": _SELECTOR,
    "sysretq": _SELECTOR,
    "sysenter": _SELECTOR,
    "sysexit": _SELECTOR,
    "swapgs": _BASE,
    "rdfsbase": _BASE,
    "rdgsbase": _BASE,
    "wrfsbase": _BASE,
    "wrgsbase": _BASE,
    "xsaves": _CONTROL,
    "xrstors": _CONTROL,
    "rsm": _BASE,
}
"""The bits of a value that can be told by what each instruction does."""

EMULATED: tuple[Instruction, ...] = (
    *("rdtsc", "rdpid", "rdpmc", "cpuid", "syscall", "sysenter", "sysexit"),
)
"""What KVM's emulator can execute of these, beside RSM, which it always executes."""


@dataclass(frozen=True, slots=True, repr=False)
class Execute(Word):
    """The guest executes an instruction that uses MSRs, though it is neither RDMSR nor WRMSR (R35).

    What it works with holds ``value``: TSC_AUX, the selector in STAR or SYSENTER_CS, the base, the
    upper 16 bits of the TSC, the FPU's control word, the leaf of CPUID. The host has put it there,
    and puts back afterwards what there was. ``emulated`` as for an access. ValueError for a value
    that the instruction cannot show, or where the emulator does not have it.
    """

    positional = 2
    instruction: Instruction
    value: u64
    emulated: bool = False
    vcpu: VcpuId = 0

    def __post_init__(self) -> None:
        """Refuse what would prove nothing."""
        carried = CARRIED[self.instruction]
        if not 0 < self.value <= carried or self.value & ~carried:
            raise ValueError(f"{self.instruction} shows no {self.value:#x}, but bits {carried:#x}")
        if self.emulated and self.instruction not in EMULATED:
            raise ValueError(f"KVM's emulator has no {self.instruction}")


@dataclass(frozen=True, slots=True, repr=False)
class Executed(Word):
    """The instruction was executed, nothing exited, and it did what it does with ``value``."""

    value: u64


execute, executed = Execute, Executed
