"""Completing an access without running the guest on: R65, R68."""

from __future__ import annotations

from vmm.conformance.cases.words import (
    DATA,
    DENY_A,
    GARBAGE,
    LOW,
    TELL,
    A,
    B,
    Row,
    denied,
    play,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import Interrupter
from vmm.conformance.language.script import (
    REPLY,
    Reply,
    begin,
    complete,
    fault,
    finish,
    get_regs,
    gp,
    interrupted,
    rdmsr,
    regs,
    returned,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.msr import FILTER, UNKNOWN

ONES = (1 << 64) - 1
_READ_EXIT, _WRITE_EXIT = RdmsrExit(A, FILTER), WrmsrExit(A, FILTER, GARBAGE)

# One read and one write with every half of every register full, and those registers.
_READ = rdmsr(A, before=GARBAGE, high=DATA, rcx_high=0xBAD)
_WRITE = wrmsr(A, GARBAGE, high=DATA, rcx_high=0xBAD)
_RAX, _RCX = (DATA & LOW) << 32 | GARBAGE & LOW, 0xBAD << 32 | A
_RDX = DATA >> 32 << 32 | GARBAGE >> 32


def _interrupted(by: Interrupter, reply: Reply) -> Row:
    return (complete(reply, by=by), interrupted)


CASES = (
    *(
        Case(
            f"reentry.read_before_{by}",
            f"Re-entry with a pending {by.replace('_', ' ')} first completes the read, then "
            "returns EINTR; the read is not repeated.",
            "R65 R68 R64",
            *play(
                TELL,
                DENY_A,
                (begin(_READ), _READ_EXIT),
                (get_regs(), regs(0, _RAX, _RCX, _RDX)),
                _interrupted(by, value(REPLY)),
                (get_regs(), regs(2, REPLY & LOW, _RCX, REPLY >> 32)),
                (finish(), returned(REPLY)),
                denied(A),
            ),
        )
        for by in ("immediate_exit", "signal")
    ),
    *(
        Case(
            f"reentry.write_before_{by}",
            f"Re-entry with a pending {by.replace('_', ' ')} first completes the write, then "
            "returns EINTR; the write is not repeated.",
            "R65 R68 R63",
            *play(
                TELL,
                DENY_A,
                (begin(_WRITE), _WRITE_EXIT),
                _interrupted(by, value(REPLY)),
                (get_regs(), regs(2, _RAX, _RCX, _RDX)),
                (finish(), wrote),
                write_denied(A),
            ),
        )
        for by in ("immediate_exit", "signal")
    ),
    *(
        Case(
            f"reentry.failed_{name}_before_{by}",
            f"A {name} failed by userspace and re-entered with a pending {by.replace('_', ' ')} "
            "stays at the instruction, and faults at the next entry.",
            "R65 R61 R68",
            *play(
                TELL,
                DENY_A,
                (begin(access), exit_),
                _interrupted(by, fault()),
                (get_regs(), regs(0, _RAX, _RCX, _RDX)),
                (finish(), gp),
                denied(A),
            ),
        )
        for name, access, exit_ in (("read", _READ, _READ_EXIT), ("write", _WRITE, _WRITE_EXIT))
        for by in ("immediate_exit", "signal")
    ),
    Case(
        "reentry.completed_once",
        "After it was completed an access is no longer pending: entering again changes nothing.",
        "R64 R65",
        *play(
            TELL,
            DENY_A,
            (begin(_READ), _READ_EXIT),
            _interrupted("immediate_exit", value(DATA)),
            (get_regs(), regs(2, DATA & LOW, _RCX, DATA >> 32)),
            (complete(None), interrupted),
            (get_regs(), regs(2, DATA & LOW, _RCX, DATA >> 32)),
            (complete(None, by="signal"), interrupted),
            (finish(), returned(DATA)),
        ),
    ),
    *(
        Case(
            f"reentry.only_the_first_answer_to_a_{name}_counts",
            f"What userspace writes to kvm_run after a {name} was completed answers nothing.",
            "R64 R65",
            *play(
                TELL,
                DENY_A,
                (begin(access), exit_),
                _interrupted("immediate_exit", value(REPLY)),
                _interrupted("immediate_exit", Reply(DATA, error=1)),
                (get_regs(), regs(2, rax, _RCX, rdx)),
                (finish(Reply(DATA, error=1, scribble=True)), outcome),
                denied(A),
            ),
        )
        for name, access, exit_, rax, rdx, outcome in (
            ("read", _READ, _READ_EXIT, REPLY & LOW, REPLY >> 32, returned(REPLY)),
            ("write", _WRITE, _WRITE_EXIT, _RAX, _RDX, wrote),
        )
    ),
    Case(
        "reentry.a_fault_once_given_stands",
        "A fault that was completed is delivered though userspace writes a value afterwards.",
        "R64 R65 R61",
        *play(
            TELL,
            DENY_A,
            (begin(_READ), _READ_EXIT),
            _interrupted("immediate_exit", fault()),
            _interrupted("immediate_exit", value(REPLY)),
            (finish(value(REPLY)), gp),
            denied(A),
        ),
    ),
    Case(
        "reentry.unknown_before_immediate_exit",
        "An access of an unknown MSR completes before EINTR like a denied one.",
        "R65 R68",
        *play(
            TELL,
            (begin(rdmsr(B, before=ONES, high=ONES)), RdmsrExit(B, UNKNOWN)),
            _interrupted("immediate_exit", value(DATA)),
            (get_regs(), regs(2, DATA & LOW, B, DATA >> 32)),
            (finish(), returned(DATA)),
        ),
    ),
)
