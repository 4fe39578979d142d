"""A host that sets a vCPU's state: what the filter denies stays denied, and a new one comes (R72).

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
    REPLY,
    begin,
    done,
    finish,
    rdmsr,
    returned,
    rewrite,
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


CASES = tuple(case for what in PARTS for case in _of(what))
