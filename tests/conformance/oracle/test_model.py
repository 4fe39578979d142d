"""The Model against the humans of the catalogue, and its rules one by one.

The expectations here are written from docs/contract.md and not from the cases, so that a mistake
made in both of them does not go unseen.
"""

from __future__ import annotations

import ast
import dataclasses
from errno import EEXIST, EFAULT, EINVAL, ENOTTY
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutant import disagreement

from vmm.conformance.cases import CASES
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    ANY,
    REPLY,
    begin,
    check_extension,
    complete,
    create_irqchip,
    create_vcpu,
    done,
    enable_cap,
    enable_exits,
    fault,
    finish,
    first_difference,
    get_msr,
    get_regs,
    got,
    gp,
    install,
    interrupted,
    rdmsr,
    refused,
    regs,
    rejected,
    returned,
    scribble_bitmaps,
    set_cpuid,
    set_msr,
    set_regs,
    unfiltered,
    value,
    whatever,
    wrmsr,
    wrote,
)
from vmm.conformance.language.word import Word
from vmm.conformance.oracle import model as model_module
from vmm.conformance.oracle.filters import FilterRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.spoiled import model_of
from vmm.conformance.oracle.state import STORABLE, VcpuState, fitting, is_unknown_to_kvm
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import (
    READ,
    READ_WRITE,
    WRITE,
    AtEdge,
    MsrFilter,
    MsrRange,
    Pointer,
    default_allow,
    default_deny,
)
from vmm.msr import FILTER, INVAL, UNKNOWN, Msr

X, Y, Z = 0x5000_0000, 0x6000_0123, 0xFFFF_0000
"""MSRs that KVM does not know, in another place than those of the catalogue."""

MUST = [case for case in CASES if not case.observes]


def predict(*script: s.Action) -> s.Trace:
    return Model().predict(script)


def last(*script: s.Action) -> s.Event:
    return predict(*script)[-1]


def exits(filter_: MsrFilter, access: s.Access) -> list[object]:
    """Return the reasons of the exits that ``access`` takes under ``filter_`` and the mask 7."""
    trace = predict(enable_exits(7), install(filter_), access)
    assert trace[:2] == (done, done)
    return [event.reason for event in trace if isinstance(event, RdmsrExit | WrmsrExit)]


# --- the edge between the humans and the Model ----------------------------------------------------


@pytest.mark.parametrize("case", MUST, ids=lambda case: case.id)
def test_model_says_what_the_human_expects(case: Case) -> None:
    number = disagreement(case, model_of(case))
    assert number is None, (
        f"{case.id}: step {number}, {case.actions[number]}: "
        f"human {s.steps(case.actions, case.expected)[number:][:1]}, "
        f"Model {s.steps(case.actions, model_of(case).predict(case.actions))[number:][:1]}"
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.observes], ids=lambda case: case.id)
def test_model_survives_what_is_only_observed(case: Case) -> None:
    assert len(s.steps(case.actions, Model().predict(case.actions))) == len(case.actions)


@pytest.mark.parametrize(
    ("human", "model", "agree"),
    [
        ((gp,), (gp,), True),
        ((gp,), (unfiltered,), False),
        ((unfiltered,), (gp,), True),
        ((unfiltered,), (unfiltered,), True),
        ((unfiltered,), (RdmsrExit(X, UNKNOWN), gp), True),
        ((unfiltered,), (RdmsrExit(X, FILTER), gp), False),
        ((unfiltered,), (whatever,), False),
        ((returned(1),), (returned(ANY),), False),
        ((returned(ANY),), (returned(1),), True),
        ((RdmsrExit(X, FILTER), gp), (RdmsrExit(X, ANY), gp), False),
    ],
)
def test_the_model_may_say_more_and_never_less(
    human: s.Step, model: s.Step, agree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("a.b", "A case.", "R50", [rdmsr(X)], human)
    oracle = Model()
    monkeypatch.setattr(oracle, "predict", lambda script: model)
    assert (disagreement(case, oracle) is None) is agree


# --- what the Model may know ----------------------------------------------------------------------


ROOMS = {"vmm.conformance", "vmm.conformance.language", "vmm.conformance.oracle"}


def _imports(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, by their full names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ROOMS:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] == "vmm"}


def test_model_never_reaches_the_kernel() -> None:
    files = sorted(Path(model_module.__file__).parent.glob("*.py"))
    allowed = {"vmm.msr", "vmm.filter", "vmm.exits", "vmm.conformance.language.script"}
    allowed.add("vmm.conformance.language.case")
    allowed |= {f"vmm.conformance.oracle.{path.stem}" for path in files}
    assert {path.name: _imports(path) - allowed for path in files} == {
        path.name: set() for path in files
    }


