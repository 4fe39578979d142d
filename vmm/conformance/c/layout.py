"""Actions as bytes of a tape: the number of each word, and its fields as the player reads them.

All numbers are little-endian; a text is its length in a byte, and those bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from vmm.conformance.language import script as s
from vmm.conformance.language.domains import choices
from vmm.filter import AtEdge, MsrFilter, MsrRange, Pointer, bitmap_bytes

FILES = {"vm": 0, "system": 1, "vcpu": 2}
CALLERS = {"self": 0, "compat": 1, "child": 2}
POINTERS = {Pointer.NULL: 1, Pointer.UNMAPPED: 2, Pointer.KERNEL: 3}
BY = {"immediate_exit": 0, "signal": 1, "debugger": 3}
ON_TO_THE_END = 2
REGISTERS = ("eax", "ebx", "ecx", "edx")
NO_SLOT = 0xFF
EVERYTHING = 0xFFFFFFFF
AFTER = {"nothing": 0, "sti": 1, "mov_ss": 2, "sti_nop": 3}
FORMS = {"register": 0, "wrmsrns": 1, "immediate": 2, "rex": 3}
MODES = {"long": 0, "compat": 1, "user": 2, "protected": 3, "real": 4, "higher_half": 5, "smm": 6}
INSTRUCTIONS = choices(s.Execute, "instruction")
STATES = choices(s.Rewrite, "what")
KINDS = {"nmi": 0, "interrupt": 1, "smi": 2}
THROUGH = {"read": 1, "write": 2, "both": 3}
LOW = 0xFFFFFFFF
U64 = 0xFFFFFFFF_FFFFFFFF


def sized(part: bytes) -> bytes:
    """Return the bytes with their number in front."""
    return struct.pack("<H", len(part)) + part


def text(said: str) -> bytes:
    """Return a text with its length in front."""
    return struct.pack("<B", len(said.encode())) + said.encode()


def packed(action: s.Action) -> bytes:
    """Return an action: its word, and the fields that this one has."""
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
        yield struct.pack("<IIIB", each.flags, each.base, each.nmsrs, kind) + sized(bits)


def _bitmap(each: MsrRange) -> tuple[int, bytes]:
    if isinstance(each.bitmap, Pointer):
        return POINTERS[each.bitmap], b""
    if isinstance(each.bitmap, AtEdge):
        return 4, each.bitmap.bits
    return 0, bitmap_bytes(each)


def _begin_install(action: s.BeginInstall) -> Iterator[bytes]:
    slot = action.stall_at
    is_there = slot is not None and slot < len(action.filter.ranges)
    yield text(action.name) + bytes([slot if is_there and slot is not None else NO_SLOT])
    yield from _install(action.install)


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
    yield text(action.name)


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
    s.Meanwhile: (18, lambda each: iter([text(each.name), sized(packed(each.action))])),
    s.ResumeInstall: (19, lambda each: iter([text(each.name), bytes([each.fails])])),
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
    s.XenHvmConfig: (
        44,
        lambda each: iter([struct.pack("<IBI", each.msr, each.pages, each.flags)]),
    ),
    s.GetHypercallPage: (45, _nothing),
    s.SetMpState: (46, lambda each: iter([bytes([each.vcpu, each.state])])),
    s.SendSipi: (47, _vcpu),
    s.Sleep: (48, _vcpu),
    s.Wake: (49, _vcpu),
    s.AwaitSipi: (50, _vcpu),
}
"""The number of each word on a tape, and what writes its fields: every word is here."""
