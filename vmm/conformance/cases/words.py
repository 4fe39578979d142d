"""The words that the tables of cases share: rows of action and events, and unmistakable MSRs.

A row is one action followed by the events it must leave, so that what is done and what is expected
stand side by side; ``play`` makes a case's script and trace of rows.
"""

from __future__ import annotations

from errno import EFAULT

from vmm.conformance.language.domains import Caller, VcpuPart
from vmm.conformance.language.script import (
    REPLY,
    Access,
    Action,
    Event,
    Wrmsr,
    begin_install,
    create_irqchip,
    create_vcpu,
    done,
    enable_exits,
    enter_l2,
    entered,
    got,
    install,
    l1_exit,
    leave_l2,
    leave_nested,
    rdmsr,
    rejected,
    restore_nested,
    resume_install,
    returned,
    save_nested,
    stalled,
    unfiltered,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, UNKNOWN, Msr, MsrExitReason

Row = tuple[Action, *tuple[Event, ...]]

A, B, C = 0x474F4F00, 0x474F4F40, 0x474F4F80
"""MSRs that no KVM has ever known and that lie apart from each other."""

DATA = 0x99AA_BBCC_DDEE_FF01
"""What a guest writes unless a case says otherwise: both halves differ, no bit pattern repeats."""

GARBAGE = 0xDEAD_0BAD_FACE_B00C
"""Contents for register halves that an access must ignore, keep or clear."""

LOW = 0xFFFF_FFFF
"""The half of a register that an access uses."""

BAD_EFER = 1 << 63 | 0xD01
"""An EFER value no CPU accepts: bit 63 is reserved everywhere, so the write fails as INVAL."""

STORAGE = {
    Msr.STAR: (0x0023_0010_1234_5678, 0x001B_0008_8765_4321),
    Msr.LSTAR: (0xFFFF_8000_1111_2220, 0x0000_7FFF_3333_4440),
    Msr.CSTAR: (0xFFFF_8000_5555_6660, 0x0000_7FFF_7777_8880),
    Msr.SYSCALL_MASK: (0x0004_7700, 0x0000_0200),
    Msr.FS_BASE: (0xFFFF_8000_9999_AAA0, 0x0000_7FFF_BBBB_CCC0),
    Msr.GS_BASE: (0xFFFF_8000_DDDD_EEE0, 0x0000_7FFF_1212_3430),
    Msr.KERNEL_GS_BASE: (0xFFFF_8000_5656_7870, 0x0000_7FFF_9A9A_BCB0),
}
"""MSRs that only store, on every x86-64, each with two canonical values it can hold."""

TELL: Row = (enable_exits(FILTER | UNKNOWN), done)
"""First row of most cases: a denied access exits as FILTER, an allowed one of A..C as UNKNOWN."""

TELL_FILTER: Row = (enable_exits(FILTER), done)
"""First row where allowed MSRs may be anything: only a denied access exits."""


def play(*rows: Row) -> tuple[list[Action], list[Event]]:
    """Return the script and the trace of ``rows``, in the order ``Case`` takes them."""
    return [row[0] for row in rows], [event for row in rows for event in row[1:]]


def done_install(msr_filter: MsrFilter) -> Row:
    """Return the row of an install that succeeds."""
    return (install(msr_filter), done)


def bad_install(msr_filter: MsrFilter, errno: int) -> Row:
    """Return the row of an install that fails with ``errno``."""
    return (install(msr_filter), rejected(errno))


def with_apic(what: VcpuPart) -> tuple[Row, ...]:
    """Return the rows that make a VM whose first vCPU has that state: an APIC is the kernel's."""
    return ((create_irqchip(), done), (create_vcpu(0), done)) if what == "lapic" else ()


def denied(index: int, vcpu: int = 0) -> Row:
    """Return the row of a RDMSR that the filter denies."""
    return (rdmsr(index, vcpu=vcpu), RdmsrExit(index, FILTER), returned(REPLY))


def allowed(index: int, vcpu: int = 0) -> Row:
    """Return the row of a RDMSR that the filter allows, of an MSR that KVM does not know."""
    return (rdmsr(index, vcpu=vcpu), RdmsrExit(index, UNKNOWN), returned(REPLY))


def write_denied(index: int, value: int = DATA, vcpu: int = 0) -> Row:
    """Return the row of a WRMSR that the filter denies."""
    return (wrmsr(index, value, vcpu=vcpu), WrmsrExit(index, FILTER, value), wrote)


def write_allowed(index: int, value: int = DATA, vcpu: int = 0) -> Row:
    """Return the row of a WRMSR that the filter allows, of an MSR that KVM does not know."""
    return (wrmsr(index, value, vcpu=vcpu), WrmsrExit(index, UNKNOWN, value), wrote)


def passes(index: int, vcpu: int = 0) -> Row:
    """Return the row of a RDMSR that no filter stops, whatever this host makes of it."""
    return (rdmsr(index, vcpu=vcpu), unfiltered)


def write_passes(index: int, value: int, vcpu: int = 0) -> Row:
    """Return the row of a WRMSR that no filter stops, whatever this host makes of it."""
    return (wrmsr(index, value, vcpu=vcpu), unfiltered)


def exits_as(reason: MsrExitReason, access: Access) -> Row:
    """Return the row of ``access`` that exits for ``reason`` and is answered with success."""
    if isinstance(access, Wrmsr):
        return (access, WrmsrExit(access.index, reason, access.value), wrote)
    return (access, RdmsrExit(access.index, reason), returned(REPLY))


def stalls(msr_filter: MsrFilter, at: int, name: str = "a", caller: Caller = "self") -> Row:
    """Return the row of an install that stops in the kernel, at the bitmap of slot ``at``."""
    return (begin_install(msr_filter, stall_at=at, name=name, caller=caller), stalled)


def resumes(name: str = "a") -> Row:
    """Return the row that lets a stalled install go on, to success."""
    return (resume_install(name), done)


def fails_to_resume(errno: int, name: str = "a") -> Row:
    """Return the row that lets a stalled install go on to a later range that is wrong."""
    return (resume_install(name), rejected(errno))


def loses_its_bitmap(name: str = "a") -> Row:
    """Return the row that makes unreadable the bitmap at which an install is stalled."""
    return (resume_install(name, fails=True), rejected(EFAULT))


def let(msr: int, one: int, two: int) -> tuple[Row, ...]:
    """Return writes and reads of an MSR that holds both values."""
    return tuple(
        row for v in (one, two) for row in ((wrmsr(msr, v), wrote), (rdmsr(msr), returned(v)))
    )


DENY_A = done_install(default_allow().deny(A))

OLD, NEW = default_allow().deny(A), default_deny().allow(A).deny(B)
"""Two filters that differ about A, about B, and about what is in no range; NEW has two slots."""


def as_old(vcpu: int = 0) -> tuple[Row, ...]:
    """Return what OLD lets through: all but A."""
    return (denied(A, vcpu), write_allowed(B, vcpu=vcpu), allowed(C, vcpu))


def as_new(vcpu: int = 0) -> tuple[Row, ...]:
    """Return what NEW lets through: A alone."""
    return (allowed(A, vcpu), write_denied(B, vcpu=vcpu), denied(C, vcpu))


ENTERS: Row = (enter_l2(), entered)
"""L1 lets L2 reach every MSR of its bitmap."""
NONE_PASSES: Row = (enter_l2(passes="none"), entered)
CALLS: Row = (leave_l2(), l1_exit("hypercall"))
SAVES: Row = (save_nested(), got(1))
"""The host saves a vCPU that is in L2, takes it out of there, and brings it back."""
OUT: Row = (leave_nested(), done)
RESTORES: Row = (restore_nested(), done)

HELD: dict[Msr, tuple[int, int]] = {
    **STORAGE,
    Msr.IA32_SYSENTER_CS: (0x10, 0x20),
    Msr.IA32_SYSENTER_ESP: (0x7000, 0x7770),
    Msr.IA32_SYSENTER_EIP: (0x8000, 0x8880),
}
"""MSRs that either vendor passes through to an L2, or intercepts for KVM, each with two values."""


def to_l1(index: int) -> Row:
    """Return the row of a RDMSR that L1 gets."""
    return (rdmsr(index), l1_exit("rdmsr", index))


def write_to_l1(index: int, data: int = DATA) -> Row:
    """Return the row of a WRMSR that L1 gets."""
    return (wrmsr(index, data), l1_exit("wrmsr", index, value=data))


def in_l2(*rows: Row) -> tuple[Row, ...]:
    """Return the rows between an entry that lets everything pass and the end of L2."""
    return (ENTERS, *rows, CALLS)
