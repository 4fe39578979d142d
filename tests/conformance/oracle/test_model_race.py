"""The Model's rules of installs that stall."""

from __future__ import annotations

from errno import EEXIST, EFAULT, EINVAL

import pytest
from predicted import X, Y, Z, predict
from raced import (
    BAD_FLAGS,
    BAD_SIZE,
    NEW,
    NEW_IS_IN_FORCE,
    OLD,
    OLD_IS_IN_FORCE,
    TELL,
    UNREADABLE,
    after,
    denies,
    with_bad,
)

from vmm.conformance.language import script as s
from vmm.conformance.language.script import (
    REPLY,
    begin_install,
    check_extension,
    create_irqchip,
    create_vcpu,
    done,
    enable_exits,
    get_msr,
    gp,
    install,
    meanwhile,
    park,
    rdmsr,
    rejected,
    resume_install,
    returned,
    set_msr,
    stalled,
    whatever,
)
from vmm.exits import RdmsrExit
from vmm.filter import AtEdge, MsrFilter, MsrRange, default_allow, default_deny
from vmm.msr import FILTER, Msr


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("vcpu", [0, 1])
def test_while_it_stalls_all_is_as_under_the_old_filter(slot: int, vcpu: int) -> None:
    assert denies(begin_install(NEW, slot), vcpu=vcpu) == OLD_IS_IN_FORCE
    assert denies(begin_install(NEW, slot), resume_install(), vcpu=vcpu) == NEW_IS_IN_FORCE
    assert after(begin_install(NEW, slot), resume_install()) == (stalled, done)


@pytest.mark.parametrize(
    ("filter_", "slot"),
    [
        (NEW, 2),
        (NEW, 15),
        (NEW, None),
        (default_deny().hole().allow(X).deny(Y), 0),
        (default_deny().allow(X).deny(Y).hole(2), 3),
        (default_allow(), 0),
    ],
)
def test_a_slot_without_a_bitmap_stalls_nothing(filter_: MsrFilter, slot: int | None) -> None:
    assert after(begin_install(filter_, slot)) == (done,)
    assert denies(begin_install(filter_, slot)) == denies(install(filter_))


@pytest.mark.parametrize("filter_", [MsrFilter(2, NEW.ranges), default_deny(), MsrFilter(1 << 31)])
def test_the_filter_itself_is_judged_before_any_range(filter_: MsrFilter) -> None:
    assert after(begin_install(filter_, 0)) == (rejected(EINVAL),)


@pytest.mark.parametrize(
    ("bad", "errno"), [(BAD_FLAGS, EINVAL), (BAD_SIZE, EINVAL), (UNREADABLE, EFAULT)]
)
def test_a_bad_range_is_refused_when_the_kernel_comes_to_it(bad: MsrRange, errno: int) -> None:
    for at in range(4):
        for slot in range(4):
            words = begin_install(with_bad(bad, at), slot), resume_install()
            if at < slot:
                assert after(*words)[0] == rejected(errno)
            elif at > slot:
                assert after(*words) == (stalled, rejected(errno))
            else:
                assert after(*words) == (whatever, whatever)
            assert denies(*words) == OLD_IS_IN_FORCE
            assert denies(words[0]) == OLD_IS_IN_FORCE


def test_a_bitmap_that_never_comes_is_efault_and_changes_nothing() -> None:
    words = begin_install(NEW, 1), resume_install(fails=True)
    assert after(*words) == (stalled, rejected(EFAULT))
    assert denies(*words) == OLD_IS_IN_FORCE


def test_a_quirk_before_the_stall_leaves_everything_open() -> None:
    quirk = MsrRange(3, X, 1, AtEdge(b"\x01"))
    words = begin_install(with_bad(quirk, 0), 1), resume_install()
    assert after(*words) == (whatever, whatever)
    assert denies(words[0]) == OLD_IS_IN_FORCE
    assert denies(*words) == [None] * 3


def test_the_last_one_resumed_wins_whole() -> None:
    third = default_allow().deny(Z)
    begins = begin_install(NEW, 1, "a"), begin_install(third, 0, "b")
    assert denies(*begins) == OLD_IS_IN_FORCE
    assert denies(*begins, resume_install("a")) == NEW_IS_IN_FORCE
    assert denies(*begins, resume_install("b")) == [False, False, True]
    assert denies(*begins, resume_install("b"), resume_install("a")) == NEW_IS_IN_FORCE
    assert denies(*begins, resume_install("a"), resume_install("b")) == [False, False, True]
    assert denies(*begins, resume_install("a"), resume_install("b", fails=True)) == NEW_IS_IN_FORCE
    assert denies(begins[1], install(NEW)) == NEW_IS_IN_FORCE
    assert denies(begins[1], install(NEW), resume_install("b")) == [False, False, True]


def test_nothing_waits_for_a_stalled_install() -> None:
    assert predict(
        create_irqchip(),
        begin_install(NEW, 0),
        create_vcpu(1),
        create_vcpu(1),
        create_irqchip(),
        TELL,
        install(OLD),
        begin_install(default_allow(), name="b"),
        check_extension(188, "vm"),
        set_msr(Msr.STAR, 5),
        get_msr(Msr.STAR),
        meanwhile(create_vcpu(2)),
        meanwhile(create_vcpu(2)),
        meanwhile(enable_exits(8)),
        meanwhile(install(OLD)),
        rdmsr(X, vcpu=2),
    ) == (
        done,
        stalled,
        done,
        rejected(EEXIST),
        rejected(EEXIST),
        done,
        done,
        done,
        s.got(1),
        done,
        s.got(5),
        done,
        rejected(EEXIST),
        rejected(EINVAL),
        done,
        RdmsrExit(X, FILTER),
        returned(REPLY),
    )


def test_an_irqchip_can_be_made_while_an_install_stalls() -> None:
    words = begin_install(NEW, 0), meanwhile(create_irqchip()), meanwhile(create_irqchip())
    assert predict(*words, create_vcpu(0)) == (stalled, done, rejected(EEXIST), done)
    assert predict(rdmsr(X), *words, create_vcpu(1))[1:4] == (stalled, *[rejected(EINVAL)] * 2)


def test_two_threads_of_one_name_say_nothing() -> None:
    for first in ((begin_install(NEW, 0),), (park(1), begin_install(NEW))):
        assert after(*first, begin_install(OLD))[-1] == whatever
        assert denies(*first, begin_install(OLD)) == [None] * 3
    assert after(park(1), *[meanwhile(install(NEW))] * 2)[-1] == whatever


def test_a_resume_of_nothing_says_nothing() -> None:
    assert after(resume_install("z")) == (whatever,)
    assert denies(begin_install(NEW, 0), resume_install(), install(OLD), resume_install()) == (
        OLD_IS_IN_FORCE
    )


def test_without_a_mask_a_denied_access_is_gp_while_an_install_stalls() -> None:
    assert predict(install(OLD), begin_install(NEW, 1), rdmsr(X))[-1] == gp
