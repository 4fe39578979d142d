"""The Model's rules of accesses, one by one."""

from __future__ import annotations

from errno import EEXIST
from typing import Any

import pytest
from predicted import X, Y, last, predict

from vmm.conformance.language import script as s
from vmm.conformance.language.script import (
    ANY,
    REPLY,
    create_irqchip,
    create_vcpu,
    done,
    enable_exits,
    fault,
    get_msr,
    got,
    gp,
    install,
    rdmsr,
    refused,
    rejected,
    returned,
    scribble_bitmaps,
    set_cpuid,
    set_msr,
    unfiltered,
    whatever,
    wrmsr,
    wrote,
)
from vmm.conformance.oracle.msrs import STORABLE, fitting, is_unknown_to_kvm
from vmm.conformance.oracle.state import VcpuState
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import default_allow, default_deny
from vmm.msr import FILTER, INVAL, UNKNOWN, Msr

# --- accesses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", range(8))
@pytest.mark.parametrize(
    ("access", "reason"),
    [
        (rdmsr(X), UNKNOWN),
        (wrmsr(0xDEADBEEF, 3), UNKNOWN),
        (wrmsr(Msr.EFER, 1 << 63), INVAL),
        (rdmsr(Msr.APIC_ID), INVAL),
        (rdmsr(Y), FILTER),
        (wrmsr(Msr.STAR, 3), FILTER),
    ],
)
def test_an_exit_needs_its_bit(mask: int, access: s.Access, reason: int) -> None:
    filter_ = default_allow().deny(Y, Msr.STAR)
    trace = predict(enable_exits(mask), install(filter_), access)[2:]
    if mask & reason:
        assert isinstance(trace[0], RdmsrExit | WrmsrExit)
        assert trace[0].reason == reason
        assert trace[1] in (wrote, returned(REPLY))
    else:
        assert trace == (gp,)


def test_an_exit_shows_ecx_and_edx_eax_and_nothing_else() -> None:
    garbage: dict[str, Any] = {"high": 0xAAAA_BBBB_CCCC_DDDD, "rcx_high": 0x1234}
    assert predict(enable_exits(2), rdmsr(X, before=5, **garbage))[1] == RdmsrExit(
        X, UNKNOWN, 0, 0, 0
    )
    written = wrmsr(X, 0x8877_6655_4433_2211, **garbage)
    assert predict(enable_exits(2), written)[1:] == (
        WrmsrExit(X, UNKNOWN, 0x8877_6655_4433_2211, 0, 0),
        wrote,
    )


@pytest.mark.parametrize("error", [1, 2, 0x80, 0xFF])
def test_any_error_byte_faults(error: int) -> None:
    for access in (rdmsr(X, reply=fault(error)), wrmsr(X, 1, reply=fault(error))):
        assert last(enable_exits(2), access) == s.Fault(13, 0, 0, None)


def test_a_reply_is_delivered_whole_and_scribbling_is_ignored() -> None:
    reply = s.Reply(0xFEDC_BA98_8765_4321, scribble=True)
    assert last(enable_exits(2), rdmsr(X, high=7, reply=reply)) == returned(
        0xFEDC_BA98_8765_4321, 0
    )
    assert last(enable_exits(2), wrmsr(X, 1, high=7, reply=reply)) == wrote


def test_storage_reads_as_it_was_written_last() -> None:
    assert predict(
        rdmsr(Msr.STAR),
        wrmsr(Msr.STAR, 5),
        rdmsr(Msr.STAR),
        set_msr(Msr.STAR, 6),
        rdmsr(Msr.STAR),
        rdmsr(Msr.STAR, vcpu=1),
        get_msr(Msr.STAR),
    ) == (returned(ANY), wrote, returned(5), done, returned(6), returned(ANY), got(6))
    assert repr(last(rdmsr(Msr.STAR))) == "returned(ANY)"


def test_a_value_that_not_every_host_holds_is_not_predicted() -> None:
    assert predict(
        wrmsr(Msr.LSTAR, 5), wrmsr(Msr.LSTAR, 1 << 47), rdmsr(Msr.LSTAR), get_msr(Msr.LSTAR)
    ) == (wrote, unfiltered, returned(ANY), got(ANY))
    assert predict(set_msr(Msr.SYSCALL_MASK, 1 << 32)) == (whatever,)


def test_a_denied_access_has_no_side_effect_and_the_host_is_never_filtered() -> None:
    denied = install(default_deny().allow(X))
    for mask, error in ((0, 0), (4, 0), (4, 9)):
        trace = predict(
            enable_exits(mask),
            set_msr(Msr.LSTAR, 0x1000),
            denied,
            wrmsr(Msr.LSTAR, 0x2000, reply=s.Reply(0x3000, error)),
            get_msr(Msr.LSTAR),
            set_msr(Msr.LSTAR, 0x4000),
            get_msr(Msr.LSTAR),
        )
        values = [event.value for event in trace if isinstance(event, s.Got)]
        assert values == [0x1000, 0x4000]
    assert predict(get_msr(X), set_msr(X, 1)) == (refused, refused)


def test_later_changes_of_the_bitmap_do_not_count() -> None:
    trace = predict(
        enable_exits(7), install(default_allow().deny(X).allow(Y)), scribble_bitmaps(), rdmsr(X)
    )
    assert trace[2:4] == (done, RdmsrExit(X, FILTER))


@pytest.mark.parametrize(
    "index", [0, 0x10, 0x1FFFF, 0x40000000, 0x4B564D06, 0xC0011FFF, 0xC0002000]
)
def test_where_kvm_may_have_msrs_nothing_is_unknown(index: int) -> None:
    assert not is_unknown_to_kvm(index)


