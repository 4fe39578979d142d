"""The MSR by which a guest of Xen has KVM write its page of hypercalls: the filter is first (R39).

The host chooses its number (``KVM_XEN_HVM_CONFIG``), and a WRMSR of it writes the guest's memory.
So what a kernel does before it has asked the filter is seen there.
"""

from __future__ import annotations

from dataclasses import replace
from errno import EINVAL

from vmm.conformance.cases.words import (
    TELL,
    TELL_FILTER,
    A,
    B,
    Row,
    allowed,
    denied,
    done_install,
    play,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import Mode
from vmm.conformance.language.script import (
    HYPERCALL_PAGE,
    XEN_INTERCEPT,
    XenHvmConfig,
    begin,
    complete,
    done,
    enable_exits,
    enter_l2,
    entry_failed,
    fault,
    finish,
    fresh_vm,
    get_hypercall_page,
    got,
    gp,
    interrupted,
    listed,
    rdmsr,
    refused,
    rejected,
    run,
    set_msr,
    sweep,
    swept,
    value,
    wrmsr,
    wrote,
    xen_hvm_config,
)
from vmm.exits import WrmsrExit
from vmm.filter import READ, WRITE, MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, INVAL, UNKNOWN, Msr

PAGE, NOWHERE = HYPERCALL_PAGE, 0x4000_0000
_MADE = 0xB8
"""How a page starts that KVM makes: with MOV to EAX of 0."""
_WAYS: dict[str, tuple[XenHvmConfig, int]] = {
    "blob": (xen_hvm_config(A, pages=2), 0x6400_0000),
    "made": (xen_hvm_config(A, flags=XEN_INTERCEPT), _MADE),
}
"""Where the page comes from, and what it starts with."""
_FILTERS: dict[str, tuple[MsrFilter, str]] = {
    "by_range": (default_allow().deny(A), "a range"),
    "by_a_write_range": (default_allow().deny(A, access=WRITE), "a range for writes"),
    "by_default": (default_deny().allow(B), "the default"),
    "by_an_inner_bit": (default_deny().range(A - 9, 20, b"\xff\xfd\xff"), "one bit of a range"),
}
_CONTENTS: dict[Mode, int] = {
    "compat": 0x6400_0000,
    "higher_half": 0x6400_0000,
    "protected": 0x3200_0000,
    "real": 0x3200_0000,
    "smm": 0x3200_0000,
}
"""What is in a page of a blob, by where EFER.LMA is on."""
_MSRS = {"xens": Msr.XEN_HYPERCALL, "hyper_vs": Msr.HV_GUEST_OS_ID, "last": 0x4FFF_FFFF}
"""What a host may choose, at both ends of what it may."""
EMPTY: Row = (get_hypercall_page(), got(0))


def _config(way: str, msr: int = A) -> Row:
    return (replace(_WAYS[way][0], msr=msr), done)


def _writes(way: str, msr: int = A) -> tuple[Row, Row]:
    """Return the rows of a write that is allowed, and has the page written."""
    return (wrmsr(msr, PAGE), wrote), (get_hypercall_page(), got(_WAYS[way][1]))


def _fails(index: int, at: int) -> tuple[Row, Row]:
    """Return the rows of an allowed write that KVM refuses."""
    return (wrmsr(index, at), WrmsrExit(index, INVAL, at), wrote), EMPTY


_DENIED = tuple(
    Case(
        f"xen.denied_{name}_{way}",
        f"A write of Xen's MSR that {how} denies exits, or is #GP, and writes no page ({way}).",
        "R39 R28 R50 R51",
        *play(
            _config(way),
            TELL,
            done_install(filter_),
            write_denied(A, PAGE),
            EMPTY,
            (wrmsr(A, PAGE, reply=fault()), WrmsrExit(A, FILTER, PAGE), gp),
            EMPTY,
            (begin(wrmsr(A, PAGE)), WrmsrExit(A, FILTER, PAGE)),
            EMPTY,
            (complete(value(0)), interrupted),
            EMPTY,
            (finish(), wrote),
            EMPTY,
            (enable_exits(0), done),
            (wrmsr(A, PAGE), gp),
            EMPTY,
            (enable_exits(INVAL | UNKNOWN), done),
            (wrmsr(A, PAGE), gp),
            (wrmsr(A, NOWHERE), gp),
            EMPTY,
            done_install(default_allow()),
            *_writes(way),
        ),
    )
    for way in _WAYS
    for name, (filter_, how) in _FILTERS.items()
)

_ALLOWED = tuple(
    Case(
        f"xen.allowed_{name}_{way}",
        f"A write of Xen's MSR that {how} allows has KVM write the page ({way}).",
        "R39 R27",
        *play(
            TELL,
            done_install(filter_),
            _config(way),
            EMPTY,
            *_writes(way),
            (rdmsr(A), *read),
            denied(B),
        ),
    )
    for way in _WAYS
    for name, how, filter_, read in (
        ("by_range", "a range", default_deny().allow(A), allowed(A)[1:]),
        ("by_a_write_range", "a range", default_deny().allow(A, access=WRITE), denied(A)[1:]),
        ("by_default", "the default", default_allow().deny(B), allowed(A)[1:]),
        (
            "by_default_for_writes",
            "the default",
            default_allow().deny(A, access=READ).deny(B),
            denied(A)[1:],
        ),
    )
)

_ORDERS = tuple(
    Case(
        f"xen.{name}_{way}",
        sentence.format(way=way),
        "R39 R28",
        *play(TELL, *rows(way)),
    )
    for way in _WAYS
    for name, sentence, rows in (
        (
            "set_after_the_filter",
            "Where the host names Xen's MSR after it was denied, its write writes no page ({way}).",
            lambda way: (
                done_install(default_allow().deny(A)),
                write_denied(A, PAGE),
                _config(way),
                write_denied(A, PAGE),
                EMPTY,
                done_install(default_allow().deny(B)),
                *_writes(way),
                (xen_hvm_config(0), done),
                (wrmsr(A, PAGE), WrmsrExit(A, UNKNOWN, PAGE), wrote),
                write_denied(B, PAGE),
            ),
        ),
        (
            "moved_under_the_filter",
            "Xen's MSR is denied or allowed by the number that it has now ({way}).",
            lambda way: (
                _config(way, B),
                done_install(default_deny().allow(A)),
                write_denied(B, PAGE),
                (wrmsr(A, PAGE), WrmsrExit(A, UNKNOWN, PAGE), wrote),
                EMPTY,
                _config(way, A),
                write_denied(B, PAGE),
                EMPTY,
                *_writes(way),
            ),
        ),
        (
            "before_any_vcpu_runs",
            "A vCPU that first runs under filter and Xen's MSR obeys both ({way}).",
            lambda way: (
                _config(way),
                done_install(default_allow().deny(A)),
                write_denied(A, PAGE, vcpu=1),
                write_denied(A, PAGE),
                EMPTY,
                done_install(default_allow()),
                (wrmsr(A, PAGE, vcpu=1), wrote),
                (get_hypercall_page(), got(_WAYS[way][1])),
            ),
        ),
        (
            "emulated",
            "KVM's emulator asks the filter before it has the page written ({way}).",
            lambda way: (
                _config(way),
                done_install(default_allow().deny(A)),
                (wrmsr(A, PAGE, emulated=True), WrmsrExit(A, FILTER, PAGE), wrote),
                EMPTY,
                (enable_exits(0), done),
                (wrmsr(A, PAGE, emulated=True), gp),
                EMPTY,
                done_install(default_allow()),
                (wrmsr(A, PAGE, emulated=True), wrote),
                (get_hypercall_page(), got(_WAYS[way][1])),
            ),
        ),
        (
            "swept",
            "A sweep that is denied all but Xen's MSR has the page written once ({way}).",
            lambda way: (
                _config(way),
                done_install(default_allow().deny(A)),
                (
                    sweep("wrmsr", A - 1, 3, value=PAGE),
                    swept(
                        (run(A - 1, 1, "UNKNOWN"), run(A, 1, "FILTER"), run(A + 1, 1, "UNKNOWN"))
                    ),
                ),
                EMPTY,
                done_install(default_deny().allow(A)),
                (
                    sweep("wrmsr", A - 1, 3, value=PAGE),
                    swept((run(A - 1, 1, "FILTER"), run(A, 1, "PASSED"), run(A + 1, 1, "FILTER"))),
                ),
                (get_hypercall_page(), got(_WAYS[way][1])),
            ),
        ),
        (
            "by_the_host",
            "The host's own write of Xen's MSR is refused for its value, and none of the guest's "
            "({way}).",
            lambda way: (
                done_install(default_allow().deny(A)),
                _config(way),
                write_denied(A, PAGE),
                EMPTY,
                (set_msr(A, NOWHERE), refused),
                write_denied(A, PAGE),
                EMPTY,
            ),
        ),
    )
)


def _in_mode(mode: Mode, content: int) -> Case:
    return Case(
        f"xen.in_{mode}_mode",
        f"In {mode} mode a denied write of Xen's MSR writes no page, and an allowed one its own.",
        "R39 R28 R33",
        *play(
            (xen_hvm_config(A, pages=3), done),
            TELL,
            done_install(default_allow().deny(A)),
            (wrmsr(A, PAGE | 2, mode=mode), WrmsrExit(A, FILTER, PAGE | 2), wrote),
            EMPTY,
            done_install(default_allow()),
            (wrmsr(A, PAGE | 2, mode=mode), wrote),
            (get_hypercall_page(), got(content | 2)),
            done_install(default_allow().deny(B).deny(A)),
            (wrmsr(A, PAGE, mode=mode), WrmsrExit(A, FILTER, PAGE), wrote),
            (get_hypercall_page(), got(content | 2)),
        ),
    )


CASES = (
    *_DENIED,
    *_ALLOWED,
    *_ORDERS,
    *(
        Case(
            f"xen.{name}_msr_denied_and_allowed",
            f"Xen's MSR may be {msr:#x}, of whose number the filter alone is asked first.",
            "R39 R28",
            *play(
                TELL_FILTER,
                _config("made", msr),
                done_install(default_allow().deny(msr)),
                write_denied(msr, PAGE),
                EMPTY,
                done_install(default_deny().allow(A)),
                write_denied(msr, PAGE),
                EMPTY,
                done_install(default_deny().allow(msr)),
                *_writes("made", msr),
            ),
        )
        for name, msr in _MSRS.items()
    ),
    *(_in_mode(mode, content) for mode, content in _CONTENTS.items()),
    *(
        Case(
            f"xen.allowed_and_refused_{name}",
            f"An allowed write of Xen's MSR that KVM refuses ({why}) exits as INVAL, and a denied "
            "one as FILTER.",
            "R52 R51 R39",
            *play(
                (enable_exits(INVAL | UNKNOWN | FILTER), done),
                _config(way),
                *_fails(A, at),
                done_install(default_deny().allow(A)),
                *_fails(A, at),
                done_install(default_allow().deny(A)),
                write_denied(A, at),
                EMPTY,
            ),
        )
        for name, why, way, at in (
            ("no_such_page_blob", "it has no page of that number", "blob", PAGE | 2),
            ("no_such_page_made", "there is one page", "made", PAGE | 1),
            ("no_memory_blob", "there is no memory", "blob", NOWHERE),
            ("no_memory_made", "there is no memory", "made", NOWHERE),
        )
    ),
    Case(
        "xen.refused_and_not_told",
        "An allowed write of Xen's MSR that KVM refuses is #GP where nobody is told of INVAL.",
        "R50 R39",
        *play(
            TELL,
            _config("made"),
            done_install(default_deny().allow(A)),
            (wrmsr(A, PAGE | 1), gp),
            (wrmsr(A, NOWHERE), gp),
            EMPTY,
        ),
    ),
    Case(
        "xen.page_is_not_written_again",
        "A denied write of Xen's MSR leaves the page that an allowed one had written.",
        "R28 R39",
        *play(
            TELL,
            (xen_hvm_config(A, pages=2), done),
            (wrmsr(A, PAGE | 1), wrote),
            (get_hypercall_page(), got(0x6400_0001)),
            done_install(default_allow().deny(A)),
            write_denied(A, PAGE),
            (get_hypercall_page(), got(0x6400_0001)),
            (fresh_vm(), done),
            TELL,
            (wrmsr(A, PAGE), WrmsrExit(A, UNKNOWN, PAGE), wrote),
            (get_hypercall_page(), got(0x6400_0001)),
        ),
    ),
    Case(
        "xen.in_a_list_of_l1",
        "An L1 that lists Xen's MSR, denied, to load it enters no L2, and has no page written.",
        "R37 R39 R28",
        *play(
            _config("made"),
            TELL,
            done_install(default_allow().deny(A)),
            (enter_l2(entry_load=(listed(A, PAGE),)), entry_failed("msr_load", 1)),
            EMPTY,
            write_denied(A, PAGE),
            EMPTY,
        ),
    ),
    Case(
        "xen.config_refused",
        "A configuration that KVM refuses changes no MSR: the one before is filtered and works.",
        "R39",
        *play(
            TELL,
            _config("made"),
            (xen_hvm_config(B, flags=1), rejected(EINVAL)),
            (xen_hvm_config(B, pages=1, flags=XEN_INTERCEPT), rejected(EINVAL)),
            done_install(default_allow().deny(A)),
            write_denied(A, PAGE),
            (wrmsr(B, PAGE), WrmsrExit(B, UNKNOWN, PAGE), wrote),
            EMPTY,
            done_install(default_allow().deny(B)),
            *_writes("made"),
        ),
    ),
)
