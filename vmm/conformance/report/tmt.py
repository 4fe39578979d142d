"""``results.yaml`` of a tmt test with ``result: custom``: what tmt, and so Testing Farm, reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.account import account, line, titles

Result = Literal["pass", "fail", "info", "warn", "error", "skip"]


def render(runs: Sequence[Saved]) -> str:
    """Return the file: a result called ``/theme/case`` for each case, below ``/RUN`` if many."""
    tops = [f"/{name}" for name in titles(runs)] if len(runs) > 1 else [""]
    lines = (
        each
        for saved, top in zip(runs, tops, strict=True)
        for case in account(saved)
        for each in _result(case, top)
    )
    return "".join(f"{each}\n" for each in lines)


def result(case: CaseRecord) -> Result:
    """Return tmt's word: "info" for what is only observed, "warn" for what was to fail."""
    match case["verdict"]:
        case Verdict.PASS if "observation" in case:
            return "info"
        case Verdict.PASS:
            return "pass"
        case Verdict.FAIL | Verdict.TIMEOUT:
            return "fail"
        case Verdict.XFAIL | Verdict.XPASS:
            return "warn"
        case Verdict.SKIP:
            return "skip"
        case _:
            return "error"


def _result(case: CaseRecord, top: str) -> Iterator[str]:
    # A JSON value is a YAML value, and stays on its line whatever the text holds.
    yield f"- name: {json.dumps(top + '/' + str(case['id']).replace('.', '/', 1))}"
    yield f"  result: {result(case)}"
    yield f"  duration: {json.dumps(_duration(case['ms']))}"
    notes = [line(case)] if line(case) else []
    notes += [f"explained by {case['cause']}"] if "cause" in case else []
    if notes:
        yield f"  note: {json.dumps(notes)}"


def _duration(ms: float) -> str:
    seconds = math.ceil(ms / 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
