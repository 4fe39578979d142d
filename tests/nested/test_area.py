"""L2 as data: the stubs and the host agree where things lie, and a bitmap says what is meant."""

import itertools
import re
import struct
from pathlib import Path

import pytest

from vmm import x86
from vmm.memory import GuestMemory
from vmm.nested import area, svm, vmx
from vmm.nested.area import READ, WRITE, Area, Entry

GUESTS = Path(__file__).parent.parent.parent / "guests"
HEADERS = Path("/usr/include/x86_64-linux-gnu/asm"), Path("/usr/include/asm")
ENTRY = Entry(rip=0x10010, rsp=0x100000, vcpu_id=1, passes=frozenset({(0x174, READ)}))


def defined(text: str) -> dict[str, int]:
    found = re.findall(r"^#define\s+(\w+)\s+\(?(0x[0-9a-fA-F]+|\d+)\)?\s*(?:/\*.*)?$", text, re.M)
    return {name: int(value, 0) for name, value in found}


ABI = defined((GUESTS / "abi.inc").read_text())


def test_guest_and_host_agree_on_ports_and_offsets():
    here = Area(0)
    assert (*(ABI["L2_PORT"], ABI["L1_PORT"], ABI["L1_FAILED_PORT"]),) == (
        area.L2_PORT,
        area.L1_PORT,
        area.L1_FAILED_PORT,
    )
    assert (here.pointers, here.pointers + 8) == (ABI["AREA_VMCS"], ABI["AREA_VMXON"])
    assert here.fields == ABI["AREA_FIELDS"]
    names = ("RAX", "RCX", "RDX", "REASON", "INFO", "RIP", "FIELDS")
    assert [ABI[f"SEEN_{name}"] for name in names] == list(range(0, area.SEEN.size, 8))


def test_the_areas_lie_apart_from_all_else():
    first, last = Area.of(0), Area.of(x86.MAX_VCPUS - 1)
    assert first.base >= x86.STACK + x86.STACK_SIZE * x86.MAX_VCPUS
    assert last.base + area.NESTED_SIZE <= x86.PROGRAM
    places = (*first.lists, first.pointers, first.seen)
    assert all(later - each >= area.LIST_SIZE for each, later in itertools.pairwise(places))
    assert first.seen + area.SEEN.size <= first.base + area.NESTED_SIZE


@pytest.mark.parametrize(
    ("bitmap", "index", "kind", "byte", "bit"),
    [
        (svm.msrpm, 0, READ, 0, 0),  # SVM has two bits an MSR
        (svm.msrpm, 0x174, WRITE, 0x5D, 1),
        (svm.msrpm, 0xC0000000, READ, 0x800, 0),
        (svm.msrpm, 0xC0000102, WRITE, 0x840, 5),
        (svm.msrpm, 0xC0011FFF, WRITE, 0x17FF, 7),
        (vmx.msr_bitmap, 0, READ, 0, 0),  # VMX has one for reads and, further on, one for writes
        (vmx.msr_bitmap, 0x174, WRITE, 0x82E, 4),
        (vmx.msr_bitmap, 0x1FFF, READ, 0x3FF, 7),
        (vmx.msr_bitmap, 0xC0000102, READ, 0x420, 2),
        (vmx.msr_bitmap, 0xC0001FFF, WRITE, 0xFFF, 7),
    ],
)
def test_what_passes_is_one_bit_that_is_clear(bitmap, index, kind, byte, bit):
    bits = bitmap(frozenset({(index, kind)}))
    cleared = [(at, value) for at, value in enumerate(bits) if value != 0xFF]
    assert cleared == [(byte, 0xFF & ~(1 << bit))]


def test_everything_passes_or_nothing():
    assert set(svm.msrpm(None)) == set(vmx.msr_bitmap(None)) == {0}
    assert set(svm.msrpm(frozenset())) == set(vmx.msr_bitmap(frozenset())) == {0xFF}


@pytest.mark.parametrize(("bitmap", "bit"), [(True, 1), (False, 0)])
def test_the_intercept_of_msrs_is_there_with_a_bitmap(bitmap, bit):
    entry = Entry(0, 0, 0, bitmap=bitmap)
    vmcb = svm.vmcb(entry, Area.of(0))
    assert struct.unpack_from("<I", vmcb, 0x0C)[0] >> 28 & 1 == bit
    fields = vmx.fields(entry, Area.of(0), 0, CAPABILITIES)
    assert fields[0x4002] >> 28 & 1 == bit


