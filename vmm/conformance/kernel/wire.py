"""The bytes that host and ``access`` guest exchange over an access, and what they mean.

A step of program is in ``guests/abi.inc``; a reply, an exit of the log in ``native/shim.h``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from vmm.conformance.language.script import (
    Access,
    Event,
    Fault,
    Lost,
    Rdmsr,
    Regs,
    Rejected,
    Reply,
    Returned,
    Wrote,
    done,
    gp,
    wrote,
)
from vmm.decode import IO, RDMSR, WRMSR
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.guest import Guest
from vmm.msr import MsrExitReason

STEP, RESULT = struct.Struct("<8Q"), struct.Struct("<4Q")
_RESULTS = struct.Struct(f"{RESULT.size}s")
REPLY = struct.Struct("<QBB6x")
EXIT = struct.Struct("<IIQIIQQQQQ")
SEEN = struct.Struct("<iiII")
"""``struct mw_seen``: results of the install and of the batch, number of exits, 0."""

SPARE_EXITS = 16
"""Room in the log beyond one exit for each access: an access that is replayed shows itself."""

REASONS = {int(each): each for each in map(MsrExitReason, range(8))}
"""Every combination of the reasons there are: to make one anew takes longer."""

FAULTED = 1 << 31
CANARIES = 0x5AFEC0DE5AFEC0DE, 0xDEADC0DEDEADC0DE, 0xBADC0FFEBADC0FFE
LOW, HIGH = 0xFFFFFFFF, 0xFFFFFFFF00000000


VARIANTS = tuple(
    f"{stepped}{emulated}{name}"
    for stepped in ("", "stepped_")
    for emulated in ("", "emulated_")
    for name in ("rdmsr", "wrmsr")
)
"""The instructions of the ``access`` guest, in the order of ``variant``."""


def variant(access: Access) -> int:
    """Return which of the ``VARIANTS`` executes the access."""
    return (not isinstance(access, Rdmsr)) | access.emulated << 1 | access.single_step << 2


def instructions(guest: Guest) -> tuple[int, ...]:
    """Return where in the ``access`` guest each of the ``VARIANTS`` is."""
    return tuple(guest.symbols[f"{name}_at"] for name in VARIANTS)


def handlers(guest: Guest) -> tuple[int, ...]:
    """Return the handlers of steps with each of the ``VARIANTS``, and of a program's end."""
    return tuple(guest.symbols[f"op_{name}"] for name in (*VARIANTS, "done"))


def operands(access: Access) -> tuple[int, int, int]:
    """Return RCX, RAX and RDX as they are before the access."""
    value = access.before if isinstance(access, Rdmsr) else access.value
    if access.form == "immediate":  # no MSR is looked for in RCX, which has another
        return access.index ^ LOW, value, access.high
    rcx = access.rcx_high << 32 | access.index
    return rcx, (access.high & LOW) << 32 | value & LOW, access.high & HIGH | value >> 32