def test_every_word_that_is_no_event_is_an_action() -> None:
    words = {
        word
        for word in vars(s).values()
        if isinstance(word, type)
        and issubclass(word, Word)
        and dataclasses.is_dataclass(word)
        and word.__module__.startswith("vmm.conformance.language.")
    }
    not_actions = {*s.Event.__args__, s.Reply, s.Run, s.Through, s.Listed}
    assert words - not_actions == {*get_args(s.Action)}  # and of these mypy says that all have one


def test_predict_keeps_nothing() -> None:
    model = Model()
    script = (enable_exits(7), install(default_allow().deny(X)), wrmsr(Msr.STAR, 5), rdmsr(X))
    assert model.predict(script) == model.predict(script)
    assert model.predict((rdmsr(X), rdmsr(Msr.STAR), get_regs())) == (
        gp,
        returned(ANY),
        regs(ANY, ANY, ANY, ANY),
    )


# --- the ioctls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["system", "vm"])
def test_capabilities_report_one(on: str) -> None:
    assert [
        repr(event) for event in predict(check_extension(188, on), check_extension(189, on))
    ] == [
        "got(1)",
        "got(1)",
    ]
    assert repr(last(check_extension(1, on))) == "got(ANY)"


@pytest.mark.parametrize(
    ("action", "event"),
    [
        (enable_cap(188, (7,)), done),
        (enable_cap(188, (0,)), done),
        (enable_cap(188, ()), done),
        (enable_cap(188, (1, 8, 1 << 63, 9)), done),
        (enable_cap(188, (8,)), rejected(EINVAL)),
        (enable_cap(188, (1 << 32,)), rejected(EINVAL)),
        (enable_cap(188, (1 << 63 | 4,)), rejected(EINVAL)),
        (enable_cap(188, (4,), flags=1), rejected(EINVAL)),
        (enable_cap(188, (4,), on="vcpu"), rejected(EINVAL)),
        (enable_cap(189, (0,)), rejected(EINVAL)),
        (enable_cap(121, (0,)), whatever),
    ],
)
def test_enable_cap(action: s.EnableCap, event: s.Event) -> None:
    assert predict(action) == (event,)


def test_mask_is_replaced_and_a_refused_one_does_not_count() -> None:
    denied = install(default_deny().allow(X))
    assert predict(enable_exits(4), enable_exits(2), denied, rdmsr(Y))[-1] == gp
    assert predict(enable_exits(4), enable_exits(0), denied, rdmsr(Y))[-1] == gp
    assert predict(enable_exits(4), enable_exits(12), denied, rdmsr(Y))[-2:] == (
        RdmsrExit(Y, FILTER),
        returned(REPLY),
    )


@pytest.mark.parametrize(
    ("action", "event"),
    [
        (install(default_deny().deny(X), argp=Pointer.NULL), rejected(EFAULT)),
        (install(default_deny(), argp=Pointer.KERNEL), rejected(EFAULT)),
        (install(default_allow(), number=0x4189AEC6), rejected(ENOTTY)),
        (install(default_allow(), number=0x4104AEC6), rejected(ENOTTY)),
        (install(default_allow(), number=0xAE03), whatever),
        (install(default_allow(), on="vcpu"), rejected(EINVAL)),
        (install(default_allow(), on="system"), rejected(EINVAL)),
    ],
)
def test_the_wrong_ioctl_installs_nothing(action: s.Install, event: s.Event) -> None:
    trace = predict(enable_exits(7), install(default_allow().deny(X)), action, rdmsr(X), rdmsr(Y))
    assert trace[2] == event
    assert trace[3] == RdmsrExit(X, FILTER)
    assert trace[5] == RdmsrExit(Y, UNKNOWN)


GOOD = MsrRange(READ_WRITE, Y, 1, b"\1")


