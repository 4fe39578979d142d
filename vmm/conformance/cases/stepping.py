"""A guest that single-steps sees each access end once, and its #DB right behind it: R66, R42."""

from __future__ import annotations

from collections.abc import Iterator

from vmm.conformance.cases.words import (
    DATA,
    DENY_A,
    GARBAGE,
    LOW,
    STORAGE,
    TELL,
    A,
    B,
    Row,
    denied,
    play,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    REPLY,
    Access,
    Event,
    Fault,
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
from vmm.msr import FILTER, UNKNOWN, Msr

_ANSWER = value(REPLY)
_STAR = STORAGE[Msr.STAR][0]
_WAYS = {"": False, "emulated_": True}


def _read(index: int, emulated: bool, reply: Reply = _ANSWER) -> Access:
    return rdmsr(index, before=GARBAGE, reply=reply, emulated=emulated, single_step=True)


def _write(index: int, data: int, emulated: bool, reply: Reply = _ANSWER) -> Access:
    return wrmsr(index, data, reply=reply, emulated=emulated, single_step=True)


def _stepped(data: int | None = None) -> Event:
    """Return the #DB behind an access: of a read, with EDX:EAX that now hold ``data``."""
    return Fault(1, skew=2, registers=None if data is None else (data & LOW, data >> 32))


def _cases(emulated: bool) -> Iterator[tuple[str, str, list[Row]]]:
    where = "emulated access" if emulated else "access"
    read, write = _read(A, emulated), _write(A, DATA, emulated)
    read_exit, write_exit = RdmsrExit(A, FILTER), WrmsrExit(A, FILTER, DATA)
    yield (
        "denied",
        f"A denied {where} that userspace completes is followed by #DB, once.",
        [
            (read, read_exit, _stepped(REPLY)),
            (write, write_exit, _stepped()),
            denied(A),
        ],
    )
    yield (
        "allowed",
        f"An allowed {where} is followed by #DB as without a filter.",
        [
            (_write(Msr.STAR, _STAR, emulated), _stepped()),
            (_read(Msr.STAR, emulated), _stepped(_STAR)),
            (_read(B, emulated), RdmsrExit(B, UNKNOWN), _stepped(REPLY)),
            denied(A),
        ],
    )
    yield (
        "told_to_a_debugger",
        f"A host that single-steps the guest sees KVM_EXIT_DEBUG right behind a denied {where}.",
        [
            (begin(rdmsr(A, before=GARBAGE, emulated=emulated)), read_exit),
            (complete(_ANSWER, by="debugger"), interrupted),
            (get_regs(), regs(2, REPLY & LOW, A, REPLY >> 32)),
            (finish(), returned(REPLY)),
            (begin(wrmsr(A, DATA, emulated=emulated)), write_exit),
            (complete(_ANSWER, by="debugger"), interrupted),
            (get_regs(), regs(2, DATA & LOW, A, DATA >> 32)),
            (finish(), wrote),
            denied(A),
        ],
    )
    yield (
        "failed",
        f"A failing {where} is #GP at the instruction, and no #DB follows.",
        [
            (_read(A, emulated, fault()), read_exit, gp),
            (_write(A, DATA, emulated, fault()), write_exit, gp),
            denied(A),
        ],
    )
    yield (
        "interrupted",
        f"A denied {where} completed by immediate_exit has its #DB at the next entry.",
        [
            (begin(read), read_exit),
            (complete(_ANSWER), interrupted),
            (get_regs(), regs(2, REPLY & LOW, A, REPLY >> 32)),
            (finish(), _stepped(REPLY)),
            (begin(write), write_exit),
            (complete(_ANSWER), interrupted),
            (finish(), _stepped()),
            denied(A),
        ],
    )


CASES = tuple(
    Case(
        f"stepping.{way}{name}",
        sentence,
        "R42 R66" if emulated else "R66",
        *play(TELL, DENY_A, *rows),
    )
    for way, emulated in _WAYS.items()
    for name, sentence, rows in _cases(emulated)
)
