"""The page that ends a bisection: what changed, where, on what evidence, and how to repeat it."""

from __future__ import annotations

from collections.abc import Sequence

from vmm.conformance.report.difference import lines as compared
from vmm.lab.search.bisect import Boundary
from vmm.lab.search.verdict import Question


def page(stages: Sequence[Boundary], question: Question, commands: Sequence[str]) -> str:
    """Return the page; `stages` are the searches, the finest last, and `commands` repeat them."""
    found = stages[-1]
    answers = dict(found.asked)
    asked = question.case
    if question.observe is not None:
        asked += f" observing {question.observe}"
    lines = [f"{asked}: the first bad kernel is {found.first_bad}"]
    if found.untested:
        lines = [f"{asked}: the first bad kernel is one of these; the last of them is bad"]
        lines += [f"  {name}: {answers[name].line}" for name in found.untested]
        lines += [f"  {found.first_bad}"]
    lines += [f"the last good one is {found.last_good}: {answers[found.last_good].line}"]
    lines += [f"the first bad one is {found.first_bad}: {answers[found.first_bad].line}"]
    lines += ["", *_before_and_after(stages), "", "asked, in this order:"]
    for stage in stages:
        lines += [f"  {e.step.name.lower():4} {name}: {e.line}" for name, e in stage.asked]
    return "\n".join([*lines, "", "to repeat it:", *(f"  {each}" for each in commands)]) + "\n"


def _before_and_after(stages: Sequence[Boundary]) -> list[str]:
    """Compare the neighbours of the finest search that has the records of both."""
    for found in reversed(stages):
        answers = dict(found.asked)
        good, bad = answers[found.last_good].saved, answers[found.first_bad].saved
        if good and bad:
            return [
                "before (A) and after (B):",
                *(f"  {line}".rstrip() for line in compared(good, bad)[:-2]),
            ]
    return ["the records of one of the two are not to be had"]
