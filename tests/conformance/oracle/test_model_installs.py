"""The Model's rules of masks, installs and matching, one by one."""

from __future__ import annotations

import dataclasses
from errno import EFAULT, EINVAL, ENOTTY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predicted import X, Y, exits, last, predict

from vmm.conformance.language import script as s
from vmm.conformance.language.script import (
    ANY,
    REPLY,
    check_extension,
    done,
    enable_cap,
    enable_exits,
    get_msr,
    got,
    gp,
    install,
    rdmsr,
    rejected,
    returned,
    unfiltered,
    whatever,
    wrmsr,
)
from vmm.conformance.oracle.filters import FilterRules
from vmm.exits import RdmsrExit
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
from vmm.msr import FILTER, UNKNOWN, Msr

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
