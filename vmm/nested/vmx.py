"""A VMCS as fields and values: Intel's Software Developer's Manual, volume 3, appendix B."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from vmm import x86
from vmm.memory import GuestMemory
from vmm.nested.area import SEEN, Area, Entry, Left, Passed, task_of, write_list

CPUID_LEAF, CPUID_REGISTER, CPUID_BIT = 1, "ecx", 5
CR4_VMXE = 1 << 13
MSR_FEAT_CTL, FEAT_CTL_VMX = 0x3A, 0b101
"""Locked, with VMX outside of SMX."""

BASIC = 0x480
CONTROLS = 0x481, 0x482, 0x483, 0x484
TRUE_CONTROLS = 0x48D, 0x48E, 0x48F, 0x490
"""The MSRs with the required (low half) and possible controls: pin, processor, exit, entry."""
CAPABILITIES = (BASIC, *CONTROLS, *TRUE_CONTROLS)

USE_MSR_BITMAPS = 1 << 28
EXIT_64, ENTRY_64 = 1 << 9, 1 << 9
EXIT_FIELDS = 1 << 2 | 1 << 12 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21
"""Save DEBUGCTL; load PERF_GLOBAL_CTRL; save and load PAT; save and load EFER."""
ENTRY_FIELDS = 1 << 2 | 1 << 13 | 1 << 14 | 1 << 15
"""Load DEBUGCTL, PERF_GLOBAL_CTRL, PAT, EFER."""

REASON_TRIPLE_FAULT, REASON_VMCALL, REASON_RDMSR, REASON_WRMSR = 2, 18, 31, 32
REASONS_VMX = range(19, 28)
"""VMCLEAR to VMXON: the instructions of an L2 that would be an L1 itself."""
REASON_BAD_STATE, REASON_MSR_LOAD = 33, 34
FAILED_ENTRY = 1 << 31

SPANS = ((0, 0x000), (0xC000_0000, 0x400))
"""The MSRs that have a bit in the bitmap: from where on 0x2000 of them, and their first byte."""
_WRITES = 0x800

_CODE, _DATA, _TSS, _UNUSABLE = 0xA09B, 0xC093, 0x8B, 0x10000
_NO_LINK = (1 << 64) - 1


def msr_bitmap(passes: Passed | None) -> bytes:
    """Return the bitmap: the reads of the low and the high MSRs, then the writes of both."""
    if passes is None:
        return bytes(0x1000)
    bits = bytearray(b"\xff" * 0x1000)
    for index, kind in passes:
        first, byte = next(span for span in SPANS if span[0] <= index < span[0] + 0x2000)
        bits[byte + kind * _WRITES + (index - first) // 8] &= ~(1 << (index - first) % 8)
    return bytes(bits)


def fields(
    entry: Entry, area: Area, host_rip: int, capabilities: Mapping[int, int]
) -> dict[int, int]:
    """Return all fields: L2 in L1's map with its tables, L1 as it was but at ``host_rip``."""
    return {
        **_controls(entry, area, capabilities),
        **_segments(entry.vcpu_id),
        **_guest(entry),
        **_host(entry.vcpu_id, area, host_rip),
    }


def _controls(entry: Entry, area: Area, capabilities: Mapping[int, int]) -> dict[int, int]:
    has_true = capabilities[BASIC] >> 55 & 1
    pin, processor, leave, enter = (
        capabilities[each] for each in (TRUE_CONTROLS if has_true else CONTROLS)
    )
    if entry.fields:
        leave |= EXIT_FIELDS & leave >> 32
        enter |= ENTRY_FIELDS & enter >> 32
    low = 0xFFFFFFFF
    load, store, back = area.lists
    return {
        0x4000: pin & low,
        0x4002: (processor & low) | USE_MSR_BITMAPS * entry.bitmap,
        0x400C: (leave & low) | EXIT_64,
        0x4012: (enter & low) | ENTRY_64,
        **dict.fromkeys((0x4004, 0x4006, 0x4008, 0x400A, 0x4016, 0x4018, 0x401A), 0),
        **dict.fromkeys((0x6000, 0x6002), 0),
        **{0x6004: x86.CR0, 0x6006: x86.CR4 | CR4_VMXE, 0x2010: 0},
        0x2004: area.bitmap if entry.bitmap else 0,
        **{0x200A: load, 0x2006: store, 0x2008: back},
        **{0x4014: len(entry.entry_load), 0x400E: len(entry.exit_store)},
        0x4010: len(entry.exit_load),
    }


