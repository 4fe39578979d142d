"""A vCPU that does not run when a filter is installed has it when it runs: R71, R72.

It may halt, wait for an INIT or a SIPI, have been reset, be stopped in SMM or with an access that
is not complete, in ``KVM_RUN`` and out of it. Whatever starts it, the new filter is there first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from errno import EINVAL

from vmm.conformance.cases.words import (
    HELD,
    TELL_FILTER,
    A,
    Row,
    denied,
    done_install,
    play,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import Mode
from vmm.conformance.language.script import (
    HALTED,
    INIT_RECEIVED,
    REPLY,
    RUNNABLE,
    SIPI_RECEIVED,
    SIPI_VECTOR,
    UNINITIALIZED,
    await_sipi,
    begin,
    blocked,
    complete,
    create_irqchip,
    create_vcpu,
    done,
    fault,
    finish,
    get_mp_state,
    got,
    gp,
    interrupted,
    rdmsr,
    rejected,
    returned,
    send_init,
    send_sipi,
    set_mp_state,
    set_msr,
    sleep,
    started,
    unfiltered,
    value,
    wake,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import default_allow, default_deny
from vmm.msr import FILTER, Msr

_DENIES = default_deny().deny(A)
_ALLOWS = default_allow().deny(A)
_TWO: tuple[Row, ...] = ((create_vcpu(0), done), (create_vcpu(1), done))
_SETUP: tuple[Row, ...] = (
    (create_irqchip(), done),
    *_TWO,
    TELL_FILTER,
)
_SLEEP: Row = (sleep(1), blocked)
_WAKE: Row = (wake(1), interrupted)
_GOES_ON: Row = (set_mp_state(RUNNABLE, 1), done)
_INIT: tuple[Row, ...] = ((send_init(1), done), (get_mp_state(1), got(INIT_RECEIVED)))
_SIPI: tuple[Row, ...] = ((send_sipi(1), done), (await_sipi(1), started))
_X2APIC_ON, _TO_1 = 0xFEE00D00, 1 << 32
_ASSERTED = 1 << 14


def _waits(state: int) -> Row:
    return (set_mp_state(state, 1), done)


def _icr(command: int) -> Row:
    return (wrmsr(Msr.APIC_ICR, _TO_1 | _ASSERTED | command), unfiltered)


@dataclass(frozen=True)
class Way:
    """What is done before and after a filter comes; whether the vCPU is reset in between."""

    says: str
    before: tuple[Row, ...]
    after: tuple[Row, ...]
    is_reset: bool = False
    first: tuple[Row, ...] = ()


_BY_ICR: tuple[Row, ...] = ((set_msr(Msr.IA32_APICBASE, _X2APIC_ON), done),)
_START: tuple[Row, ...] = (_icr(6 << 8 | SIPI_VECTOR), (await_sipi(1), started))

WAYS: dict[str, Way] = {
    "halted": Way("that halts", (_waits(HALTED),), (_GOES_ON,)),
    "halted_in_the_kernel": Way(
        "that halts in KVM_RUN", (_waits(HALTED), _SLEEP), (_WAKE, _GOES_ON)
    ),
    "never_started": Way("that has had no INIT", (_waits(UNINITIALIZED),), (_GOES_ON,)),
    "never_started_in_the_kernel": Way(
        "that waits in KVM_RUN for its first INIT",
        (_waits(UNINITIALIZED), _SLEEP),
        (_WAKE, _GOES_ON),
    ),
    "without_sipi": Way("that waits for a SIPI", (_waits(INIT_RECEIVED),), (_GOES_ON,)),
    "without_sipi_in_the_kernel": Way(
        "that waits in KVM_RUN for a SIPI and gets none",
        (_waits(INIT_RECEIVED), _SLEEP),
        (_WAKE, _GOES_ON),
    ),
    "reset": Way("that an INIT has reset", _INIT, (_GOES_ON,), is_reset=True),
    "sipi_in_the_kernel": Way(
        "that waits in KVM_RUN for its SIPI", (*_INIT, _SLEEP), _SIPI, is_reset=True
    ),
    "sipi_before_the_filter": Way(
        "whose SIPI comes before the filter, and that runs after it",
        (*_INIT, (send_sipi(1), done)),
        ((sleep(1), started),),
        is_reset=True,
    ),
    "sipi_received": Way(
        "that the host gives its SIPI by KVM_SET_MP_STATE",
        _INIT,
        ((send_sipi(1), done), _waits(SIPI_RECEIVED), (sleep(1), started)),
        is_reset=True,
    ),
    "sipi_of_a_vcpu": Way(
        "that another vCPU's ICR starts", (*_INIT, _SLEEP), _START, is_reset=True, first=_BY_ICR
    ),
    "init_and_sipi_of_a_vcpu": Way(
        "that halts in KVM_RUN, and another vCPU's ICR resets and starts",
        (_waits(HALTED), _SLEEP),
        (_icr(5 << 8), *_START),
        is_reset=True,
        first=_BY_ICR,
    ),
    "first_init_and_sipi_of_a_vcpu": Way(
        "that waits in KVM_RUN for its first INIT, which another vCPU's ICR sends",
        (_waits(UNINITIALIZED), _SLEEP),
        (_icr(5 << 8), *_START),
        is_reset=True,
        first=_BY_ICR,
    ),
}


_STOPPED_IN: tuple[Mode, ...] = ("long", "real", "smm")


def _modes(way: Way) -> tuple[Mode, ...]:
    """Return the modes of the accesses: after an INIT the first sets what the INIT has reset."""
    return ("real", "long") if way.is_reset else ("long",)


def _denied(way: Way) -> Iterator[Row]:
    for mode in _modes(way):
        for msr in HELD:
            yield (rdmsr(msr, vcpu=1, mode=mode), RdmsrExit(msr, FILTER), returned(REPLY))
            yield (wrmsr(msr, 0, vcpu=1, mode=mode), WrmsrExit(msr, FILTER, 0), wrote)


def _passed(way: Way) -> Iterator[Row]:
    for mode in _modes(way):
        yield from ((rdmsr(msr, vcpu=1, mode=mode), unfiltered) for msr in HELD)


def _script(way: Way) -> Iterator[Row]:
    yield from (*_SETUP, *way.first)
    yield from ((rdmsr(msr, vcpu=1), unfiltered) for msr in HELD)
    yield from (*way.before, done_install(_DENIES), *way.after, *_denied(way))
    yield from (*way.before, done_install(_ALLOWS), *way.after, *_passed(way))
    yield denied(A, 1)


def _started_again(way: Way) -> Iterator[Row]:
    """Yield a filter that the vCPU has run under before it waits: nothing new comes to it then."""
    yield from (*_SETUP, *way.first)
    yield from ((rdmsr(msr, vcpu=1), unfiltered) for msr in HELD)
    yield from (done_install(_DENIES), *_denied(WAYS["halted"]))
    yield from (*way.before, *way.after, *_denied(way), denied(A, 1))


def _stopped(mode: Mode) -> Iterator[Row]:
    """Yield a new filter between an exit and its completion by a KVM_RUN of its own."""
    for filter_, after in ((_DENIES, _denied), (_ALLOWS, _passed)):
        yield (begin(rdmsr(A, vcpu=1, mode=mode)), RdmsrExit(A, FILTER))
        yield done_install(filter_)
        yield (complete(value(7), vcpu=1), interrupted)
        yield (finish(vcpu=1), returned(7))
        yield from (*after(WAYS["halted"]), denied(A, 1))


def _incomplete() -> Iterator[Row]:
    """Yield a new filter for a vCPU that halts while an access of it is not complete."""
    for filter_, after in ((_DENIES, _denied), (_ALLOWS, _passed)):
        yield (begin(rdmsr(A, vcpu=1)), RdmsrExit(A, FILTER))
        yield from (_waits(HALTED), done_install(filter_))
        yield (complete(fault(), vcpu=1), interrupted)
        yield from (_GOES_ON, (finish(vcpu=1), gp))
        yield from (*after(WAYS["halted"]), denied(A, 1))


CASES = (
    *(
        Case(
            f"waits.{name}",
            f"A filter that comes to a vCPU {way.says} is in force once it runs, to deny and to "
            "allow.",
            "R72 R71",
            *play(*_script(way)),
        )
        for name, way in WAYS.items()
    ),
    *(
        Case(
            f"waits.{name}_under_a_filter",
            f"A filter under which a vCPU has run is in force after it was one {way.says}.",
            "R72 R71",
            *play(*_started_again(way)),
        )
        for name, way in WAYS.items()
        if way.is_reset
    ),
    Case(
        "waits.halted_with_an_access_to_complete",
        "A filter that comes while the vCPU halts, and has an access to complete, is in force once "
        "it runs, and takes the access nothing.",
        "R72 R64 R65",
        *play(*_SETUP, done_install(_ALLOWS), *_incomplete()),
    ),
    *(
        Case(
            f"waits.stopped_in_{mode}",
            "A filter that comes between an exit and a KVM_RUN that only completes it is in force "
            f"behind the access ({mode}).",
            "R72 R65",
            *play(*_TWO, TELL_FILTER, done_install(_ALLOWS), *_stopped(mode)),
        )
        for mode in _STOPPED_IN
    ),
    Case(
        "waits.no_irqchip",
        "Without an APIC in the kernel a vCPU waits for nothing: KVM_SET_MP_STATE knows one state.",
        "R72",
        *play(
            TELL_FILTER,
            *(
                (set_mp_state(state), rejected(EINVAL))
                for state in (UNINITIALIZED, INIT_RECEIVED, HALTED, 5, 7)
            ),
            (set_mp_state(RUNNABLE), done),
            done_install(_DENIES),
            (rdmsr(Msr.STAR), RdmsrExit(Msr.STAR, FILTER), returned(REPLY)),
        ),
    ),
)
