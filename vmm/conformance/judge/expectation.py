"""Whose fault it is where a saved case fails: the kernel's, or that of who wrote the case."""

from __future__ import annotations

from vmm.conformance.contract.requirements import REQUIREMENTS
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Trace, steps
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.reasons import contradicts
from vmm.conformance.records.schema import CaseOutcome
from vmm.conformance.records.verdict import Verdict


def expected_wrongly(case: Case, seen: Trace, *, ignoring: bool) -> CaseOutcome | None:
    """Return the outcome of a case that expects what the contract does not; None if it is right.

    So it is where the Model, which knows the contract alone, agrees with all that was seen.
    """
    found = contradicts(case, seen, Model(ignore_msrs=ignoring))
    if not found:
        return None
    at, names = found
    action = repr(case.actions[at]) if at < len(case.actions) else "the end of the script"
    wanted, had = (_events(case, trace, at) for trace in (case.expected, seen))
    why = (
        f"the expectation is wrong, not the kernel: at step {at + 1}, {action}, the case expects"
        f" {wanted}, and the contract and this kernel both say {had}"
    )
    rules = [f"{name}: {REQUIREMENTS[name].sentence}" for name in names]
    return {"verdict": Verdict.ERROR, "error": "; ".join([why, *rules])}


def _events(case: Case, trace: Trace, at: int) -> str:
    cut = steps(case.actions, trace)
    return ", ".join(map(repr, cut[at])) if at < len(cut) else "nothing"
