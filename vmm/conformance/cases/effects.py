"""What uses an MSR without being RDMSR or WRMSR is never filtered: R35, natively and emulated.

Each instruction is executed under a filter that denies everything, under one that denies what it
uses, and with each mask of exits; an RDMSR of the same MSR beside it shows that the filter is on.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmm.conformance.cases.words import (
    DATA,
    A,
    B,
    Row,
    allowed,
    denied,
    done_install,
    play,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import Instruction
from vmm.conformance.language.effects import EMULATED
from vmm.conformance.language.script import (
    REPLY,
    begin,
    done,
    enable_exits,
    execute,
    executed,
    finish,
    gp,
    rdmsr,
    returned,
    set_msr,
)
from vmm.exits import RdmsrExit
from vmm.filter import default_allow, default_deny
from vmm.msr import FILTER, Msr

_BASE, _OTHER_BASE = 0x5EF0_8765_4321, 0x1234_0000_5678
_SELECTOR, _OTHER_SELECTOR = 0x108, 0x7FE0
_MISC_FEATURES_ENABLES = 0x140

_USED: dict[Instruction, tuple[tuple[int, ...], tuple[int, int]]] = {
    "rdtsc": ((Msr.IA32_TSC,), (0x1234, 0x2345)),
    "rdtscp": ((Msr.TSC_AUX, Msr.IA32_TSC), (0x8765_4321, 1)),
    "rdpid": ((Msr.TSC_AUX,), (0x8765_4321, 1)),
    "rdpmc": ((0xC1, 0xC001_0004), (0x7654_3210, 1)),
    "cpuid": ((_MISC_FEATURES_ENABLES, Msr.IA32_XSS), (0x4000_0000, 0x4000_0000)),
    "syscall": (
        (Msr.STAR, Msr.LSTAR, Msr.SYSCALL_MASK, Msr.EFER),
        (_SELECTOR, _OTHER_SELECTOR),
    ),
    "sysretq": ((Msr.STAR, Msr.EFER), (_SELECTOR, _OTHER_SELECTOR)),
    "sysenter": (
        (Msr.IA32_SYSENTER_CS, Msr.IA32_SYSENTER_ESP, Msr.IA32_SYSENTER_EIP, Msr.EFER),
        (_SELECTOR, _OTHER_SELECTOR),
    ),
    "sysexit": ((Msr.IA32_SYSENTER_CS,), (_SELECTOR, _OTHER_SELECTOR)),
    "swapgs": ((Msr.KERNEL_GS_BASE, Msr.GS_BASE), (_BASE, _OTHER_BASE)),
    "rdfsbase": ((Msr.FS_BASE,), (_BASE, _OTHER_BASE)),
    "rdgsbase": ((Msr.GS_BASE,), (_BASE, _OTHER_BASE)),
    "wrfsbase": ((Msr.FS_BASE,), (_BASE, _OTHER_BASE)),
    "wrgsbase": ((Msr.GS_BASE,), (_BASE, _OTHER_BASE)),
    "xsaves": ((Msr.IA32_XSS,), (0x321, 0x2B)),
    "xrstors": ((Msr.IA32_XSS,), (0x321, 0x2B)),
    "rsm": ((Msr.EFER, Msr.FS_BASE, Msr.GS_BASE), (_BASE, _OTHER_BASE)),
}
"""The MSRs that each instruction uses, as RDMSR would name them, and two values to tell apart."""

_DENY_ALL, _ALL_EXITS = done_install(default_deny().allow(A)), (enable_exits(7), done)
_NO_EXITS: Row = (enable_exits(0), done)


def _does(name: Instruction, value: int, emulated: bool, vcpu: int = 0) -> Row:
    return (execute(name, value, emulated=emulated, vcpu=vcpu), executed(value))


def _cases(name: Instruction, emulated: bool) -> Iterator[Case]:
    msrs, (one, other) = _USED[name]
    way = "emulated_" if emulated else ""
    who = f"{name.upper()} in KVM's emulator" if emulated else name.upper()
    yield Case(
        f"effects.{way}{name}_under_deny_all",
        f"{who} does what it does under a filter that denies every MSR, with exits and without.",
        "R35",
        *play(
            _ALL_EXITS,
            _does(name, one, emulated),
            _DENY_ALL,
            _does(name, other, emulated),
            *(denied(each) for each in msrs),
            _NO_EXITS,
            _does(name, one, emulated),
            *((rdmsr(each), gp) for each in msrs),
            (enable_exits(FILTER), done),
            _does(name, other, emulated),
            *(denied(each) for each in msrs),
        ),
    )
    yield Case(
        f"effects.{way}{name}_with_its_own_msrs_denied",
        f"{who} does what it does where exactly the MSRs that it uses are denied, read and write.",
        "R35",
        *play(
            _ALL_EXITS,
            done_install(default_allow().deny(*msrs)),
            _does(name, one, emulated),
            *(denied(each) for each in msrs),
            *(write_denied(each, 0) for each in msrs),
            allowed(A),
            _does(name, other, emulated),
            done_install(default_allow().deny(A)),
            _does(name, one, emulated),
            denied(A),
        ),
    )
    yield Case(
        f"effects.{way}{name}_leaves_no_exit_behind",
        f"{who} under a denying filter prepares no exit: the accesses after it end as they should.",
        "R35 R64",
        *play(
            _ALL_EXITS,
            _DENY_ALL,
            _does(name, one, emulated),
            (begin(rdmsr(B)), RdmsrExit(B, FILTER)),
            (finish(reply=None), returned(0)),
            *(row for _ in range(3) for row in (_does(name, other, emulated), denied(B))),
            write_denied(B, DATA),
            allowed(A),
        ),
    )


def _second_vcpu() -> Case:
    return Case(
        "effects.beside_a_pending_exit",
        "One vCPU executes CPUID, SYSCALL and SWAPGS while another is stopped in a denied access.",
        "R35 R45",
        *play(
            _ALL_EXITS,
            _DENY_ALL,
            (begin(rdmsr(B)), RdmsrExit(B, FILTER)),
            _does("cpuid", 0x4000_0000, False, vcpu=1),
            _does("syscall", _SELECTOR, False, vcpu=1),
            _does("swapgs", _BASE, False, vcpu=1),
            denied(B, vcpu=1),
            (finish(reply=None), returned(0)),
        ),
    )


def _restored() -> Case:
    return Case(
        "effects.leave_their_msrs",
        "The host puts back what it had set for an instruction: a denied MSR too (R34).",
        "R34 R35",
        *play(
            _ALL_EXITS,
            (set_msr(Msr.STAR, DATA), done),
            (set_msr(Msr.KERNEL_GS_BASE, _BASE), done),
            _DENY_ALL,
            _does("syscall", _SELECTOR, False),
            _does("swapgs", _OTHER_BASE, False),
            done_install(default_allow().deny(A)),
            (rdmsr(Msr.STAR), returned(DATA)),
            (rdmsr(Msr.KERNEL_GS_BASE), returned(_BASE)),
            (rdmsr(A), RdmsrExit(A, FILTER), returned(REPLY)),
        ),
    )


CASES = (
    *(case for name in _USED for case in _cases(name, emulated=False)),
    *(case for name in EMULATED for case in _cases(name, emulated=True)),
    _second_vcpu(),
    _restored(),
)
