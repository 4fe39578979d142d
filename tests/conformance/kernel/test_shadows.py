"""What comes between an exit and its end is seen as it was, on a vCPU that goes on as before."""

from __future__ import annotations

import pytest

from vmm.conformance.language.script import (
    Taken,
    begin,
    enable_exits,
    finish,
    get_taken,
    get_vcpu_events,
    inject,
    install,
    rdmsr,
    returned,
    taken,
    value,
    vcpu_events,
)
from vmm.exits import RdmsrExit
from vmm.filter import default_allow
from vmm.msr import FILTER

A = 0x474F4F00
SETUP = (enable_exits(FILTER), install(default_allow().deny(A)))
EXIT, ANSWER = RdmsrExit(A, FILTER), finish(value(7))


@pytest.mark.parametrize(
    "after, shadow", [("nothing", False), ("sti_nop", False), ("sti", True), ("mov_ss", True)]
)
def test_a_shadow_is_that_of_the_instruction_before(backend, after, shadow):
    script = (*SETUP, begin(rdmsr(A, after=after)), get_vcpu_events(), ANSWER)
    assert backend.run(script)[2:] == (EXIT, vcpu_events(shadow), returned(7))


@pytest.mark.parametrize("mode", ["long", "compat", "protected", "real"])
@pytest.mark.parametrize("kind, vector", [("nmi", 2), ("interrupt", 32)])
def test_an_interrupt_is_taken_once_and_its_handler_returns(backend, mode, kind, vector):
    access = begin(rdmsr(A, mode=mode, after="sti_nop"))
    one = (access, inject(kind), ANSWER, get_taken(), access, ANSWER, get_taken())
    seen = backend.run((*SETUP, *one, *one, rdmsr(A, reply=value(8))))[2:]
    turn = (EXIT, *seen[1:2], returned(7), taken(vector, skew=2), EXIT, returned(7), Taken(None))
    assert seen == (*turn, *turn, EXIT, returned(8))


def test_an_interrupt_that_nothing_takes_is_not_in_the_next_script(backend):
    assert backend.run((*SETUP, begin(rdmsr(A, after="sti_nop")), inject("nmi")))[2] == EXIT
    assert backend.run((*SETUP, rdmsr(A, reply=value(7))))[2:] == (EXIT, returned(7))


def test_what_one_access_has_taken_is_not_told_of_the_next(backend):
    one = (begin(rdmsr(A, after="sti_nop")), inject("nmi"), ANSWER, get_taken())
    assert backend.run((*SETUP, *one))[-1] == taken(2, skew=2)
    for _ in range(3):  # the VMs of the pool in turns
        assert backend.run((*SETUP, begin(rdmsr(A)), ANSWER, get_taken()))[-1] == Taken(None)
