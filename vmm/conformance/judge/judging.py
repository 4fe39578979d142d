"""One case on one backend: what it does, held against what is expected of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vmm.conformance.host.limits import limit_of
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import ENDS, Script, Trace, differences, steps
from vmm.conformance.oracle import spoiled
from vmm.conformance.oracle.refused import refused_here
from vmm.conformance.records.schema import CaseOutcome, StepRecord
from vmm.conformance.records.summary import REFUSED
from vmm.conformance.records.verdict import Verdict
from vmm.msr import msr_name


class Backend(Protocol):
    """What runs scripts: ``vmm.conformance.kernel.backend.KvmBackend``."""

    def run(self, script: Script, *, expected: Trace | None = None) -> Trace:
        """Return what was seen; ``expected`` says where to be patient (``KvmBackend.run``)."""

    def lacks(self, need: str) -> str | None:
        """Return why this host does not have ``need``, or None when it has it."""

    def close(self) -> None:
        """Give everything back."""


BackendFactory = Callable[[], Backend]


def judge(case: Case, backend: Backend, *, ignoring: bool = False) -> CaseOutcome:
    """Run the case and return its outcome: verdict, ms, and what the report needs to explain it.

    ``ignoring`` is what ``kvm.ignore_msrs`` says: there are cases for either.
    """
    began = time.perf_counter()
    try:
        outcome = _spoiled(case, ignoring) or _skip(case, backend)
        outcome = outcome or _seen(case, backend, ignoring)
    except Exception as error:
        outcome = failed(error)
    if ignoring:
        outcome["ignore_msrs"] = True
    outcome["ms"] = round((time.perf_counter() - began) * 1e3, 3)
    return outcome


def code(values: Sequence[Any]) -> list[str]:
    """Return actions or events as the code that makes them."""
    return [repr(value) for value in values]


def _spoiled(case: Case, ignoring: bool) -> CaseOutcome | None:
    if ignoring and spoiled.is_spoiled(case):
        why = "ignore_msrs is 1: unknown MSRs succeed here, which this case needs to see fail"
    elif not ignoring and spoiled.NEED in case.needs:
        why = "ignore_msrs is 0 here: `msrward lab run` judges this with 1"
    else:
        return None
    return {"verdict": Verdict.SKIP, "need": spoiled.NEED, "reason": why}


def _skip(case: Case, backend: Backend) -> CaseOutcome | None:
    for need in (need for need in case.all_needs if need != spoiled.NEED):
        reason = backend.lacks(need)
        if reason is not None:
            return {"verdict": Verdict.SKIP, "need": need, "reason": reason}
    return None


def _seen(case: Case, backend: Backend, ignoring: bool) -> CaseOutcome:
    expected = None if case.observes else case.expected
    trace = backend.run(case.actions, expected=expected)
    outcome = _compare(case, trace)
    if outcome["verdict"] is Verdict.PASS and trace and isinstance(trace[-1], ENDS):
        why = f"the guest died, which is no pass, whatever was expected: {trace[-1]!r}"
        return {"verdict": Verdict.ERROR, "error": why}
    if outcome["verdict"] is Verdict.FAIL and case.file:
        return _whose_fault(case, trace, ignoring) or outcome
    if outcome["verdict"] is Verdict.PASS and not case.observes:
        refused = refused_here(case, trace, lambda access: backend.run((access,)))
        return _pointless(refused) if refused else outcome
    return outcome


def _whose_fault(case: Case, trace: Trace, ignoring: bool) -> CaseOutcome | None:
    from vmm.conformance.judge.expectation import expected_wrongly  # seldom needed

    return expected_wrongly(case, trace, ignoring=ignoring)


def _compare(case: Case, trace: Trace) -> CaseOutcome:
    if case.observes:
        return {"verdict": Verdict.PASS, "observation": ", ".join(code(trace))}
    found = [_difference(case, trace, n) for n in differences(case.actions, case.expected, trace)]
    if not found:
        return {"verdict": Verdict.PASS}  # no trace: to print one takes longer than to see it
    first = found[0]
    outcome: CaseOutcome = {
        "verdict": Verdict.FAIL,
        "trace": code(trace),
        "step": first["step"],
        "action": first["action"],
        "expected": first["expected"],
        "seen": first["seen"],
    }
    return {**outcome, "also": found[1:]} if found[1:] else outcome


def _pointless(refused: Sequence[int]) -> CaseOutcome:
    need = " ".join(f"{REFUSED}{msr_name(index)}" for index in refused)
    why = "refused here: these MSRs are #GP whether filtered or not, so that a pass says nothing"
    return {"verdict": Verdict.SKIP, "need": need, "reason": why}


def _difference(case: Case, trace: Trace, number: int) -> StepRecord:
    def events(side: Trace) -> list[str]:
        cut = steps(case.actions, side)
        return code(cut[number]) if number < len(cut) else []

    action = case.actions[number : number + 1]
    return {
        "step": number + 1,
        "action": repr(action[0]) if action else "the end of the script",
        "expected": events(case.expected),
        "seen": events(trace),
    }


def failed(error: Exception) -> CaseOutcome:
    """Return the outcome of a case that ``error`` ended."""
    import traceback

    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return {
        "verdict": Verdict.ERROR,
        "error": limit_of(error) or said,
        "traceback": "".join(traceback.format_exception(error)),
    }
