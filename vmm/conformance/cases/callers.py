"""Who installs, and by which entry: another process (R03), 32-bit callers (R04, R05).

The ia32 entry takes the native number with the native struct, and its own number with the 260-byte
struct in which a bitmap's address has 32 bits.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, EIO, ENOTTY

from vmm.conformance.cases.words import (
    NEW,
    OLD,
    TELL,
    A,
    B,
    Row,
    allowed,
    as_new,
    as_old,
    denied,
    done_install,
    loses_its_bitmap,
    play,
    resumes,
    stalls,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    KVM_X86_SET_MSR_FILTER_COMPAT,
    done,
    install,
    install_compat,
    rejected,
    scribble_bitmaps,
)
from vmm.filter import READ_WRITE, MsrFilter, MsrRange, Pointer, default_allow, default_deny
from vmm.msr import Msr


def by_child(msr_filter: MsrFilter) -> Row:
    """Return the row of an install that a forked child tries, in vain."""
    return (install(msr_filter, caller="child"), rejected(EIO))


def native(msr_filter: MsrFilter) -> Row:
    """Return the row of an install by the native number and struct through the ia32 entry."""
    return (install(msr_filter, caller="compat"), done)


def compat(msr_filter: MsrFilter) -> Row:
    """Return the row of an install as a 32-bit caller makes it."""
    return (install_compat(msr_filter), done)


# What the native struct is refused for by the ia32 entry as by the 64-bit one.
_REFUSED = {
    "filter_flag": (EINVAL, MsrFilter(2).deny(B)),
    "empty_deny": (EINVAL, default_deny()),
    "range_flag": (EINVAL, default_deny().range(B, 1, b"\0", 4)),
    "no_range_flags": (EINVAL, default_deny().range(B, 1, b"\0", 0)),
    "one_msr_too_many": (EINVAL, default_deny().range(B, 0x3001, b"\0" * 0x608)),
    "null_bitmap": (EFAULT, default_deny().range(B, 1, Pointer.NULL)),
    "unmapped_bitmap": (EFAULT, default_deny().range(B, 64, Pointer.UNMAPPED)),
    "bad_last_slot": (
        EINVAL,
        MsrFilter(1, (MsrRange(READ_WRITE, B, 1, b"\0"),) * 15).range(B, 1, b"\0", 8),
    ),
}

CASES = (
    *(
        Case(
            f"callers.child_{name}",
            f"A forked child may not install {name.replace('_', ' ')}: the VM belongs to the "
            "process that made it.",
            "R03 R14",
            *play(TELL, done_install(OLD), *as_old(), by_child(new), *as_old()),
        )
        for name, new in (
            ("a_filter", NEW),
            ("an_empty_filter", default_allow()),
            ("a_bad_filter", MsrFilter(2).deny(B)),
        )
    ),
    Case(
        "callers.child_first",
        "A forked child's install before any other leaves the VM unfiltered, and usable.",
        "R03 R26",
        *play(TELL, by_child(OLD), allowed(A), allowed(B), done_install(NEW), *as_new()),
    ),
    Case(
        "callers.child_while_an_install_is_stalled",
        "A forked child is refused while its parent's install waits, which then succeeds.",
        "R03 R70 R73",
        *play(
            TELL,
            done_install(OLD),
            stalls(NEW, 1),
            by_child(default_allow()),
            *as_old(),
            resumes(),
            *as_new(),
        ),
    ),
    Case(
        "callers.native_struct_by_the_ia32_entry",
        "The native number and struct work through the ia32 entry as through the 64-bit one.",
        "R04 R16",
        *play(
            TELL,
            native(OLD),
            *as_old(),
            native(NEW),
            *as_new(),
            (scribble_bitmaps(), done),
            *as_new(),
            native(default_allow()),
            allowed(B),
            native(default_deny().allow(*range(A, A + 16))),
            *(allowed(A + i) for i in range(16)),
            write_denied(A + 16),
        ),
    ),
    *(
        Case(
            f"callers.native_struct_with_{name}",
            f"Through the ia32 entry, too, the native struct is refused and changes nothing: "
            f"{name.replace('_', ' ')}.",
            "R04 R14",
            *play(
                TELL,
                done_install(OLD),
                *as_old(),
                (install(bad, caller="compat"), rejected(errno)),
                *as_old(),
            ),
        )
        for name, (errno, bad) in _REFUSED.items()
    ),
    *(
        Case(
            f"callers.{kind}_argument_{pointer.name.lower()}",
            f"An argument pointer of the {kind} number that leads nowhere ({pointer.name}) is "
            "EFAULT by the ia32 entry.",
            f"{checks} R02 R14",
            *play(
                TELL,
                done_install(OLD),
                *as_old(),
                (action, rejected(EFAULT)),
                *as_old(),
            ),
        )
        for pointer in (Pointer.NULL, Pointer.UNMAPPED)
        for kind, checks, action in (
            ("native", "R04", install(NEW, argp=pointer, caller="compat")),
            ("compat", "R05", install_compat(NEW, pointer)),
        )
    ),
    Case(
        "callers.compat_number_by_the_64_bit_entry",
        "Only the ia32 entry knows the compat number: by the 64-bit one it is ENOTTY, before and "
        "after a compat install.",
        "R05 R03",
        *play(
            TELL,
            (install(OLD, KVM_X86_SET_MSR_FILTER_COMPAT), rejected(ENOTTY)),
            allowed(A),
            compat(OLD),
            *as_old(),
            (install(NEW, KVM_X86_SET_MSR_FILTER_COMPAT), rejected(ENOTTY)),
            *as_old(),
        ),
    ),
    Case(
        "callers.in_turns",
        "Filters by all three ways replace each other whole.",
        "R04 R05 R16",
        *play(
            TELL,
            compat(default_deny().allow(A, B)),
            allowed(A),
            allowed(B),
            denied(Msr.STAR),
            done_install(OLD),
            *as_old(),
            compat(NEW),
            *as_new(),
            native(OLD),
            *as_old(),
            compat(default_allow()),
            allowed(A),
            done_install(NEW),
            *as_new(),
        ),
    ),
    Case(
        "callers.compat_on_every_vcpu",
        "A 32-bit caller's filter holds on every vCPU.",
        "R05 R71",
        *play(TELL, compat(OLD), *as_old(), *as_old(1), compat(NEW), *as_new(1), *as_new()),
    ),
    Case(
        "callers.compat_bitmap_lost",
        "A 32-bit caller's bitmap that becomes unreadable while it is waited for is EFAULT and "
        "changes nothing.",
        "R05 R14",
        *play(
            TELL,
            done_install(OLD),
            stalls(NEW, 0, caller="compat"),
            *as_old(),
            loses_its_bitmap(),
            *as_old(),
        ),
    ),
)
