"""The memory of a vCPU that is an L1, and what L2 it is to enter, in the words of both vendors."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from vmm import x86
from vmm.memory import GuestMemory

NESTED, NESTED_SIZE = 0x60000, 0x8000
MAX_LIST = 32
"""The most MSRs of a list: what there is room for."""
LIST_SIZE = MAX_LIST * 16
L2_PORT, L1_PORT, L1_FAILED_PORT = 0xD8, 0xD9, 0xDA

SEEN = struct.Struct("<7Q")
"""RAX, RCX, RDX of L2, reason, info and RIP of its exit; whether L1 loads fields (SVM)."""
READ, WRITE = 0, 1

Passed = frozenset[tuple[int, int]]
"""MSR indices, each with READ or WRITE."""


@dataclass(frozen=True, slots=True)
class Area:
    """Where in a vCPU's nested area what lies, by guest-physical address."""

    base: int

    @classmethod
    def of(cls, vcpu_id: int) -> Area:
        """Return the area of the vCPU."""
        return cls(NESTED + NESTED_SIZE * vcpu_id)

    @property
    def control(self) -> int:
        """The VMCB, or the VMCS."""
        return self.base

    @property
    def host(self) -> int:
        """SVM's host save area, or the VMXON region."""
        return self.base + 0x1000

    @property
    def bitmap(self) -> int:
        """The MSR bitmap: two pages on SVM, one on VMX."""
        return self.base + 0x2000

    @property
    def fields(self) -> int:
        """VMX: fields and values to write, up to a field 0; or an enlightened VMCS."""
        return self.base + 0x4000

    @property
    def lists(self) -> tuple[int, int, int]:
        """VMX: the lists for entry load, exit store and exit load."""
        first = self.base + 0x5000
        return first, first + LIST_SIZE, first + 2 * LIST_SIZE

    @property
    def pointers(self) -> int:
        """VMX: the addresses of VMCS, VMXON region and enlightened VMCS, as operands."""
        return self.base + 0x5800

    @property
    def seen(self) -> int:
        """What L1 leaves of an exit: ``SEEN``."""
        return self.base + 0x5F00

    @property
    def evmcs(self) -> int:
        """VMX: the enlightened VMCS, which L1's stub copies from ``fields``."""
        return self.base + 0x6000

    @property
    def assist(self) -> int:
        """VMX: the page that a Hyper-V guest shares with its hypervisor."""
        return self.base + 0x7000


@dataclass(frozen=True, slots=True)
class Entry:
    """An L2 to enter: where it starts, which MSRs L1 lets pass, which it has switched.

    ``passes`` None is every MSR that the bitmap has a bit for. Without a ``bitmap`` L1 intercepts
    no MSR at all (SVM) or every one (VMX). A list is of (index, value). ``fields`` has what else
    can be switched of MSRs by the VMCB or VMCS switched too. With ``clean`` L1 says that the bitmap
    is as at the last entry, where KVM asks it: on VMX by an enlightened VMCS.
    """

    rip: int
    rsp: int
    vcpu_id: int
    passes: Passed | None = None
    bitmap: bool = True
    entry_load: tuple[tuple[int, int], ...] = ()
    exit_store: tuple[tuple[int, int], ...] = ()
    exit_load: tuple[tuple[int, int], ...] = ()
    fields: bool = False
    clean: bool = False

    @property
    def has_lists(self) -> bool:
        """Whether L1 has any list for it."""
        return bool(self.entry_load or self.exit_store or self.exit_load)


@dataclass(frozen=True, slots=True)
class Left:
    """What L1 got of an exit: the vendor's number for it and its info, and L2's registers."""

    reason: int
    info: int
    rip: int
    rax: int
    rcx: int
    rdx: int


def write_list(memory: GuestMemory, at: int, msrs: Iterable[tuple[int, int]]) -> None:
    """Write a list of MSRs as VMX has it."""
    memory.write(at, b"".join(struct.pack("<IIQ", index, 0, value) for index, value in msrs))


def read_list(memory: GuestMemory, at: int, count: int) -> tuple[int, ...]:
    """Return the values of the first ``count`` MSRs of a list."""
    return tuple(value for _, _, value in struct.iter_unpack("<IIQ", memory.read(at, 16 * count)))


def task_of(vcpu_id: int) -> int:
    """Return the base of the vCPU's TSS, which L1 and L2 share."""
    return x86.TSS + x86.TSS_SIZE * vcpu_id
