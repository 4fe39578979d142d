"""A mutant: a Model with one mistake, and where it disagrees with a case."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.effects import EffectRules
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.filters import FilterRules
from vmm.conformance.oracle.host import HostRules
from vmm.conformance.oracle.installs import InstallRules
from vmm.conformance.oracle.levels import LevelRules
from vmm.conformance.oracle.masks import MaskRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.races import RaceRules
from vmm.conformance.oracle.running import RunningRules
from vmm.conformance.oracle.shadows import ShadowRules
from vmm.conformance.oracle.sleeping import SleepingRules
from vmm.conformance.oracle.sweeps import SweepRules
from vmm.conformance.oracle.xen import XenRules

PARTS: dict[type[Any], str] = {
    FilterRules: "filters",
    MaskRules: "masks",
    InstallRules: "installs",
    AccessRules: "accesses",
    ExitRules: "exits",
    HostRules: "host",
    RaceRules: "races",
    RunningRules: "running",
    SweepRules: "sweeps",
    EffectRules: "effects",
    LevelRules: "levels",
    ShadowRules: "shadows",
    XenRules: "xen",
    SleepingRules: "sleeping",
}
"""The parts of a Model, each with the name under which the Model holds it."""
WHOLE = (Model, MaskRules, InstallRules, AccessRules, HostRules)
"""Where a rule of a mutant of the Model as a whole may stand; no two have one of the same name."""
RACES = (RaceRules, RunningRules)
"""The same for a mutant of the rules of races."""


@dataclass(frozen=True)
class Mutant:
    """One mistake: ``part`` with the attributes of ``changes`` in place of its own.

    Where ``part`` is the Model, each change is of the one of ``WHOLE`` that has a rule so named;
    where it is the rules of races, of the one of ``RACES``.
    """

    name: str
    mistake: str
    part: type[Any]
    changes: dict[str, Any]

    def model(self, *, ignore_msrs: bool = False) -> Model:
        """Return a Model that makes this mistake and no other."""
        broken: dict[type[Any], Any] = {Model: Model}
        for owner, changes in self._by_owner().items():
            broken[owner] = type(self.name, (owner,), changes)
        model: Model = broken.pop(Model)(ignore_msrs=ignore_msrs)
        for owner, part in broken.items():
            setattr(model, PARTS[owner], part())
        return model

    def _by_owner(self) -> dict[type[Any], dict[str, Any]]:
        """Return the changes of each part; "_name" is no rule, but what another change calls."""
        found: dict[type[Any], dict[str, Any]] = {}
        parts = {Model: WHOLE, RaceRules: RACES}.get(self.part, (self.part,))
        for name, change in self.changes.items():
            owners = [
                each
                for each in parts
                if name in vars(each) or (name.startswith("_") and each is self.part)
            ]
            assert len(owners) == 1, f"{self.name}: no rule {name}, or more than one"
            found.setdefault(owners[0], {})[name] = change
        return found


def disagreement(case: Case, model: Model) -> int | None:
    """Return the first step at which ``model`` does not say what the case's human expects.

    The Model may say more than the human, who may write a pattern or ANY, but never less.
    """
    model.has_lbr = "lbr" in case.needs
    want = s.steps(case.actions, case.expected)
    have = s.steps(case.actions, model.predict(case.actions))
    for number in range(max(len(want), len(have))):
        if number >= min(len(want), len(have)) or not _says(have[number], want[number]):
            return number
    return None


def _says(predicted: s.Step, expected: s.Step) -> bool:
    if expected in ((s.unfiltered,), (s.whatever,)):
        return predicted == expected or s.matches(expected, predicted)
    return s.matches(expected, predicted) and all(map(_is_as_exact, predicted, expected))


def _is_as_exact(predicted: Any, expected: Any) -> bool:
    if predicted is s.ANY:
        return expected is s.ANY
    if expected is s.ANY or not is_dataclass(predicted):
        return True
    if isinstance(expected, s.Either):  # a pattern, which says of itself what it matches
        return True
    names = [field.name for field in fields(predicted)]
    return all(_is_as_exact(getattr(predicted, n), getattr(expected, n)) for n in names)


def mutant(part: type[Any], name: str, mistake: str, **changes: Any) -> Mutant:
    """Return the mutant whose ``part`` has ``changes`` in place of its own rules."""
    return Mutant(name, mistake, part, changes)
