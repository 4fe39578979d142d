"""The rules of races one by one, written from docs/contract.md and not from the cases."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EBADF, EEXIST, EFAULT, EINVAL, EIO, ENOTTY

import pytest

from vmm.conformance.language import script as s
from vmm.conformance.language.script import (
    REPLY,
    await_install,
    await_meanwhile,
    begin_install,
    blocked,
    check_extension,
    close_vcpu,
    close_vm,
    create_irqchip,
    create_vcpu,
    done,
    enable_exits,
    get_msr,
    gp,
    install,
    install_compat,
    meanwhile,
    never,
    park,
    parked,
    ran,
    rdmsr,
    rejected,
    release,
    released,
    resume_install,
    returned,
    set_msr,
    spin,
    spinning,
    stalled,
    stop_spin,
    stopped,
    unfiltered,
    until_exits,
    until_runs,
    whatever,
    wrmsr,
    wrote,
)
from vmm.conformance.oracle.model import Model
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import AtEdge, MsrFilter, MsrRange, Pointer, default_allow, default_deny
from vmm.msr import FILTER, INVAL, UNKNOWN, Msr

X, Y, Z = 0x5000_0000, 0x6000_0123, 0xFFFF_0000
"""MSRs that KVM does not know, in another place than those of the catalogue."""

OLD = default_allow().deny(X).allow(Y)
NEW = default_deny().allow(X).deny(Y)
TELL = enable_exits(FILTER | UNKNOWN)
BAD_FLAGS = MsrRange(8, Z, 1, b"\x00")
BAD_SIZE = MsrRange(3, Z, 0x3001, b"\x00")
UNREADABLE = MsrRange(3, Z, 1, Pointer.UNMAPPED)


def predict(*script: s.Action) -> s.Trace:
    return Model().predict(script)


def after(*script: s.Action) -> s.Trace:
    """Return what ``script`` leaves after the mask is set and ``OLD`` is installed."""
    trace = predict(TELL, install(OLD), *script)
    assert trace[:2] == (done, done)
    return trace[2:]


def denies(*script: s.Action, vcpu: int = 0, msrs: Sequence[int] = (X, Y, Z)) -> list[bool | None]:
    """Say which of ``msrs`` are denied after ``script``; None where the Model does not know."""
    probes = [rdmsr(each, vcpu=vcpu) for each in msrs]
    words = (TELL, install(OLD), *script)
    cut = s.steps((*words, *probes), predict(*words, *probes))[len(words) :]
    reasons = [getattr(each[0], "reason", None) for each in cut]
    return [None if reason is None else reason is FILTER for reason in reasons]


OLD_IS_IN_FORCE, NEW_IS_IN_FORCE = [True, False, False], [False, True, True]


def with_bad(bad: MsrRange, at: int) -> MsrFilter:
    ranges = [MsrRange(3, X + each, 1, b"\x01") for each in range(4)]
    ranges[at] = bad
    return MsrFilter(1, tuple(ranges))


# --- an install that stalls ----------------------------------------------------------------------


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


# --- readers --------------------------------------------------------------------------------------


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


# --- spinning -------------------------------------------------------------------------------------


def test_a_spinning_vcpu_obeys_every_filter_and_mask() -> None:
    assert predict(
        enable_exits(FILTER),
        spin(wrmsr(Msr.STAR, 7, reply=s.fault(), vcpu=1)),
        until_runs(1),
        until_exits(1),
        install(default_allow().deny(Msr.STAR)),
        until_exits(1),
        until_runs(1),
        enable_exits(0),
        until_runs(1),
        until_exits(1),
        enable_exits(FILTER),
        install(default_allow()),
        until_runs(1),
        stop_spin(1),
        wrmsr(Msr.STAR, 9, vcpu=1),
    ) == (
        done,
        spinning,
        ran,
        never,
        done,
        WrmsrExit(Msr.STAR, FILTER, 7),
        never,
        done,
        ran,
        never,
        done,
        done,
        ran,
        stopped,
        wrote,
    )


@pytest.mark.parametrize(
    ("access", "mask", "exit_", "runs"),
    [
        (rdmsr(X), UNKNOWN, RdmsrExit(X, UNKNOWN), never),
        (rdmsr(X), FILTER | INVAL, never, ran),
        (rdmsr(Msr.IA32_MISC_ENABLE), FILTER, never, ran),
        (rdmsr(Msr.IA32_MISC_ENABLE), FILTER | INVAL, whatever, whatever),
        (wrmsr(Msr.EFER, 1 << 63), INVAL, WrmsrExit(Msr.EFER, INVAL, 1 << 63), never),
        (rdmsr(Msr.STAR), 7, never, ran),
    ],
)
def test_what_kvm_itself_says_to_a_spinning_vcpu(
    access: s.Access, mask: int, exit_: s.Event, runs: s.Event
) -> None:
    words = enable_exits(mask), spin(access), until_exits(0), until_runs(0)
    assert predict(*words)[2:] == (exit_, runs)


def test_a_stalled_install_does_not_reach_a_spinning_vcpu() -> None:
    new = default_allow().deny(Z)
    words = spin(rdmsr(Z, vcpu=1)), begin_install(new, 0), until_exits(1), resume_install()
    assert after(*words, until_exits(1)) == (
        spinning,
        stalled,
        RdmsrExit(Z, UNKNOWN),
        done,
        RdmsrExit(Z, FILTER),
    )


def test_what_a_spinning_vcpu_wrote_is_not_known() -> None:
    words = set_msr(Msr.STAR, 5, 1), spin(wrmsr(Msr.STAR, 7, vcpu=1)), stop_spin(1)
    assert repr(predict(*words, rdmsr(Msr.STAR, vcpu=1))[-1]) == "returned(ANY)"
    words = set_msr(Msr.STAR, 5, 1), spin(rdmsr(Msr.STAR, vcpu=1)), stop_spin(1)
    assert predict(*words, rdmsr(Msr.STAR, vcpu=1))[-1] == returned(5)


def test_a_spinning_vcpu_blocks_no_install() -> None:
    assert after(spin(rdmsr(X, vcpu=1)), begin_install(NEW), install(OLD))[1:] == (done, done)


@pytest.mark.parametrize("word", [park(1), spin(rdmsr(X, vcpu=1))])
@pytest.mark.parametrize(
    "use", [park(1), spin(rdmsr(X, vcpu=1)), rdmsr(X, vcpu=1), s.begin(rdmsr(X, vcpu=1))]
)
def test_a_vcpu_that_is_elsewhere_cannot_be_used(word: s.Action, use: s.Action) -> None:
    assert after(word, use)[-1] == whatever


@pytest.mark.parametrize("word", [release(1), stop_spin(1), until_exits(1), until_runs(1)])
def test_a_vcpu_that_is_here_cannot_be_called_back(word: s.Action) -> None:
    assert after(word) == (whatever,)


# --- callers and descriptors ----------------------------------------------------------------------


def test_a_child_of_the_vms_process_is_refused() -> None:
    for filter_ in (NEW, with_bad(BAD_FLAGS, 0)):
        assert after(install(filter_, caller="child")) == (rejected(EIO),)
        assert after(begin_install(filter_, 1, caller="child")) == (rejected(EIO),)
        assert denies(install(filter_, caller="child")) == OLD_IS_IN_FORCE
    assert after(install(NEW, argp=Pointer.NULL, caller="child")) == (rejected(EIO),)
    assert after(install(NEW, on="system", caller="child")) == (rejected(EINVAL),)


def test_a_32_bit_caller_is_served_like_any_other() -> None:
    for made in (install_compat, lambda each: install(each, caller="compat")):
        assert after(made(NEW)) == (done,)
        assert denies(made(NEW)) == NEW_IS_IN_FORCE
        assert after(made(with_bad(BAD_SIZE, 3))) == (rejected(EINVAL),)
        assert denies(made(with_bad(UNREADABLE, 3))) == OLD_IS_IN_FORCE
    assert after(install_compat(NEW, Pointer.NULL)) == (rejected(EFAULT),)
    assert after(install(NEW, s.KVM_X86_SET_MSR_FILTER_COMPAT)) == (rejected(ENOTTY),)
    assert after(install(NEW, 0x4189AEC6, caller="compat")) == (rejected(ENOTTY),)


def test_a_32_bit_caller_stalls_like_any_other() -> None:
    words = begin_install(NEW, 1, caller="compat"), resume_install()
    assert after(*words) == (stalled, done)
    assert denies(words[0]) == OLD_IS_IN_FORCE
    assert denies(*words) == NEW_IS_IN_FORCE


def test_a_closed_vm_serves_its_vcpus_only() -> None:
    words = begin_install(NEW, 1), rdmsr(X, vcpu=1), close_vm()
    gone = (
        TELL,
        install(OLD),
        install(OLD, caller="child"),
        install_compat(OLD),
        begin_install(OLD, 0, "b"),
        create_vcpu(7),
        create_irqchip(),
        meanwhile(install(OLD)),
        check_extension(188, "vm"),
    )
    assert after(*words)[-1] == done
    assert after(*words, *gone)[-len(gone) :] == (rejected(EBADF),) * len(gone)
    assert after(*words, install(OLD, on="vcpu"))[-1] == rejected(EINVAL)
    assert after(*words, check_extension(188))[-1] == s.got(1)
    for vcpu in (0, 1):
        assert denies(*words, *gone, vcpu=vcpu) == OLD_IS_IN_FORCE
        assert denies(*words, *gone, resume_install(), vcpu=vcpu) == NEW_IS_IN_FORCE


def test_a_closed_vcpu_is_of_no_use() -> None:
    assert after(close_vcpu(1), rdmsr(X, vcpu=1), create_vcpu(1), rdmsr(X)) == (
        done,
        whatever,
        rejected(EEXIST),
        RdmsrExit(X, FILTER),
        returned(REPLY),
    )


def test_without_a_mask_a_denied_access_is_gp_while_an_install_stalls() -> None:
    assert predict(install(OLD), begin_install(NEW, 1), rdmsr(X))[-1] == gp
