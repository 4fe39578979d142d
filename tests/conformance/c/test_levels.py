"""What C writes for an L2, and reads of its exits, beside what Python does: without any nesting.

The programs are pieces of the words for levels on memory of their own. A host with nested guests
runs them whole: ``msrward lab run --executor player 'levels.*'``.
"""

import itertools
import struct
from types import SimpleNamespace

import pytest

from vmm import x86
from vmm.conformance.c.notation import read_events
from vmm.conformance.c.steps import At, calls
from vmm.conformance.kernel import levels
from vmm.conformance.language import script as s
from vmm.memory import GuestMemory
from vmm.nested import evmcs, svm, vmx
from vmm.nested.area import Area, Entry, Left

VENDORS = ("svm", "vmx")
SETS = {
    "all": s.enter_l2(),
    "none": s.enter_l2(passes="none"),
    "edges": s.enter_l2(
        passes=tuple(s.through(each) for each in (0, 7, 0x1FFF, 0xC0000000, 0xC0001FFF))
    ),
    "halves": s.enter_l2(
        passes=(s.through(0x10, "read"), s.through(0xC0000102, "write"), s.through(0x11))
    ),
    "amd": s.enter_l2(passes=(s.through(0xC0010000), s.through(0xC0011FFF, "read"))),
    "lists": s.enter_l2(
        entry_load=(s.listed(0xC0000081, 1), s.listed(0xC0000102, 1 << 63)),
        exit_store=(s.listed(0x10),) * 32,
        exit_load=(s.listed(0xC0000102, 3),),
    ),
    "no_bitmap": s.enter_l2(bitmap=False),
    "fields": s.enter_l2(passes="none", fields=True),
    "clean": s.enter_l2(clean=True),
}
VMCB_OTHERWISE = {0x464: 4, 0x498: 8, 0x578: 8, 0x5D8: 8}
VMCS_OTHERWISE = {0x4810, 0x6814, 0x681C, 0x681E, 0x6C0A, 0x6C16}
"""Where C differs: the GDT's limit, TR's base, RSP and RIP are those of its own map."""


MEMORY = "\tstatic __u8 memory[MEMORY];\n\n\tvm.memory = memory;\n"


def entry_of(action):
    return Entry(
        0,
        0,
        2,
        levels._passed(action),
        bitmap=action.bitmap,
        entry_load=levels._list(action.entry_load),
        exit_store=levels._list(action.exit_store),
        exit_load=levels._list(action.exit_load),
        fields=action.fields,
        clean=action.clean,
    )


def area_in_c(name, vendor):
    """Return what shows the area of vCPU 2, which C is shown an L1 of."""
    writes = "write_vmcb" if vendor == "svm" else "write_vmcs"
    call = "\n".join(calls(SETS[name], At(1, ()))).replace("enter_l2(0, ", f"{writes}(2, &")
    show = "\tfwrite(l1_memory(2, 0), L1_SIZE, 1, stdout);"
    return f"{MEMORY}\tis_svm = {int(vendor == 'svm')};\n{call}\n{show}"


@pytest.fixture(scope="module")
def area(build_many):
    """What C writes into an area, by the name of the entry and the vendor."""
    every = itertools.product(SETS, VENDORS)
    return build_many({each: area_in_c(*each) for each in every if each != ("amd", "vmx")})


@pytest.mark.parametrize("name", SETS)
def test_a_vmcb_in_c_is_that_of_python(area, name):
    area, entry = area((name, "svm")), entry_of(SETS[name])
    image = svm.vmcb(entry, Area.of(2))
    differ = {each for each in range(0x1000) if area[each] != image[each]}
    otherwise = {at + each for at, size in VMCB_OTHERWISE.items() for each in range(size)}
    assert differ <= otherwise
    assert area[0x2000:0x4000] == svm.msrpm(entry.passes)
    assert struct.unpack_from("<7Q", area, 0x5F00) == (0, 0, 0, 0, 0, 0, entry.fields)


