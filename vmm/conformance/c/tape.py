"""Cases as a tape: the flat bytes that ``native/player.c`` reads.

A tape is a header and records, all numbers little-endian::

    header   8 bytes "MSRWTAPE", u32 version, u32 records, u32 bytes of them, u32 their CRC-32
    record   u32 bytes that follow, u8 kind (1 need, 2 parameter, 3 case), text name, and
      parameter  text value: what /sys/module/kvm/parameters/NAME is set to, if the player may
      case       u8 flags (1: its VM may serve others, 2: it makes its vCPUs itself), u32 deadline
                 in ms, u8 count and as many texts (needs), u8 count and as many MSRs that it
                 writes (u8 vCPU, u32 index), u16 steps, and as many steps
    step     u16 bytes that follow, u8 patient (1: blocked or never would be wrong), an action
    action   u8 word, and its fields as ``WORDS`` writes them
    text     u8 bytes that follow, and those

A need comes before the cases that have it: the player finds out once whether it is there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import choices
from vmm.conformance.language.lasting import needs_its_own_vm
from vmm.conformance.oracle import spoiled
from vmm.conformance.oracle.refused import asked_alone
from vmm.filter import AtEdge, MsrFilter, MsrRange, Pointer, bitmap_bytes

VERSION = 0x127A7301
"""What the layout of every action comes to, as a test computes it: no other one is played."""
MAGIC = b"MSRWTAPE"
NEED, PARAMETER, CASE = 1, 2, 3
KEEPS, MAKES_VCPUS = 1, 2
BARE_NEEDS = {"single_step", "upper_rcx", "emulated_shadow", spoiled.NEED, "no_ignore_msrs"}
"""Needs that no player finds out: every host has them, or they are a parameter of the run."""

PROBED = frozenset(
    {
        *("irqchip", "vcpus", "userfaultfd", "compat", "task_syscall", "force_emulation_prefix"),
        *("one_reg", "memory_cgroup", "shstk", "mediated_pmu", "pt", "spec_ctrl", "xfd", "lbr"),
        *(f"disable_exits_{name}" for name in s.DISABLE_EXITS),
        *("nested", "nested_svm", "nested_vmx", "nested_state", "clean_bitmap"),
        *("smm", "put_off_debug"),
        *("wrmsrns", "msr_imm", "guest_tsc", "rdtscp", "rdpid", "pmu", "fsgsbase", "xsaves", "sep"),
    }
)
"""Needs that the words in C find out."""

HEADER = struct.Struct("<8sIIII")


def tape(cases: Sequence[Case], *, timeout: float = 10.0) -> bytes:
    """Return the tape that has the cases done, in an order in which parameters change once.

    ``timeout`` is seconds for a case. ValueError names a case that has no form on a tape.
    """
    records = [_written(entry, timeout) for entry in entries(cases)]
    body = b"".join(records)
    return HEADER.pack(MAGIC, VERSION, len(records), len(body), zlib.crc32(body)) + body


@dataclass(frozen=True)
class Alone:
    """An access in a VM of its own: what it leaves there is asked of cases that it is part of."""

    access: s.Access

    @property
    def case(self) -> Case:
        """The access as a case, which nobody judges."""
        return Case(f"alone {self.access!r}", "", "", (self.access,), ())


Entry = Case | str | tuple[str, str] | Alone
"""A record of a tape: a case, a need by its name, a parameter and its value, or a lone access."""


def entries(cases: Sequence[Case]) -> list[Entry]:
    """Return the records of the tape of ``cases`` in their order, which the player numbers."""
    plain = [case for case in cases if spoiled.NEED not in case.needs]
    ignoring = [case for case in cases if spoiled.NEED in case.needs]
    needs = dict.fromkeys(need for case in cases for need in _needs(case))
    head: list[Entry] = [*needs, *_alone(plain), *plain]
    if not ignoring:
        return head
    return [*head, ("ignore_msrs", "1"), *_alone(ignoring), *ignoring, ("ignore_msrs", "0")]


def _alone(cases: Sequence[Case]) -> list[Alone]:
    return [Alone(each) for each in dict.fromkeys(each for c in cases for each in asked_alone(c))]


def _written(entry: Entry, timeout: float) -> bytes:
    match entry:
        case Case():
            return _case(entry, timeout)
        case Alone():
            return _case(entry.case, timeout)
        case str():
            return _record(NEED, entry, b"")
        case (name, value):
            return _record(PARAMETER, name, _text(value))


def crc_of(tape: bytes) -> int:
    """Return the checksum of a tape, which the player repeats: what it played is that tape."""
    return int(HEADER.unpack_from(tape)[4])


def _needs(case: Case) -> list[str]:
    return [need for need in case.all_needs if need not in BARE_NEEDS]


def _record(kind: int, name: str, rest: bytes) -> bytes:
    whole = bytes([kind]) + _text(name) + rest
    return struct.pack("<I", len(whole)) + whole


def _case(case: Case, timeout: float) -> bytes:
    script, expected = case.actions, [] if case.observes else s.steps(case.actions, case.expected)
    keeps = _keeps(script)
    flags = KEEPS * keeps | MAKES_VCPUS * s.makes_vcpus(script)
    needs = _needs(case)
    written = sorted(
        {
            (each.vcpu, each.index)
            for each in map(s.innermost, script)
            if isinstance(each, s.Wrmsr | s.SetMsr)
        }
    )
    written = written if keeps and len(written) < 64 else []
    try:
        head = struct.pack("<BIB", flags, round(timeout * 1000), len(needs))
        head += b"".join(map(_text, needs))
        head += struct.pack("<B", len(written))
        head += b"".join(struct.pack("<BI", *each) for each in written)
        head += struct.pack("<H", len(script))
        steps = [
            _step(action, expected[at] if at < len(expected) else None)
            for at, action in enumerate(script)
        ]
    except struct.error as error:
        raise ValueError(f"{case.id} does not fit a tape: {error}") from None
    return _record(CASE, case.id, head + b"".join(steps))


def _keeps(script: s.Script) -> bool:
    """Say whether the player's VM serves other cases after the script."""
    return not needs_its_own_vm(script) and not any(isinstance(each, DEAR) for each in script)


