"""The exits of L1 and what ends them, once more in an L2 whose L1 intercepts no MSR (R36).

Only an SVM's L1 can leave every MSR to KVM: on VMX it gets those that no bitmap has a bit for.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmm.conformance.cases import completion, exits, reentry
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    Begin,
    CreateIrqchip,
    CreateVcpu,
    Rdmsr,
    Sweep,
    Wrmsr,
    enter_l2,
    entered,
    innermost,
    is_plain,
    steps,
)


def _is_for_l2(case: Case) -> bool:
    """Say whether L2 can do it: plain accesses, and all of them by the first vCPU."""
    inner = [innermost(action) for action in case.script]
    accesses = [each for each in inner if isinstance(each, Rdmsr | Wrmsr)]
    others = any(isinstance(each, CreateVcpu | CreateIrqchip | Sweep) for each in inner)
    return not others and all(is_plain(each) and not each.vcpu for each in accesses)


def _first_access(case: Case) -> int:
    return next(
        at for at, each in enumerate(case.script) if isinstance(each, Rdmsr | Wrmsr | Begin)
    )


def _below() -> Iterator[Case]:
    for case in filter(_is_for_l2, (*completion.CASES, *reentry.CASES, *exits.CASES)):
        at = _first_access(case)
        before = sum(map(len, steps(case.script, case.expected)[:at]))
        yield Case(
            f"below.{case.id}",
            f"In L2: {case.sentence}",
            f"R36 {case.checks}",
            [*case.script[:at], enter_l2(bitmap=False), *case.script[at:]],
            [*case.expected[:before], entered, *case.expected[before:]],
            needs=case.needs,
        )


CASES = tuple(_below())
