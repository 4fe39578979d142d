"""An SMI between an exit and its completion: the access is done first, and then SMM is entered.

KVM_RUN completes what is pending before it looks for an SMI. So what SMM saves and RSM brings back
is a vCPU whose access is over, or whose #GP is (R64, R66, R68).
"""

from __future__ import annotations

from collections.abc import Iterator

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
    done_install,
    play,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import After, Mode, VcpuPart
from vmm.conformance.language.script import (
    ANY,
    REPLY,
    SMI,
    Access,
    Rdmsr,
    Wrmsr,
    begin,
    complete,
    done,
    enable_exits,
    fault,
    finish,
    get_regs,
    get_taken,
    gp,
    inject,
    interrupted,
    rdmsr,
    regs,
    returned,
    rewrite,
    taken,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import default_allow
from vmm.msr import FILTER

_ANSWER = value(REPLY)
_SENT: Row = (inject("smi"), done)
_BEHIND: Row = (get_taken(), taken(SMI, skew=2))
_IN_THE_HANDLER: Row = (get_taken(), taken(SMI, skew=ANY))
_MODES: tuple[Mode, ...] = ("long", "compat", "protected", "real")
_AFTER: tuple[After, ...] = ("sti_nop", "sti", "mov_ss")
_REWRITTEN: tuple[VcpuPart, ...] = ("vcpu_events", "sregs", "mp_state", "debugregs")
_WAYS = {"": False, "emulated_": True}


def _accesses(mode: Mode, after: After, *, emulated: bool) -> tuple[Rdmsr, Wrmsr]:
    return (
        rdmsr(A, before=GARBAGE, mode=mode, after=after, emulated=emulated),
        wrmsr(A, DATA, mode=mode, after=after, emulated=emulated),
    )


def _stops(access: Access) -> Row:
    exit_ = RdmsrExit(A, FILTER) if isinstance(access, Rdmsr) else WrmsrExit(A, FILTER, DATA)
    return (begin(access), exit_)


def _regs_after(access: Access) -> Row:
    is_read = isinstance(access, Rdmsr)
    given = REPLY if is_read else DATA
    return (get_regs(), regs(2, rax=given & LOW, rcx=A, rdx=given >> 32))


def _answered(access: Access) -> Iterator[Row]:
    ended = returned(REPLY) if isinstance(access, Rdmsr) else wrote
    yield from (_stops(access), _SENT, (finish(_ANSWER), ended), _BEHIND)
    yield from (_stops(access), (finish(_ANSWER), ended), (get_taken(), taken(None)))
    yield from (_stops(access), _SENT, (complete(_ANSWER), interrupted), _regs_after(access))
    yield from ((finish(), ended), _BEHIND)
    yield from (_stops(access), _SENT, (complete(_ANSWER, "signal"), interrupted))
    yield from ((finish(), ended), _BEHIND)
    yield from (_stops(access), (complete(_ANSWER), interrupted), _SENT, (finish(), ended), _BEHIND)


def _failed(access: Access) -> Iterator[Row]:
    yield from (_stops(access), _SENT, (finish(fault()), gp), _IN_THE_HANDLER)
    yield from (_stops(access), _SENT, (complete(fault()), interrupted), (finish(), gp))
    yield from (_IN_THE_HANDLER, _stops(access), (complete(fault()), interrupted), _SENT)
    yield from ((finish(), gp), _IN_THE_HANDLER)


def _of_mode(mode: Mode, way: str) -> Iterator[Case]:
    accesses = [
        access for after in _AFTER for access in _accesses(mode, after, emulated=_WAYS[way])
    ]
    about = "R42 R64 R66 R68" if _WAYS[way] else "R64 R66 R68"
    yield Case(
        f"smi.{way}{mode}_comes_after_the_access",
        "An SMI between exit and completion, or before the guest runs on, is taken behind the "
        f"access, which is done once, with its answer ({mode}).",
        about,
        *play(TELL, DENY_A, *(row for each in accesses for row in _answered(each)), denied(A)),
    )
    yield Case(
        f"smi.{way}{mode}_comes_after_the_fault",
        "An SMI between exit and completion takes no #GP away that userspace asks for, and no "
        f"register ({mode}).",
        f"{about} R61",
        *play(TELL, DENY_A, *(row for each in accesses for row in _failed(each)), denied(A)),
    )


_READ, _WRITE = _accesses("long", "sti_nop", emulated=False)

CASES = (
    *(case for way in _WAYS for mode in _MODES for case in _of_mode(mode, way)),
    *(
        Case(
            f"smi.survives_a_rewrite_of_{what}",
            f"A host that reads {what} and sets the same between exit and completion loses neither "
            "the SMI nor the access.",
            "R64 R68",
            *play(
                TELL,
                DENY_A,
                *(
                    row
                    for access, ended in ((_READ, returned(REPLY)), (_WRITE, wrote))
                    for row in (
                        _stops(access),
                        _SENT,
                        (rewrite(what), done),
                        (finish(_ANSWER), ended),
                        _BEHIND,
                    )
                ),
                denied(A),
            ),
        )
        for what in _REWRITTEN
    ),
    Case(
        "smi.changes_no_filter",
        "A filter and a mask that come while an SMI waits are in force behind it, and not before.",
        "R64 R44 R72",
        *play(
            TELL,
            DENY_A,
            _stops(_READ),
            _SENT,
            done_install(default_allow().deny(B)),
            (finish(_ANSWER), returned(REPLY)),
            _BEHIND,
            denied(B),
            (rdmsr(B, after="sti_nop"), RdmsrExit(B, FILTER), returned(REPLY)),
            DENY_A,
            _stops(_WRITE),
            _SENT,
            (enable_exits(0), done),
            (finish(fault()), gp),
            _IN_THE_HANDLER,
            (rdmsr(A), gp),
        ),
    ),
)