def step_words(access: Access, handlers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the eight words of a step before the guest has executed it."""
    rcx, rax, rdx = operands(access)
    canary = _canary(rax, rdx)
    return handlers[variant(access)], rcx, rax, rdx, canary, canary, 0, 0


def pack_reply(reply: Reply) -> bytes:
    """Return the reply as ``struct mw_reply``."""
    return REPLY.pack(reply.value, reply.error, reply.scribble)


def pack_exit(event: RdmsrExit | WrmsrExit, regs: Regs, at: int) -> tuple[bytes, bytes]:
    """Return what stands before and after the step's number in an exit of the log."""
    is_write = isinstance(event, WrmsrExit)
    head = event.error | event.pad << 8
    exit_ = EXIT.pack(
        WRMSR if is_write else RDMSR,
        0,
        head,
        event.reason,
        event.index,
        event.data,
        at + regs.skew,
        regs.rax,
        regs.rcx,
        regs.rdx,
    )
    return exit_[:4], exit_[8:]


def pack_outcome(access: Access, event: Event, at: int) -> bytes:
    """Return a step's last four words after ``event``: the inverse of ``read_outcome``."""
    registers = operands(access)[1:]
    fault, rip = 0, 0
    if isinstance(event, Returned):
        low, high = event.value & LOW, event.value >> 32
        registers = (event.high & LOW) << 32 | low, event.high & HIGH | high
    elif isinstance(event, Fault):
        fault, rip = (FAULTED | event.vector) << 32 | event.error_code, at + event.skew
        registers = event.registers or registers
    elif event != wrote:
        raise ValueError(f"no bytes stand for {event!r}")
    return RESULT.pack(*registers, fault, rip)


def events_of(
    exits: dict[int, list[Event]], outcomes: Sequence[Event | None], ended: str
) -> list[Event]:
    """Return all events in order; ``ended`` is what stopped the guest before its end, or ""."""
    events: list[Event] = []
    for number, outcome in enumerate(outcomes):
        events += exits.get(number, ())
        events.append(outcome or Lost(ended or "the step was skipped"))
        if isinstance(events[-1], Lost):
            return events
    return [*events[:-1], Lost(ended)] if ended else events


def read_outcome(access: Access, result: bytes, instructions: tuple[int, ...]) -> Event | None:
    """Return what the last four words of a step say, or None if the guest has not executed it."""
    rax, rdx, fault, rip = RESULT.unpack(result)
    if not fault >> 32 & FAULTED and _canary(*operands(access)[1:]) in (rax, rdx):
        return None
    return outcome_of(access, rax, rdx, fault, rip - instructions[variant(access)])


def outcome_of(access: Access, after_rax: int, after_rdx: int, fault: int, skew: int) -> Event:
    """Return how an access ended, by RAX and RDX after it and its fault as a step records it."""
    _, rax, rdx = operands(access)
    same = (after_rax, after_rdx) == (rax, rdx)
    if fault >> 32 & FAULTED:
        changed = None if same else (after_rax, after_rdx)
        seen = Fault(fault >> 32 & 0xFF, fault & LOW, skew, changed)
        return gp if seen == gp else seen
    if isinstance(access, Rdmsr) and access.form == "immediate":
        return Returned(after_rax, 0 if after_rdx == rdx else HIGH | LOW)
    if isinstance(access, Rdmsr):
        high = after_rdx & HIGH | after_rax >> 32
        return Returned((after_rdx & LOW) << 32 | after_rax & LOW, high)
    return wrote if same else Wrote((after_rax, after_rdx))


def read_exits(
    log: bytes, accesses: Sequence[Access], instructions: tuple[int, ...]
) -> dict[int, list[Event]]:
    """Return the exits by step, each followed by its registers where R57 is broken."""
    exits: dict[int, list[Event]] = {}
    for kind, step, head, reason, index, data, rip, rax, rcx, rdx in EXIT.iter_unpack(log):
        here = exits.setdefault(step, [])
        made = RdmsrExit if kind == RDMSR else WrmsrExit
        known = REASONS.get(reason)
        why = MsrExitReason(reason) if known is None else known
        here.append(made(index, why, data, head & 0xFF, head >> 8))
        access = accesses[step]
        at = instructions[variant(access) & ~1 | (made is WrmsrExit)]
        if rip != at or (rcx, rax, rdx) != operands(access):
            here.append(Regs(rip - at, rax, rcx, rdx))
    return exits


def case_size(seen: bytes, at: int, accesses: int) -> int:
    """Return the bytes of the case at ``at`` in what a sweep left."""
    exits: int = SEEN.unpack_from(seen, at)[2]
    return SEEN.size + exits * EXIT.size + accesses * RESULT.size


def first_change(expected: bytes, seen: bytes, accesses: int) -> tuple[int, bytes]:
    """Return the number of the first case that is not as expected, and its bytes in ``seen``."""
    number = at = 0
    while True:
        case = seen[at : at + case_size(seen, at, accesses)]
        if case != expected[at : at + len(case)]:
            return number, case
        number, at = number + 1, at + len(case)


def read_case(case: bytes, accesses: Sequence[Access], guest: Guest) -> list[Event]:
    """Return what the bytes of a case in a sweep mean: the install's event, and then the rest."""
    installed, ended, exits, _ = SEEN.unpack_from(case)
    at, places = SEEN.size + exits * EXIT.size, instructions(guest)
    outcomes = [
        read_outcome(access, result, places)
        for access, (result,) in zip(accesses, _RESULTS.iter_unpack(case[at:]), strict=True)
    ]
    log = read_exits(case[SEEN.size : at], accesses, places)
    first = done if installed >= 0 else Rejected(-installed)
    other = "" if ended == IO else f"exit reason {ended}"
    return [first, *events_of(log, outcomes, broken_off(ended) or other)]


def broken_off(result: int) -> str:
    """Return why a program did not end by itself, by what KVM_RUN returned, or ""."""
    if result < 0:
        return f"KVM_RUN: {os.strerror(-result)}"
    return "more exits than accesses" if result in (RDMSR, WRMSR) else ""


def _canary(rax: int, rdx: int) -> int:
    """Return what a result is before the guest wrote it: no access of this step can leave it."""
    for each in CANARIES:
        if each not in (rax, rdx):
            return each
    raise AssertionError("two registers hold three values")