CAPABILITIES = {
    vmx.BASIC: 1 << 55 | 0x1234,
    **dict.fromkeys(vmx.CONTROLS, 0x7FFFFFFF_7FFFFFFF),
    **dict(zip(vmx.TRUE_CONTROLS, (0x16, 0x401E172, 0x36DFB, 0x11FB), strict=True)),
}


def test_controls_are_those_required_and_those_wanted():
    fields = vmx.fields(ENTRY, Area.of(1), 0, CAPABILITIES)
    assert [fields[each] for each in (0x4000, 0x4002, 0x400C, 0x4012)] == [
        *(0x16, 0x401E172 | vmx.USE_MSR_BITMAPS),
        *(0x36DFB | vmx.EXIT_64, 0x11FB | vmx.ENTRY_64),
    ]
    assert not fields.keys() & {0}, "a field 0 would end the table"


def test_fields_are_switched_only_where_the_cpu_can():
    can = {**CAPABILITIES, 0x48F: 1 << 32 + 20, 0x490: 1 << 32 + 15}
    fields = vmx.fields(Entry(0, 0, 0, fields=True), Area.of(0), 0, can)
    assert (fields[0x400C], fields[0x4012]) == (1 << 20 | vmx.EXIT_64, 1 << 15 | vmx.ENTRY_64)
    fields = vmx.fields(Entry(0, 0, 0), Area.of(0), 0, can)
    assert (fields[0x400C], fields[0x4012]) == (vmx.EXIT_64, vmx.ENTRY_64)


def test_l2_has_the_tables_of_its_vcpu():
    task = x86.TSS + x86.TSS_SIZE
    assert struct.unpack_from("<Q", svm.vmcb(ENTRY, Area.of(1)), 0x498)[0] == task
    fields = vmx.fields(ENTRY, Area.of(1), 0x777, CAPABILITIES)
    assert fields[0x6814] == fields[0x6C0A] == task
    assert (fields[0x681E], fields[0x681C], fields[0x6C16]) == (0x10010, 0x100000, 0x777)


def header(name: str) -> dict[str, int]:
    for directory in HEADERS:
        if (directory / name).exists():
            return defined((directory / name).read_text())
    pytest.skip(f"no <asm/{name}> to hold the numbers against: install the kernel's user headers")


def test_svm_numbers_are_the_kernels():
    said = header("svm.h")
    for name in ("MSR", "VMRUN", "VMMCALL", "SHUTDOWN"):
        assert getattr(svm, f"EXIT_{name}") == said[f"SVM_EXIT_{name}"], name


def test_vmx_numbers_are_the_kernels():
    said = header("vmx.h")
    names = {
        "TRIPLE_FAULT": vmx.REASON_TRIPLE_FAULT,
        "VMCALL": vmx.REASON_VMCALL,
        "MSR_READ": vmx.REASON_RDMSR,
        "MSR_WRITE": vmx.REASON_WRMSR,
        "VMCLEAR": vmx.REASONS_VMX[0],
        "VMON": vmx.REASONS_VMX[-1],
        "INVALID_STATE": vmx.REASON_BAD_STATE,
        "MSR_LOAD_FAIL": vmx.REASON_MSR_LOAD,
    }
    assert {name: said[f"EXIT_REASON_{name}"] for name in names} == names
    assert said["VMX_EXIT_REASONS_FAILED_VMENTRY"] == vmx.FAILED_ENTRY


def test_a_field_that_is_as_before_is_not_written_again(memory):
    entry, here = Entry(0x10010, 0x100000, 0), Area.of(0)
    table = vmx.fields(entry, here, 0, CAPABILITIES)
    vmx.write(memory, entry, table, {})
    assert written(memory) == table
    again = vmx.fields(Entry(0x10010, 0x100000, 0, bitmap=False), here, 0, CAPABILITIES)
    vmx.write(memory, entry, again, table)
    changed = {field: again[field] for field in (0x4002, 0x2004, *vmx.LEFT_OTHERWISE)}
    assert written(memory) == changed


def written(memory: GuestMemory) -> dict[int, int]:
    """What L1 would write: fields and values up to a field 0."""
    words = struct.unpack("<512Q", memory.read(Area.of(0).fields, 0x1000))
    pairs = zip(words[::2], words[1::2], strict=True)
    return dict(itertools.takewhile(lambda pair: pair[0], pairs))


@pytest.fixture
def memory():
    with GuestMemory(0, x86.MEMORY_SIZE) as memory:
        yield memory
