"""TAP version 13, flat: one test line a case, a YAML block under each that failed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseRecord, EndRecord
from vmm.conformance.records.summary import broken
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.account import account, titles
from vmm.conformance.report.closing import newly
from vmm.conformance.report.text import kernel

SHOWN = (
    "sentence",
    "requirements",
    "cause",
    "first",
    "repeats",
    "again",
    "step",
    "action",
    "expected",
    "seen",
    "error",
    "splats",
)
"""The fields of a case record that its YAML block has."""


def render(runs: Sequence[Saved]) -> str:
    """Return one stream for all runs; of many, a test's name begins with its run's."""
    names = titles(runs) if len(runs) > 1 else [""]
    cases = [account(saved) for saved in runs]
    lines = ["TAP version 13", f"1..{sum(map(len, cases))}"]
    number = 0
    for saved, name, those in zip(runs, names, cases, strict=True):
        lines.append(f"# {kernel(saved.host)}")
        for case in those:
            number += 1
            lines += case_lines({**case, "id": f"{name}.{case['id']}"} if name else case, number)
        lines += [f"# not kept: {each}" for each in broken(saved.cases.values())]
    return "".join(f"{line}\n" for line in lines)


def header(total: int, host: Mapping[str, Any]) -> list[str]:
    """Return the version, the plan, and a comment that says what is judged."""
    return ["TAP version 13", f"1..{total}", f"# {kernel(host)}"]


def case_lines(case: CaseRecord, number: int) -> list[str]:
    """Return the test line of a case, ``number`` from 1, and its diagnostics."""
    good = case["verdict"].is_good
    name = re.sub(r"[^a-z0-9_.-]", "_", case["id"].lower())
    line = f"{'ok' if good else 'not ok'} {number} - {name}{_directive(case)}"
    return [line, *([] if good else _yaml(case))]


def end_lines(end: EndRecord) -> list[str]:
    """Return what closes the stream: "Bail out!" if the run did not get to its end."""
    stray = [f"# kernel log: {line}" for splat in end["splats"] for line in splat]
    stray += [f"# foreign: {line}" for line in end.get("foreign", ())]
    stray += [f"# known, and no case fails by it: {entry}" for entry in end.get("unseen", ())]
    stray += [f"# not kept: {name}" for name in end.get("broken", ())]
    if since := end.get("baseline"):
        stray += [f"# newly {word}: {name}" for word, ids in newly(since) for name in ids]
    return [*stray, "Bail out! interrupted"] if end["interrupted"] else stray


def _directive(case: CaseRecord) -> str:
    match case["verdict"]:
        case Verdict.SKIP:
            return f" # SKIP {' '.join(case['reason'].split())}"
        case Verdict.XFAIL:
            return " # TODO known failure"
        case Verdict.XPASS:
            return " # TODO known failure, but it passes"
    return ""


def _yaml(case: CaseRecord) -> list[str]:
    # A JSON value is a YAML value, and stays on its line whatever the text holds.
    told: Mapping[str, Any] = case
    fields = [f"  {name}: {json.dumps(told[name])}" for name in SHOWN if name in told]
    return ["  ---", f"  verdict: {case['verdict']}", *fields, "  ..."]