@pytest.mark.parametrize("name", [each for each in SETS if each != "amd"])
def test_a_vmcs_in_c_is_that_of_python(area, name):
    area, action = area((name, "vmx")), SETS[name]
    entry = entry_of(action)
    pairs = list(struct.iter_unpack("<QQ", area[0x4000:0x5000]))
    table = dict(pairs[: pairs.index((0, 0))])
    # The program's vCPU is none, so all that can be read of its capabilities is 0.
    expected = vmx.fields(entry, Area.of(2), 0, dict.fromkeys(vmx.CAPABILITIES, 0))
    assert table.keys() == expected.keys()
    assert {each for each in table if table[each] != expected[each]} == VMCS_OTHERWISE
    assert area[0x2000:0x3000] == vmx.msr_bitmap(entry.passes)
    lists = (action.entry_load, action.exit_store, action.exit_load)
    for at, msrs in zip((0x5000, 0x5200, 0x5400), lists, strict=True):
        shown = [struct.unpack_from("<IIQ", area, at + 16 * each) for each in range(len(msrs))]
        assert shown == [(each.index, 0, each.value) for each in msrs]


def evmcs_in_python(entry, before):
    """Return what L1's stub copies into the structure; ``before`` is what that holds."""
    with GuestMemory(0, x86.MEMORY_SIZE) as memory:
        table = vmx.fields(entry, Area.of(2), 0, dict.fromkeys(vmx.CAPABILITIES, 0))
        memory.write(Area.of(2).evmcs, before)
        evmcs.write(memory, entry, table)
        return memory.read(Area.of(2).fields, evmcs.SIZE)


def evmcs_in_c(name, is_again):
    """Return what shows the area of vCPU 2 and where L1 starts, once or for a second entry."""
    call = "\n".join(calls(SETS[name], At(1, ()))).replace("enter_l2(0, ", "at = write_evmcs(2, &")
    copy = f"\tmemcpy(l1_memory(2, EVMCS), l1_memory(2, FIELDS), {evmcs.SIZE});\n"
    show = "\tfwrite(l1_memory(2, 0), L1_SIZE, 1, stdout);\n\tfwrite(&at, 8, 1, stdout);"
    return f"{MEMORY}\t__u64 at;\n\n{call}\n{(copy + call) * is_again}\n{show}"


WITHOUT_LISTS = [each for each in SETS if each not in ("amd", "lists")]


@pytest.fixture(scope="module")
def enlightened(build_many):
    """What C writes for an enlightened VMCS, by the name of the entry and whether it is a first."""
    every = itertools.product(WITHOUT_LISTS, (False, True))
    return build_many({each: evmcs_in_c(*each) for each in every})


@pytest.mark.parametrize("is_again", [False, True])
@pytest.mark.parametrize("name", WITHOUT_LISTS)
def test_an_enlightened_vmcs_in_c_is_that_of_python(enlightened, name, is_again):
    area = enlightened((name, is_again))
    entry = entry_of(SETS[name])
    before = evmcs_in_python(entry, bytes(evmcs.SIZE)) if is_again else bytes(evmcs.SIZE)
    image = evmcs_in_python(entry, before)
    otherwise = {
        at + each for at, size in map(evmcs.PLACES.get, VMCS_OTHERWISE) for each in range(size)
    }
    assert {each for each in range(evmcs.SIZE) if area[0x4000 + each] != image[each]} <= otherwise
    assert area[0x2000:0x3000] == vmx.msr_bitmap(entry.passes)
    assert area[0x7028] == 1
    assert int.from_bytes(area[0x8000:], "little") == (0x12180 if is_again else 0x12140)


LEFT = {
    "svm": [
        *(Left(0x7C, is_write, 0x10000, 0xFF00000007, 0xC0000102, 1 << 32) for is_write in (0, 1)),
        Left(0x7C, 1, 0x10002, 0, 0, 0),
        Left(0x7C, 0, 0xFFFB, 0, 0x10, 0),
        *(Left(each, 0, 0, 0, 0, 0) for each in (0x7F, 0x80, 0x81, 0x40, 0x400, 2, 31)),
        Left(svm.EXIT_INVALID, 0, 0, 0, 0, 0),
    ],
    "vmx": [
        Left(31, 0, 0x10000, 5, 0xC0000102, 6),
        Left(32, 0, 0x0FFFE, 0xFF00000007, 0xC0000102, 0x12),
        *(Left(each, 0, 0, 0, 0, 0) for each in (2, 18, *range(19, 28), 0, 48, 0x7C)),
        *(Left(1 << 31 | 34, each, 0, 0, 0, 0) for each in (0, 1, 32)),
        Left(1 << 31 | 33, 4, 0, 0, 0, 0),
    ],
}


