"""Between a filter's publication and its reaching a vCPU's bitmap: as old or as new: R70.

An install publishes its filter, waits for whoever may still read the old one (here a vCPU parked in
the kernel), and only then has every vCPU carry it into the bitmap that hardware reads. Meanwhile
the bitmap says what the old filter said, and KVM's own handlers ask the new one: what it allows
must work there as it does in hardware (B10, B34).
"""

from __future__ import annotations

from vmm.conformance.cases.passthrough import PASSED_THROUGH
from vmm.conformance.cases.words import (
    STORAGE,
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
from vmm.conformance.language.script import (
    ANY,
    REPLY,
    await_install,
    begin_install,
    blocked,
    done,
    either,
    enable_exits,
    park,
    parked,
    rdmsr,
    release,
    released,
    returned,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, INVAL, UNKNOWN, Msr

TELL_ALL: Row = (enable_exits(INVAL | UNKNOWN | FILTER), done)
HELD: dict[int, int] = {
    **{msr: one for msr, (one, _) in STORAGE.items()},
    **{
        msr: PASSED_THROUGH[msr]
        for msr in (Msr.IA32_SYSENTER_CS, Msr.IA32_SYSENTER_ESP, Msr.IA32_SYSENTER_EIP)
    },
}
"""MSRs that only store, each with a value."""


def _read(index: int, content: int) -> Row:
    denied_ = (RdmsrExit(index, FILTER), returned(REPLY))
    return (rdmsr(index), either((returned(content),), denied_))


def _write(index: int, content: int) -> Row:
    return (wrmsr(index, content), either((wrote,), (WrmsrExit(index, FILTER, content), wrote)))


def _on_its_way(new: MsrFilter, *rows: Row) -> tuple[Row, ...]:
    """Return the rows in which ``rows`` come while ``new`` is published and not everywhere."""
    return (
        (park(1), parked),
        (begin_install(new), blocked),
        *rows,
        (release(1), released),
        (await_install(), done),
    )


def _denied_later(index: int, content: int) -> tuple[Row, ...]:
    """Return the rows of an MSR that a filter on its way denies."""
    return (
        *_on_its_way(
            default_allow().deny(index),
            _read(index, content),
            _write(index, content),
        ),
        denied(index),
        write_denied(index, content),
        allowed(B),
    )


def _allowed_later(index: int, content: int) -> tuple[Row, ...]:
    """Return the rows of an MSR that a filter on its way allows."""
    return (
        done_install(default_deny().allow(A)),
        denied(index),
        *_on_its_way(
            default_deny().allow(A, index),
            (wrmsr(index, content), wrote),
            (rdmsr(index), returned(content)),
        ),
        (wrmsr(index, content), wrote),
        (rdmsr(index), returned(content)),
        denied(B),
    )


CASES = (
    *(
        Case(
            f"between.{name}_{Msr(index).name.lower()}",
            f"While a filter {name.replace('_', ' ')} {Msr(index).name} is on its way, {how}.",
            "R70 R72",
            *play(TELL_ALL, (wrmsr(index, content), wrote), *rows(index, content)),
        )
        for index, content in HELD.items()
        for name, rows, how in (
            ("that_denies", _denied_later, "an access ends as before it or as after it"),
            ("that_allows", _allowed_later, "an access that reaches KVM is allowed and works"),
        )
    ),
    Case(
        "between.that_denies_ia32_tsc",
        "While a filter that denies IA32_TSC is on its way, RDMSR ends as before or as after it.",
        "R70 R72",
        *play(
            TELL_ALL,
            *_on_its_way(default_allow().deny(Msr.IA32_TSC), _read(Msr.IA32_TSC, ANY)),
            denied(Msr.IA32_TSC),
        ),
    ),
)
