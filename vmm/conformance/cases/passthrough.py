"""A filter and the MSRs that hardware passes through, between two entries of a vCPU: R72.

KVM lets the guest reach these MSRs without an exit through a bitmap that hardware reads; a filter
change must be carried into the bitmap before the vCPU's next entry (B05, B11, B26).
"""

from __future__ import annotations

from errno import EINVAL

from vmm.conformance.cases.words import (
    STORAGE,
    TELL_FILTER,
    A,
    B,
    Row,
    bad_install,
    denied,
    done_install,
    passes,
    play,
    write_denied,
    write_passes,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import gp, rdmsr, returned, wrmsr, wrote
from vmm.filter import READ, WRITE, default_allow, default_deny
from vmm.msr import Msr

# Both vendors' pass-through MSRs, each with a harmless value to write. A read-only one is written
# 0: a fault natively, an exit when denied.
PASSED_THROUGH: dict[Msr, int] = {
    Msr.IA32_SPEC_CTRL: 1,  # VMX passes it through from the first write of a value other than 0
    Msr.IA32_PRED_CMD: 1,
    Msr.IA32_FLUSH_CMD: 1,
    Msr.IA32_SYSENTER_CS: 0x10,
    Msr.IA32_SYSENTER_ESP: 0x7000,
    Msr.IA32_SYSENTER_EIP: 0x8000,
    Msr.IA32_XFD: 0,
    Msr.IA32_XFD_ERR: 0,
    Msr.IA32_LASTBRANCHFROMIP: 0,
    Msr.IA32_LASTBRANCHTOIP: 0,
    Msr.IA32_LASTINTFROMIP: 0,
    Msr.IA32_LASTINTTOIP: 0,
    Msr.CORE_C3_RESIDENCY: 0,
    Msr.CORE_C6_RESIDENCY: 0,
    Msr.CORE_C7_RESIDENCY: 0,
    Msr.CORE_C1_RES: 0,
    Msr.IA32_RTIT_CTL: 0,
    Msr.IA32_RTIT_STATUS: 0,
    Msr.IA32_RTIT_CR3_MATCH: 0,
    Msr.IA32_RTIT_OUTPUT_BASE: 0,
    Msr.IA32_RTIT_OUTPUT_MASK: 0x7F,
    Msr.STAR: STORAGE[Msr.STAR][0],
    Msr.LSTAR: STORAGE[Msr.LSTAR][0],
    Msr.CSTAR: STORAGE[Msr.CSTAR][0],
    Msr.SYSCALL_MASK: STORAGE[Msr.SYSCALL_MASK][0],
    Msr.FS_BASE: STORAGE[Msr.FS_BASE][0],
    Msr.GS_BASE: STORAGE[Msr.GS_BASE][0],
    Msr.KERNEL_GS_BASE: STORAGE[Msr.KERNEL_GS_BASE][0],
    Msr.AMD64_SEV_ES_GHCB: 0,
}


def toggled(msr: int, access: int, passing: Row, stopped: Row) -> tuple[Row, ...]:
    """Return allow, deny, allow, deny, allow, by range and by default action.

    Two accesses follow each install: what the first entry after it set up must last.
    """
    deny, allow = default_allow().deny(msr, access=access), default_deny().allow(A, msr)
    rows: list[Row] = [TELL_FILTER, passing, passing]
    for change, row in (
        (deny, stopped),
        (default_allow(), passing),
        (default_deny().allow(A), stopped),
        (allow, passing),
    ):
        rows += [done_install(change), row, row]
    return (*rows, denied(B))


CASES = (
    *(
        Case(
            f"passthrough.read_{msr.name.lower()}",
            f"RDMSR of {msr.name} obeys each new filter at the next entry, to deny and to allow.",
            "R72",
            *play(*toggled(msr, READ, passes(msr), denied(msr))),
        )
        for msr in (Msr.IA32_TSC, *PASSED_THROUGH)
    ),
    *(
        Case(
            f"passthrough.write_{msr.name.lower()}",
            f"WRMSR of {msr.name} obeys each new filter at the next entry, to deny and to allow.",
            "R72",
            *play(*toggled(msr, WRITE, write_passes(msr, data), write_denied(msr, data))),
        )
        for msr, data in PASSED_THROUGH.items()
    ),
    *(
        Case(
            f"passthrough.value_of_{msr.name.lower()}",
            f"{msr.name} holds what was last written while allowed: denied writes never reach the "
            "hardware, denied reads never leak it.",
            "R72 R28",
            *play(
                TELL_FILTER,
                (wrmsr(msr, one), wrote),
                (rdmsr(msr), returned(one)),
                done_install(default_allow().deny(msr)),
                denied(msr),
                write_denied(msr, two),
                done_install(default_allow()),
                (rdmsr(msr), returned(one)),
                (wrmsr(msr, two), wrote),
                (rdmsr(msr), returned(two)),
                done_install(default_deny().allow(A)),
                write_denied(msr, one),
                denied(msr),
                done_install(default_deny().allow(msr)),
                (rdmsr(msr), returned(two)),
            ),
        )
        for msr, (one, two) in STORAGE.items()
    ),
    *(
        Case(
            f"passthrough.one_access_of_{msr.name.lower()}",
            f"A filter that denies {msr.name} for one access leaves the other passed through.",
            "R72 R22",
            *play(
                TELL_FILTER,
                (wrmsr(msr, one), wrote),
                done_install(default_allow().deny(msr, access=READ)),
                denied(msr),
                (wrmsr(msr, two), wrote),
                done_install(default_allow().deny(msr, access=WRITE)),
                (rdmsr(msr), returned(two)),
                write_denied(msr, one),
                done_install(default_deny().allow(msr, access=WRITE)),
                denied(msr),
                (wrmsr(msr, one), wrote),
                done_install(default_deny().allow(msr, access=READ)),
                (rdmsr(msr), returned(one)),
                write_denied(msr, two),
            ),
        )
        for msr, (one, two) in STORAGE.items()
    ),
    Case(
        "passthrough.denied_without_exits",
        "A passed-through MSR that is denied while FILTER exits are off is #GP at the next entry.",
        "R72 R50",
        *play(
            (wrmsr(Msr.KERNEL_GS_BASE, 0x1000), wrote),
            done_install(default_allow().deny(Msr.KERNEL_GS_BASE)),
            (rdmsr(Msr.KERNEL_GS_BASE), gp),
            (wrmsr(Msr.KERNEL_GS_BASE, 0x2000), gp),
            done_install(default_allow()),
            (rdmsr(Msr.KERNEL_GS_BASE), returned(0x1000)),
        ),
    ),
    Case(
        "passthrough.refused_filter_leaves_it",
        "A refused install touches no passed-through MSR: it stays allowed, or stays denied.",
        "R72 R14",
        *play(
            TELL_FILTER,
            (wrmsr(Msr.LSTAR, 0x1000), wrote),
            bad_install(default_allow().deny(Msr.LSTAR).range(A, 1, b"\0", 4), EINVAL),
            (rdmsr(Msr.LSTAR), returned(0x1000)),
            done_install(default_allow().deny(Msr.LSTAR)),
            denied(Msr.LSTAR),
            bad_install(default_deny(), EINVAL),
            denied(Msr.LSTAR),
        ),
    ),
    Case(
        "passthrough.all_at_once",
        "One filter takes and gives back every storing MSR at once.",
        "R72 R15",
        *play(
            TELL_FILTER,
            *((wrmsr(msr, one), wrote) for msr, (one, _) in STORAGE.items()),
            done_install(default_allow().deny(*STORAGE)),
            *(denied(msr) for msr in STORAGE),
            *(write_denied(msr, two) for msr, (_, two) in STORAGE.items()),
            done_install(default_deny().allow(*STORAGE)),
            *((rdmsr(msr), returned(one)) for msr, (one, _) in STORAGE.items()),
            denied(A),
        ),
    ),
)
