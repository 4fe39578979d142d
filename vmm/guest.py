"""A guest image, built from ``guests/`` and carried by the package: load it, boot a vCPU in it."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from pathlib import Path

from vmm import modes, x86
from vmm._native import ffi
from vmm.ioctl import fits
from vmm.kvm import Vm
from vmm.memory import GuestMemory
from vmm.vcpu import Vcpu

IMAGES = Path(__file__).parent / "guests"
ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
PT_LOAD, SHT_SYMTAB = 1, 2
MP_STATE_RUNNABLE = 0


@dataclass(frozen=True)
class Guest:
    """The bytes of an image, where they go, its entry, and the addresses of its symbols."""

    name: str
    base: int
    code: bytes
    entry: int
    symbols: dict[str, int]

    @classmethod
    @functools.cache
    def load(cls, name: str) -> Guest:
        """Return the packaged guest ``name``; FileNotFoundError names it when there is none."""
        path = IMAGES / f"{name}.elf"
        if not path.exists():
            known = ", ".join(sorted(each.stem for each in IMAGES.glob("*.elf")))
            raise FileNotFoundError(f"no guest {name!r}: there are {known or 'none'}")
        return _parse(name, path.read_bytes())

    def prepare(self, vm: Vm) -> GuestMemory:
        """Return 2 MiB of new guest memory with the image and the tables it runs on."""
        _must_be_vm(vm)
        memory = vm.add_memory(0, x86.MEMORY_SIZE)
        x86.write_tables(memory, self.symbols.get("vectors", 0))
        memory.write(self.base, self.code)
        if "traps" in self.symbols:
            modes.write_traps(memory, self.symbols["traps"])
            memory.write(modes.SMM_ENTRY, self._between("smm_entry", "smm_entry_end"))
        return memory

    def _between(self, start: str, end: str) -> bytes:
        return self.code[self.symbols[start] - self.base : self.symbols[end] - self.base]

    def boot(self, vm: Vm, vcpu_id: int = 0, **registers: int) -> Vcpu:
        """Return a vCPU at the image's entry in 64-bit mode, ``registers`` (rcx=...) as given.

        The first boot of a VM gives it memory; all supported CPUID bits are the guest's.
        """
        _must_be_vm(vm)
        if not 0 <= vcpu_id < x86.MAX_VCPUS:
            raise ValueError(f"vcpu_id must be 0 to {x86.MAX_VCPUS - 1}, not {vcpu_id}")
        start = start_registers(self.entry, vcpu_id, **registers)
        memory = vm.memories[0] if vm.memories else self.prepare(vm)
        x86.write_task(memory, vcpu_id)
        vcpu = vm.create_vcpu(vcpu_id)
        vcpu.set_cpuid2(_cpuid(vm))
        sregs = vcpu.get_sregs()
        x86.enter_long_mode(sregs, vcpu_id)
        vcpu.set_sregs(sregs)
        # Behind an in-kernel APIC every vCPU but the first waits for a SIPI otherwise.
        vcpu.set_mp_state(MP_STATE_RUNNABLE)
        vcpu.set_regs(start)
        return vcpu


def _must_be_vm(vm: object) -> None:
    if not isinstance(vm, Vm):
        raise TypeError(f"vm must be a Vm, not {vm!r}")


def start_registers(entry: int, vcpu_id: int, **registers: int) -> object:
    """Return ``struct kvm_regs``: RIP at ``entry``, RSP at the vCPU's program, the rest 0."""
    values = {"rip": entry, "rsp": x86.program_of(vcpu_id), "rflags": x86.RFLAGS_FIXED}
    for name, value in registers.items():
        if name not in dict(ffi.typeof("struct kvm_regs").fields):
            raise ValueError(f"no register {name!r}: struct kvm_regs has none of that name")
        fits(name, value, 64)
    return ffi.new("struct kvm_regs *", {**values, **registers})


def _cpuid(vm: Vm) -> object:
    if vm.kvm.supported_cpuid is None:
        vm.kvm.supported_cpuid = vm.kvm.get_supported_cpuid()
    return vm.kvm.supported_cpuid


def _parse(name: str, image: bytes) -> Guest:
    header = ELF_HEADER.unpack_from(image)
    entry, phoff, shoff, phnum, shnum = header[4], header[5], header[6], header[10], header[12]
    loads = [PROGRAM_HEADER.unpack_from(image, phoff + 56 * each) for each in range(phnum)]
    _, _, offset, base, _, size, _, _ = next(load for load in loads if load[0] == PT_LOAD)
    sections = [SECTION_HEADER.unpack_from(image, shoff + 64 * each) for each in range(shnum)]
    return Guest(name, base, image[offset : offset + size], entry, _symbols(image, sections))


def _symbols(image: bytes, sections: list[tuple[int, ...]]) -> dict[str, int]:
    table = next(section for section in sections if section[1] == SHT_SYMTAB)
    names = sections[table[6]][4]
    symbols = {}
    for at in range(table[4], table[4] + table[5], SYMBOL.size):
        name, _, _, _, value, _ = SYMBOL.unpack_from(image, at)
        start = names + name
        symbols[image[start : image.index(b"\0", start)].decode()] = value
    return symbols
