"""The Model's rules of installs that wait for readers of the old filter."""

from __future__ import annotations

from errno import EEXIST, EFAULT, EINVAL

import pytest
from predicted import X, Y, Z, predict
from raced import BAD_FLAGS, NEW, NEW_IS_IN_FORCE, OLD, OLD_IS_IN_FORCE, after, denies, with_bad

from vmm.conformance.language import script as s
from vmm.conformance.language.script import (
    REPLY,
    await_install,
    await_meanwhile,
    begin_install,
    blocked,
    create_vcpu,
    done,
    enable_exits,
    install,
    meanwhile,
    park,
    parked,
    rdmsr,
    rejected,
    release,
    released,
    resume_install,
    returned,
    unfiltered,
    whatever,
)
from vmm.exits import RdmsrExit
from vmm.filter import MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, Msr


@pytest.mark.parametrize("stall_at", [None, 0])
def test_an_install_waits_for_the_readers_and_is_in_force_before(stall_at: int | None) -> None:
    start = [begin_install(NEW, stall_at)] + [resume_install()] * (stall_at is not None)
    assert after(park(1), *start)[-1] == blocked
    assert denies(park(1), *start) == NEW_IS_IN_FORCE
    assert after(park(1), *start, await_install(), release(1), await_install())[-3:] == (
        blocked,
        released,
        done,
    )
    assert denies(park(1), *start, release(1), vcpu=1) == NEW_IS_IN_FORCE


def test_every_reader_from_before_counts() -> None:
    words = park(1), park(2), begin_install(NEW), release(2), await_install(), release(1)
    assert after(*words, await_install()) == (
        parked,
        parked,
        blocked,
        released,
        blocked,
        released,
        done,
    )


def test_a_reader_that_was_released_before_does_not_count() -> None:
    assert after(park(1), release(1), begin_install(NEW)) == (parked, released, done)
    assert after(begin_install(NEW, 0), park(1), release(1), resume_install())[-1] == done


def test_nobody_promises_what_a_later_reader_does() -> None:
    words = park(1), begin_install(NEW), park(2), await_install(), release(1), await_install()
    assert after(*words, release(2), await_install())[3:] == (
        blocked,
        released,
        whatever,
        released,
        whatever,
    )
    again = park(1), begin_install(NEW), release(1), park(1), await_install()
    assert after(*again)[-1] == whatever


def test_a_failing_install_waits_for_nobody() -> None:
    assert after(park(1), begin_install(with_bad(BAD_FLAGS, 0)))[-1] == rejected(EINVAL)
    words = park(1), begin_install(NEW, 0), resume_install(fails=True)
    assert after(*words)[-1] == rejected(EFAULT)
    assert denies(*words) == OLD_IS_IN_FORCE


def test_meanwhile_may_be_blocked_by_a_reader_too() -> None:
    words = park(1), meanwhile(install(NEW)), await_meanwhile(), release(1), await_meanwhile()
    assert after(*words) == (parked, blocked, blocked, released, done)
    assert denies(*words) == NEW_IS_IN_FORCE


def test_what_needs_the_lock_may_wait_for_a_blocked_install() -> None:
    words = park(1), begin_install(NEW), meanwhile(create_vcpu(3)), meanwhile(enable_exits(4), "n")
    assert after(*words, await_meanwhile())[2:] == (whatever, done, whatever)
    assert after(*words, release(1), await_install(), create_vcpu(3))[-1] == rejected(EEXIST)


def test_a_second_install_may_not_be_in_force_while_the_first_is_blocked() -> None:
    words = park(1), begin_install(NEW), begin_install(default_deny().allow(X, Z), name="b")
    assert after(*words)[-1] == blocked
    assert denies(*words) == [False, True, None], "both say the same of X and Y"
    both = *words, release(1), await_install(), await_install("b")
    assert after(*both)[-2:] == (done, done)
    assert denies(*both) == [False, True, False]


def test_of_three_blocked_installs_one_of_the_last_two_wins() -> None:
    second, third = default_deny().allow(X, Y), default_deny().allow(Y, Z)
    words = (
        park(1),
        begin_install(NEW),
        begin_install(second, name="b"),
        begin_install(third, name="c"),
        release(1),
        await_install(),
        await_install("b"),
        await_install("c"),
    )
    assert after(*words)[-3:] == (done, done, done)
    assert denies(*words)[0] is None
    assert denies(*words, install(OLD)) == OLD_IS_IN_FORCE


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        (default_allow().deny(Msr.STAR), default_allow(), unfiltered),
        (default_allow(), default_allow().deny(Msr.STAR), whatever),
        (default_allow().deny(Msr.STAR), default_allow().deny(Msr.STAR, X), "exit"),
    ],
)
def test_hardware_may_let_an_msr_pass_until_the_install_returns(
    old: MsrFilter, new: MsrFilter, seen: s.Event | str
) -> None:
    words = (
        enable_exits(4),
        install(old),
        park(1),
        begin_install(new),
        rdmsr(Msr.STAR),
        release(1),
    )
    trace = predict(*words, await_install(), rdmsr(Msr.STAR))
    exits = (RdmsrExit(Msr.STAR, FILTER), returned(REPLY))
    allowed = (returned(s.ANY),)
    here = (
        exits if seen == "exit" else allowed if seen == unfiltered else (s.either(allowed, exits),)
    )
    after_it = allowed if seen == unfiltered else exits
    assert repr(trace[4:]) == repr((*here, released, done, *after_it))
