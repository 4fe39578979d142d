"""The cases of the catalogue, sorted by what tests ask of them."""

from vmm.conformance.cases import CASES
from vmm.conformance.language import script
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Begin, Install, Meanwhile, Rdmsr, Spin, Wrmsr, steps
from vmm.msr import Msr

MUST = [case for case in CASES if not case.observes]

# CONTRACT R72: the pass-through MSRs of both vendors. The host decides which of them it passes.
PASSED_THROUGH = (
    Msr.IA32_TSC,
    Msr.IA32_SPEC_CTRL,
    Msr.IA32_PRED_CMD,
    Msr.IA32_FLUSH_CMD,
    Msr.IA32_SYSENTER_CS,
    Msr.IA32_SYSENTER_ESP,
    Msr.IA32_SYSENTER_EIP,
    Msr.IA32_XFD,
    Msr.IA32_XFD_ERR,
    Msr.IA32_LASTBRANCHFROMIP,
    Msr.IA32_LASTBRANCHTOIP,
    Msr.IA32_LASTINTFROMIP,
    Msr.IA32_LASTINTTOIP,
    Msr.CORE_C1_RES,
    Msr.CORE_C3_RESIDENCY,
    Msr.CORE_C6_RESIDENCY,
    Msr.CORE_C7_RESIDENCY,
    Msr.IA32_RTIT_CTL,
    Msr.IA32_RTIT_STATUS,
    Msr.IA32_RTIT_CR3_MATCH,
    Msr.IA32_RTIT_OUTPUT_BASE,
    Msr.IA32_RTIT_OUTPUT_MASK,
    Msr.STAR,
    Msr.LSTAR,
    Msr.CSTAR,
    Msr.SYSCALL_MASK,
    Msr.FS_BASE,
    Msr.GS_BASE,
    Msr.KERNEL_GS_BASE,
    Msr.AMD64_SEV_ES_GHCB,
)
ONLY_READ = (Msr.IA32_TSC,)


def checking(requirement: str) -> list[Case]:
    return [case for case in CASES if requirement in case.requirements]


def installs(checked: list[Case]) -> list[tuple[Install, script.Event]]:
    """Every install of these must-cases with the event it must leave."""
    return [
        (action, step[0])
        for case in checked
        if not case.observes
        for action, step in zip(case.actions, steps(case.actions, case.expected), strict=True)
        if isinstance(action, Install)
    ]


def accesses(case: Case) -> list[tuple[Rdmsr | Wrmsr, script.Step]]:
    cut = zip(case.actions, steps(case.actions, case.expected), strict=True)
    return [(action, step) for action, step in cut if isinstance(action, Rdmsr | Wrmsr)]


def bare(case: Case) -> list[object]:
    """Each action, with the access of a begin or spin and the action of a meanwhile instead."""
    inner = {Begin: "access", Spin: "access", Meanwhile: "action"}
    return [getattr(each, inner.get(type(each), ""), each) for each in case.actions]
