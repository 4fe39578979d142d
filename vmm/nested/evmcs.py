"""An enlightened VMCS as bytes: Hyper-V's Top-Level Functional Specification, nested VMX.

It is a structure in L1's memory that stands for the VMCS: no VMREAD, no VMWRITE. A page that L1
shares with its hypervisor says where it lies, and a word in it which of its fields are clean: as
at the last entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmm.kvm import Kvm
from vmm.memory import PAGE, GuestMemory
from vmm.memory import Mapping as Pages
from vmm.nested.area import SEEN, Area, Entry
from vmm.nested.vmx import CONTROLS, TRUE_CONTROLS, msr_bitmap
from vmm.vcpu import Vcpu

KVM_CAP_HYPERV_ENLIGHTENED_VMCS = 163
CPUID_LEAF = 0x4000_000A
"""Whose EAX has, in its lowest byte, the lowest version of the structure; 0 is none (TLFS)."""
VERSION = 1
MSR_VP_ASSIST_PAGE, ASSIST_PAGE_IS_ON = 0x4000_0073, 1
ENLIGHTEN_VMENTRY, CURRENT_NESTED_VMCS = 40, 48
"""In the page that L1 shares: whether it enters by such a structure, and by which."""

SIZE = 0x400
CLEAN_FIELDS, ENLIGHTENMENTS = 824, 836
"""What is clean, and which of Hyper-V's enlightenments L1 uses."""
ENLIGHTENED_MSR_BITMAP = 1 << 1
CLEAN_MSR_BITMAP = 1 << 1
CLEAN_CONTROLS = 1 << 2 | 1 << 3 | 1 << 4
"""The groups of the controls. KVM takes a bitmap for clean only where they are so too."""
INSTRUCTION_ERROR, EXIT_REASON, QUALIFICATION, GUEST_RIP = 688, 692, 720, 816

RUNS = (
    *((0x0C00, 7, 8, 2), (0x2C00, 2, 24, 8), (0x6C00, 3, 40, 8), (0x6C10, 2, 64, 8)),
    *((0x6C16, 1, 80, 8), (0x4C00, 1, 88, 4), (0x4000, 1, 92, 4), (0x400C, 1, 96, 4)),
    *((0x2004, 1, 120, 8), (0x0800, 8, 128, 2), (0x4800, 10, 144, 4), (0x4814, 8, 184, 4)),
    *((0x6806, 10, 216, 8), (0x2006, 3, 320, 8), (0x4006, 3, 376, 4), (0x400E, 2, 388, 4)),
    *((0x4014, 1, 396, 4), (0x2010, 1, 400, 8), (0x2800, 4, 416, 8), (0x6822, 3, 480, 8)),
    *((0x4826, 1, 504, 4), (0x482A, 1, 508, 4), (0x6000, 4, 512, 8), (0x6800, 3, 544, 8)),
    *((0x681A, 1, 568, 8), (0x6C06, 5, 576, 8), (0x6C14, 1, 616, 8), (0x681C, 1, 768, 8)),
    *((0x6820, 1, 776, 8), (0x4824, 1, 784, 4), (0x4002, 1, 788, 4), (0x4004, 1, 792, 4)),
    *((0x4012, 1, 796, 4), (0x4016, 3, 800, 4), (0x681E, 1, 816, 8), (0x2808, 1, 904, 8)),
    (0x2C04, 1, 976, 8),
)
"""Which fields follow one another there: the first one's number, how many, where, and their size.

A field's number is its VMCS encoding, and the next one's is 2 more.
"""
PLACES = {
    first + 2 * number: (at + size * number, size)
    for first, count, at, size in RUNS
    for number in range(count)
}
"""Where each field lies, and its size."""
_OF_CONTROLS = (0x4000, 0x400C, 0x2010, 0x4002)
"""What is written of those groups."""
_PERF_GLOBAL_CTRL = {2: 12, 3: 13}
"""Its bit in the controls for exit and for entry; another bit of CPUID would offer it."""


def is_offered(kvm: Kvm, vcpu: Vcpu) -> bool:
    """Say whether the vCPU's CPUID offers its guest such structures, and KVM can take them."""
    if not kvm.check_extension(KVM_CAP_HYPERV_ENLIGHTENED_VMCS):
        return False
    cpuid = vcpu.get_cpuid2()
    entries = cpuid.entries[0 : cpuid.nent]
    return any(each.function == CPUID_LEAF and each.eax & 0xFF for each in entries)


def start(vcpu: Vcpu, memory: GuestMemory) -> None:
    """Have KVM take such structures from the vCPU; ``KvmError`` where it does not.

    No entry has been by one yet.
    """
    with Pages(PAGE) as versions:  # which KVM can take; there is one so far
        vcpu.enable_cap(KVM_CAP_HYPERV_ENLIGHTENED_VMCS, versions.address)
    area = Area.of(vcpu.vcpu_id)
    memory.write(area.assist, bytes(PAGE))
    memory.write(area.assist + CURRENT_NESTED_VMCS, area.evmcs.to_bytes(8, "little"))
    vcpu.set_msrs({MSR_VP_ASSIST_PAGE: area.assist | ASSIST_PAGE_IS_ON})


def capabilities(of_vmcs: Mapping[int, int]) -> dict[int, int]:
    """Return the control MSRs as such a structure has them, of those for a VMCS."""
    found = dict(of_vmcs)
    for number, bit in _PERF_GLOBAL_CTRL.items():
        for index in (CONTROLS[number], TRUE_CONTROLS[number]):
            found[index] = found.get(index, 0) & ~(1 << 32 + bit)
    return found


def image(entry: Entry, table: Mapping[int, int], before: bytes) -> bytes:
    """Return the structure with the fields of ``table``; ``before`` is that of the last entry."""
    made = bytearray(SIZE)

    def put(at: int, size: int, value: int) -> None:
        made[at : at + size] = value.to_bytes(size, "little")

    put(0, 4, VERSION)
    for field, value in table.items():
        put(*PLACES[field], value)
    put(ENLIGHTENMENTS, 4, ENLIGHTENED_MSR_BITMAP)
    is_same = all(made[at] == before[at] for at in _bytes_of(_OF_CONTROLS))
    put(CLEAN_FIELDS, 4, CLEAN_MSR_BITMAP * entry.clean | CLEAN_CONTROLS * is_same)
    return bytes(made)


def _bytes_of(fields: tuple[int, ...]) -> Iterator[int]:
    for field in fields:
        at, size = PLACES[field]
        yield from range(at, at + size)


def write(memory: GuestMemory, entry: Entry, table: Mapping[int, int]) -> bool:
    """Write what L1's stub copies into its structure; return whether it had entered by it last.

    The stub copies because KVM writes the structure too, of a vCPU that was restored even before
    L1 runs.
    """
    area = Area.of(entry.vcpu_id)
    memory.write(area.bitmap, msr_bitmap(entry.passes))
    memory.write(area.seen, bytes(SEEN.size))
    memory.write(area.fields, image(entry, table, memory.read(area.evmcs, SIZE)))
    has_entered = memory.read(area.assist + ENLIGHTEN_VMENTRY, 1) != b"\0"
    memory.write(area.assist + ENLIGHTEN_VMENTRY, b"\1")
    return has_entered


def forget(memory: GuestMemory, vcpu_id: int) -> None:
    """Have the next entry be as a first one."""
    memory.write(Area.of(vcpu_id).assist + ENLIGHTEN_VMENTRY, b"\0")