@pytest.mark.parametrize("index", [0xDEADBEEF, 0x474F4F00, 0x474F4FFF, 0x20000, 0xFFFFFFFF])
def test_unknown_msrs(index: int) -> None:
    assert is_unknown_to_kvm(index)
    assert predict(enable_exits(2), rdmsr(index))[1] == RdmsrExit(index, UNKNOWN)


def test_x2apic_mode_makes_the_apic_readable() -> None:
    script = (create_irqchip(), set_msr(Msr.IA32_APICBASE, 0xFEE00D00), rdmsr(Msr.APIC_ID))
    assert predict(*script) == (done, done, returned(0))
    assert predict(*script[1:]) == (whatever, unfiltered)
    assert predict(script[0], set_msr(Msr.IA32_APICBASE, 0xFEE00D00, vcpu=3), rdmsr(0x802, vcpu=3))[
        -1
    ] == returned(3)
    assert predict(*script[:2], wrmsr(Msr.APIC_TASKPRI, 0x20), rdmsr(Msr.APIC_TASKPRI))[2:] == (
        wrote,
        returned(0x20),
    )
    masked, to_one_cpu = wrmsr(Msr.APIC_LVTT, 0x500C0), wrmsr(Msr.APIC_ICR, 0x33_0000_40C0)
    assert predict(*script[:2], masked, to_one_cpu)[2:] == (wrote, wrote)
    unsure = wrmsr(Msr.APIC_LVTT, 0x400C0), wrmsr(Msr.APIC_ICR, 0x33_0008_40C0)
    assert predict(*script[:2], *unsure)[2:] == (unfiltered, unfiltered)
    off_again = set_msr(Msr.IA32_APICBASE, 0xFEE00900)
    assert predict(*script[:2], off_again, enable_exits(1), *script[2:])[4:] == (
        RdmsrExit(Msr.APIC_ID, INVAL),
        returned(REPLY),
    )


@pytest.mark.parametrize(
    ("index", "held", "not_sure"),
    [
        (Msr.IA32_SYSENTER_CS, 0xFFFF, 0x1_0000),
        (Msr.IA32_SYSENTER_ESP, 0xFFFF_FFFF, 0x1_0000_0000),
        (Msr.IA32_SYSENTER_EIP, 0xFFFF_FFFF, 0x1_0000_0000),
        (Msr.SYSCALL_MASK, 0xFFFF_FFFF, 0x1_0000_0000),
        (Msr.STAR, (1 << 64) - 1, None),
        (Msr.LSTAR, (1 << 47) - 1, 1 << 47),
        (Msr.KERNEL_GS_BASE, (1 << 64) - (1 << 47), (1 << 64) - (1 << 47) - 1),
        (Msr.APIC_TASKPRI, 0xF0, 0x01),
        (Msr.APIC_TASKPRI, 0x10, 0x1F),
        (Msr.APIC_EOI, 0, 1),
        (Msr.APIC_LVTT, 0x5_00FF, 0x7_00FF),
        (Msr.APIC_LVTT, 0x3_00C0, 0x2_00C0),
        (Msr.APIC_ICR, 0x33_0000_40C0, 0x33_0000_400F),
    ],
)
def test_what_is_held_is_what_both_vendors_hold(index: int, held: int, not_sure: int) -> None:
    vcpu = VcpuState(x2apic=True)
    assert vcpu.can_hold(index, held)
    assert not_sure is None or not vcpu.can_hold(index, not_sure)


@pytest.mark.parametrize("index", sorted(STORABLE))
@pytest.mark.parametrize("value", [0, REPLY, (1 << 64) - 1, 0x8000_0000_0000, 0xDEAD_BEEF])
def test_a_value_is_cut_to_what_fits_and_no_further(index: int, value: int) -> None:
    cut = fitting(index, value)
    assert STORABLE[index](cut)
    assert value & cut == cut
    assert cut == value if STORABLE[index](value) else cut < value


@pytest.mark.parametrize("on", [True, False])
def test_cpuid_changes_nothing_that_a_filter_says(on: bool) -> None:
    cpuid, deny = set_cpuid("tsc_deadline", on=on), install(default_allow().deny(0x6E0))
    access = wrmsr(0x6E0, 0)
    trace = predict(
        enable_exits(FILTER), deny, cpuid, access, cpuid, set_cpuid("tsc_deadline", on, 1)
    )
    assert trace == (done, done, done, WrmsrExit(0x6E0, FILTER, 0), wrote, whatever, done)
    spins = s.spin(access), s.stop_spin(0)
    assert predict(*spins, cpuid)[2:] == predict(s.park(0), s.release(0), cpuid)[2:] == (whatever,)


def test_cpuid_features_are_known_ones() -> None:
    with pytest.raises(ValueError, match="no CPUID feature 'sse': there are tsc_deadline"):
        set_cpuid("sse", on=True)


# --- vCPUs ----------------------------------------------------------------------------------------


def test_vcpus_exist_from_their_first_use() -> None:
    assert predict(create_vcpu(0), create_vcpu(0)) == (done, rejected(EEXIST))
    assert predict(rdmsr(X), create_vcpu(1), create_vcpu(0)) == (gp, done, rejected(EEXIST))
    assert predict(create_irqchip(), create_vcpu(1), create_irqchip()) == (
        done,
        done,
        rejected(EEXIST),
    )


def test_filter_and_mask_hold_for_every_vcpu() -> None:
    trace = predict(
        create_vcpu(1),
        enable_exits(4),
        install(default_allow().deny(X)),
        create_vcpu(2),
        *(rdmsr(X, vcpu=vcpu) for vcpu in range(4)),
    )
    assert trace[4::2] == (RdmsrExit(X, FILTER),) * 4
