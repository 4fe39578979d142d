"""The Model's rules of an access that stops between its exit and its end."""

from __future__ import annotations

import dataclasses

import pytest
from predicted import X, Y, predict

from vmm.conformance.language import script as s
from vmm.conformance.language.script import (
    ANY,
    begin,
    complete,
    done,
    enable_exits,
    fault,
    finish,
    get_regs,
    gp,
    install,
    interrupted,
    rdmsr,
    regs,
    returned,
    set_regs,
    unfiltered,
    value,
    whatever,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit
from vmm.filter import default_allow
from vmm.msr import FILTER, INVAL

DENY = (enable_exits(FILTER), install(default_allow().deny(X)))
READ_X = begin(rdmsr(X, before=0x1_0000_0002, high=0x3_0000_0004, rcx_high=9))
AT_EXIT = regs(0, rax=0x4_0000_0002, rcx=9 << 32 | X, rdx=0x3_0000_0001)


def stopped(*script: s.Action) -> s.Trace:
    return predict(*DENY, *script)[2:]


@pytest.mark.parametrize("by", ["immediate_exit", "signal"])
def test_a_read_is_completed_before_the_interruption(by: str) -> None:
    assert stopped(
        READ_X, get_regs(), complete(value(0xAABBCCDD_11223344), by), get_regs(), finish()
    ) == (
        RdmsrExit(X, FILTER),
        AT_EXIT,
        interrupted,
        regs(2, rax=0x11223344, rcx=AT_EXIT.rcx, rdx=0xAABBCCDD),
        returned(0xAABBCCDD_11223344),
    )


def test_a_failed_read_is_queued_as_gp() -> None:
    trace = stopped(READ_X, complete(fault(7)), get_regs(), finish())
    assert trace[1:] == (interrupted, AT_EXIT, gp)


def test_a_write_changes_no_registers() -> None:
    access = wrmsr(X, 0x1_0000_0002, high=0x3_0000_0004, rcx_high=9)
    trace = stopped(begin(access), complete(value(0xFFFF)), get_regs(), finish())
    assert trace[1:] == (interrupted, dataclasses.replace(AT_EXIT, skew=2), wrote)


def test_completion_happens_once() -> None:
    trace = stopped(
        READ_X, complete(value(5)), complete(None), complete(value(6)), get_regs(), finish(value(7))
    )
    assert trace[4:] == (regs(2, rax=5, rcx=AT_EXIT.rcx, rdx=0), returned(5))
    assert predict(complete(None)) == (interrupted,)


def test_an_unanswered_exit_completes_with_zero() -> None:
    assert stopped(READ_X, complete(None), finish())[1:] == (interrupted, returned(0))
    assert stopped(READ_X, finish())[1:] == (returned(0),)


def test_finish_answers() -> None:
    assert stopped(READ_X, finish(value(5)), rdmsr(Y))[1:] == (returned(5), gp)
    assert stopped(READ_X, finish(fault()))[1:] == (gp,)


def test_what_was_changed_while_pending_does_not_change_the_pending_access() -> None:
    trace = stopped(READ_X, enable_exits(0), install(default_allow()), complete(value(5)), finish())
    assert trace[-1] == returned(5)


def test_registers_set_by_userspace_are_a_quirk_but_data_is_delivered() -> None:
    trace = stopped(READ_X, set_regs(rax=1, rip=2), complete(value(5)), get_regs(), finish())
    assert repr(trace[3]) == repr(regs(ANY, rax=5, rcx=AT_EXIT.rcx, rdx=0))
    assert trace[4] == whatever
    trace = stopped(READ_X, set_regs(rdx=1), get_regs(), complete(fault()), get_regs(), finish())
    assert trace[2] == dataclasses.replace(AT_EXIT, rdx=1)
    assert trace[4].rax is trace[4].rdx is ANY  # type: ignore[union-attr]
    assert trace[5].registers is ANY  # type: ignore[union-attr]


def test_an_access_that_kvm_may_fail_may_have_stopped() -> None:
    assert predict(enable_exits(INVAL), begin(rdmsr(0x1A0)), finish(value(1))) == (
        done,
        whatever,
        whatever,
    )
    assert predict(enable_exits(FILTER), begin(rdmsr(0x1A0))) == (done, unfiltered)
