"""Runs now against runs before, machine by machine: what is new, fixed, gone or flaky, by cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmm.conformance.contract.history import HISTORY
from vmm.conformance.records.causes import explains
from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.status import Status
from vmm.conformance.records.steadiness import ways
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import table
from vmm.conformance.report.history import FAILS
from vmm.conformance.report.table import Column
from vmm.conformance.report.text import names, plural

GOOD = (Verdict.PASS, Verdict.XPASS)
Causes = Mapping[str, tuple[str, ...]]
"""Ids of cases by what makes them fail: an entry of the history, or else the case itself."""


@dataclass(frozen=True, slots=True)
class Change:
    """One machine, before and now. ``before`` or ``now`` is empty where it did not run.

    ``new`` fails now: its cause did not, or one of its cases passed. ``fixed`` passes now, ``gone``
    is not judged any more, ``flaky`` was seen both ways now, ``standing`` fails as it did.
    """

    machine: str
    before: str
    now: str
    trouble: str
    new: Causes
    fixed: Causes
    gone: Causes
    flaky: Causes
    standing: Causes


def changes(before: Sequence[Saved], now: Sequence[Saved]) -> list[Change]:
    """Compare each machine's newest kernel with its newest before.

    Runs of one kernel on one machine are repetitions of each other.
    """
    old, new = _machines(before), _machines(now)
    return [_change(name, old.get(name, []), new.get(name, [])) for name in {**old, **new}]


def status(found: Iterable[Change]) -> Status:
    """Return VIOLATES for what is new alone, TROUBLE where a machine has no verdict now."""
    every = list(found)
    if any(each.new for each in every):
        return Status.VIOLATES
    is_missing = any(each.trouble or not each.now for each in every)
    return Status.TROUBLE if is_missing else Status.CONFORMS


def lines(found: Sequence[Change]) -> list[str]:
    """Return the changes for a person to read, one part a machine."""
    out: list[str] = []
    for each in found:
        out += ["", f"{each.machine}: {each.before or 'nothing'} -> {each.now or 'nothing'}"]
        out += [f"  no verdict now: {each.trouble}"] if each.trouble else []
        for word in ("new", "fixed", "gone", "flaky"):
            out += [_line(word, cause, ids) for cause, ids in getattr(each, word).items()]
        if standing := sum(map(len, each.standing.values())):
            out.append(f"  {plural(standing, 'case')} as before: {names([*each.standing])}")
        elif not (each.new or each.fixed or each.gone or each.flaky):
            out.append("  nothing failed, nothing fails")
    return [*out[1:], "", _verdict(found)]


def _line(word: str, cause: str, ids: Sequence[str]) -> str:
    title = f" {HISTORY[cause].title}: {plural(len(ids), 'case')}:" if cause in HISTORY else ""
    return f"  {word:5} {cause}:{title} {names(ids)}" if title else f"  {word:5} {cause}"


def _verdict(found: Sequence[Change]) -> str:
    count = {
        word: sum(len(getattr(each, word)) for each in found)
        for word in ("new", "fixed", "gone", "flaky")
    }
    said = ", ".join(f"{number} {word}" for word, number in count.items())
    return f"{plural(len(found), 'machine')}: {said}"


def _machines(runs: Sequence[Saved]) -> dict[str, list[Column]]:
    """Return by machine the runs of its newest kernel."""
    found: dict[str, list[Column]] = {}
    for column in table.columns(runs):
        those = found.setdefault(column.vendor, [])
        if those and those[-1].release != column.release:
            those.clear()
        those.append(column)
    return found


def _change(name: str, before: Sequence[Column], now: Sequence[Column]) -> Change:
    old, new = _verdicts(before), _verdicts(now)
    flaky = {case for case, seen in new.items() if _is_flaky(seen)}
    failed, fails = ({case for case, seen in each.items() if _fails(seen)} for each in (old, new))
    was, is_ = _by_cause(before, failed), _by_cause(now, fails - flaky)
    fresh = {
        cause: ids
        for cause, ids in is_.items()
        if cause not in was or any(old.get(case, set()) & set(GOOD) for case in ids)
    }
    left = {cause: ids for cause, ids in was.items() if not {*ids} & (fails | flaky)}
    left = {cause: ids for cause, ids in left.items() if cause not in is_}
    good = {case for case, seen in new.items() if seen & set(GOOD)}
    return Change(
        *(name, _kernel(before), _kernel(now), next((c.trouble for c in now if c.trouble), "")),
        new=fresh,
        fixed={cause: ids for cause, ids in left.items() if {*ids} & good},
        gone={cause: ids for cause, ids in left.items() if not {*ids} & good},
        flaky=_by_cause(now, flaky),
        standing={cause: ids for cause, ids in is_.items() if cause not in fresh},
    )


def _kernel(columns: Sequence[Column]) -> str:
    runs = f" ({len(columns)} runs)" if len(columns) > 1 else ""
    return f"{columns[0].release}{runs}" if columns else ""


def _verdicts(columns: Sequence[Column]) -> dict[str, set[Verdict]]:
    found: dict[str, set[Verdict]] = {}
    for column in columns:
        for name, case in column.cases.items():
            found.setdefault(name, set()).update(ways(case))
    return found


def _fails(seen: set[Verdict]) -> bool:
    return bool(seen & set(FAILS))


def _is_flaky(seen: set[Verdict]) -> bool:
    return Verdict.UNSTEADY in seen or (_fails(seen) and bool(seen & set(GOOD)))


def _by_cause(columns: Sequence[Column], ids: set[str]) -> Causes:
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(ids):
        evidence = _evidence(columns, name)
        cause = (explains(*evidence) if evidence else "") or name
        found[cause] = (*found.get(cause, ()), name)
    return found


def _evidence(
    columns: Sequence[Column], name: str
) -> tuple[CaseRecord, Mapping[str, object]] | None:
    for column in columns:
        case = column.cases.get(name)
        if case and case["verdict"] in (*FAILS, Verdict.UNSTEADY) and column.saved:
            return case, column.saved.host
    return None