DEAR = (s.Begin, s.Sweep, s.BeginInstall, s.Meanwhile)
"""What it would take longer to undo than to make a VM: an access in its middle, other threads."""


def _step(action: s.Action, expected: s.Step | None) -> bytes:
    patient = expected is not None and expected[-1] not in (s.blocked, s.never)
    return _sized(bytes([patient]) + _action(action))


def _sized(part: bytes) -> bytes:
    return struct.pack("<H", len(part)) + part


def _text(text: str) -> bytes:
    return struct.pack("<B", len(text.encode())) + text.encode()


# --- actions ----------------------------------------------------------------------------------

FILES = {"vm": 0, "system": 1, "vcpu": 2}
CALLERS = {"self": 0, "compat": 1, "child": 2}
POINTERS = {Pointer.NULL: 1, Pointer.UNMAPPED: 2, Pointer.KERNEL: 3}
BY = {"immediate_exit": 0, "signal": 1}
ON_TO_THE_END = 2
REGISTERS = ("eax", "ebx", "ecx", "edx")
NO_SLOT = 0xFF
EVERYTHING = 0xFFFFFFFF
AFTER = {"nothing": 0, "sti": 1, "mov_ss": 2, "sti_nop": 3}
FORMS = {"register": 0, "wrmsrns": 1, "immediate": 2}
MODES = {"long": 0, "compat": 1, "user": 2, "protected": 3, "real": 4, "smm": 5}
INSTRUCTIONS = choices(s.Execute, "instruction")
STATES = choices(s.Rewrite, "what")
KINDS = {"nmi": 0, "interrupt": 1}
THROUGH = {"read": 1, "write": 2, "both": 3}
LOW = 0xFFFFFFFF
U64 = 0xFFFFFFFF_FFFFFFFF


def is_playable(case: Case) -> bool:
    """Say whether all that the case needs can be found out in C; all that it does has a form."""
    return {*case.all_needs} <= PROBED | BARE_NEEDS


def _action(action: s.Action) -> bytes:
    word, write = WORDS[type(action)]
    return bytes([word]) + b"".join(write(action))


