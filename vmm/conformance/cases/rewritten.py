"""What a host does to a vCPU behind an install: the new filter is in force all the same (R72).

A VMM that saves, resets or migrates a vCPU sets its state between two entries. KVM reads much of
it anew then, and what it makes of that is its own: the MSR bitmap is the filter's all the same, and
a filter that came before is in force behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from vmm.conformance.cases.words import (
    CALLS,
    DATA,
    ENTERS,
    HELD,
    TELL,
    TELL_FILTER,
    A,
    Row,
    denied,
    done_install,
    let,
    play,
    with_apic,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import VcpuPart
from vmm.conformance.language.script import (
    ANY,
    INTERRUPT,
    NMI,
    REPLY,
    begin,
    complete,
    create_vcpu,
    done,
    finish,
    get_taken,
    inject,
    interrupted,
    rdmsr,
    returned,
    rewrite,
    taken,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import MsrFilter, default_allow, default_deny
from vmm.msr import FILTER

PARTS: tuple[VcpuPart, ...] = get_args(VcpuPart)
_DENIES = default_deny().allow(A)
_ALLOWS = default_allow().deny(A)
_PASS: tuple[Row, ...] = tuple(row for msr, values in HELD.items() for row in let(msr, *values))
_DENIED: tuple[Row, ...] = tuple(
    row for msr in HELD for row in (denied(msr), write_denied(msr, HELD[msr][0]))
)
_NEW: tuple[tuple[MsrFilter, tuple[Row, ...]], ...] = ((_DENIES, _DENIED), (_ALLOWS, _PASS))
_STOPS: dict[str, tuple[Row, Row]] = {
    "a_read": ((begin(rdmsr(A)), RdmsrExit(A, FILTER)), (finish(value(REPLY)), returned(REPLY))),
    "a_write": ((begin(wrmsr(A, DATA)), WrmsrExit(A, FILTER, DATA)), (finish(value(0)), wrote)),
}


def _of(what: VcpuPart) -> Iterator[Case]:
    sets: Row = (rewrite(what), done)
    yield Case(
        f"rewritten.{what}",
        f"A filter that comes before KVM_SET_{what.upper()} is in force behind it, and so is one "
        "under which the vCPU has run.",
        "R72",
        *play(
            *with_apic(what),
            TELL_FILTER,
            *_PASS,
            *(row for new, then in _NEW for row in (done_install(new), sets, *then, sets, *then)),
        ),
    )
    yield Case(
        f"rewritten.{what}_with_an_access_to_complete",
        f"A filter that comes between an exit and its completion, before KVM_SET_{what.upper()}, "
        "is in force behind both.",
        "R72 R64 R68",
        *play(
            *with_apic(what),
            TELL_FILTER,
            done_install(_ALLOWS),
            *_PASS,
            *(
                row
                for stops, ends in _STOPS.values()
                for row in (
                    *(stops, done_install(default_deny().deny(A)), sets, ends, *_DENIED),
                    *(stops, done_install(_ALLOWS), sets, ends, *_PASS),
                )
            ),
        ),
    )
    yield Case(
        f"rewritten.{what}_of_l2",
        f"KVM_SET_{what.upper()} of a vCPU that is in L2 leaves L2, and L1 behind it, what the "
        "filter denies and allows.",
        "R72 R36",
        *play(
            *with_apic(what),
            TELL_FILTER,
            *(
                row
                for new, then in reversed(_NEW)
                for row in (done_install(new), ENTERS, *then, sets, *then, CALLS, *then)
            ),
        ),
    )


_PENDING = rdmsr(A, after="sti_nop")
_ENDS: Row = (finish(value(REPLY)), returned(REPLY))
_BETWEEN: dict[str, tuple[str, tuple[Row, ...]]] = {
    "an_nmi": ("an NMI", ((inject("nmi"), done), _ENDS, (get_taken(), taken(NMI, skew=ANY)))),
    "an_interrupt": (
        "an interrupt",
        ((inject("interrupt"), done), _ENDS, (get_taken(), taken(INTERRUPT, skew=ANY))),
    ),
    "a_debugger": (
        "a debugger, who has the guest single-step",
        ((complete(value(REPLY), by="debugger"), interrupted), (finish(), returned(REPLY))),
    ),
    "a_signal": (
        "a signal, for which KVM_SET_SIGNAL_MASK is",
        ((complete(value(REPLY), by="signal"), interrupted), (finish(), returned(REPLY))),
    ),
}


def _behind(name: str) -> Case:
    words, rows = _BETWEEN[name]
    stops: Row = (begin(_PENDING), RdmsrExit(A, FILTER))
    return Case(
        f"rewritten.behind_{name}",
        f"A filter that comes between an exit and its completion is in force behind {words}.",
        "R72 R64 R66",
        *play(
            TELL_FILTER,
            done_install(_ALLOWS),
            *_PASS,
            *(stops, done_install(default_deny().deny(A)), *rows, *_DENIED),
            *(stops, done_install(_ALLOWS), *rows, *_PASS),
        ),
    )


_OF_THE_VM: dict[str, tuple[str, str, tuple[Row, Row]]] = {
    "the_mask": ("KVM_ENABLE_CAP", "R72 R46", (TELL_FILTER, TELL)),
    "another_vcpu": (
        "KVM_CREATE_VCPU",
        "R72 R71",
        ((create_vcpu(1), done), (create_vcpu(2), done)),
    ),
}


def _then(name: str) -> Case:
    words, checks, steps = _OF_THE_VM[name]
    return Case(
        f"rewritten.then_{name}",
        f"A filter that {words} follows reaches a vCPU that has run before.",
        checks,
        *play(
            (create_vcpu(0), done),
            TELL_FILTER,
            *_PASS,
            *(
                row
                for (new, then), step in zip(_NEW, steps, strict=True)
                for row in (done_install(new), step, *then)
            ),
        ),
    )


CASES = (
    *(_then(name) for name in _OF_THE_VM),
    *(case for what in PARTS for case in _of(what)),
    *(_behind(name) for name in _BETWEEN),
)
