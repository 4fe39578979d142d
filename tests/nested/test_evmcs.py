"""The enlightened VMCS as data: it lies as the kernel's, and says what is clean where it is."""

import re
import struct
from pathlib import Path

import pytest
from test_area import ABI, CAPABILITIES

from vmm import x86
from vmm.lab import cache
from vmm.memory import GuestMemory
from vmm.nested import evmcs, vmx
from vmm.nested.area import READ, Area, Entry

WIDTHS = {0: 2, 1: 8, 2: 4, 3: 8}
"""Bytes of a field, by bits 13 and 14 of its number (SDM volume 3, appendix B)."""
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
EXIT, ENTRY = 1 << 12, 1 << 13
"""PERF_GLOBAL_CTRL in both controls."""


def fields_of(entry: Entry, capabilities=CAPABILITIES) -> dict[int, int]:
    return vmx.fields(entry, Area.of(entry.vcpu_id), 0x777, capabilities)


def test_guest_and_host_agree_where_it_lies():
    here = Area(0)
    assert (ABI["AREA_EVMCS"], ABI["EVMCS_SIZE"]) == (here.evmcs, evmcs.SIZE)
    assert ABI["AREA_ENLIGHTEN"] == here.assist + evmcs.ENLIGHTEN_VMENTRY
    assert ABI["AREA_EVMCS_AT"] == here.pointers + 16
    said = re.findall(r"^#define EVMCS_(\w+)\s+\(0x100 \+ (\d+)\)$", INC, re.M)
    assert {name: int(at) for name, at in said} == {
        "ERROR": evmcs.INSTRUCTION_ERROR,
        "REASON": evmcs.EXIT_REASON,
        "INFO": evmcs.QUALIFICATION,
        "RIP": evmcs.GUEST_RIP,
    }
    assert here.evmcs - here.seen == 0x100, "what L1 adds to its stack pointer"


INC = (Path(__file__).parent.parent.parent / "guests" / "abi.inc").read_text()


def test_every_field_has_its_own_bytes_of_its_own_width():
    assert fields_of(Entry(0, 0, 0)).keys() == evmcs.PLACES.keys()
    for field, (at, size) in evmcs.PLACES.items():
        assert size == WIDTHS[field >> 13 & 3] and at % size == 0, hex(field)
    taken = [at + each for at, size in evmcs.PLACES.values() for each in range(size)]
    own = (0, evmcs.CLEAN_FIELDS, evmcs.ENLIGHTENMENTS, evmcs.EXIT_REASON, evmcs.QUALIFICATION)
    assert len({*taken, *own}) == len(taken) + len(own) and max(taken) < evmcs.SIZE


@pytest.fixture
def trees() -> list[Path]:
    """Return the kernel trees of the lab, or skip."""
    found = [*cache.root().glob("*/*/arch/x86/kvm/vmx/hyperv_evmcs.c")]
    if not found:
        pytest.skip("no kernel source in the lab's cache: scripts/selftests fetches one")
    return [each.parents[4] for each in found]


def header(tree: Path) -> str:
    """Return the header that has the structure: it has moved since 6.12."""
    places = "include/hyperv/hvgdk.h", "arch/x86/include/asm/hyperv-tlfs.h"
    return next(tree / each for each in places if (tree / each).exists()).read_text()


def offsets(text: str) -> dict[str, int]:
    """Return where the members of the kernel's structure lie, which is packed."""
    body = re.search(r"struct hv_enlightened_vmcs \{(.*?)^\} __packed;", text, re.S | re.M)
    assert body
    plain = re.sub(r"struct \{[^}]*\}\s*__packed (\w+);", r"u32 \1;", body[1])
    found, at = {}, 0
    for kind, name, count in re.findall(r"(?:__)?(u\d+) (\w+)(?:\[(\d+)\])?;", plain):
        found[name] = at
        at += SIZES[kind] * int(count or 1)
    return {**found, "the end": at}


def test_it_lies_as_the_kernels(trees):
    for tree in trees:
        lies = offsets(header(tree))
        enums = (tree / "arch/x86/include/asm/vmx.h").read_text()
        number_of = dict(re.findall(r"^\s+(\w+)\s+= (0x\w+),", enums, re.M))
        kvm = (tree / "arch/x86/kvm/vmx/hyperv_evmcs.c").read_text()
        rows = re.findall(r"^\tEVMCS1_FIELD\((\w+),\s*(\w+),", kvm, re.M)
        kernels = {int(number_of[each], 16): lies[name] for each, name in rows}
        ours = {each: at for each, (at, _) in evmcs.PLACES.items()}
        ours |= {0x4400: evmcs.INSTRUCTION_ERROR, 0x4402: evmcs.EXIT_REASON}
        ours |= {0x6400: evmcs.QUALIFICATION, 0x681E: evmcs.GUEST_RIP}
        assert ours == {each: kernels[each] for each in ours}, tree
        assert lies["the end"] == evmcs.SIZE
        assert lies["hv_clean_fields"] == evmcs.CLEAN_FIELDS
        assert lies["hv_enlightenments_control"] == evmcs.ENLIGHTENMENTS