def _access(access: s.Access) -> Iterator[bytes]:
    flags = isinstance(access, s.Wrmsr) | access.emulated << 1 | access.single_step << 2
    flags |= AFTER[access.after] << 3 | MODES[access.mode] << 5 | FORMS[access.form] << 8
    yield struct.pack("<BH", access.vcpu, flags)
    yield struct.pack("<QQQ", *registers(access))
    yield _reply(access.reply)


def registers(access: s.Access) -> tuple[int, int, int]:
    """Return RCX, RAX and RDX as they are before the access."""
    low, high = access.value if isinstance(access, s.Wrmsr) else access.before, access.high
    if access.form == "immediate":  # no MSR is looked for in RCX, which has another
        return access.index ^ LOW, low, high
    rcx = access.rcx_high << 32 | access.index
    return rcx, (high & LOW) << 32 | low & LOW, high >> 32 << 32 | low >> 32


def _reply(reply: s.Reply) -> bytes:
    return struct.pack("<QBB", reply.value, reply.error, reply.scribble)


def _go_on(vcpu: int, reply: s.Reply | None, how: int) -> Iterator[bytes]:
    yield struct.pack("<BB", vcpu, reply is not None)
    yield _reply(reply or s.Reply()) + bytes([how])


def _set_regs(action: s.SetRegs) -> Iterator[bytes]:
    flags = (action.rax is not None) | (action.rdx is not None) << 1 | (action.via == "sync") << 2
    flags |= (action.rcx is not None) << 3
    values = (action.rax or 0, action.rdx or 0, action.rcx or 0, action.rip & U64)
    yield struct.pack("<BBQQQQ", action.vcpu, flags, *values)


def _enable_cap(action: s.EnableCap) -> Iterator[bytes]:
    yield struct.pack("<BII", FILES[action.on], action.cap, action.flags)
    yield struct.pack("<4Q", *(action.args + (0,) * 4)[:4])


def _install(action: s.Install) -> Iterator[bytes]:
    yield struct.pack("<BBI", FILES[action.on], CALLERS[action.caller], action.number)
    yield bytes([0 if action.argp is None else POINTERS[action.argp]])
    yield from _filter(action.filter)


def _filter(filter_: MsrFilter) -> Iterator[bytes]:
    yield struct.pack("<IB", filter_.flags, len(filter_.ranges))
    for each in filter_.ranges:
        kind, bits = _bitmap(each)
        yield struct.pack("<IIIB", each.flags, each.base, each.nmsrs, kind) + _sized(bits)


def _bitmap(each: MsrRange) -> tuple[int, bytes]:
    if isinstance(each.bitmap, Pointer):
        return POINTERS[each.bitmap], b""
    if isinstance(each.bitmap, AtEdge):
        return 4, each.bitmap.bits
    return 0, bitmap_bytes(each)


def _begin_install(action: s.BeginInstall) -> Iterator[bytes]:
    slot = action.stall_at
    is_there = slot is not None and slot < len(action.filter.ranges)
    yield _text(action.name) + bytes([slot if is_there and slot is not None else NO_SLOT])
    yield from _install(install_of(action))


def install_of(action: s.BeginInstall) -> s.Install:
    """Return the install that a thread begins."""
    if action.caller == "compat":
        return s.install_compat(action.filter)
    return s.Install(action.filter, caller=action.caller)


def _set_cpuid(action: s.SetCpuid) -> Iterator[bytes]:
    leaf, register, bit = s.CPUID_BITS.get(action.feature, (EVERYTHING, "eax", 0))
    yield struct.pack("<BIBBB", action.vcpu, leaf, REGISTERS.index(register), bit, action.on)


def _set_cpuid_bits(action: s.SetCpuidBits) -> Iterator[bytes]:
    where = (action.leaf, action.index, REGISTERS.index(action.register))
    yield struct.pack("<BIIBIB", action.vcpu, *where, action.bits, action.on)


def _get_msr(action: s.GetMsr) -> Iterator[bytes]:
    yield struct.pack("<BIB", action.vcpu, action.index, action.by == "one_reg")


def _set_msr(action: s.SetMsr) -> Iterator[bytes]:
    yield struct.pack("<BIQB", action.vcpu, action.index, action.value, action.by == "one_reg")


