"""The Model's rules of spinning vCPUs, of other callers and of closed descriptors."""

from __future__ import annotations

from errno import EBADF, EEXIST, EFAULT, EINVAL, EIO, ENOTTY

import pytest
from predicted import X, Z, predict
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
    close_vcpu,
    close_vm,
    create_irqchip,
    create_vcpu,
    done,
    enable_exits,
    install,
    install_compat,
    meanwhile,
    never,
    park,
    ran,
    rdmsr,
    rejected,
    release,
    resume_install,
    returned,
    set_msr,
    spin,
    spinning,
    stalled,
    stop_spin,
    stopped,
    until_exits,
    until_runs,
    whatever,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import Pointer, default_allow
from vmm.msr import FILTER, INVAL, UNKNOWN, Msr

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
