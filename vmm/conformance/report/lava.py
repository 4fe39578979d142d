"""What LAVA reads: signals on the console of a test, or a file for its ``send-to-lava.sh``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from vmm.conformance.records.saved import Saved
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.account import account, themes, titles

Result = Literal["pass", "fail", "skip", "unknown"]


def signals(runs: Sequence[Saved]) -> str:
    """Return one signal a line; a theme is a test set. LAVA knows no more of a result than this."""
    return _lines(
        runs,
        lambda edge, name: f"<LAVA_SIGNAL_TESTSET {edge.upper()}{f' {name}' * (edge == 'start')}>",
        lambda name, result: f"<LAVA_SIGNAL_TESTCASE TEST_CASE_ID={name} RESULT={result}>",
    )


def results(runs: Sequence[Saved]) -> str:
    """Return one "name result" a line, and a line where a theme, which is a test set, begins."""
    return _lines(
        runs,
        lambda edge, name: f"lava-test-set {edge} {name}",
        lambda name, result: f"{name} {result}",
    )


def result(verdict: Verdict) -> Result:
    """Return LAVA's word: what has no verdict on the kernel is unknown; a known failure fails."""
    match verdict:
        case Verdict.PASS | Verdict.XPASS:
            return "pass"
        case Verdict.FAIL | Verdict.TIMEOUT | Verdict.XFAIL:
            return "fail"
        case Verdict.SKIP:
            return "skip"
        case Verdict.ERROR | Verdict.UNSTEADY:
            return "unknown"


def _lines(
    runs: Sequence[Saved], edge: Callable[[str, str], str], line: Callable[[str, Result], str]
) -> str:
    names = titles(runs) if len(runs) > 1 else [""]
    lines: list[str] = []
    for saved, name in zip(runs, names, strict=True):
        for word, cases in themes(account(saved)).items():
            title = word_of(f"{name}.{word}" if name else word)
            lines.append(edge("start", title))
            lines += [line(word_of(case["id"]), result(case["verdict"])) for case in cases]
            lines.append(edge("stop", title))
    return "".join(f"{each}\n" for each in lines)


def word_of(name: str) -> str:
    """Return a name as LAVA takes it: without blanks and brackets."""
    return re.sub(r"[^A-Za-z0-9_.+=-]", "_", name)
