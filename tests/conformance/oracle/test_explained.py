"""Signatures held against kernels with one mistake: a history entry's own is explained, news is
not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from mutant import Mutant
from mutants import MUTANTS

from vmm.conformance.cases import CASES
from vmm.conformance.judge.judging import code, judge
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Action, Trace
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.spoiled import NEED
from vmm.conformance.records.causes import explains

MUST = {case.id: case for case in CASES if not case.observes and not case.thorough}
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


class Broken:
    """A kernel that does what a Model with a mistake says."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def lacks(self, need: str) -> str | None:
        return None

    def run(self, script: Sequence[Action], *, expected: Trace | None = None) -> Trace:
        return tuple(self.model.predict(script))

    def close(self) -> None:
        pass


def failed(mutant: Mutant, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Yield the records of the cases that a kernel with the mistake fails."""
    for case in cases:
        ignoring = NEED in case.needs
        outcome = judge(case, Broken(mutant.model(ignore_msrs=ignoring)), ignoring=ignoring)
        if outcome["verdict"] == "FAIL":
            yield {"id": case.id, "script": code(case.actions), **outcome}


@pytest.mark.parametrize(
    ("name", "entry", "case"),
    [
        ("failed_install_half_applied", "B03", "rollback.first_install_in_slot_1"),
        ("stall_shows_what_is_built", "B03", "overtaken.by_a_default_deny"),
        ("stall_shows_what_is_built", "B03", "stalled.default_allow_in_slot_10"),
        ("x2apic_filtered", "B02", "x2apic.on_under_default_deny"),
        ("l2_bases_unfiltered", "B05", "levels.read_kernel_gs_base"),
    ],
)
def test_a_mistake_of_the_history_is_explained_by_its_entry(
    name: str, entry: str, case: str
) -> None:
    (record,) = failed(BY_NAME[name], [MUST[case]])
    assert explains(record, {"vendor_module": "kvm_intel"}) == entry


def test_other_mistakes_are_news_but_for_a_few_that_look_alike() -> None:
    cases = list(MUST.values())[::61]
    new = [mutant for mutant in MUTANTS if "(B" not in mutant.mistake][::14]
    found = [
        explains(record, {"vendor_module": vendor})
        for mutant in new
        for record in failed(mutant, cases)
        for vendor in ("kvm_intel", "kvm_amd")
    ]
    explained = sum(map(bool, found))
    assert len(found) > 40
    assert explained * 10 <= len(found), f"{explained} of {len(found)} mistakes are explained away"