def _segments(vcpu_id: int) -> dict[int, int]:
    data = x86.DATA, 0xFFFFFFFF, _DATA, 0
    rows = (
        data,
        (x86.CODE64, 0xFFFFFFFF, _CODE, 0),
        *(data, data, data, data),
        (0, 0, _UNUSABLE, 0),
        (x86.TASK, x86.TSS_LIMIT, _TSS, task_of(vcpu_id)),
    )
    found: dict[int, int] = {}
    for number, (selector, limit, rights, base) in enumerate(rows):
        at = 2 * number
        found |= {0x800 + at: selector, 0x4800 + at: limit, 0x4814 + at: rights, 0x6806 + at: base}
    return found


def _guest(entry: Entry) -> dict[int, int]:
    return {
        **{0x4810: x86.GDT_LIMIT, 0x4812: x86.IDT_LIMIT, 0x6816: x86.GDT, 0x6818: x86.IDT},
        **dict.fromkeys((0x4824, 0x4826, 0x482A, 0x6822, 0x6824, 0x6826), 0),
        **{0x2800: _NO_LINK, 0x2802: 0, 0x2804: x86.PAT, 0x2806: x86.EFER, 0x2808: 0},
        **{0x6800: x86.CR0, 0x6802: x86.PML4, 0x6804: x86.CR4 | CR4_VMXE, 0x681A: 0x400},
        **{0x681C: entry.rsp, 0x681E: entry.rip, 0x6820: x86.RFLAGS_FIXED},
    }


def _host(vcpu_id: int, area: Area, rip: int) -> dict[int, int]:
    return {
        **dict.fromkeys((0xC00, 0xC04, 0xC06, 0xC08, 0xC0A), x86.DATA),
        **{0xC02: x86.CODE64, 0xC0C: x86.TASK},
        **{0x2C00: x86.PAT, 0x2C02: x86.EFER, 0x2C04: 0},
        **dict.fromkeys((0x4C00, 0x6C06, 0x6C08, 0x6C10, 0x6C12), 0),
        **{0x6C00: x86.CR0, 0x6C02: x86.PML4, 0x6C04: x86.CR4 | CR4_VMXE},
        **{0x6C0A: task_of(vcpu_id), 0x6C0C: x86.GDT, 0x6C0E: x86.IDT},
        **{0x6C14: area.seen, 0x6C16: rip},
    }


LEFT_OTHERWISE = (0x681C, 0x681E, 0x6820, 0x6822, 0x681A, 0x4824, 0x4826, 0x4016)
"""What each exit changes and the next entry must not find so: RSP, RIP, RFLAGS, pending events."""


def write(
    memory: GuestMemory, entry: Entry, table: Mapping[int, int], before: Mapping[int, int]
) -> None:
    """Write all that L1's ``l1_vmx`` needs to enter L2: of the fields, those not as ``before``.

    ``table`` are all ``fields``. A VMWRITE is an exit of L1: a hundred of them make an entry dear.
    """
    area = Area.of(entry.vcpu_id)
    changed = {
        field: value
        for field, value in table.items()
        if field in LEFT_OTHERWISE or before.get(field) != value
    }
    words = [each for pair in changed.items() for each in pair]
    memory.write(area.bitmap, msr_bitmap(entry.passes))
    memory.write(area.fields, struct.pack(f"<{len(words) + 1}Q", *words, 0))
    for at, msrs in zip(
        area.lists, (entry.entry_load, entry.exit_store, entry.exit_load), strict=True
    ):
        write_list(memory, at, msrs)
    memory.write(area.seen, bytes(SEEN.size))


def left(memory: GuestMemory, vcpu_id: int) -> Left:
    """Return what L1 got, after its write to ``L1_PORT`` or ``L1_FAILED_PORT``."""
    seen = SEEN.unpack(memory.read(Area.of(vcpu_id).seen, SEEN.size))
    rax, rcx, rdx, reason, info, rip, _ = seen
    return Left(reason, info, rip, rax, rcx, rdx)


def has_bit(index: int) -> bool:
    """Say whether the bitmap has bits for MSR ``index``."""
    return any(first <= index < first + 0x2000 for first, _ in SPANS)


def start(memory: GuestMemory, vcpu_id: int, capabilities: Mapping[int, int]) -> None:
    """Write the revision of VMCS and VMXON region, which are what they are from then on."""
    area = Area.of(vcpu_id)
    memory.write(area.pointers, struct.pack("<3Q", area.control, area.host, area.evmcs))
    for region in (area.control, area.host):
        memory.write(region, struct.pack("<I", capabilities[BASIC] & 0x7FFFFFFF))
