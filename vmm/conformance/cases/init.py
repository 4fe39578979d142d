"""An INIT: what the vCPU had begun is gone with it (R64, R68); what is denied stays so (R72).

Userspace sees the reset when it asks for the vCPU's state, and nothing may complete afterwards.
"""

from __future__ import annotations

from vmm.conformance.cases.words import (
    DATA,
    GARBAGE,
    HELD,
    TELL,
    TELL_FILTER,
    A,
    Row,
    denied,
    done_install,
    passes,
    play,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import Mode
from vmm.conformance.language.script import (
    ANY,
    REPLY,
    Access,
    Reply,
    Wrmsr,
    begin,
    complete,
    create_irqchip,
    create_vcpu,
    done,
    fault,
    get_mp_state,
    get_regs,
    got,
    interrupted,
    rdmsr,
    regs,
    returned,
    send_init,
    unfiltered,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import default_allow, default_deny
from vmm.msr import FILTER

INIT_RECEIVED = 2
"""``KVM_MP_STATE_INIT_RECEIVED``: the vCPU waits for a SIPI."""

READ, WRITE = rdmsr(A, before=GARBAGE, vcpu=1), wrmsr(A, DATA, vcpu=1)
EXITS: dict[Access, RdmsrExit | WrmsrExit] = {
    READ: RdmsrExit(A, FILTER),
    WRITE: WrmsrExit(A, FILTER, DATA),
}
BEFORE = {
    READ: (GARBAGE & 0xFFFF_FFFF, GARBAGE >> 32),
    WRITE: (DATA & 0xFFFF_FFFF, DATA >> 32),
}
RESET: Row = (get_regs(1), regs(ANY, rax=0, rcx=0, rdx=ANY, changed=True))


def _stopped(access: Access) -> tuple[Row, ...]:
    """Return the rows that stop vCPU 1 in an access, and send it an INIT."""
    return (
        (create_irqchip(), done),
        (create_vcpu(0), done),
        (create_vcpu(1), done),
        TELL,
        done_install(default_allow().deny(A)),
        (begin(access), EXITS[access]),
        (send_init(1), done),
    )


def _case(name: str, sentence: str, access: Access, *rows: Row) -> Case:
    kind = "write" if isinstance(access, Wrmsr) else "read"
    script_and_trace = play(*_stopped(access), *rows, denied(A))
    return Case(f"init.{kind}_{name}", f"{sentence} ({kind}).", "R68 R64", *script_and_trace)


def _ends(access: Access, reply: Reply) -> tuple[Row, ...]:
    low, high = BEFORE[access]
    if access is READ and not reply.error:
        low, high = reply.value & 0xFFFF_FFFF, reply.value >> 32
    return (
        (complete(reply, vcpu=1), interrupted),
        (get_regs(1), regs(0 if reply.error else 2, rax=low, rcx=A, rdx=high)),
        (get_mp_state(1), got(INIT_RECEIVED)),
        RESET,
    )


_MODES: tuple[Mode, ...] = ("compat", "protected", "real")
"""Those in which an access sets all that an INIT has reset; 64-bit code runs behind it."""
RUNNABLE = 0
"""What an INIT leaves vCPU 0, which waits for no SIPI."""
_DENIES = default_deny().allow(A)
_DENIED = tuple(denied(msr) for msr in HELD)
_RESET: tuple[Row, ...] = ((send_init(0), done), (get_mp_state(0), got(RUNNABLE)))


def _denied_in(mode: Mode, msr: int) -> tuple[Row, Row]:
    return (
        (rdmsr(msr, mode=mode), RdmsrExit(msr, FILTER), returned(REPLY)),
        (wrmsr(msr, 0, mode=mode), WrmsrExit(msr, FILTER, 0), wrote),
    )


CASES = (
    *(
        _case(
            f"is_not_completed_after_it_{name}",
            f"An access that INIT cut off is not completed later, with {name.replace('_', ' ')}",
            access,
            (get_mp_state(1), got(INIT_RECEIVED)),
            RESET,
            (complete(reply, vcpu=1), interrupted),
            RESET,
        )
        for access in (READ, WRITE)
        for name, reply in (("a_value", value(0x1122_3344_5566_7788)), ("an_error", fault()))
    ),
    *(
        _case(
            f"is_completed_before_it_{name}",
            f"An access that is completed while INIT waits ends as ever: {name.replace('_', ' ')}",
            access,
            *_ends(access, reply),
        )
        for access in (READ, WRITE)
        for name, reply in (("a_value", value(0x1122_3344_5566_7788)), ("an_error", fault()))
    ),
    *(
        Case(
            f"init.leaves_the_filter_to_{mode}",
            "What a filter denied before an INIT of the vCPU it denies after it, and a filter that "
            f"comes while the INIT waits counts too ({mode}).",
            "R72 R33",
            *play(
                (create_irqchip(), done),
                (create_vcpu(0), done),
                TELL_FILTER,
                *(passes(msr) for msr in HELD),
                done_install(_DENIES),
                *_DENIED,
                *_RESET,
                *(row for msr in HELD for row in _denied_in(mode, msr)),
                *_DENIED,
                done_install(default_allow().deny(A)),
                *_RESET,
                *((rdmsr(msr, mode=mode), unfiltered) for msr in HELD),
                (send_init(0), done),
                done_install(_DENIES),
                (get_mp_state(0), got(RUNNABLE)),
                *(row for msr in HELD for row in _denied_in(mode, msr)),
                *_DENIED,
            ),
        )
        for mode in _MODES
    ),
)
