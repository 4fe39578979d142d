"""Where a known bug could show: in which cases, and that nothing shows it though it could."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vmm.conformance.contract.difference import Difference
from vmm.conformance.contract.reach import can_show
from vmm.conformance.contract.requirements import REQUIREMENTS
from vmm.conformance.contract.signature import SVM, VMX
from vmm.conformance.contract.signatures import SIGNATURES
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import steps
from vmm.conformance.records.causes import causes
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.verdict import Verdict


def unseen(
    known: Iterable[str], cases: Iterable[CaseRecord], host: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the ``known`` entries that no failed case shows, though one that passed could have.

    A case could where it is about a requirement that the entry breaks, and has a step at which a
    signature of the entry, on this vendor's KVM module, can match. No case could where the kernel
    is older than the entry, or KVM has not turned on what it is about.
    """
    every, facts = list(cases), host or {}
    vendor = str(facts.get("vendor_module") or "")
    shown = {cause.entry for cause in causes(every, host)}
    passed = [case for case in every if case["verdict"] in (Verdict.PASS, Verdict.XPASS)]
    return [
        entry
        for entry in known
        if entry not in shown and can_show(entry, facts) and _could_show(entry, passed, vendor)
    ]


def could_show(case: Case) -> list[str]:
    """Return the entries of the history that can make a case fail, on some kernel.

    They break a requirement of the case, and a signature of theirs can match at one of its steps.
    """
    steps = [step for vendor in (VMX, SVM) for step in _steps(case, vendor)]
    broken = (REQUIREMENTS[name].history for name in case.requirements if name in REQUIREMENTS)
    return [
        entry
        for entry in dict.fromkeys(entry for each in broken for entry in each)
        if any(row.can_show_at(step) for row in SIGNATURES if row.id == entry for step in steps)
    ]


def _could_show(entry: str, passed: Iterable[CaseRecord], vendor: str) -> bool:
    signatures = [each for each in SIGNATURES if each.id == entry and each.vendor in ("", vendor)]
    about = {each.id for each in REQUIREMENTS.values() if entry in each.history}
    ids = {case["id"] for case in passed if about & set(case["requirements"][:1])}
    return any(
        signature.can_show_at(step)
        for case in _catalogue(ids if signatures else set())
        for step in _steps(case, vendor)
        for signature in signatures
    )


def _catalogue(ids: set[str]) -> list[Case]:
    from vmm.conformance.cases import CASES  # seldom needed, and dear

    return [case for case in CASES if case.id in ids and not case.observes] if ids else []


def _steps(case: Case, vendor: str) -> Iterator[Difference]:
    """Yield each step of a case with what is expected of it; nothing was seen.

    Before it, what no filter governs went well.
    """
    before: list[str] = []
    for action, events in zip(case.actions, steps(case.actions, case.expected), strict=False):
        expected = ", ".join(map(repr, events))
        yield Difference(repr(action), expected, "", before, vendor)
        well = "wrote" if "wrmsr(" in repr(action) else "returned(0x0)"
        before = [*before, f"{action!r} -> {expected.replace('unfiltered', well)}"]
