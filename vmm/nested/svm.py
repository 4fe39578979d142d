"""A VMCB as bytes: AMD's Architecture Programmer's Manual, volume 2, appendix B."""

from __future__ import annotations

import struct

from vmm import x86
from vmm.memory import GuestMemory
from vmm.nested.area import SEEN, Area, Entry, Left, Passed, task_of

CPUID_LEAF, CPUID_REGISTER, CPUID_BIT = 0x80000001, "ecx", 2
EFER_SVME = 1 << 12
MSR_VM_HSAVE_PA = 0xC0010117

INTERCEPT_MSR_PROT, INTERCEPT_SHUTDOWN = 1 << 28, 1 << 31
INTERCEPT_VMRUN, INTERCEPT_VMMCALL = 1 << 0, 1 << 1
EXIT_MSR, EXIT_VMRUN, EXIT_VMMCALL, EXIT_SHUTDOWN = 0x7C, 0x80, 0x81, 0x7F
EXIT_INVALID = (1 << 64) - 1

CLEAN_ENLIGHTENMENTS = 1 << 31
"""The clean bit that AMD leaves to software: Hyper-V's controls are as at the last entry (TLFS)."""
ENLIGHTENED_MSR_BITMAP = 1 << 1
"""Of Hyper-V's controls in the bytes of a VMCB that are software's: the clean bit says MSRs too."""

MSRPM_SIZE = 0x2000
SPANS = ((0, 0x0000), (0xC000_0000, 0x0800), (0xC001_0000, 0x1000))
"""The MSRs that have bits in the bitmap: from where on 0x2000 of them, and their first byte."""

_EXIT_CODE, _EXIT_INFO_1 = 0x70, 0x78
_RIP, _RAX = 0x578, 0x5F8
_CODE, _DATA, _TSS, _LDT = 0xA9B, 0xC93, 0x8B, 0x82


def msrpm(passes: Passed | None) -> bytes:
    """Return the bitmap: two bits an MSR, the lower one its reads, set where L1 intercepts."""
    if passes is None:
        return bytes(MSRPM_SIZE)
    bits = bytearray(b"\xff" * MSRPM_SIZE)
    for index, kind in passes:
        first, byte = next(span for span in SPANS if span[0] <= index < span[0] + 0x2000)
        bit = 2 * (index - first) + kind
        bits[byte + bit // 8] &= ~(1 << bit % 8)
    return bytes(bits)


def vmcb(entry: Entry, area: Area) -> bytes:
    """Return the VMCB: 64-bit CPL0 in the map and with the tables of ``vmm.x86``."""
    image = bytearray(0x1000)

    def put(at: int, value: int, size: int = 8) -> None:
        image[at : at + size] = value.to_bytes(size, "little")

    def segment(at: int, selector: int, attributes: int, limit: int, base: int = 0) -> None:
        struct.pack_into("<HHIQ", image, at, selector, attributes, limit, base)

    put(0x0C, INTERCEPT_SHUTDOWN | INTERCEPT_MSR_PROT * entry.bitmap, 4)
    put(0x10, INTERCEPT_VMRUN | INTERCEPT_VMMCALL, 4)
    put(0x48, area.bitmap)
    put(0x58, 1, 4)  # the ASID: 0 is the host's
    put(0xC0, CLEAN_ENLIGHTENMENTS * entry.clean, 4)
    put(0x3E0, ENLIGHTENED_MSR_BITMAP * entry.clean, 4)
    for at in (0x400, 0x420, 0x430, 0x440, 0x450):
        segment(at, x86.DATA, _DATA, 0xFFFFFFFF)
    segment(0x410, x86.CODE64, _CODE, 0xFFFFFFFF)
    segment(0x460, 0, 0, x86.GDT_LIMIT, x86.GDT)
    segment(0x470, 0, _LDT, 0)
    segment(0x480, 0, 0, x86.IDT_LIMIT, x86.IDT)
    segment(0x490, x86.TASK, _TSS, x86.TSS_LIMIT, task_of(entry.vcpu_id))
    state = {
        **{0x4D0: x86.EFER | EFER_SVME, 0x548: x86.CR4, 0x550: x86.PML4, 0x558: x86.CR0},
        **{0x560: 0x400, 0x568: 0xFFFF0FF0},  # DR7, DR6
        **{0x570: x86.RFLAGS_FIXED, _RIP: entry.rip, 0x5D8: entry.rsp, 0x668: x86.PAT},
    }
    for at, value in state.items():
        put(at, value)
    return bytes(image)


def write(memory: GuestMemory, entry: Entry) -> None:
    """Write all that L1's ``l1_svm`` needs to enter L2."""
    area = Area.of(entry.vcpu_id)
    memory.write(area.control, vmcb(entry, area))
    memory.write(area.bitmap, msrpm(entry.passes))
    memory.write(area.seen, SEEN.pack(0, 0, 0, 0, 0, 0, entry.fields))


def left(memory: GuestMemory, vcpu_id: int) -> Left:
    """Return what L1 got, after its write to ``L1_PORT``."""
    area = Area.of(vcpu_id)
    _, rcx, rdx, *_ = SEEN.unpack(memory.read(area.seen, SEEN.size))

    def field(at: int) -> int:
        return int.from_bytes(memory.read(area.control + at, 8), "little")

    return Left(field(_EXIT_CODE), field(_EXIT_INFO_1), field(_RIP), field(_RAX), rcx, rdx)


def has_bit(index: int) -> bool:
    """Say whether the bitmap has bits for MSR ``index``."""
    return any(first <= index < first + 0x2000 for first, _ in SPANS)
