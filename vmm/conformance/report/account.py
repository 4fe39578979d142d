"""What the formats for other programs tell of a run: its cases, and whatever is no case's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseOutcome, CaseRecord, record_of
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import rerun, text

WHOLE = "run.end"
"""What the formats call a result that is no case's: why there is no verdict, a stray splat."""
_SENTENCE = "The run gets to its end, and the kernel log has no splat."


def account(saved: Saved) -> list[CaseRecord]:
    """Return the case records of a run in their order, and what must not get lost beside them.

    A case that was still to be judged once more is an ERROR that keeps its evidence. What is wrong
    with the run as a whole comes last, as a record called ``WHOLE``.
    """
    left = [_left(record) for record in saved.firsts.values()]
    return [*saved.cases.values(), *left, *_whole(saved, bool(left))]


def unfinished(saved: Saved) -> str:
    """Return why the run tells less than it was to, beyond what its cases say themselves, or ""."""
    if saved.end and saved.end["interrupted"]:
        return "the run was interrupted"
    told = any(
        case["verdict"] in (Verdict.ERROR, Verdict.UNSTEADY) for case in saved.cases.values()
    )
    return "" if saved.end and told and "lab" not in saved.end else saved.trouble


def themes(cases: Iterable[CaseRecord]) -> dict[str, list[CaseRecord]]:
    """Return the cases by theme: the part of their ids before the first dot, or "_" for none."""
    found: dict[str, list[CaseRecord]] = {}
    for case in cases:
        found.setdefault(str(case["id"]).partition(".")[0].strip() or "_", []).append(case)
    return found


def line(case: CaseRecord) -> str:
    """Return one line: what differs, what went wrong, why it was skipped or what was observed."""
    return "; ".join(each for each in (text.often(case), _line(case)) if each)


def _line(case: CaseRecord) -> str:
    if "expected" in case:
        expected, seen = (", ".join(case[side]) or "nothing" for side in ("expected", "seen"))
        return f"step {case['step']}: {case['action']}: expected {expected}, seen {seen}"
    for name in ("error", "reason", "observation"):
        if name in case:
            return " ".join(str(case[name]).split())
    splats = [line for splat in case.get("splats", ()) for line in splat]
    return f"the kernel log says: {splats[0]}" if splats else ""


def block(case: CaseRecord, host: Mapping[str, Any]) -> str:
    """Return all that a person needs to look into a case of a run that did not pass."""
    whole = case["verdict"] is Verdict.ERROR and "expected" in case
    lines = text.failure(case, lambda _, words: words, int(whole), rerun.of_run(host))[1:]
    return "\n".join(lines[:-1] if case["type"] == "whole" else lines)


def started(saved: Saved) -> datetime | None:
    """Return when the run began, in UTC, where its records say it and a calendar has it."""
    try:
        return datetime.fromtimestamp(saved.run["started"], UTC) if saved.run else None
    except (KeyError, ValueError, OverflowError, OSError):
        return None


def titles(runs: Sequence[Saved]) -> list[str]:
    """Return a name for each run, of letters that every format takes; no two are the same."""
    names: list[str] = []
    for saved in runs:
        lab = saved.host.get("lab") or {}
        where = lab.get("vendor") or saved.host.get("hostname") or "host"
        words = f"{saved.host.get('release')} {where} {lab.get('append', '')}".strip()
        name = re.sub(r"[^A-Za-z0-9.+=-]+", "_", words).replace(".", "-")
        same = sum(each == name or each.startswith(f"{name}_run") for each in names)
        names.append(f"{name}_run{same + 1}" if same else name)
    return names


def _left(first: CaseRecord) -> CaseRecord:
    why = f"{first['verdict']}, and was not judged once more: the run was cut short"
    return {**first, "verdict": Verdict.ERROR, "error": why}


def _whole(saved: Saved, cut: bool) -> list[CaseRecord]:
    splats, why = saved.end["splats"] if saved.end else [], unfinished(saved)
    if not (splats or why):
        return []
    outcome: CaseOutcome = {"verdict": Verdict.FAIL if splats else Verdict.ERROR}
    if splats:
        outcome["splats"] = splats
    if why:
        outcome["error"] = why
    return [{**record_of(WHOLE, _SENTENCE, [], outcome), "type": "whole"}]
