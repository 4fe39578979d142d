"""The page that ends a bisection: what changed, where, on what evidence, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmm.conformance.report.difference import lines as compared
from vmm.lab.bisect import Finding
from vmm.lab.verdict import Evidence, Question


def page(found: Finding, question: Question, commands: Sequence[str], commit: str = "") -> str:
    """Return the page; `commands` repeat the search, `commit` is what a git bisection found."""
    answers = dict(found.asked)
    first = f"commit {commit}" if commit else found.first_bad
    lines = [f"{question.case}: the first bad kernel is {first}"]
    lines += [f"the last good one is {found.last_good}: {answers[found.last_good].line}"]
    lines += [f"the first bad one is {found.first_bad}: {answers[found.first_bad].line}"]
    if found.untested:
        lines += [f"not testable between them: {', '.join(found.untested)}"]
    lines += ["", *_before_and_after(found, answers), "", "asked, in this order:"]
    lines += [f"  {e.step.name.lower():4} {name}: {e.line}" for name, e in found.asked]
    return "\n".join([*lines, "", "to repeat it:", *(f"  {each}" for each in commands)]) + "\n"


def _before_and_after(found: Finding, answers: Mapping[str, Evidence]) -> list[str]:
    good, bad = answers[found.last_good].saved, answers[found.first_bad].saved
    if good is None or bad is None:
        return ["the records of one of the two are not to be had"]
    return ["before (A) and after (B):", *(f"  {line}" for line in compared(good, bad)[:-2])]
