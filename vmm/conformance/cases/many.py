"""The hundredth filter is as good as the first: many installs in a VM, and many VMs (R16, R72).

A kernel may count its filters, and be wrong where the count comes round: each install here has an
access that shows it, and a mistake that comes at every so manieth comes again when the case does.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmm.conformance.cases.words import (
    TELL_FILTER,
    A,
    B,
    Row,
    denied,
    done_install,
    play,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    REPLY,
    done,
    fresh_vm,
    gp,
    rdmsr,
    returned,
    unfiltered,
    wrmsr,
)
from vmm.exits import RdmsrExit
from vmm.filter import MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, Msr

_GS, _FS = Msr.KERNEL_GS_BASE, Msr.FS_BASE
_PASSED = (_GS, _FS, Msr.GS_BASE)
"""What either vendor's hardware passes through."""
_FILTERS: tuple[tuple[MsrFilter, frozenset[int]], ...] = (
    (default_allow().deny(A).deny(_GS), frozenset({A, _GS})),
    (default_deny().allow(A).allow(_GS).allow(Msr.GS_BASE), frozenset({_FS})),
    (default_allow().deny(A).deny(Msr.GS_BASE), frozenset({A, Msr.GS_BASE})),
)
"""What comes in turns, and which of the MSRs each denies: of those that hardware passes through
always one that neither the filter before nor the one before that denies."""
_GS_DENIED: Row = (rdmsr(_GS), RdmsrExit(_GS, FILTER), returned(REPLY))
INSTALLS, BYTE = 310, 256
"""More than what a byte counts, and than every 300th of a count that has begun before."""
_LOOKS = {1: (3, 4, 4 + BYTE), 2: (4, 5, 5 + BYTE), 3: (5, 6, 6 + BYTE)}
"""The other vCPUs, and the installs after which each runs: it is made, is told, and sleeps.

The filter is another one then, since 256 is no multiple of three."""


def _shows(number: int, vcpu: int) -> Iterator[Row]:
    """Yield the accesses that tell which filter is in force."""
    for index in (A, *_PASSED):
        if index in _FILTERS[number % 3][1]:
            yield denied(index, vcpu)
        else:
            yield (rdmsr(index, vcpu=vcpu), gp if index == A else unfiltered)


def _installs() -> Iterator[Row]:
    yield TELL_FILTER
    for number in range(INSTALLS):
        yield done_install(_FILTERS[number % 3][0])
        yield from _shows(number, 0)
        for vcpu in (each for each, numbers in _LOOKS.items() if number in numbers):
            yield from _shows(number, vcpu)


def _vms(count: int) -> Iterator[Row]:
    for number in range(count):
        yield TELL_FILTER
        yield (rdmsr(_GS), unfiltered)
        yield done_install(_FILTERS[number % 3][0])
        yield from _shows(number, 0)
        yield (fresh_vm(), done)
    yield from (TELL_FILTER, (rdmsr(A), gp))


def _unseen() -> Iterator[Row]:
    """Yield installs of which every other is shown by no access: memory that is free comes again.

    A kernel that keeps an answer by where its filter lies takes the third for the first.
    """
    yield TELL_FILTER
    denies, allows = (MsrFilter(flags).deny(B).deny(_GS) for flags in (1, 0))
    for _ in range(8):
        for first, then in ((denies, allows), (allows, denies)):
            yield from (done_install(first), *_of_a(first), _GS_DENIED)
            yield from (done_install(first), done_install(then), *_of_a(then))


def _of_a(in_force: MsrFilter) -> tuple[Row, ...]:
    if in_force.flags:
        return denied(A), write_denied(A), denied(_FS)
    return (rdmsr(A), gp), (wrmsr(A, 0), gp), (rdmsr(_FS), unfiltered)


CASES = (
    Case(
        "many.where_another_one_lay",
        "A filter is asked anew, though it may lie where an older one lay that was asked the same.",
        "R16 R72",
        *play(*_unseen()),
    ),
    Case(
        "many.installs",
        "Each of 310 filters of a VM replaces the one before, for a vCPU that runs after each and "
        "for those that run once in 256.",
        "R16 R72 R71",
        *play(*_installs()),
    ),
    *(
        Case(
            f"many.vms_{count}",
            f"Each of {count} VMs, one after another, starts without a filter and obeys its own.",
            "R45 R26 R16 R72",
            *play(*_vms(count)),
            thorough=count > 100,
        )
        for count in (6, 260)
    ),
)
