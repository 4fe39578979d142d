"""Under ``kvm.ignore_msrs=1`` the filter still goes first, and UNKNOWN exits alone fall silent."""

from __future__ import annotations

from vmm.conformance.cases.words import (
    BAD_EFER,
    DATA,
    GARBAGE,
    A,
    B,
    C,
    Row,
    denied,
    done_install,
    play,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    REPLY,
    begin_install,
    create_irqchip,
    done,
    enable_exits,
    fault,
    gp,
    install,
    ran,
    rdmsr,
    rejected,
    resume_install,
    returned,
    spin,
    spinning,
    stalled,
    stop_spin,
    stopped,
    until_exits,
    until_runs,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import READ, WRITE, MsrFilter, MsrRange, default_allow, default_deny
from vmm.msr import FILTER, INVAL, UNKNOWN, Msr

_ALL = INVAL | UNKNOWN | FILTER
_DENY_A = default_allow().deny(A)
_BAD_RANGE = MsrRange(0xFF, B, 1, bytes(8))


def _silent(index: int, vcpu: int = 0) -> Row:
    return (rdmsr(index, vcpu=vcpu), returned(0))


def _dropped(index: int, vcpu: int = 0) -> Row:
    return (wrmsr(index, DATA, vcpu=vcpu), wrote)


def _mask(mask: int) -> Row:
    return (enable_exits(mask), done)


def _case(name: str, sentence: str, checks: str, *rows: Row) -> Case:
    return Case(f"ignored.{name}", sentence, checks, *play(*rows), needs=("ignore_msrs",))


CASES = (
    _case(
        "denied_exits_as_filter",
        "The filter goes before ignore_msrs: a denied MSR that KVM does not know exits as FILTER.",
        "R56 R51",
        _mask(_ALL),
        done_install(_DENY_A),
        denied(A),
        write_denied(A),
        _silent(B),
        _dropped(B),
    ),
    _case(
        "denied_and_untold_is_gp",
        "A denied access of an MSR that KVM does not know is #GP(0) where FILTER is not told.",
        "R56 R50",
        _mask(INVAL | UNKNOWN),
        done_install(_DENY_A),
        (rdmsr(A), gp),
        (wrmsr(A, DATA), gp),
        _silent(B),
        _dropped(B),
    ),
    _case(
        "denied_without_any_mask_is_gp",
        "With the mask 0 a denied access is #GP(0), and one that KVM ignores succeeds.",
        "R56 R47 R50",
        done_install(_DENY_A),
        (rdmsr(A), gp),
        (wrmsr(A, DATA), gp),
        _silent(B),
        _dropped(B),
    ),
    *(
        _case(
            f"unknown_is_silent_{name}",
            f"No UNKNOWN exit under ignore_msrs: reads return 0, writes succeed ({name}).",
            "R56",
            _mask(mask),
            *(row for index in (A, C, 0xDEAD_BEEF) for row in (_silent(index), _dropped(index))),
        )
        for name, mask in {"mask_7": _ALL, "mask_unknown": int(UNKNOWN), "mask_0": 0}.items()
    ),
    _case(
        "allowed_is_silent",
        "What the filter allows and KVM does not know is ignored under default deny as well.",
        "R56 R18",
        _mask(_ALL),
        done_install(default_deny().allow(A)),
        _silent(A),
        _dropped(A),
        denied(B),
        write_denied(B),
        denied(0xDEAD_BEEF),
    ),
    _case(
        "a_write_is_dropped",
        "A write of an MSR that KVM does not know leaves nothing behind: the MSR still reads 0.",
        "R56 R28",
        _mask(_ALL),
        _dropped(A),
        _silent(A),
        (wrmsr(A, (1 << 64) - 1, high=GARBAGE), wrote),
        (rdmsr(A, before=DATA, high=GARBAGE), returned(0)),
    ),
    _case(
        "denial_and_silence_by_kind",
        "A filter that denies reads alone leaves the writes to ignore_msrs, and the other way.",
        "R56 R22 R24",
        _mask(_ALL),
        done_install(default_allow().deny(A, access=READ).deny(B, access=WRITE)),
        denied(A),
        _dropped(A),
        _silent(B),
        write_denied(B),
    ),
    _case(
        "a_reply_is_not_ignored",
        "What userspace answers a denied access counts, whether a value or an error.",
        "R56 R60 R61",
        _mask(_ALL),
        done_install(_DENY_A),
        (rdmsr(A, reply=value(REPLY)), RdmsrExit(A, FILTER), returned(REPLY)),
        (rdmsr(A, reply=fault()), RdmsrExit(A, FILTER), gp),
        (wrmsr(A, DATA, reply=fault()), WrmsrExit(A, FILTER, DATA), gp),
        _silent(B),
    ),
    _case(
        "invalid_still_exits",
        "INVAL exits remain: a WRMSR of EFER with a reserved bit.",
        "R56 R52",
        _mask(_ALL),
        (wrmsr(Msr.EFER, BAD_EFER), WrmsrExit(Msr.EFER, INVAL, BAD_EFER), wrote),
        _silent(A),
    ),
    _case(
        "invalid_and_untold_is_gp",
        "An invalid access is not ignored where INVAL is not told: it is #GP(0).",
        "R56 R50",
        _mask(UNKNOWN | FILTER),
        (wrmsr(Msr.EFER, BAD_EFER), gp),
        _silent(A),
    ),
    _case(
        "x2apic_register_still_exits",
        "RDMSR 0x802 with the APIC in xAPIC mode exits as INVAL under ignore_msrs too.",
        "R56 R52 R32",
        (create_irqchip(), done),
        _mask(_ALL),
        (rdmsr(Msr.APIC_ID), RdmsrExit(Msr.APIC_ID, INVAL), returned(REPLY)),
        _silent(A),
    ),
    _case(
        "each_filter_counts",
        "Installs are obeyed at once: denied, allowed, denied again, and nothing in between.",
        "R56 R16",
        _mask(_ALL),
        _silent(A),
        done_install(_DENY_A),
        denied(A),
        done_install(default_allow()),
        _silent(A),
        done_install(default_deny().allow(B)),
        write_denied(A),
        _dropped(B),
    ),
    _case(
        "a_refused_install_changes_nothing",
        "A failing install leaves the old filter in force, which only its silence could hide.",
        "R56 R14",
        _mask(_ALL),
        done_install(_DENY_A),
        (install(MsrFilter(0, (*default_allow().deny(C).ranges, _BAD_RANGE))), rejected(22)),
        denied(A),
        _silent(C),
    ),
    _case(
        "a_stalled_install_is_not_in_force",
        "While an install is stopped in the kernel the old filter is in force, ignored MSRs too.",
        "R56 R70",
        _mask(_ALL),
        done_install(_DENY_A),
        (begin_install(default_deny().allow(A).deny(B), stall_at=1), stalled),
        denied(A),
        _silent(B),
        (resume_install(), done),
        _silent(A),
        write_denied(B),
    ),
    _case(
        "a_running_vcpu_obeys",
        "A vCPU that reads an ignored MSR in a loop exits as soon as a filter denies it.",
        "R56 R72",
        _mask(_ALL),
        (spin(rdmsr(A)), spinning),
        (until_runs(0), ran),
        done_install(_DENY_A),
        (until_exits(0), RdmsrExit(A, FILTER)),
        (stop_spin(0), stopped),
        denied(A),
    ),
    _case(
        "emulated_access",
        "KVM's emulator asks the filter first too, and then ignores what KVM does not know.",
        "R56 R40",
        _mask(_ALL),
        done_install(_DENY_A),
        (rdmsr(A, emulated=True), RdmsrExit(A, FILTER), returned(REPLY)),
        (wrmsr(A, DATA, emulated=True), WrmsrExit(A, FILTER, DATA), wrote),
        (rdmsr(B, emulated=True), returned(0)),
        (wrmsr(B, DATA, emulated=True), wrote),
    ),
    _case(
        "every_vcpu",
        "What is denied and what is ignored is the same on a vCPU made later.",
        "R56 R45",
        _mask(_ALL),
        done_install(_DENY_A),
        denied(A),
        denied(A, vcpu=1),
        write_denied(A, vcpu=1),
        _silent(B, vcpu=1),
        _dropped(B, vcpu=1),
    ),
)
