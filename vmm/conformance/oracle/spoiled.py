"""Which cases kvm.ignore_msrs=1 takes the point from: asked of the Model, not of a list (R56)."""

from __future__ import annotations

from itertools import zip_longest

from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Step, matches, steps
from vmm.conformance.oracle.model import Model

NEED = "ignore_msrs"
"""The word of ``Case.needs`` of a case that is to be judged where the parameter is on."""


def model_of(case: Case) -> Model:
    """Return the Model of the host that the case is written for."""
    return Model(ignore_msrs=NEED in case.needs, has_lbr="lbr" in case.needs)


def is_spoiled(case: Case) -> bool:
    """Say whether the case expects what no kernel shows while it ignores unknown MSRs."""
    says = Model(ignore_msrs=True).predict(case.actions)
    wanted = model_of(case).predict(case.actions) if case.observes else case.expected
    pairs = zip_longest(steps(case.actions, wanted), steps(case.actions, says), fillvalue=())
    return any(_contradict(want, say) for want, say in pairs)


def ignoring_of(case: Case) -> bool | None:
    """Return what the parameter has to be for the case, None where it does not matter."""
    if NEED in case.needs:
        return True
    return False if is_spoiled(case) else None


def _contradict(one: Step, other: Step) -> bool:
    """Say whether two patterns have no trace in common."""
    return not (matches(one, other) or matches(other, one))
