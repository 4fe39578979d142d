"""Every mistake that a mutant makes is seen by a case of the catalogue."""

from __future__ import annotations

import pytest
from agreed import agreed
from mutant import Mutant, disagreement
from mutants import MUTANTS

from vmm.conformance.language.case import Case
from vmm.conformance.oracle.spoiled import NEED, model_of

MANY = 1000
"""So many accesses a Model thinks about for a second: such a case, a sweep, is asked last."""


def accesses(case: Case) -> int:
    """Return how many accesses a Model has to think about."""
    return sum(getattr(action, "count", 1) for action in case.actions)


def theme(case: Case) -> str:
    return case.id.partition(".")[0]


class Catalogue:
    """The cases in an order in which a mutant does not live long: that of how dear they are."""

    def __init__(self) -> None:
        self.cases = sorted(agreed(), key=accesses)
        self.is_dear = {case.id: accesses(case) > MANY for case in self.cases}

    def killer(self, mutant: Mutant) -> Case | None:
        """Return a case that sees the mistake, whose theme is asked first about the next one.

        Neighbours in a table of mistakes are of one subject.
        """
        models = {on: mutant.model(ignore_msrs=on) for on in (False, True)}
        for case in self.cases:
            if disagreement(case, models[NEED in case.needs]) is not None:
                self._prefer(theme(case))
                return case
        return None

    def _prefer(self, name: str) -> None:
        self.cases.sort(key=lambda case: (self.is_dear[case.id], theme(case) != name))


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_case_kills(mutant: Mutant, catalogue: Catalogue) -> None:
    survives = f"{mutant.name} survives all {len(catalogue.cases)} cases: {mutant.mistake}"
    assert catalogue.killer(mutant) is not None, survives


def test_names_and_mistakes_are_distinct() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.mistake for mutant in MUTANTS}) == len(MUTANTS)


def test_no_mutant_changes_the_model_itself(catalogue: Catalogue) -> None:
    for mutant in MUTANTS:
        mutant.model()
    assert all(disagreement(case, model_of(case)) is None for case in catalogue.cases)
