"""The last branch records, which a guest that turns them on may reach without an exit: R72, R70.

SVM passes them through from the first DEBUGCTL.LBR on; the bitmap has to follow each filter that
comes later, for a vCPU that runs too (B34).
"""

from __future__ import annotations

from vmm.conformance.cases.running import exits, runs, spins, stops
from vmm.conformance.cases.words import (
    TELL,
    TELL_FILTER,
    A,
    Row,
    denied,
    done_install,
    passes,
    play,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import ANY, rdmsr, returned, unfiltered, wrmsr, wrote
from vmm.filter import default_allow, default_deny
from vmm.msr import Msr

LBR = (
    Msr.IA32_LASTBRANCHFROMIP,
    Msr.IA32_LASTBRANCHTOIP,
    Msr.IA32_LASTINTFROMIP,
    Msr.IA32_LASTINTTOIP,
)
NEEDS = ("lbr",)


def on(vcpu: int = 0) -> Row:
    """Return the row in which the guest turns the records on."""
    return (wrmsr(Msr.IA32_DEBUGCTLMSR, 1, vcpu=vcpu), unfiltered)


def off(vcpu: int = 0) -> Row:
    """Return the row in which the guest turns the records off."""
    return (wrmsr(Msr.IA32_DEBUGCTLMSR, 0, vcpu=vcpu), unfiltered)


CASES = (
    *(
        Case(
            f"lbr.denied_{name}",
            f"Branch records that are on are denied {name.replace('_', ' ')} like any other MSR.",
            "R72",
            *play(
                TELL_FILTER,
                on(),
                passes(Msr.IA32_LASTBRANCHFROMIP),
                done_install(deny),
                *(denied(msr) for msr in LBR),
                *(write_denied(msr, 0) for msr in LBR),
            ),
            needs=NEEDS,
        )
        for name, deny in (
            ("by_range", default_allow().deny(*LBR)),
            ("by_default", default_deny().allow(A, Msr.IA32_DEBUGCTLMSR)),
        )
    ),
    Case(
        "lbr.turned_off_and_on_under_the_filter",
        "Branch records stay denied however often the guest turns them on.",
        "R72",
        *play(
            TELL_FILTER,
            on(),
            done_install(default_allow().deny(*LBR)),
            off(),
            *(denied(msr) for msr in LBR),
            on(),
            *(denied(msr) for msr in LBR),
        ),
        needs=NEEDS,
    ),
    Case(
        "lbr.allowed_after_they_were_denied",
        "Branch records that were denied while they came on work once they are allowed.",
        "R72 R27 R70",
        *play(
            TELL,
            done_install(default_allow().deny(*LBR)),
            on(),
            *(denied(msr) for msr in LBR),
            done_install(default_allow()),
            *((rdmsr(msr), returned(ANY)) for msr in LBR),
            *((wrmsr(msr, 0), wrote) for msr in LBR),
        ),
        needs=NEEDS,
    ),
    Case(
        "lbr.a_running_vcpu_is_told",
        "A vCPU that reads its branch records in a loop exits once they are denied.",
        "R72 R71",
        *play(
            TELL_FILTER,
            on(1),
            spins(rdmsr(Msr.IA32_LASTBRANCHFROMIP, vcpu=1)),
            runs(),
            done_install(default_allow().deny(*LBR)),
            exits(rdmsr(Msr.IA32_LASTBRANCHFROMIP, vcpu=1)),
            stops(),
            denied(Msr.IA32_LASTBRANCHFROMIP, 1),
        ),
        needs=NEEDS,
    ),
)