@pytest.mark.parametrize(
    ("new", "errno"),
    [
        (MsrFilter(2, (GOOD,)), EINVAL),
        (MsrFilter(1 << 31, (GOOD,)), EINVAL),
        (MsrFilter(1), EINVAL),
        (MsrFilter(1, (MsrRange(3, X, 0, b"\0"),) * 16), EINVAL),
        (MsrFilter(0, (GOOD, MsrRange(4, X, 1, b"\0"))), EINVAL),
        (MsrFilter(0, (GOOD, MsrRange(0, X, 1, b"\0"))), EINVAL),
        (MsrFilter(0, (MsrRange(3, X, 0x3001, b"\0"),)), EINVAL),
        (MsrFilter(0, (MsrRange(3, X, 0xFFFFFFFF, Pointer.NULL),)), EINVAL),
        (MsrFilter(0, (MsrRange(3, X, 1, Pointer.NULL),)), EFAULT),
        (MsrFilter(0, (MsrRange(3, X, 0x3000, Pointer.UNMAPPED),)), EFAULT),
        (MsrFilter(0, (MsrRange(3, X, 9, AtEdge(b"\0")),)), EFAULT),
        (MsrFilter(0, (MsrRange(3, X, 9, AtEdge(b"")), MsrRange(3, X, 1, AtEdge(b"\0")))), EFAULT),
        (MsrFilter(0, (MsrRange(3, X, 1, Pointer.NULL), MsrRange(4, X, 1, b"\0"))), ANY),
        (MsrFilter(0, (MsrRange(4, X, 1, Pointer.NULL),)), ANY),
        (MsrFilter(2, (MsrRange(3, X, 1, Pointer.NULL),)), ANY),
        (MsrFilter(0, (MsrRange(3, X, 1, AtEdge(b"\0")), MsrRange(4, X, 1, b"\0"))), ANY),
    ],
)
def test_a_bad_filter_changes_nothing(new: MsrFilter, errno: int) -> None:
    old = default_deny().allow(Y)
    trace = predict(enable_exits(7), install(old), install(new), rdmsr(X), rdmsr(Y))
    assert isinstance(trace[2], s.Rejected)
    assert trace[2].errno is errno or (trace[2].errno == errno and trace[2].errno is not ANY)
    assert trace[3] == RdmsrExit(X, FILTER)
    assert trace[5] == RdmsrExit(Y, UNKNOWN)


@pytest.mark.parametrize(
    "new",
    [
        MsrFilter(1, (MsrRange(0xFF, X, 0, Pointer.KERNEL), GOOD)),
        MsrFilter(0, (MsrRange(0xFF, X, 0, Pointer.KERNEL),) * 16),
        MsrFilter(0, (MsrRange(1, X, 0x3000, b"\0"),)),
        MsrFilter(1, (MsrRange(2, X, 64, AtEdge(b"\0" * 8)),)),
    ],
)
def test_a_good_filter_is_accepted(new: MsrFilter) -> None:
    assert predict(install(new)) == (done,)


def test_a_bitmap_that_may_or_may_not_be_read_leaves_the_filter_unknown() -> None:
    quirk = install(MsrFilter(0, (MsrRange(3, X, 1, AtEdge(b"\0")),)))
    trace = predict(enable_exits(7), quirk, rdmsr(X), wrmsr(Msr.STAR, 1), get_msr(Msr.STAR))
    assert trace == (done, whatever, whatever, whatever, got(ANY))
    known_again = predict(enable_exits(7), quirk, install(default_allow().deny(X)), rdmsr(X))
    assert known_again[-2] == RdmsrExit(X, FILTER)


# --- matching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 7, 8, 31, 32, 63, 64, 99])
def test_one_bit_allows_one_msr(offset: int) -> None:
    bitmap = (1 << offset).to_bytes(16, "little")
    filter_ = default_allow().range(X, 100, bitmap)
    assert exits(filter_, rdmsr(X + offset)) == [UNKNOWN]
    for other in {0, 99, offset - 1, offset + 1} & set(range(100)) - {offset}:
        assert exits(filter_, rdmsr(X + other)) == [FILTER]
    assert exits(filter_, rdmsr(X - 1)) == exits(filter_, wrmsr(X + 100, 0)) == [UNKNOWN]


def test_lowest_slot_decides_and_the_other_kind_is_transparent() -> None:
    both = default_allow().deny(X).allow(X)
    assert exits(both, rdmsr(X)) == [FILTER]
    split = default_deny().deny(X, access=WRITE).allow(X, access=READ)
    assert exits(split, rdmsr(X)) == [UNKNOWN]
    assert exits(split, wrmsr(X, 1)) == [FILTER]


@pytest.mark.parametrize("index", [0x800, 0x803, 0x8FF])
def test_x2apic_window_is_exempt(index: int) -> None:
    for filter_ in (default_deny().allow(X), default_allow().range(0, 0x3000, bytes(0x600))):
        assert predict(install(filter_), rdmsr(index), wrmsr(index, 1))[1:] == (
            unfiltered,
            unfiltered,
        )


@pytest.mark.parametrize("index", [0x7FF, 0x900])
def test_neighbours_of_the_x2apic_window_are_not(index: int) -> None:
    assert exits(default_deny().allow(X), rdmsr(index)) == [FILTER]


