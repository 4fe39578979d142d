"""A filter change reaches vCPUs that are running, without their help: R72, R44.

A vCPU goes round a loop of one access and may never leave the guest by itself: only the kernel's
request, made when the filter changes, makes it obey. It obeys within a bound, not at once (R72).
"""

from __future__ import annotations

from vmm.conformance.cases.passthrough import PASSED_THROUGH
from vmm.conformance.cases.words import (
    DATA,
    STORAGE,
    TELL_FILTER,
    A,
    B,
    Row,
    allowed,
    denied,
    done_install,
    loses_its_bitmap,
    play,
    resumes,
    stalls,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    Access,
    Wrmsr,
    done,
    enable_exits,
    gp,
    install_compat,
    ran,
    rdmsr,
    spin,
    spinning,
    stop_spin,
    stopped,
    until_exits,
    until_runs,
    wrmsr,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import READ, WRITE, default_allow, default_deny
from vmm.msr import FILTER, UNKNOWN, Msr, MsrExitReason


def exits(access: Access, reason: MsrExitReason = FILTER) -> Row:
    """Return the row that waits until the spinning vCPU's ``access`` exits for ``reason``."""
    if isinstance(access, Wrmsr):
        return (until_exits(access.vcpu), WrmsrExit(access.index, reason, access.value))
    return (until_exits(access.vcpu), RdmsrExit(access.index, reason))


def runs(vcpu: int = 1) -> Row:
    """Return the row that waits until the spinning vCPU does not exit."""
    return (until_runs(vcpu), ran)


def spins(access: Access) -> Row:
    """Return the row that sends a vCPU into a loop of ``access``."""
    return (spin(access), spinning)


def stops(vcpu: int = 1) -> Row:
    """Return the row that ends a vCPU's loop."""
    return (stop_spin(vcpu), stopped)


def _turns(*accesses: Access) -> tuple[Row, ...]:
    """Return deny, allow, deny, allow, by range and by default action, for spinning vCPUs."""
    msrs = {access.index for access in accesses}
    kind = WRITE if isinstance(accesses[0], Wrmsr) else READ
    stopped_now, running = [exits(each) for each in accesses], [runs(x.vcpu) for x in accesses]
    return (
        TELL_FILTER,
        *(spins(each) for each in accesses),
        *running,
        done_install(default_allow().deny(*msrs, access=kind)),
        *stopped_now,
        done_install(default_allow()),
        *running,
        done_install(default_deny().allow(A)),
        *stopped_now,
        done_install(default_deny().allow(A, *msrs)),
        *running,
        *(stops(each.vcpu) for each in accesses),
        denied(B),
    )


_SOME = {msr: STORAGE[msr][0] for msr in (Msr.STAR, Msr.FS_BASE, Msr.KERNEL_GS_BASE)}
_READ_B, _WRITE_B = rdmsr(B, vcpu=1), wrmsr(B, DATA, vcpu=1)
_DENY_B = default_allow().deny(B)

CASES = (
    *(
        Case(
            f"running.read_{msr.name.lower()}",
            f"A vCPU in a loop of RDMSR {msr.name} obeys each new filter without leaving the guest "
            "by itself.",
            "R72 R71",
            *play(*_turns(rdmsr(msr, vcpu=1))),
        )
        for msr in (Msr.IA32_TSC, *PASSED_THROUGH)
    ),
    *(
        Case(
            f"running.write_{msr.name.lower()}",
            f"A vCPU in a loop of WRMSR {msr.name} obeys each new filter without leaving the guest "
            "by itself.",
            "R72 R71",
            *play(*_turns(wrmsr(msr, data, vcpu=1))),
        )
        for msr, data in PASSED_THROUGH.items()
    ),
    *(
        Case(
            f"running.two_vcpus_{kind}_{msr.name.lower()}",
            f"Two vCPUs in loops that {kind} {msr.name} both obey each new filter.",
            "R72 R71",
            *play(*_turns(*accesses)),
        )
        for msr, data in _SOME.items()
        for kind, accesses in (
            ("read", (rdmsr(msr, vcpu=0), rdmsr(msr, vcpu=1))),
            ("write", (wrmsr(msr, data, vcpu=0), wrmsr(msr, data, vcpu=1))),
        )
    ),
    Case(
        "running.two_vcpus_two_msrs",
        "A filter reaches two running vCPUs of which it concerns one or the other.",
        "R72 R71",
        *play(
            TELL_FILTER,
            spins(rdmsr(Msr.STAR, vcpu=1)),
            spins(rdmsr(Msr.FS_BASE, vcpu=2)),
            runs(1),
            runs(2),
            done_install(default_allow().deny(Msr.STAR)),
            exits(rdmsr(Msr.STAR, vcpu=1)),
            runs(2),
            done_install(default_allow().deny(Msr.FS_BASE)),
            runs(1),
            exits(rdmsr(Msr.FS_BASE, vcpu=2)),
            stops(1),
            stops(2),
            denied(Msr.FS_BASE, 1),
            denied(Msr.FS_BASE),
        ),
    ),
    *(
        Case(
            f"running.stalled_filter_of_{msr.name.lower()}",
            f"A vCPU that uses {msr.name} runs on while an install that denies it waits for a "
            "bitmap, and exits once it ends.",
            "R70 R72 R73",
            *play(
                TELL_FILTER,
                spins(rdmsr(msr, vcpu=1)),
                runs(),
                stalls(default_allow().deny(A, msr), 0),
                runs(),
                resumes(),
                exits(rdmsr(msr, vcpu=1)),
                stalls(default_deny().allow(A, msr), 1),
                exits(rdmsr(msr, vcpu=1)),
                resumes(),
                runs(),
                stalls(default_deny().allow(A, B), 1),
                loses_its_bitmap(),
                runs(),
                stops(),
                denied(B),
            ),
        )
        for msr in (*_SOME, Msr.IA32_TSC)
    ),
    *(
        Case(
            f"running.mask_with_{'read' if access is _READ_B else 'write'}",
            "A running vCPU's failing accesses exit, or are #GP, as each new mask says "
            f"({'RDMSR' if access is _READ_B else 'WRMSR'}).",
            "R44 R45 R50",
            *play(
                done_install(_DENY_B),
                spins(access),
                runs(),
                (enable_exits(FILTER), done),
                exits(access),
                (enable_exits(UNKNOWN), done),
                runs(),
                (enable_exits(FILTER | UNKNOWN), done),
                exits(access),
                (enable_exits(0), done),
                runs(),
                done_install(default_allow().deny(A)),
                (enable_exits(FILTER), done),
                runs(),
                (enable_exits(UNKNOWN), done),
                exits(access, UNKNOWN),
                stops(),
                allowed(B),
            ),
        )
        for access in (_READ_B, _WRITE_B)
    ),
    *(
        Case(
            f"running.untold_{'read' if access is _READ_B else 'write'}_leaves_nothing",
            "Of denied accesses that nobody is told of nothing is completed at a later entry "
            f"({'RDMSR' if access is _READ_B else 'WRMSR'}).",
            "R50 R64 R65",
            *play(
                done_install(_DENY_B),
                *(spins(access), runs(), stops(), (access, gp)),
                *(spins(access), runs(), stops(), (enable_exits(FILTER), done)),
                denied(B, 1),
            ),
        )
        for access in (_READ_B, _WRITE_B)
    ),
    Case(
        "running.mask_while_an_install_is_stalled",
        "A mask set while an install waits for a bitmap reaches a running vCPU; the filter does "
        "not.",
        "R44 R73 R70 R72",
        *play(
            done_install(_DENY_B),
            spins(_READ_B),
            runs(),
            stalls(default_allow().deny(A, A + 1), 1),
            (enable_exits(FILTER), done),
            exits(_READ_B),
            resumes(),
            runs(),
            stops(),
            denied(A),
        ),
    ),
    Case(
        "running.compat_install",
        "A 32-bit caller's install reaches a running vCPU, to deny and to allow.",
        "R72 R05",
        *play(
            TELL_FILTER,
            spins(rdmsr(Msr.STAR, vcpu=1)),
            runs(),
            (install_compat(default_allow().deny(Msr.STAR)), done),
            exits(rdmsr(Msr.STAR, vcpu=1)),
            (install_compat(default_deny().allow(Msr.STAR)), done),
            runs(),
            stops(),
            denied(B),
        ),
    ),
)
