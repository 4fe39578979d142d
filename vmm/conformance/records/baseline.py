"""A run judged by what changed since another: what failed there in the same way is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vmm.conformance.records.causes import FAILED, explains
from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseRecord, Changes
from vmm.conformance.records.verdict import Verdict

_FAILS = (Verdict.FAIL, Verdict.TIMEOUT, Verdict.XFAIL)
_PASSES = (Verdict.PASS, Verdict.XPASS)


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier run: ``cases`` has its records by id, ``entries`` what explains those that failed.

    An entry is an id of the history, or "".
    """

    path: str
    cases: Mapping[str, CaseRecord]
    entries: Mapping[str, str]

    @classmethod
    def of(cls, saved: Saved) -> Baseline:
        """Return the baseline that a saved run is."""
        failed = {name: case for name, case in saved.cases.items() if case["verdict"] in FAILED}
        entries = {name: explains(case, saved.host) for name, case in failed.items()}
        return cls(str(saved.path), saved.cases, entries)

    def judged(self, case: CaseRecord, entry: str) -> CaseRecord:
        """Return the record of a case that ``entry`` explains, judged by what changed.

        What failed in the same way is XFAIL, what failed and passes now is XPASS. ERROR stays: it
        says nothing of the kernel, then or now.
        """
        verdict = case["verdict"]
        if verdict is Verdict.PASS and self._was(case, FAILED):
            return {**case, "verdict": Verdict.XPASS}
        stands = verdict is not Verdict.ERROR and verdict.is_bad and self._stands(case, entry)
        return {**case, "verdict": Verdict.XFAIL} if stands else case

    def changes(self, cases: Iterable[CaseRecord]) -> Changes:
        """Return the ``baseline`` field of the ``end`` record, of records that it has judged."""
        every = list(cases)
        failing = [
            case
            for case in every
            if case["verdict"].is_bad
            and not (case["verdict"] is Verdict.ERROR and self._was(case, (Verdict.ERROR,)))
        ]
        passing = [case for case in every if case["verdict"] in _PASSES and self._was(case, FAILED)]
        judged = tuple(verdict for verdict in Verdict if verdict is not Verdict.SKIP)
        skipped = [
            case for case in every if case["verdict"] is Verdict.SKIP and self._was(case, judged)
        ]
        return {
            "path": self.path,
            "failing": [case["id"] for case in failing],
            "passing": [case["id"] for case in passing],
            "skipped": [case["id"] for case in skipped],
        }

    def _was(self, case: CaseRecord, verdicts: Iterable[Verdict]) -> bool:
        before = self.cases.get(case["id"])
        return before is not None and before["verdict"] in verdicts

    def _stands(self, case: CaseRecord, entry: str) -> bool:
        """Say whether a case fails as one did before: by the same entry, or else at the same step.

        An entry that explained any failure explains those of cases that had not passed, too.
        """
        if "splats" in case and "splats" not in self.cases.get(case["id"], ()):
            return False
        if entry:
            return entry in self.entries.values() and not self._was(case, _PASSES)
        shaky = (Verdict.UNSTEADY,) if case["verdict"] is Verdict.UNSTEADY else ()
        if not self._was(case, (*_FAILS, *shaky)) or self.entries[case["id"]]:
            return False
        before = self.cases[case["id"]]
        return all(case.get(field) == before.get(field) for field in ("step", "action"))
