"""The structs of KVM's ioctls that are more than their fields: with a tail, or packed by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from vmm._native import ffi
from vmm.ioctl import fits, struct_of

KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE = 0xC080AEBE, 0x4080AEBF
NESTED_STATE = struct.Struct("<HHI")
"""The head of ``struct kvm_nested_state``: flags, format, size."""
MOST_NESTED_STATE = 0x80 + 0x2000
"""Its 128 bytes, and a VMCS with its shadow; a VMCB is smaller."""
MAX_CPUID_ENTRIES = 512
NO_LEAF = 0xFFFF_FFFF
ONE_REG_MSR = 0x2030_0002_0000_0000
"""``KVM_X86_REG_MSR(0)``: KVM_REG_X86, 64 bits, the type of MSRs; older headers do not have it."""


def msr_table(values: dict[int, int]) -> Any:
    """Return ``struct kvm_msrs`` with these indices and values, in order."""
    if not isinstance(values, dict):
        raise TypeError(f"MSRs are a dict of index and value, not {values!r}")
    for index, data in values.items():
        fits("an MSR's index", index, 32), fits("an MSR's value", data, 64)
    msrs = ffi.new("struct kvm_msrs *", {"entries": len(values)})
    msrs.nmsrs = len(values)
    for entry, (index, data) in zip(msrs.entries[0 : len(values)], values.items(), strict=True):
        entry.index, entry.data = index, data
    return msrs


def msr_register(index: int, value: Any) -> Any:
    """Return ``struct kvm_one_reg`` of an MSR, whose value is where ``value`` points."""
    register = ffi.new("struct kvm_one_reg *")
    register.id = ONE_REG_MSR | fits("index", index, 32)
    register.addr = int(ffi.cast("uintptr_t", value))
    return register


def nested_state_room() -> Any:
    """Return memory for ``struct kvm_nested_state`` with the most data that it can have."""
    room = ffi.new("uint8_t[]", MOST_NESTED_STATE)
    ffi.buffer(room, NESTED_STATE.size)[:] = NESTED_STATE.pack(0, 0, MOST_NESTED_STATE)
    return room


def nested_state_in(room: Any) -> bytes:
    """Return what the kernel put there, and no more."""
    size: int = NESTED_STATE.unpack(ffi.buffer(room, NESTED_STATE.size)[:])[2]
    return bytes(ffi.buffer(room, size))


def nested_state(state: bytes) -> Any:
    """Return ``struct kvm_nested_state`` with its data, of what was saved."""
    if not isinstance(state, bytes):
        raise TypeError(f"KVM_SET_NESTED_STATE: takes bytes, not {state!r}")
    return ffi.new("uint8_t[]", state.ljust(0x80, b"\0"))


def cpuid_room() -> Any:
    """Return ``struct kvm_cpuid2`` with as many entries as any host fills, none of them a leaf."""
    cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": MAX_CPUID_ENTRIES})
    size = ffi.sizeof(cpuid[0])
    ffi.buffer(cpuid, size)[:] = b"\xff" * size
    cpuid.nent = MAX_CPUID_ENTRIES
    return cpuid


def cut_cpuid(cpuid: Any) -> Any:
    """Return it with ``nent`` as the kernel filled it in: some leave the number as it was asked."""
    free = (at for at in range(cpuid.nent) if cpuid.entries[at].function == NO_LEAF)
    cpuid.nent = next(free, cpuid.nent)
    return cpuid


def whole_cpuid(cpuid: Any) -> Any:
    """Return it; ``TypeError`` if it is none, ``ValueError`` if it has less than it says."""
    struct_of("struct kvm_cpuid2", cpuid, "KVM_SET_CPUID2")
    room = ffi.sizeof(cpuid[0]) - ffi.sizeof("struct kvm_cpuid2")
    if cpuid.nent * ffi.sizeof("struct kvm_cpuid_entry2") > room:
        raise ValueError(f"KVM_SET_CPUID2: nent is {cpuid.nent}, more than it has entries")
    return cpuid


def signal_mask(blocked: Iterable[int]) -> Any:
    """Return ``struct kvm_signal_mask`` of exactly these signals."""
    numbers = set(blocked)
    if not numbers <= set(range(1, 65)):
        raise ValueError(f"set_signal_mask: signals are 1 to 64, not {numbers}")
    bits = sum(1 << (number - 1) for number in numbers)
    return ffi.new("uint8_t[]", (8).to_bytes(4, "little") + bits.to_bytes(8, "little"))
