"""What an exit says: R51-R57."""

from __future__ import annotations

from vmm.conformance.cases.words import (
    BAD_EFER,
    DATA,
    DENY_A,
    GARBAGE,
    LOW,
    TELL,
    A,
    B,
    Row,
    allowed,
    denied,
    done_install,
    exits_as,
    play,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    ANY,
    REPLY,
    Access,
    Reply,
    begin,
    create_irqchip,
    done,
    enable_exits,
    fault,
    finish,
    get_regs,
    gp,
    rdmsr,
    regs,
    returned,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import default_allow, default_deny
from vmm.msr import (
    FILTER,
    INVAL,
    UNKNOWN,
    Msr,
)

_DENY_EFER = done_install(default_allow().deny(Msr.EFER))

_DENIED: dict[str, tuple[Row, Access]] = {
    "unknown_read": (DENY_A, rdmsr(A)),
    "unknown_write": (DENY_A, wrmsr(A, DATA)),
    "valid_read": (_DENY_EFER, rdmsr(Msr.EFER)),
    "invalid_write": (_DENY_EFER, wrmsr(Msr.EFER, BAD_EFER)),
}

_ACCESSES = {
    "first": (0, 0, 0),
    "high_halves": (0, GARBAGE, 0),
    "high_rcx": (0, 0, 0xDEAD_BEEF),
    "all_garbage": (DATA, GARBAGE, 0xFFFF_FFFF),
    "ones": ((1 << 64) - 1, (1 << 64) - 1, 0xFFFF_FFFF),
}


def _wide(half: int, low: int) -> int:
    return (half & LOW) << 32 | low & LOW


CASES = (
    *(
        Case(
            f"exits.denied_{name}_is_filter",
            f"A denied access exits as FILTER and nothing else, whatever else it is ({name}).",
            "R51 R56",
            *play((enable_exits(7), done), deny, exits_as(FILTER, access)),
        )
        for name, (deny, access) in _DENIED.items()
    ),
    *(
        Case(
            f"exits.denied_{name}_is_never_unknown_or_invalid",
            f"A denied access does not exit under the mask INVAL|UNKNOWN: it is #GP(0) ({name}).",
            "R51 R50 R56",
            *play((enable_exits(INVAL | UNKNOWN), done), deny, (access, gp)),
        )
        for name, (deny, access) in _DENIED.items()
    ),
    Case(
        "exits.unknown_is_unknown",
        "MSRs that KVM does not have exit as UNKNOWN, read and written, with or without a filter.",
        "R52",
        *play(
            (enable_exits(7), done),
            allowed(0xDEADBEEF),
            write_allowed(0xDEADBEEF),
            done_install(default_deny().allow(0xDEADBEEF, A)),
            allowed(0xDEADBEEF),
            write_allowed(0xDEADBEEF),
            allowed(A),
            write_allowed(A),
        ),
    ),
    *(
        Case(
            f"exits.reserved_efer_bit_{bit}_is_inval",
            f"A WRMSR of EFER with the reserved bit {bit} exits as INVAL, allowed by a filter or "
            "without one.",
            "R52 R27",
            *play(
                (enable_exits(7), done),
                (wrmsr(Msr.EFER, bad), WrmsrExit(Msr.EFER, INVAL, bad), wrote),
                done_install(default_deny().allow(Msr.EFER)),
                (wrmsr(Msr.EFER, bad), WrmsrExit(Msr.EFER, INVAL, bad), wrote),
            ),
        )
        for bit in (32, 62, 63)
        for bad in (1 << bit | 0xD01,)
    ),
    Case(
        "exits.x2apic_register_in_xapic_mode_is_inval",
        "RDMSR 0x802 with the APIC in xAPIC mode exits as INVAL.",
        "R52 R32",
        *play(
            (create_irqchip(), done),
            (enable_exits(7), done),
            (rdmsr(Msr.APIC_ID), RdmsrExit(Msr.APIC_ID, INVAL), returned(REPLY)),
        ),
    ),
    *(
        Case(
            f"exits.upper_rcx_{rcx:#x}",
            f"The index is ECX: the upper half of RCX ({rcx:#x}) neither shows nor matters.",
            "R53",
            *play(
                TELL,
                DENY_A,
                (rdmsr(A, rcx_high=rcx), RdmsrExit(A, FILTER), returned(REPLY)),
                (wrmsr(A, DATA, rcx_high=rcx), WrmsrExit(A, FILTER, DATA), wrote),
                (rdmsr(B, rcx_high=rcx), RdmsrExit(B, UNKNOWN), returned(REPLY)),
                (rdmsr(0xDEADBEEF, rcx_high=rcx), RdmsrExit(0xDEADBEEF, UNKNOWN), returned(REPLY)),
            ),
        )
        for rcx in (1, A, 0xDEAD_BEEF, 0x8000_0000, LOW)
    ),
    *(
        Case(
            f"exits.written_{data:#x}",
            f"The data of a WRMSR exit is EDX:EAX ({data:#x}), upper register halves ignored.",
            "R54",
            *play(
                TELL,
                DENY_A,
                write_denied(A, data),
                (wrmsr(A, data, high=GARBAGE), WrmsrExit(A, FILTER, data), wrote),
                (wrmsr(B, data, high=(1 << 64) - 1), WrmsrExit(B, UNKNOWN, data), wrote),
            ),
        )
        for data in (0, 1, LOW, 1 << 32, 0x8000_0000, 1 << 63, DATA, (1 << 64) - 1)
    ),
    Case(
        "exits.read_data_is_zero",
        "The data of a RDMSR exit is 0, whatever the registers or the last exit held.",
        "R54 R55",
        *play(
            TELL,
            DENY_A,
            write_denied(A, (1 << 64) - 1),
            denied(A),
            (rdmsr(A, before=DATA, high=GARBAGE), RdmsrExit(A, FILTER), returned(REPLY)),
            write_allowed(B, (1 << 64) - 1),
            (rdmsr(B, before=(1 << 64) - 1), RdmsrExit(B, UNKNOWN), returned(REPLY)),
        ),
    ),
    *(
        Case(
            f"exits.stale_{name}_cleared",
            f"At an exit error and pad are 0 after an answer that left {name.replace('_', ' ')}.",
            "R55 R54",
            *play(
                (enable_exits(7), done),
                DENY_A,
                (wrmsr(A, DATA, reply=stale), WrmsrExit(A, FILTER, DATA), outcome_of_write),
                denied(A),
                (rdmsr(A, reply=stale), RdmsrExit(A, FILTER), outcome_of_read),
                write_denied(A),
                (rdmsr(B, reply=stale), RdmsrExit(B, UNKNOWN), outcome_of_read),
                allowed(B),
                (wrmsr(B, DATA, reply=stale), WrmsrExit(B, UNKNOWN, DATA), outcome_of_write),
                (wrmsr(Msr.EFER, BAD_EFER), WrmsrExit(Msr.EFER, INVAL, BAD_EFER), wrote),
            ),
        )
        for name, stale, outcome_of_read, outcome_of_write in (
            ("an_error", fault(0xFF), gp, gp),
            ("scribbled_fields", Reply(REPLY, scribble=True), returned(REPLY), wrote),
            ("an_error_and_scribbled_fields", Reply(DATA, error=0xFF, scribble=True), gp, gp),
        )
    ),
    *(
        Case(
            f"exits.registers_at_a_read_exit_{name}",
            "At a RDMSR exit RIP is at the instruction and RAX, RDX, RCX are as the guest left "
            f"them ({name.replace('_', ' ')}).",
            "R57 R53",
            *play(
                TELL,
                DENY_A,
                (
                    begin(rdmsr(A, before=before, high=high, rcx_high=rcx)),
                    RdmsrExit(A, FILTER),
                ),
                (
                    get_regs(),
                    regs(0, _wide(high, before), _wide(rcx, A), _wide(high >> 32, before >> 32)),
                ),
                (finish(value(REPLY)), returned(REPLY)),
            ),
        )
        for name, (before, high, rcx) in _ACCESSES.items()
    ),
    *(
        Case(
            f"exits.registers_at_a_write_exit_{name}",
            "At a WRMSR exit RIP is at the instruction and RAX, RDX, RCX are as the guest left "
            f"them ({name.replace('_', ' ')}).",
            "R57 R53",
            *play(
                TELL,
                DENY_A,
                (begin(wrmsr(A, data, high=high, rcx_high=rcx)), WrmsrExit(A, FILTER, data)),
                (
                    get_regs(),
                    regs(0, _wide(high, data), _wide(rcx, A), _wide(high >> 32, data >> 32)),
                ),
                (finish(value(REPLY)), wrote),
            ),
        )
        for name, (data, high, rcx) in _ACCESSES.items()
    ),
    Case(
        "exits.registers_at_an_unknown_exit",
        "RIP stays at the instruction at an exit for an unknown MSR as at one for a denied MSR.",
        "R57",
        *play(
            TELL,
            (begin(rdmsr(B, before=DATA)), RdmsrExit(B, UNKNOWN)),
            (get_regs(), regs(0, DATA & LOW, B, DATA >> 32)),
            (finish(fault()), gp),
        ),
    ),
    Case(
        "exits.filter_wins_over_kernel_handling",
        "A denied MSR that KVM implements exits as FILTER; allowed again it is KVM's.",
        "R56 R51 R27",
        *play(
            (enable_exits(7), done),
            (wrmsr(Msr.STAR, DATA), wrote),
            done_install(default_allow().deny(Msr.STAR)),
            denied(Msr.STAR),
            write_denied(Msr.STAR, 0),
            done_install(default_allow()),
            (rdmsr(Msr.STAR), returned(DATA)),
            (rdmsr(Msr.EFER), returned(ANY)),
        ),
    ),
)
