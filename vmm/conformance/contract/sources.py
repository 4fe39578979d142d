"""Where each requirement is said or was decided, and what kernels did before it held.

A source is a section of ``Documentation/virt/kvm/api.rst``, a commit, the processor's manuals, or
what every kernel does where no text speaks of it. An era is one line: the releases, and what a
guest or a host saw then. Both explain; neither decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SOURCES", "Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """Who says so, and the eras of the kernels, oldest first (empty: one era since 5.10)."""

    where: str
    eras: tuple[str, ...] = ()


_FILTER = "api.rst 4.97 KVM_X86_SET_MSR_FILTER"
_CAP = "api.rst KVM_CAP_X86_USER_SPACE_MSR"
_RUN = "api.rst 5, the kvm_run structure: KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR"
_COMPLETE = "api.rst 5, the kvm_run structure: pending operations complete on re-entry"
_CODE = "no text: stable in every kernel read, 5.10 to 7.3"
_MANUAL = "Intel SDM and AMD APM, RDMSR and WRMSR"
_S = Source

SOURCES: Mapping[str, Source] = {
    "R01": _S("api.rst KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_X86_MSR_FILTER"),
    "R02": _S(f"{_FILTER}; the copy of the struct comes first"),
    "R03": _S(f"{_FILTER}: a VM ioctl"),
    "R04": _S("no text: both entries reach the same handler"),
    "R05": _S("commit 1739c7017fb1", ("5.10..6.0: ENOTTY for a 32-bit VMM", "6.1 on: the same")),
    "R06": _S("commit cf5029d5dd7c", ("5.10..5.18: accepted in silence", "5.19 on: EINVAL")),
    "R07": _S(_FILTER),
    "R08": _S(_CODE),
    "R09": _S(f"{_FILTER}; KVM_MSR_FILTER_MAX_BITMAP_SIZE counts bytes"),
    "R10": _S(_CODE),
    "R11": _S(f"{_FILTER}: a range with nmsrs 0 is unused"),
    "R12": _S("commit 043248b3280c", ("merge window of 5.10: empty default-deny was accepted",)),
    "R13": _S(_CODE, ("5.10..5.12: the bitmap is copied first", "6.1 on: flags, size, copy")),
    "R14": _S(
        "commit b318e8decf6b",
        (
            "5.10..5.11: the new default and the ranges before the bad one stay",
            "5.12 on: nothing changes",
        ),
    ),
    "R15": _S(f"{_FILTER}: KVM_MSR_FILTER_MAX_RANGES"),
    "R16": _S(_FILTER),
    "R17": _S(f"{_FILTER}: KVM_MSR_FILTER_DEFAULT_ALLOW"),
    "R18": _S(f"{_FILTER}: KVM_MSR_FILTER_DEFAULT_DENY"),
    "R19": _S(f"{_FILTER}: bitmap"),
    "R20": _S(
        f"{_FILTER}: [base .. base+nmsrs)",
        ("the text before 6.2 closed the range; the code never did",),
    ),
    "R21": _S(f"{_FILTER}: base"),
    "R22": _S(f"{_FILTER}: KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE"),
    "R23": _S(_CODE),
    "R24": _S(_CODE),
    "R25": _S(_CODE, ("5.10..newest: a range that reaches 2^32 never matches",)),
    "R26": _S(f"{_FILTER}: calling it with an empty default-allow filter"),
    "R27": _S(f"{_FILTER}: an allowed access may still fail"),
    "R28": _S(f"{_FILTER}: denied accesses"),
    "R29": _S(_CODE),
    "R30": _S(
        "commit 9389b9d5d356; api.rst 4.97 since 6.2",
        ("merge window of 5.10: they could be filtered",),
    ),
    "R31": _S("commit 9389b9d5d356: the window is 0x800..0x8ff"),
    "R32": _S("no text: a patch to suppress these exits was refused in 2022"),
    "R33": _S(
        f"{_FILTER}: guest reads and writes",
        (
            "5.10..newest on VMX: WRMSR 0x6E0 is not filtered in the fastpath (B12)",
            "6.18 on, SVM: the same (B13)",
        ),
    ),
    "R34": _S(f"{_FILTER}: it is about guest accesses"),
    "R35": _S(
        "commit ac8d6cad3c7b; api.rst 4.97 since 6.12",
        ("5.10..5.17: filtered where KVM emulates them", "5.18 on: not filtered"),
    ),
    "R36": _S(
        "commit 67f4b9969c30",
        ("5.10..5.15 on VMX: FS, GS and KERNEL_GS_BASE pass unfiltered", "5.16 on: filtered"),
    ),
    "R37": _S(
        "commit 653ea4489e69; api.rst 4.97 since 6.12",
        ("5.10..5.17: filtered", "5.18..6.11: not filtered (B07)", "6.12 on: filtered"),
    ),
    "R38": _S("api.rst 4.97 since 6.12: dedicated VMCS fields"),
    "R39": _S("no text: the filter is asked before any handler"),
    "R40": _S(
        "commit adbfb12d4c45",
        ("5.10..5.16: the exit is lost and the instruction runs again", "5.17 on: filtered"),
    ),
    "R41": _S("commit adbfb12d4c45", ("5.10..5.16: the exit is lost",)),
    "R42": _S("commit 906fa90416fd and d2f7d49826ae", ("5.10..5.16: a wrong length is skipped",)),
    "R43": _S("commit cf5029d5dd7c", ("5.10..5.18: cut to 32 bits and stored", "5.19 on: EINVAL")),
    "R44": _S(_CAP),
    "R45": _S(f"{_CAP}; {_FILTER}: VM ioctls"),
    "R46": _S(_CAP),
    "R47": _S(_CAP),
    "R50": _S(
        f"{_CAP}; commit cc4cb017678a",
        ("5.10-rc1..rc3: a denied WRMSR could make KVM_RUN fail",),
    ),
    "R51": _S(f"{_RUN}: KVM_MSR_EXIT_REASON_FILTER"),
    "R52": _S(
        f"{_RUN}: KVM_MSR_EXIT_REASON_UNKNOWN, KVM_MSR_EXIT_REASON_INVAL",
        (
            "5.10-rc1..rc3: UNKNOWN was said to be INVAL",
            "later: which of the two drifts for feature-dependent MSRs (B27)",
        ),
    ),
    "R53": _S(f"{_RUN}: index"),
    "R54": _S(f"{_RUN}: data"),
    "R55": _S(f"{_RUN}: error"),
    "R56": _S("no text: kvm.ignore_msrs is asked after the filter"),
    "R57": _S(_CODE),
    "R58": _S("commit 885df2d2109a and ec93675a3251", ("before 6.18: KVM has no such exits",)),
    "R59": _S(f"{_MANUAL}: #GP(0) if CPL is not 0"),
    "R60": _S(f"{_RUN}: data; {_MANUAL}: the upper halves are cleared"),
    "R61": _S(f"{_RUN}: error"),
    "R62": _S(f"{_RUN}: error; {_MANUAL}: a fault changes no register"),
    "R63": _S(f"{_RUN}: error"),
    "R64": _S(_COMPLETE),
    "R65": _S(_COMPLETE),
    "R66": _S("Intel SDM and AMD APM: debug exceptions, interrupt shadow"),
    "R67": _S(f"{_COMPLETE}; the state is promised after completion alone"),
    "R68": _S(f"{_COMPLETE}; pending state is not migratable"),
    "R70": _S(
        "commit b318e8decf6b; api.rst 4.97 since 5.12",
        (
            "5.10..5.11: a vCPU sees half of a filter; the text allowed it",
            "5.12..6.10 on SVM: FS_BASE and GS_BASE are neither old nor new for a moment (B10)",
            "6.11 on: old or new",
        ),
    ),
    "R71": _S(f"{_FILTER}: a filter is the VM's"),
    "R72": _S(f"{_FILTER}; commit 1a155254ff93 asks every vCPU to follow"),
    "R73": _S(
        "commit b318e8decf6b",
        ("5.10..5.11: kvm->lock is held over the page fault", "5.12 on: no lock is"),
    ),
    "R74": _S(
        "commit 708f799d22fe",
        ("5.12..6.2: it waits with kvm->lock held", "6.3 on: it waits without"),
    ),
    "R75": _S(f"{_FILTER}: a filter is the VM's"),
    "R76": _S(
        "commit b318e8decf6b and 17bcd7144263",
        ("5.10..5.11: two callers free twice", "5.12..6.13: freed before the vCPUs (B14)"),
    ),
    "R77": _S("commit b318e8decf6b", ("5.10..5.11: two callers mix their ranges",)),
    "R78": _S("no text: the mechanism of B20"),
    "R80": _S("GHCB and GHCI specifications"),
    "R81": _S(
        "as R72, for a vCPU in L2",
        ("5.10..newest: violated where L1 passes the MSR through (B20)",),
    ),
}
