"""What a case that failed amounts to, once it has been judged a second time, alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from vmm.conformance.records.schema import CaseRecord, Judging, without
from vmm.conformance.records.verdict import Verdict

KEPT = (
    *("verdict", "ms", "error", "reason", "observation"),
    *("step", "action", "expected", "seen", "trace", "splats"),
)
"""The fields of the second judging that are kept beside the first evidence, as ``again``."""


def is_doubtful(record: CaseRecord) -> bool:
    """Say whether a case is to be judged once more before its verdict is believed.

    A splat is believed at once: the kernel says many of its warnings only once.
    """
    return bool(record["verdict"].is_violation) and "splats" not in record


def is_open(record: CaseRecord) -> bool:
    """Say whether a run that is continued judges a case again that it has on record.

    ERROR is of the harness, and TIMEOUT may be: somebody ended the worker, or stopped the run.
    """
    again = record.get("again", {}).get("verdict")
    return record["verdict"] in (Verdict.ERROR, Verdict.TIMEOUT) or again is Verdict.ERROR


def reopened(record: CaseRecord) -> CaseRecord | None:
    """Return what an open case left first, and is kept; None where that says nothing."""
    if record["verdict"] is Verdict.ERROR:
        return None
    first = without(record, ("again", "first"))
    return {**first, "type": "first", "verdict": record.get("first", Verdict.TIMEOUT)}


def together(records: Sequence[CaseRecord]) -> CaseRecord:
    """Return the record of a case that left ``records``, one each time that it was judged.

    Of several, ``repeats`` counts the verdicts. The evidence is that of the first splat, else of
    the first failure, else of the first trouble. What failed, and also did not, is UNSTEADY.
    ``varied`` has the observations of a case that made more than one.
    """
    if len(records) == 1:
        return records[0]
    evidence = min(records, key=_weight)
    record: CaseRecord = {
        **evidence,
        "repeats": dict(Counter(str(each["verdict"]) for each in records)),
    }
    seen = dict.fromkeys(each["observation"] for each in records if "observation" in each)
    if len(seen) > 1:
        record["varied"] = list(seen)
    if is_doubtful(evidence) and any(_is_else(each["verdict"]) for each in records):
        record = {**record, "verdict": Verdict.UNSTEADY, "first": evidence["verdict"]}
    return record


class Times:
    """What cases left that are judged ``number`` times each, until all of a case is there."""

    def __init__(self, number: int) -> None:
        """Expect so many records a case."""
        self.number = number
        self._seen: dict[str, list[CaseRecord]] = {}

    def take(self, record: CaseRecord) -> tuple[bool, CaseRecord | None]:
        """Say whether it is the first failure of its case; return what the last one completes."""
        seen = self._seen.setdefault(record["id"], [])
        fails = is_doubtful(record) and not any(map(is_doubtful, seen))
        seen.append(record)
        whole = len(seen) == self.number
        return fails, together(self._seen.pop(record["id"])) if whole else None


def _weight(record: CaseRecord) -> int:
    """Return 0 for the evidence that counts most."""
    verdict = record["verdict"]
    order = (
        "splats" in record,
        verdict.is_violation,
        verdict is Verdict.XFAIL,
        verdict is Verdict.ERROR,
    )
    return order.index(True) if any(order) else len(order)


def _is_else(verdict: Verdict) -> bool:
    return not verdict.is_violation and verdict is not Verdict.ERROR


def ways(record: CaseRecord) -> set[Verdict]:
    """Return every verdict that the case of a record had."""
    return {record["verdict"], *map(Verdict, record.get("repeats", ()))}


def settle(first: CaseRecord, again: CaseRecord) -> CaseRecord:
    """Return the record of a case that left ``first``, and ``again`` when it was judged once more.

    The evidence is the first one's. What does not repeat is UNSTEADY: no verdict on the kernel,
    and never a pass.
    """
    told: Mapping[str, Any] = again
    kept = cast(Judging, {name: told[name] for name in KEPT if name in told})
    record: CaseRecord = {**first, "type": "case", "again": kept}
    if "splats" in again:
        record["splats"] = again["splats"]
    if not again["verdict"].is_violation:
        record = {**record, "verdict": Verdict.UNSTEADY, "first": first["verdict"]}
    return record