def _sweep(action: s.Sweep) -> Iterator[bytes]:
    yield struct.pack("<BB", action.vcpu, action.access == "wrmsr")
    yield struct.pack("<III", action.first, action.count, action.stride & LOW)
    yield struct.pack("<QQ", action.value, s.REPLY)


def _enter_l2(action: s.EnterL2) -> Iterator[bytes]:
    flags = (action.passes == "all") | (not action.bitmap) << 1 | action.fields << 2
    flags |= action.clean << 3
    passes = action.passes if isinstance(action.passes, tuple) else ()
    yield struct.pack("<BBH", action.vcpu, flags, len(passes))
    yield from (struct.pack("<IB", each.index, THROUGH[each.access]) for each in passes)
    for msrs in (action.entry_load, action.exit_store, action.exit_load):
        yield bytes([len(msrs)])
        yield from (struct.pack("<IQ", each.index, each.value) for each in msrs)


def _execute(action: s.Execute) -> Iterator[bytes]:
    number = INSTRUCTIONS.index(action.instruction)
    yield struct.pack("<BBBQ", action.vcpu, number, action.emulated, action.value)


def _vcpu(action: Any) -> Iterator[bytes]:
    yield bytes([action.vcpu])


def _named(action: Any) -> Iterator[bytes]:
    yield _text(action.name)


def _nothing(_: Any) -> Iterator[bytes]:
    yield from ()


WORDS: dict[type, tuple[int, Callable[[Any], Iterator[bytes]]]] = {
    s.Rdmsr: (1, _access),
    s.Wrmsr: (1, _access),
    s.Begin: (2, lambda each: _access(each.access)),
    s.Spin: (3, lambda each: _access(each.access)),
    s.Complete: (4, lambda each: _go_on(each.vcpu, each.reply, BY[each.by])),
    s.Finish: (5, lambda each: _go_on(each.vcpu, each.reply, ON_TO_THE_END)),
    s.SetRegs: (6, _set_regs),
    s.GetRegs: (7, _vcpu),
    s.EnableCap: (8, _enable_cap),
    s.Install: (9, _install),
    s.ScribbleBitmaps: (10, _nothing),
    s.CheckExtension: (11, lambda each: iter([struct.pack("<BI", FILES[each.on], each.cap)])),
    s.GetMsr: (12, _get_msr),
    s.SetMsr: (13, _set_msr),
    s.CreateIrqchip: (14, _nothing),
    s.CreateVcpu: (15, lambda each: iter([bytes([each.vcpu, each.no_fd])])),
    s.SetCpuid: (16, _set_cpuid),
    s.BeginInstall: (17, _begin_install),
    s.Meanwhile: (18, lambda each: iter([_text(each.name), _sized(_action(each.action))])),
    s.ResumeInstall: (19, lambda each: iter([_text(each.name), bytes([each.fails])])),
    s.AwaitInstall: (20, _named),
    s.AwaitMeanwhile: (20, _named),
    s.Park: (21, _vcpu),
    s.Release: (22, _vcpu),
    s.UntilExits: (23, _vcpu),
    s.UntilRuns: (24, _vcpu),
    s.StopSpin: (25, _vcpu),
    s.CloseVm: (26, _nothing),
    s.CloseVcpu: (27, _vcpu),
    s.Sweep: (28, _sweep),
    s.SetCpuidBits: (29, _set_cpuid_bits),
    s.SendInit: (30, _vcpu),
    s.GetMpState: (31, _vcpu),
    s.EnterL2: (32, _enter_l2),
    s.LeaveL2: (33, _vcpu),
    s.Execute: (34, _execute),
    s.GetVcpuEvents: (35, _vcpu),
    s.Rewrite: (36, lambda each: iter([bytes([each.vcpu, STATES.index(each.what)])])),
    s.Inject: (37, lambda each: iter([bytes([each.vcpu, KINDS[each.kind]])])),
    s.GetTaken: (38, _vcpu),
    s.SaveNested: (39, _vcpu),
    s.RestoreNested: (40, _vcpu),
    s.LeaveNested: (41, _vcpu),
    s.FreshVm: (42, _nothing),
    s.WeighBitmaps: (43, _nothing),
}
"""The number of each word on a tape, and what writes its fields: every word is here."""