def test_the_groups_that_are_called_clean_are_the_kernels(trees):
    group = r"^\tEVMCS1_FIELD\((\w+),\s*\w+,\s*HV_VMX_ENLIGHTENED_CLEAN_FIELD_(\w+)"
    bit = r"define HV_VMX_ENLIGHTENED_CLEAN_FIELD_(\w+)\s+BIT\((\d+)\)"
    controls = "PIN_BASED_VM_EXEC_CONTROL VM_EXIT_CONTROLS TSC_OFFSET CPU_BASED_VM_EXEC_CONTROL"
    for tree in trees:
        kvm = (tree / "arch/x86/kvm/vmx/hyperv_evmcs.c").read_text()
        group_of, bits = dict(re.findall(group, kvm, re.M)), dict(re.findall(bit, header(tree)))
        assert 1 << int(bits[group_of["MSR_BITMAP"]]) == evmcs.CLEAN_MSR_BITMAP, tree
        groups = {group_of[each] for each in controls.split()}
        assert sum(1 << int(bits[each]) for each in groups) == evmcs.CLEAN_CONTROLS, tree


def field(image: bytes, number: int) -> int:
    at, size = evmcs.PLACES[number]
    return int.from_bytes(image[at : at + size], "little")


def test_it_has_the_fields_of_a_vmcs():
    entry = Entry(0x10010, 0x100000, 1, fields=True)
    table = fields_of(entry)
    image = evmcs.image(entry, table, bytes(evmcs.SIZE))
    assert {each: field(image, each) for each in table} == table
    assert struct.unpack_from("<I", image) == (evmcs.VERSION,)


def clean_of(image: bytes) -> int:
    return struct.unpack_from("<I", image, evmcs.CLEAN_FIELDS)[0]


def test_only_what_is_as_before_is_called_clean():
    plain, clean = Entry(0, 0, 0), Entry(0, 0, 0, clean=True)
    table, nothing = fields_of(plain), bytes(evmcs.SIZE)
    first = evmcs.image(clean, table, nothing)
    assert clean_of(first) == evmcs.CLEAN_MSR_BITMAP
    assert clean_of(evmcs.image(plain, table, first)) == evmcs.CLEAN_CONTROLS
    both = evmcs.CLEAN_CONTROLS | evmcs.CLEAN_MSR_BITMAP
    assert clean_of(evmcs.image(clean, table, first)) == both
    for changed in (0x4000, 0x4002, 0x400C, 0x2010):
        other = evmcs.image(clean, table | {changed: table[changed] ^ 1 << 5}, first)
        assert clean_of(other) == evmcs.CLEAN_MSR_BITMAP
    moved = evmcs.image(clean, table | {0x681E: 0x12345}, first)
    assert clean_of(moved) == both


def test_what_the_interface_does_not_offer_is_not_used():
    every = {each: value | EXIT << 32 | ENTRY << 32 for each, value in CAPABILITIES.items()}
    can = evmcs.capabilities(every)
    assert can.keys() == every.keys()
    entry = Entry(0, 0, 0, fields=True)
    assert fields_of(entry, every)[0x400C] & EXIT and fields_of(entry, every)[0x4012] & ENTRY
    switched, plain = fields_of(entry, can), fields_of(entry, every)
    assert plain[0x400C] & ~EXIT == switched[0x400C] and plain[0x4012] & ~ENTRY == switched[0x4012]


@pytest.fixture
def memory():
    with GuestMemory(0, x86.MEMORY_SIZE) as memory:
        yield memory


def test_the_first_entry_is_another_than_those_after_it(memory):
    entry, here = Entry(0, 0, 2, frozenset({(0x174, READ)}), clean=True), Area.of(2)
    assert not evmcs.write(memory, entry, fields_of(entry))
    staged = memory.read(here.fields, evmcs.SIZE)
    assert memory.read(here.bitmap, 0x1000) == vmx.msr_bitmap(entry.passes)
    memory.write(here.evmcs, staged)  # as L1's stub does
    assert evmcs.write(memory, entry, fields_of(entry))
    assert clean_of(memory.read(here.fields, evmcs.SIZE)) & evmcs.CLEAN_CONTROLS
    evmcs.forget(memory, 2)
    assert not evmcs.write(memory, entry, fields_of(entry))
