"""The nested state of a vCPU, as the host saves and restores it (api.rst 4.114, 4.115)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from vmm.memory import GuestMemory
from vmm.nested.area import NESTED_SIZE, Area
from vmm.vcpu import Vcpu

KVM_CAP_NESTED_STATE = 157
GUEST_MODE, RUN_PENDING, GIF_SET = 1, 2, 0x100
"""``KVM_STATE_NESTED_*``: L2 is active, its first instruction is due; SVM lets interrupts in."""
FORMAT_VMX, FORMAT_SVM = 0, 1
HEADER = struct.Struct("<HHIQQ104x")
"""``struct kvm_nested_state`` without its data: flags, format, size, and of VMX two addresses."""
NOWHERE = (1 << 64) - 1
CR4_PGE = 1 << 7


def is_in_l2(state: bytes) -> bool:
    """Say whether L2 was active."""
    flags: int = HEADER.unpack_from(state)[0]
    return flags & GUEST_MODE != 0


def without_l2(state: bytes) -> bytes:
    """Return the state of the same vCPU with L2 gone: SVM and VMX are on as they were."""
    flags, format_, _, vmxon, _ = HEADER.unpack_from(state)
    first = vmxon if format_ == FORMAT_VMX else NOWHERE
    return HEADER.pack(flags & GIF_SET, format_, HEADER.size, first, NOWHERE)


def rebuild_mmu(vcpu: Vcpu) -> None:
    """Have KVM build anew how the vCPU's memory is mapped: a change of CR4, and back again.

    A host that takes a vCPU out of L2 sets its registers besides. Without that, SVM of 5.10 and 6.1
    goes on under L1's old root and maps in L2's: what L1 had not touched faults without end.
    """
    sregs = vcpu.get_sregs()
    for _ in range(2):
        sregs.cr4 ^= CR4_PGE
        vcpu.set_sregs(sregs)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the host saves of a vCPU that may be in L2, and of the memory that is its L1's."""

    nested: bytes
    regs: Any
    sregs: Any
    area: bytes

    @classmethod
    def of(cls, vcpu: Vcpu, memory: GuestMemory) -> Snapshot:
        """Save the vCPU's state; ``KvmError`` where the kernel has no such ioctl."""
        at = Area.of(vcpu.vcpu_id).base
        area = bytes(memory.read(at, NESTED_SIZE))
        return cls(vcpu.get_nested_state(), vcpu.get_regs(), vcpu.get_sregs(), area)

    def restore(self, vcpu: Vcpu, memory: GuestMemory) -> None:
        """Set all of it, the nested state last: registers are L2's by then."""
        memory.write(Area.of(vcpu.vcpu_id).base, self.area)
        vcpu.set_sregs(self.sregs)
        vcpu.set_regs(self.regs)
        vcpu.set_nested_state(self.nested)
        if not is_in_l2(self.nested):
            rebuild_mmu(vcpu)