def test_a_range_to_the_top_is_a_quirk_unless_a_slot_before_it_decides() -> None:
    wrapping = MsrRange(3, 0xFFFFFFF0, 16, b"\0\0")
    top = install(MsrFilter(0, (wrapping,)))
    assert predict(enable_exits(7), top, rdmsr(0xFFFFFFFF), rdmsr(0xFFFFFFEF))[2:4] == (
        whatever,
        RdmsrExit(0xFFFFFFEF, UNKNOWN),
    )
    decided = default_allow().deny(0xFFFFFFFE)
    decided = dataclasses.replace(decided, ranges=(*decided.ranges, wrapping))
    assert exits(decided, rdmsr(0xFFFFFFFE)) == [FILTER]
    assert exits(MsrFilter(0, (MsrRange(3, 0xFFFFFFF0, 15, b""),)), rdmsr(0xFFFFFFFE)) == [FILTER]


@st.composite
def filters(draw: st.DrawFn) -> MsrFilter:
    """Return a good filter of overlapping ranges round ``X``."""
    ranges = st.builds(
        MsrRange,
        st.integers(1, 3),
        st.integers(X, X + 40),
        st.integers(0, 80),
        st.binary(max_size=12),
    )
    return MsrFilter(0, tuple(draw(st.lists(ranges, max_size=16))))


@settings(max_examples=200, deadline=None)
@given(filters(), st.integers(X - 2, X + 125), st.sampled_from([READ, WRITE]))
def test_matching_is_the_first_of_all_pairs(filter_: MsrFilter, index: int, kind: int) -> None:
    """R17-R24 once more, as a table of every MSR that each range names."""
    table: dict[int, bool] = {}
    for range_ in filter_.ranges:
        assert isinstance(range_.bitmap, bytes)
        bits = int.from_bytes(range_.bitmap, "little")
        for offset in range(range_.nmsrs if range_.flags & kind else 0):
            table.setdefault(range_.base + offset, bool(bits >> offset & 1))
    rules = FilterRules()
    installed = rules.installed(None, filter_)
    assert rules.allows(installed, index, kind) is table.get(index, True)


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


# --- stopping in the middle -----------------------------------------------------------------------

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


# --- anything that can be said --------------------------------------------------------------------

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
_indices = st.sampled_from([X, 0x802, 0xFFFFFFFF, *Msr]) | st.integers(0, U32)
_numbers = st.integers(0, U64)
_vcpus = st.integers(0, 2)
_replies = st.builds(s.Reply, _numbers, st.integers(0, 255), st.booleans())
_bitmaps = (
    st.binary(max_size=9) | st.sampled_from(Pointer) | st.builds(AtEdge, st.binary(max_size=9))
)
_ranges = st.builds(MsrRange, st.integers(0, 4), _indices, st.integers(0, 70), _bitmaps)
_filters = st.builds(MsrFilter, st.integers(0, 2), st.lists(_ranges, max_size=4).map(tuple))
_accesses = st.builds(
    s.Rdmsr, _indices, _numbers, _numbers, st.integers(0, U32), _replies, _vcpus
) | st.builds(s.Wrmsr, _indices, _numbers, _numbers, st.integers(0, U32), _replies, _vcpus)
_maybe = st.none() | _numbers
_on = st.sampled_from(["vm", "vcpu", "system"])
_actions = (
    _accesses
    | st.builds(s.EnableCap, st.integers(187, 190), st.lists(_numbers, max_size=4).map(tuple))
    | st.builds(s.Install, _filters, st.just(0x4188AEC6) | st.integers(0, U32), _on)
    | st.builds(s.ScribbleBitmaps)
    | st.builds(s.CheckExtension, st.integers(0, 200), _on)
    | st.builds(s.GetMsr, _indices, _vcpus)
    | st.builds(s.SetMsr, _indices, _numbers, _vcpus)
    | st.builds(s.CreateIrqchip)
    | st.builds(s.CreateVcpu, st.integers(-1, 300))
    | st.builds(s.SetCpuid, st.just("tsc_deadline"), st.booleans(), _vcpus)
    | st.builds(s.Begin, _accesses)
    | st.builds(s.GetRegs, _vcpus)
    | st.builds(s.SetRegs, _maybe, _maybe, st.integers(-9, 9), st.sampled_from(["ioctl", "sync"]))
    | st.builds(s.Complete, st.none() | _replies, st.sampled_from(["immediate_exit", "signal"]))
    | st.builds(s.Finish, st.none() | _replies, _vcpus)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_actions, max_size=12).map(tuple))
def test_every_script_has_a_prediction(script: s.Script) -> None:
    trace = Model().predict(script)
    cut = s.steps(script, trace)
    assert len(cut) == len(script)
    for action, step in zip(script, cut, strict=True):
        assert len(step) == (
            2 if isinstance(step[0], RdmsrExit | WrmsrExit) else 1
        ) or not isinstance(action, s.Rdmsr | s.Wrmsr)
    assert not any(isinstance(event, s.Lost) for event in trace)
    repr(trace)
    assert first_difference(script, trace, trace) is None or {unfiltered, whatever} & set(trace)
