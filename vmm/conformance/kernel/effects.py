"""``execute`` on the kernel: a vCPU set so that one instruction shows what its MSRs hold.

The stubs are those of ``single``. All that is set here is set back by the host afterwards.
"""

from __future__ import annotations

import struct
from typing import Any

from vmm import modes
from vmm.conformance.kernel.instructions import (
    AREA_SIZE,
    COMPACT_X87,
    COUNTER,
    EFFECTS,
    LANDED,
    WORD,
    After,
    Effect,
    area_of,
)
from vmm.conformance.kernel.single import TRAP_PORT, Single
from vmm.conformance.language.script import Event, Execute, Executed, Fault, Lost
from vmm.exits import Exit, IoExit, RdmsrExit, WrmsrExit
from vmm.vcpu import Vcpu

PMC0, PERF_CTR0 = 0xC1, 0xC001_0004
MOST_EXITS = 16


def run_effect(single: Single, action: Execute) -> list[Event]:
    """Execute the instruction; return its event, behind those of exits that must not be."""
    effect, vcpu = EFFECTS[action.instruction], single.vcpu
    msrs = _placed(single, effect.msrs(action.value))
    before, old = vcpu.get_sregs(), vcpu.get_msrs(msrs)
    if vcpu.set_msrs(msrs) != len(msrs):
        return [Lost(f"KVM_SET_MSRS refuses what {action.instruction} works with")]
    _prepare(single, effect, action)
    events: list[Event] = []
    seen = _first(single, action)
    while isinstance(seen, RdmsrExit | WrmsrExit) and len(events) < MOST_EXITS:
        events.append(seen)
        seen = single.enter()
    events.append(_event(single, effect, action, seen))
    if not isinstance(events[-1], Lost):
        vcpu.set_sregs(before)
        vcpu.set_msrs(old)
    return events


def _prepare(single: Single, effect: Effect, action: Execute) -> None:
    vcpu_id = single.vcpu.vcpu_id

    def change(sregs: Any) -> None:
        modes.enter(sregs, effect.mode, vcpu_id)
        sregs.cr4 |= effect.cr4
        effect.sregs(sregs, action.value)

    single.change(change)
    mode = modes.MODES[effect.mode]
    area = area_of(single)
    control = struct.pack("<H", action.value & 0xF3F | 0x40)
    single.memory.write(area, bytes(AREA_SIZE))
    if action.instruction == "xrstors":
        single.memory.write(area, control)
        single.memory.write(area + 512, struct.pack("<QQ", 1, COMPACT_X87))
    else:
        single.memory.write(area + WORD, control)
    registers = {"rflags": 2 | modes.IOPL3, "rdi": area, "rsi": area + WORD}
    registers |= effect.regs(action.value)
    for name in [each for each in registers if registers[each] == LANDED]:
        registers[name] = single.guest.symbols["stub_landed"]
    single.start(_symbol(action), mode, **registers)


def _first(single: Single, action: Execute) -> Exit | Lost:
    if action.instruction != "rsm":
        return single.enter()
    if lost := single.enter_smm():
        return lost
    single.change(lambda sregs: modes.enter(sregs, "smm", single.vcpu.vcpu_id))
    single.start("stub_rsm", modes.MODES["smm"])
    return single.enter()


def _event(single: Single, effect: Effect, action: Execute, seen: Exit | Lost) -> Event:
    if isinstance(seen, Lost):
        return seen
    if not isinstance(seen, IoExit) or seen.port not in (effect.port, TRAP_PORT):
        return Lost(str(seen))
    if seen.port == TRAP_PORT:
        mode = modes.MODES[effect.mode]
        vector, frame = single.trap(mode)
        at = single.guest.symbols[f"{_symbol(action)}_at"] - mode.code
        return Fault(vector, frame.error_code, frame.rip - at)
    after = After(single, single.vcpu.get_regs(), single.vcpu.get_sregs())
    return Executed(effect.found(after))


def _symbol(action: Execute) -> str:
    return f"stub_{'emulated_' * action.emulated}{action.instruction}"


def _placed(single: Single, msrs: dict[int, int]) -> dict[int, int]:
    """Return the MSRs with what is known only now in place of what stands for it."""
    landed = single.guest.symbols["stub_landed"]
    known = {index: landed if value == LANDED else value for index, value in msrs.items()}
    if COUNTER in known:
        known[counter_of(single.vcpu) or PMC0] = known.pop(COUNTER)
    return known


def counter_of(vcpu: Vcpu) -> int | None:
    """Return the MSR of the vCPU's performance counter 0, Intel's or AMD's, if it has one."""
    for index in (PMC0, PERF_CTR0):
        if vcpu.set_msrs({index: 0x1234}) and vcpu.get_msrs([index]).get(index) == 0x1234:
            return index
    return None
