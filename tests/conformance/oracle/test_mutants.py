"""Every mistake that a mutant makes is seen by a case of the catalogue."""

from __future__ import annotations

import pytest
from mutant import Mutant, disagreement
from mutants import MUTANTS

from vmm.conformance.cases import CASES
from vmm.conformance.language.case import Case
from vmm.conformance.oracle.spoiled import NEED, model_of


def accesses(case: Case) -> int:
    """Return how many accesses a Model has to think about: a sweep has thousands of them."""
    return sum(getattr(action, "count", 1) for action in case.actions)


MUST = sorted((case for case in CASES if not case.observes), key=accesses)
AGREED = [case for case in MUST if disagreement(case, model_of(case)) is None]
"""Only a case that the Model itself satisfies says anything about a mutant."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_case_kills(mutant: Mutant) -> None:
    models = {on: mutant.model(ignore_msrs=on) for on in (False, True)}
    killers = (disagreement(case, models[NEED in case.needs]) is not None for case in AGREED)
    assert any(killers), f"{mutant.name} survives all {len(AGREED)} cases: {mutant.mistake}"


def test_names_and_mistakes_are_distinct() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.mistake for mutant in MUTANTS}) == len(MUTANTS)


def test_no_mutant_changes_the_model_itself() -> None:
    for mutant in MUTANTS:
        mutant.model()
    assert all(disagreement(case, model_of(case)) is None for case in AGREED)
