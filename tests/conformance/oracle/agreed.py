"""Where the Model and the human of a case part: found once a run, for every test that asks."""

from __future__ import annotations

from functools import cache

from mutant import disagreement

from vmm.conformance.cases import CASES
from vmm.conformance.language.case import Case
from vmm.conformance.oracle.spoiled import model_of

MUST = {case.id: case for case in CASES if not case.observes}


@cache
def parted(name: str) -> int | None:
    """Return the first step at which the Model does not say what the human of the case expects."""
    return disagreement(MUST[name], model_of(MUST[name]))


def agreed() -> list[Case]:
    """Return the cases that the Model satisfies: no other says anything about a mutant."""
    return [case for case in MUST.values() if parted(case.id) is None]
