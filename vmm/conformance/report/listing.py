"""The catalogue as text: what ``msrward list`` and ``msrward show`` print."""

from __future__ import annotations

from collections.abc import Sequence

from vmm.conformance.contract.requirements import REQUIREMENTS, Requirement
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import steps


def listing(cases: Sequence[Case]) -> list[str]:
    """Return one line a case: id, requirements, sentence."""
    width = max((len(case.id) for case in cases), default=0)
    return [f"{case.id:{width}}  {case.checks}: {case.sentence}" for case in cases]


def by_requirement(cases: Sequence[Case], *, whole: bool = True) -> list[str]:
    """Return each requirement in words and, under it, the ids of the cases that check it.

    A requirement without a case is shown only if ``cases`` is the ``whole`` catalogue.
    """
    lines = []
    for name, requirement in REQUIREMENTS.items():
        ids = [case.id for case in cases if name in case.requirements]
        if ids or whole:
            lines.append(f"{name} {requirement.sentence}")
            lines += [f"    {each}" for each in ids or [_no_case(requirement)]]
    return lines


def _no_case(requirement: Requirement) -> str:
    return f"(no case: {requirement.untested})" if requirement.untested else "(no case)"


def card(case: Case) -> list[str]:
    """Return the whole of one case: sentence, requirements, script, what is expected."""
    lines = [case.id, f"  {case.sentence}"]
    for name in case.requirements:
        entry = REQUIREMENTS.get(name)
        since = f" (since {entry.since})" if entry and entry.since else ""
        lines.append(f"  {name}: {entry.sentence if entry else 'not in the contract'}{since}")
    if case.all_needs:
        lines.append(f"  needs: {', '.join(case.all_needs)}")
    if case.observes:
        lines.append("  observes: what is seen is recorded, and never fails")
    return [*lines, *_script(case)]


def _script(case: Case) -> list[str]:
    expected = [] if case.observes else steps(case.actions, case.expected)
    lines = []
    for number, action in enumerate(case.actions, start=1):
        lines.append(f"  {number:3} {action!r}")
        for event in expected[number - 1] if number <= len(expected) else ():
            lines.append(f"      -> {event!r}")
    return lines