def text_in_c(vendor, left, stored):
    """Return the statements that put into the area what L1 got, and say it as a step does."""
    got = f".rcx = {left.rcx:#x}, .rdx = {left.rdx:#x}"
    lines = [f"is_svm = {int(vendor == 'svm')};", f"levels[2].n_stored = {len(stored)};"]
    if vendor == "vmx":
        got += f", .rax = {left.rax:#x}, .reason = {left.reason:#x}, .info = {left.info:#x}"
        got += f", .rip = {left.rip:#x}"
    else:
        fields = {0x70: left.reason, 0x78: left.info, 0x578: left.rip, 0x5F8: left.rax}
        lines += [f"put(l1_memory(2, {at:#x}), {value:#x}ull, 8);" for at, value in fields.items()]
    lines += [f"*(struct got *)l1_memory(2, GOT) = (struct got){{ {got} }};"]
    lines += [
        f"((struct listed *)l1_memory(2, STORE))[{at}].value = {value:#x};"
        for at, value in enumerate(stored)
    ]
    lines += ["vm.vcpus[2].run = &run;", "saw_left(2);", "puts(seen);", "seen[0] = 0;"]
    return "".join(f"\t{each}\n" for each in lines)


@pytest.mark.parametrize("stored", [(), (0, 7, 1 << 63)], ids=["no_list", "a_list"])
@pytest.mark.parametrize("vendor", VENDORS)
def test_what_l1_got_is_said_as_python_says_it(build, vendor, stored):
    head = "\tstatic struct kvm_run run = { .exit_reason = KVM_EXIT_IO };\n\n"
    head += "\trun.io.port = L1_PORT;\n\tvm.vcpus[2].access.rip = 0x10000;\n"
    body = "".join(text_in_c(vendor, each, stored) for each in LEFT[vendor])
    lines = build(MEMORY + head + body).decode().splitlines()
    program = SimpleNamespace(instruction_near=lambda _: 0x10000)
    python = levels.Levels(SimpleNamespace(program=lambda _: program))
    python._l1[2] = SimpleNamespace(vendor=vendor, stored=lambda count: stored[:count])
    entered = s.enter_l2(exit_store=tuple(s.listed(0x10) for _ in stored))
    expected = [(python._event(2, entered, each),) for each in LEFT[vendor]]
    assert [read_events(line) for line in lines] == expected


def test_what_ends_l2_without_l1(build):
    says = '\tprintf("%d,", saw_left(2));'
    body = (
        "\tstatic struct kvm_run run = { .exit_reason = KVM_EXIT_SHUTDOWN };\n",
        "\tvm.vcpus[2].run = &run;",
        says,
        "\tlevels[2].is_in_l2 = 1;",
        says,
        "\trun.exit_reason = KVM_EXIT_IO;",
        "\trun.io.port = L1_FAILED_PORT;",
        "\t*(struct got *)l1_memory(2, GOT) = (struct got){ .reason = 7 };",
        says,
        "\trun.io.port = DONE_PORT;",
        says,
        "\tputs(seen);",
    )
    said = build(MEMORY + "\n".join(body)).decode().split(",", 4)
    assert said[:4] == ["0", "1", "1", "0"]
    assert read_events(said[4].strip()) == (s.shutdown, s.entry_failed("instruction", 7))


def test_a_call_names_what_l1_passes():
    action = s.enter_l2(
        passes=(s.through(0x10, "read"), s.through(1, "write"), s.through(2), s.through(3)),
        fields=True,
        vcpu=1,
    )
    assert calls(action, At(1, ())) == [
        "\tenter_l2(1, (struct l2){",
        "\t\t.n_through = 4,",
        "\t\t.through = (struct through[]){",
        "\t\t\t{ 0x10, READS }, { 0x1, WRITES }, { 0x2, READS | WRITES },",
        "\t\t\t{ 0x3, READS | WRITES },",
        "\t\t},",
        "\t\t.fields = 1,",
        "\t});",
    ]
    assert calls(s.enter_l2(passes="none"), At(1, ())) == ["\tenter_l2(0, (struct l2){ 0 });"]
