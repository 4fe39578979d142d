"""Between an exit and the end of its access: interrupt shadows, interrupts, the host's own work.

R66's other half, and R42 where the emulator executes the access: the shadow of STI or MOV SS ends
with it, an interrupt comes after it and not instead of it, and a VMM may look at the vCPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from vmm.conformance.cases.words import (
    BAD_EFER,
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
    with_apic,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import After, Mode, VcpuPart
from vmm.conformance.language.script import (
    ANY,
    REPLY,
    Access,
    Fault,
    Rdmsr,
    Reply,
    begin,
    complete,
    done,
    fault,
    finish,
    get_mp_state,
    get_regs,
    get_taken,
    get_vcpu_events,
    got,
    gp,
    inject,
    interrupted,
    rdmsr,
    regs,
    returned,
    rewrite,
    taken,
    value,
    vcpu_events,
    wrmsr,
    wrote,
)
from vmm.conformance.language.shadows import INTERRUPT, NMI
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.msr import FILTER, UNKNOWN, Msr

_ANSWER = value(REPLY)
_STAR = STORAGE[Msr.STAR][0]
_READ, _WRITE = RdmsrExit(A, FILTER), WrmsrExit(A, FILTER, DATA)
_GP = 13
_WAYS = {"": False, "emulated_": True}
_SHADOWED: tuple[After, ...] = ("sti", "mov_ss")
_MODES: tuple[Mode, ...] = ("long", "compat", "protected", "real")
_NO_SHADOW: Row = (get_vcpu_events(), vcpu_events(shadow=False))


def _read(after: After, mode: Mode = "long", *, emulated: bool = False) -> Access:
    return rdmsr(A, before=GARBAGE, mode=mode, after=after, emulated=emulated)


def _write(after: After, mode: Mode = "long", *, emulated: bool = False) -> Access:
    return wrmsr(A, DATA, mode=mode, after=after, emulated=emulated)


def _ended(reply: Reply, *, is_read: bool) -> Row:
    if reply.error:
        return (finish(reply), gp)
    return (finish(reply), returned(reply.value) if is_read else wrote)


# --- the shadow -------------------------------------------------------------------------------


def _shadow(mode: Mode, after: After, emulated: bool) -> Iterator[Row]:
    is_shadowed = (get_vcpu_events(), vcpu_events(shadow=after in _SHADOWED))
    for access, exit_ in (
        (_read(after, mode, emulated=emulated), _READ),
        (_write(after, mode, emulated=emulated), _WRITE),
    ):
        is_read = exit_ is _READ
        yield from (
            (access, exit_, returned(REPLY) if is_read else wrote),
            (begin(access), exit_),
            is_shadowed,
            (complete(_ANSWER), interrupted),
            _NO_SHADOW,
            (finish(), returned(REPLY) if is_read else wrote),
            (begin(access), exit_),
            is_shadowed,
            _ended(fault(), is_read=is_read),
        )


def _shadow_cases() -> Iterator[Case]:
    for way, emulated in _WAYS.items():
        about = "R42 R66" if emulated else "R66"
        for mode in _MODES:
            yield Case(
                f"shadows.{way}{mode}_ends_with_the_access",
                "An interrupt shadow is there at the exit of the access behind STI or MOV SS, and "
                f"gone when it is completed ({mode}).",
                about,
                *play(
                    TELL,
                    DENY_A,
                    *_shadow(mode, "sti", emulated),
                    *_shadow(mode, "mov_ss", emulated),
                    *_shadow(mode, "sti_nop", emulated),
                    denied(A),
                ),
            )
        yield Case(
            f"shadows.{way}allowed",
            "An allowed access behind STI or MOV SS passes, or exits as UNKNOWN, as without them.",
            about,
            *play(
                TELL,
                DENY_A,
                *(
                    row
                    for after in _SHADOWED
                    for row in (
                        (wrmsr(Msr.STAR, _STAR, after=after, emulated=emulated), wrote),
                        (rdmsr(Msr.STAR, after=after, emulated=emulated), returned(_STAR)),
                        (
                            rdmsr(B, after=after, emulated=emulated),
                            RdmsrExit(B, UNKNOWN),
                            returned(REPLY),
                        ),
                        (
                            rdmsr(A, reply=fault(), after=after, emulated=emulated),
                            _READ,
                            gp,
                        ),
                    )
                ),
            ),
        )
        stepped = Fault(1, skew=2, registers=(REPLY & LOW, REPLY >> 32))
        yield Case(
            f"shadows.{way}pending_debug_exception",
            "MOV SS with RFLAGS.TF puts its #DB off past a denied access that exits: one #DB.",
            about,
            *play(
                TELL,
                DENY_A,
                (rdmsr(A, single_step=True, after="mov_ss", emulated=emulated), _READ, stepped),
                (
                    wrmsr(A, DATA, single_step=True, after="mov_ss", emulated=emulated),
                    _WRITE,
                    Fault(1, skew=2),
                ),
                (begin(rdmsr(A, single_step=True, after="mov_ss", emulated=emulated)), _READ),
                (complete(_ANSWER), interrupted),
                (finish(), stepped),
                denied(A),
            ),
        )


# --- interrupts -------------------------------------------------------------------------------


def _interrupted(access: Access, kind: Literal["nmi", "interrupt"]) -> Iterator[Row]:
    is_read = isinstance(access, Rdmsr)
    exit_ = _READ if is_read else _WRITE
    vector = NMI if kind == "nmi" else INTERRUPT
    done_event = returned(REPLY) if is_read else wrote
    yield from (
        (begin(access), exit_),
        (inject(kind), done),
        (finish(_ANSWER), done_event),
        (get_taken(), taken(vector, skew=2)),
        (begin(access), exit_),
        (finish(_ANSWER), done_event),
        (get_taken(), taken(None)),
        (begin(access), exit_),
        (inject(kind), done),
        (complete(_ANSWER), interrupted),
        (finish(), done_event),
        (get_taken(), taken(vector, skew=2)),
        (begin(access), exit_),
        (complete(_ANSWER), interrupted),
        (inject(kind), done),
        (finish(), done_event),
        (get_taken(), taken(vector, skew=2)),
    )


def _interrupt_cases() -> Iterator[Case]:
    for way, emulated in _WAYS.items():
        about = "R42 R64 R66" if emulated else "R66 R64"
        for mode in _MODES:
            yield Case(
                f"shadows.{way}{mode}_nmi_comes_after_the_access",
                "An NMI between exit and completion, or before the guest runs on, is taken behind "
                f"the access, which is done once ({mode}).",
                about,
                *play(
                    TELL,
                    DENY_A,
                    *(
                        row
                        for after in ("sti_nop", "sti", "mov_ss")
                        for access in (
                            _read(after, mode, emulated=emulated),
                            _write(after, mode, emulated=emulated),
                        )
                        for row in _interrupted(access, "nmi")
                    ),
                    denied(A),
                ),
            )
            yield Case(
                f"shadows.{way}{mode}_interrupt_comes_after_the_access",
                "An interrupt between exit and completion, with RFLAGS.IF and no shadow, is taken "
                f"behind the access, which is done once ({mode}).",
                about,
                *play(
                    TELL,
                    DENY_A,
                    *_interrupted(_read("sti_nop", mode, emulated=emulated), "interrupt"),
                    *_interrupted(_write("sti_nop", mode, emulated=emulated), "interrupt"),
                    denied(A),
                ),
            )
        yield Case(
            f"shadows.{way}shadow_holds_no_interrupt_after_it",
            "STI's shadow is over when the access is complete: an interrupt comes then, behind it.",
            about,
            *play(
                TELL,
                DENY_A,
                (begin(_read("sti", emulated=emulated)), _READ),
                (complete(_ANSWER), interrupted),
                _NO_SHADOW,
                (inject("interrupt"), done),
                (finish(), returned(REPLY)),
                (get_taken(), taken(INTERRUPT, skew=2)),
                denied(A),
            ),
        )
        yield Case(
            f"shadows.{way}nmi_and_a_failed_access",
            "An NMI between the exit and an answer that fails the access: #GP all the same, once.",
            f"{about} R61",
            *play(
                TELL,
                DENY_A,
                (begin(_read("sti_nop", emulated=emulated)), _READ),
                (inject("nmi"), done),
                (finish(fault()), gp),
                (get_taken(), taken(NMI, skew=ANY)),
                (begin(_write("sti_nop", emulated=emulated)), _WRITE),
                (inject("nmi"), done),
                (complete(fault()), interrupted),
                (finish(), gp),
                denied(A),
            ),
        )


# --- the host's own work ----------------------------------------------------------------------


def _looked_at(what: VcpuPart, access: Access, reply: Reply) -> Iterator[Row]:
    is_read = isinstance(access, Rdmsr)
    at_exit = regs(
        0,
        rax=(GARBAGE if is_read else DATA) & LOW,
        rcx=A,
        rdx=(GARBAGE if is_read else DATA) >> 32,
    )
    look: Row = (rewrite(what), done)
    yield from (
        (begin(access), _READ if is_read else _WRITE),
        look,
        (get_mp_state(), got(0)),
        (get_regs(), at_exit),
        _ended(reply, is_read=is_read),
    )
    if what == "regs":  # KVM_SET_REGS drops a #GP that is queued: no VMM may do it later
        return
    yield from (
        (begin(access), _READ if is_read else _WRITE),
        (complete(reply), interrupted),
        look,
        (get_mp_state(), got(0)),
        (finish(), *_ended(reply, is_read=is_read)[1:]),
    )


def _host_cases() -> Iterator[Case]:
    for way, emulated in _WAYS.items():
        for what in get_args(VcpuPart):
            yield Case(
                f"shadows.{way}{what}_read_and_set_between",
                f"A VMM that reads and sets {what} and the MP state between exit and completion, "
                "and before the guest runs on, changes nothing.",
                ("R40 " if emulated else "") + "R68 R64",
                *play(
                    *with_apic(what),
                    TELL,
                    DENY_A,
                    *(
                        row
                        for access in (
                            rdmsr(A, before=GARBAGE, emulated=emulated),
                            wrmsr(A, DATA, emulated=emulated),
                            _read("sti", emulated=emulated),
                            _write("mov_ss", emulated=emulated),
                        )
                        for reply in (_ANSWER, fault())
                        for row in _looked_at(what, access, reply)
                    ),
                    denied(A),
                ),
            )
        yield Case(
            f"shadows.{way}a_failed_access_is_queued",
            "An answer that fails the access leaves its #GP in the vCPU's events: a VMM that saves "
            "the vCPU now has all of it.",
            ("R40 " if emulated else "") + "R68 R61",
            *play(
                TELL,
                DENY_A,
                (begin(rdmsr(A, emulated=emulated)), _READ),
                _NO_SHADOW,
                (complete(fault()), interrupted),
                (get_vcpu_events(), vcpu_events(shadow=ANY, exception=_GP)),
                (rewrite("vcpu_events"), done),
                (get_vcpu_events(), vcpu_events(shadow=ANY, exception=_GP)),
                (finish(), gp),
                (begin(rdmsr(A, emulated=emulated)), _READ),
                (complete(_ANSWER), interrupted),
                _NO_SHADOW,
                (finish(), returned(REPLY)),
            ),
        )


def _again() -> Iterator[Row]:
    yield from (TELL, DENY_A)
    for after in ("sti", "mov_ss"):
        for other in ("sti", "mov_ss"):
            yield (wrmsr(Msr.EFER, BAD_EFER, after=other), gp)
            yield (begin(rdmsr(A, after=after)), RdmsrExit(A, FILTER))
            yield (get_vcpu_events(), vcpu_events(shadow=True))
            yield (finish(value(REPLY)), returned(REPLY))


_AFTER_A_FAULT = Case(
    "shadows.after_a_fault_in_another",
    "A shadow is there at an exit, whatever shadow an access before it has failed in.",
    "R66 R68",
    *play(*_again()),
)

CASES = (*_shadow_cases(), *_interrupt_cases(), *_host_cases(), _AFTER_A_FAULT)
