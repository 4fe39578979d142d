"""Every RDMSR and WRMSR is filtered, also where KVM has a short way to handle it: R33.

KVM handles a WRMSR of TSC_DEADLINE (and of the x2APIC's ICR, which no filter governs: R30) right
after the VM exit, before anything has asked the filter (B12, B13). Which way a write takes depends
on the guest's APIC, its mode and its timer, and perhaps on CPUID; the contract does not.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from vmm.conformance.cases.passthrough import PASSED_THROUGH, toggled
from vmm.conformance.cases.words import (
    TELL_FILTER,
    A,
    B,
    Row,
    denied,
    done_install,
    exits_as,
    passes,
    play,
    write_denied,
    write_passes,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    Access,
    Wrmsr,
    begin,
    create_irqchip,
    create_vcpu,
    done,
    enable_exits,
    fault,
    finish,
    get_regs,
    gp,
    rdmsr,
    regs,
    set_cpuid,
    set_msr,
    unfiltered,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import READ, READ_WRITE, WRITE, MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, INVAL, UNKNOWN, Msr

T = Msr.IA32_TSC_DEADLINE
FAR = 0x0000_0800_8000_0001
"""A deadline about 2^43 cycles away, at 3 GHz 49 minutes: where it is allowed, it only waits.

Not more: KVM multiplies the cycles by 10^6 in 64 bits (``start_sw_tscdeadline``), so that what is
more than 2^64 / 10^6 = 1.8 * 10^13 of them away wraps, and may be over at once.
"""

NO_INTERRUPT = 0x5_00C0
"""LVTT: the timer in TSC-deadline mode (bit 18), masked (bit 16), so that it never interrupts."""

TO_NOBODY = 0x33_0000_40C0
"""ICR: an ordinary interrupt to the one CPU whose APIC ID is 0x33, and there is none."""

X2APIC = {0: 0xFEE0_0D00, 1: 0xFEE0_0C00}
"""IA32_APICBASE in x2APIC mode, of vCPU 0, which is the boot processor, and of vCPU 1."""

APICS = {
    "no_apic": "no APIC in the kernel",
    "xapic": "an in-kernel APIC in xAPIC mode",
    "timer": "an x2APIC whose timer is in TSC-deadline mode",
}
"""The guest's APIC, by the word for it in an id. With CPUID off, "timer" stays in one-shot mode."""

CPUID = {"cpuid_on": True, "cpuid_off": False}
FILTERS: dict[str, MsrFilter] = {
    "range": default_allow().deny(T),
    "own_range": default_allow().deny(T, access=WRITE).deny(T, access=READ),
    "default": default_deny().allow(A),
}

NAMES = {"read": "RDMSR", "write": "WRMSR"}
KINDS = {"read": READ, "write": WRITE}
# A write of 0 stops the timer and any other one starts it: two branches.
ACCESSES: dict[str, tuple[Access, Access]] = {
    "read": (rdmsr(T), rdmsr(T)),
    "write": (wrmsr(T, FAR), wrmsr(T, 0)),
}
DENIED = {way: tuple(exits_as(FILTER, each) for each in of) for way, of in ACCESSES.items()}
FAULTS: dict[str, tuple[Row, ...]] = {
    way: tuple((each, gp) for each in of) for way, of in ACCESSES.items()
}
AGAIN = 20


def _made(apic: str, has_deadline: bool) -> tuple[Row, ...]:
    """Return the rows that make vCPU 0 with this APIC, its CPUID with TSC_DEADLINE or without."""
    rows: list[Row] = [] if apic == "no_apic" else [(create_irqchip(), done)]
    rows.append((set_cpuid("tsc_deadline", on=has_deadline), done))
    if apic == "timer":
        rows.append((set_msr(Msr.IA32_APICBASE, X2APIC[0]), done))
        rows.append((wrmsr(Msr.APIC_LVTT, NO_INTERRUPT), wrote))
    return tuple(rows)


def _case(name: str, sentence: str, apic: str, *rows: Row, on: bool = True, of: str = "") -> Case:
    script_and_trace = play(*_made(apic, on), *rows)
    return Case(f"fastpath.{name}", sentence, f"R33 {of}".strip(), *script_and_trace)


def _only(way: str) -> tuple[Row, ...]:
    """Return the rows in which a filter denies one way of access and not the other."""
    other: Row = (ACCESSES["read" if way == "write" else "write"][0], unfiltered)
    stopped = (*DENIED[way], other, *DENIED[way])
    return (
        done_install(default_allow().deny(T, access=KINDS[way])),
        *stopped,
        done_install(default_deny().allow(A).allow(T, access=READ_WRITE ^ KINDS[way])),
        *stopped,
    )


def _refused(access: Access) -> Row:
    """Return the row of a denied access that userspace answers with an error."""
    exit_ = (
        WrmsrExit(T, FILTER, access.value) if isinstance(access, Wrmsr) else RdmsrExit(T, FILTER)
    )
    return (replace(access, reply=fault()), exit_, gp)


