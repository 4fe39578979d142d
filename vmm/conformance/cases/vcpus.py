"""One filter and one mask for all vCPUs of a VM, those made later too: R45, R71, R75."""

from __future__ import annotations

from vmm.conformance.cases.words import (
    STORAGE,
    TELL,
    TELL_FILTER,
    A,
    B,
    allowed,
    denied,
    done_install,
    play,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    create_vcpu,
    done,
    enable_exits,
    gp,
    rdmsr,
    returned,
    wrmsr,
    wrote,
)
from vmm.filter import default_allow, default_deny
from vmm.msr import FILTER, Msr

_SOME = {msr: STORAGE[msr] for msr in (Msr.STAR, Msr.FS_BASE, Msr.KERNEL_GS_BASE)}
_GS = Msr.KERNEL_GS_BASE

CASES = (
    Case(
        "vcpus.one_filter_for_all",
        "A filter holds on every vCPU of the VM, and so does the next one.",
        "R71 R45 R16",
        *play(
            TELL,
            done_install(default_allow().deny(A)),
            *(row for vcpu in (0, 1, 2) for row in (denied(A, vcpu), allowed(B, vcpu))),
            done_install(default_allow().deny(B)),
            *(row for vcpu in (2, 1, 0) for row in (allowed(A, vcpu), write_denied(B, vcpu=vcpu))),
        ),
    ),
    *(
        Case(
            f"vcpus.{msr.name.lower()}_on_every_vcpu",
            f"{msr.name} is taken from, and given back to, vCPUs that did not run in between.",
            "R71 R72",
            *play(
                TELL_FILTER,
                *((wrmsr(msr, one, vcpu=vcpu), wrote) for vcpu in (0, 1)),
                done_install(default_allow().deny(msr)),
                denied(msr, 1),
                denied(msr, 0),
                write_denied(msr, two, 0),
                done_install(default_allow()),
                (rdmsr(msr, vcpu=0), returned(one)),
                done_install(default_deny().allow(A)),
                denied(msr, 0),
                # vCPU 1 has not been entered since two installs ago.
                denied(msr, 1),
                done_install(default_deny().allow(msr)),
                (wrmsr(msr, two, vcpu=1), wrote),
                (rdmsr(msr, vcpu=1), returned(two)),
                (rdmsr(msr, vcpu=0), returned(one)),
            ),
        )
        for msr, (one, two) in _SOME.items()
    ),
    Case(
        "vcpus.a_change_seen_by_all",
        "The vCPU that ran last and the one that did not run obey the same new filter.",
        "R71",
        *play(
            TELL,
            done_install(default_allow().deny(A, B)),
            denied(A, 0),
            done_install(default_deny().allow(A)),
            allowed(A, 0),
            allowed(A, 1),
            denied(B, 1),
            denied(B, 0),
            done_install(default_allow().deny(A, B)),
            denied(A, 1),
            denied(A, 0),
        ),
    ),
    *(
        Case(
            f"vcpus.made_after_{name}",
            f"A vCPU made after a filter with {name.replace('_', ' ')} obeys it from its first "
            "instruction.",
            "R75 R45",
            *play(
                TELL,
                done_install(ranges),
                (create_vcpu(1), done),
                denied(A, 1),
                write_denied(A, vcpu=1),
                allowed(B, 1),
                (create_vcpu(0), done),
                denied(A, 0),
                allowed(B, 0),
            ),
        )
        for name, ranges in (
            ("default_allow", default_allow().deny(A)),
            ("default_deny", default_deny().allow(B)),
        )
    ),
    *(
        Case(
            f"vcpus.made_after_{msr.name.lower()}_was_denied",
            f"A vCPU made after {msr.name} was denied has it denied from its first instruction, "
            "and passed through once it is allowed.",
            "R75 R72",
            *play(
                TELL_FILTER,
                done_install(default_allow().deny(msr)),
                (create_vcpu(0), done),
                denied(msr, 0),
                (create_vcpu(1), done),
                write_denied(msr, one, 1),
                denied(msr, 1),
                done_install(default_deny().allow(msr)),
                (wrmsr(msr, one, vcpu=1), wrote),
                (rdmsr(msr, vcpu=1), returned(one)),
                (create_vcpu(2), done),
                (wrmsr(msr, two, vcpu=2), wrote),
                (rdmsr(msr, vcpu=2), returned(two)),
                denied(A, 2),
            ),
        )
        for msr, (one, two) in _SOME.items()
    ),
    Case(
        "vcpus.sixteen",
        "A filter reaches the last of sixteen vCPUs as it does the first, each new one too.",
        "R71 R72 R75",
        *play(
            TELL_FILTER,
            *((wrmsr(_GS, _SOME[_GS][0], vcpu=vcpu), wrote) for vcpu in range(16)),
            done_install(default_allow().deny(_GS)),
            *(denied(_GS, vcpu) for vcpu in reversed(range(16))),
            done_install(default_deny().allow(_GS)),
            *((rdmsr(_GS, vcpu=vcpu), returned(_SOME[_GS][0])) for vcpu in range(16)),
            done_install(default_deny().allow(A)),
            *(write_denied(_GS, 0, vcpu) for vcpu in range(16)),
        ),
    ),
    Case(
        "vcpus.numbers_apart",
        "A filter reaches each vCPU whatever its number is, with gaps between the numbers.",
        "R71 R72 R75",
        *play(
            *((create_vcpu(15), done), (create_vcpu(6), done), TELL_FILTER),
            *((wrmsr(_GS, _SOME[_GS][0], vcpu=vcpu), wrote) for vcpu in (15, 6)),
            done_install(default_allow().deny(_GS)),
            *(denied(_GS, vcpu) for vcpu in (15, 6)),
            done_install(default_deny().allow(_GS)),
            *((rdmsr(_GS, vcpu=vcpu), returned(_SOME[_GS][0])) for vcpu in (15, 6)),
            done_install(default_deny().allow(A)),
            *(write_denied(_GS, 0, vcpu) for vcpu in (15, 6)),
        ),
    ),
    Case(
        "vcpus.made_between_two_filters",
        "Each vCPU obeys the filter in force, not the one in force when it was made.",
        "R75 R71 R16",
        *play(
            TELL,
            done_install(default_allow().deny(A)),
            (create_vcpu(1), done),
            denied(A, 1),
            done_install(default_allow().deny(B)),
            (create_vcpu(2), done),
            allowed(A, 2),
            denied(B, 2),
            allowed(A, 1),
            denied(B, 1),
        ),
    ),
    Case(
        "vcpus.made_after_filter_and_before_mask",
        "A mask set after a vCPU was made holds for it as for those made later.",
        "R45 R75",
        *play(
            done_install(default_allow().deny(A)),
            (create_vcpu(1), done),
            (rdmsr(A, vcpu=1), gp),
            (enable_exits(FILTER), done),
            denied(A, 1),
            (create_vcpu(2), done),
            denied(A, 2),
            (enable_exits(0), done),
            (rdmsr(A, vcpu=1), gp),
            (rdmsr(A, vcpu=2), gp),
        ),
    ),
)