def _passed_through(msr: Msr, has_apic: bool) -> tuple[Row, ...]:
    """Return the rows in which a filter is there before CPUID and x2APIC mode, on two vCPUs."""
    modes: list[Row] = [(set_msr(Msr.IA32_APICBASE, X2APIC[v], v), done) for v in X2APIC]
    stopped = [denied(msr, vcpu) for vcpu in X2APIC]
    passing = [passes(msr, vcpu) for vcpu in X2APIC]
    if msr in PASSED_THROUGH:
        stopped += [write_denied(msr, PASSED_THROUGH[msr], vcpu) for vcpu in X2APIC]
        passing += [write_passes(msr, PASSED_THROUGH[msr], vcpu) for vcpu in X2APIC]
    return (
        *([(create_irqchip(), done)] if has_apic else []),
        TELL_FILTER,
        (create_vcpu(0), done),
        (create_vcpu(1), done),
        done_install(default_deny().allow(A)),
        (set_cpuid("tsc_deadline", on=True, vcpu=0), done),
        (set_cpuid("tsc_deadline", on=False, vcpu=1), done),
        *(modes if has_apic else []),
        *stopped,
        done_install(default_deny().allow(A, msr)),
        *passing,
        done_install(default_allow().deny(msr, B)),
        *stopped,
        denied(B),
    )


CASES = (
    *(
        _case(
            f"{way}_denied_by_{name}_{apic}_{cpuid}",
            f"{NAMES[way]} of TSC_DEADLINE, denied by {name.replace('_', ' ')}, exits with "
            f"{APICS[apic]} and CPUID TSC_DEADLINE {'on' if on else 'off'}.",
            apic,
            TELL_FILTER,
            done_install(msr_filter),
            *DENIED[way],
            on=on,
        )
        for way, apic, (cpuid, on), (name, msr_filter) in product(
            NAMES, APICS, CPUID.items(), FILTERS.items()
        )
    ),
    *(
        _case(
            f"{way}_faults_untold_{apic}_{cpuid}",
            f"A denied {NAMES[way]} of TSC_DEADLINE is #GP while FILTER exits are off, with "
            f"{APICS[apic]} and CPUID {'on' if on else 'off'}.",
            apic,
            done_install(FILTERS["range"]),
            *FAULTS[way],
            (enable_exits(INVAL | UNKNOWN), done),
            *FAULTS[way],
            done_install(FILTERS["default"]),
            *FAULTS[way],
            on=on,
            of="R50",
        )
        for way, apic, (cpuid, on) in product(NAMES, APICS, CPUID.items())
    ),
    *(
        _case(name.format(way, apic), sentence.format(NAMES[way], APICS[apic]), apic, *rows, of=of)
        for way, apic in product(NAMES, APICS)
        for name, of, sentence, rows in (
            (
                "only_{}_denied_{}",
                "R22",
                "Where only {} of TSC_DEADLINE is denied, with {}, the other access is not.",
                (TELL_FILTER, *_only(way)),
            ),
            (
                "{}_again_and_again_{}",
                "",
                "Of many denied {} of TSC_DEADLINE in a row each one exits, with {}.",
                (TELL_FILTER, done_install(FILTERS["range"]), *DENIED[way] * AGAIN),
            ),
            (
                "{}_obeys_each_filter_{}",
                "R72",
                "{} of TSC_DEADLINE obeys each new filter at the next entry, with {}.",
                toggled(T, KINDS[way], (ACCESSES[way][0], unfiltered), DENIED[way][0]),
            ),
            (
                "{}_answered_with_an_error_{}",
                "R61",
                "A denied {} of TSC_DEADLINE answered with an error is #GP, with {}.",
                (
                    TELL_FILTER,
                    done_install(FILTERS["default"]),
                    *map(_refused, ACCESSES[way]),
                    *DENIED[way],
                    *map(_refused, ACCESSES[way]),
                ),
            ),
        )
    ),
    *(
        _case(
            f"exit_stands_at_the_write_{apic}",
            f"At the exit of a denied WRMSR of TSC_DEADLINE, with {APICS[apic]}, RIP is at it.",
            apic,
            TELL_FILTER,
            done_install(FILTERS["range"]),
            (begin(wrmsr(T, FAR)), WrmsrExit(T, FILTER, FAR)),
            (get_regs(), regs(0, FAR & 0xFFFF_FFFF, T, FAR >> 32)),
            (finish(value(0)), wrote),
            of="R57",
        )
        for apic in APICS
    ),
    *(
        _case(
            f"icr_is_exempt_from_{name}",
            f"WRMSR of the x2APIC's ICR, which KVM handles like TSC_DEADLINE, never obeys {name}.",
            "timer",
            done_install(msr_filter),
            *[(wrmsr(Msr.APIC_ICR, TO_NOBODY), wrote)] * 3,
            TELL_FILTER,
            *[(wrmsr(Msr.APIC_ICR, TO_NOBODY), wrote)] * 3,
            write_denied(0x7FF),
            of="R30",
        )
        for name, msr_filter in (
            ("range", default_allow().range(0x7FF, 0x102, b"\0" * 0x28)),
            ("default", default_deny().allow(A)),
        )
    ),
    *(
        Case(
            f"fastpath.{'apic' if has_apic else 'no_apic'}_and_{msr.name.lower()}",
            f"{msr.name}, denied before the vCPUs have their CPUID, is denied with "
            f"{'an x2APIC' if has_apic else 'no APIC'}, TSC-deadline or not.",
            "R33 R72",
            *play(*_passed_through(msr, has_apic)),
        )
        for msr, has_apic in product((Msr.IA32_TSC, *PASSED_THROUGH), (True, False))
    ),
)
