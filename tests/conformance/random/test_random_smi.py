"""Random scripts in which an SMI comes between an exit and the end of its access."""

from random import Random

import pytest
from mutants import MUTANTS

from vmm.conformance.language import script as s
from vmm.conformance.language.needs import needs_of
from vmm.conformance.language.soundness import is_sound
from vmm.conformance.oracle.model import Model
from vmm.conformance.random.fuzz import fuzz
from vmm.conformance.random.gate import LONGEST, Gate
from vmm.conformance.random.scripts import random_script

SMI = ("smi_before_the_access", "smi_loses_the_answer", "smi_loses_the_fault")
PENDING = ("smi_dropped_by_its_events", "smi_comes_before_the_completion")


class Faultless:
    """Sees what the Model predicts."""

    def run(self, script, *, expected=None):
        return Model().predict(script)


def planted(name):
    return next(each.model() for each in MUTANTS if each.name == name)


def sample(number, *, smm):
    below = Random(1).randrange
    return [random_script(below, smm=smm) for _ in range(number)]


def test_an_smi_is_drawn_where_the_model_can_judge_it():
    written = [script for script in sample(400, smm=True) if s.SMI in sent(script)]
    assert len(written) > 20 and all(map(is_sound, written))
    gate = Gate(2, "", lambda _: None)
    assert all(map(gate.lets, filter(lambda each: len(each) <= LONGEST, written)))
    assert {"smm"} <= {need for script in written for need in needs_of(script)}
    ended = [
        step
        for script in written
        for action, step in zip(script, s.steps(script, Model().predict(script)), strict=True)
        if isinstance(action, s.GetTaken)
    ]
    assert (s.taken(s.SMI, 2),) in ended and ended.count((s.whatever,)) < len(ended) / 2


def sent(script):
    return [s.SMI for each in script if isinstance(each, s.Inject) and each.kind == "smi"]


def test_without_smm_none_is_drawn():
    assert not any(map(sent, sample(400, smm=False)))
    lacks = {"smm": "no SMM"}.get
    some = next(script for script in sample(400, smm=True) if sent(script))
    assert not Gate(2, "", lacks).lets(some)


@pytest.mark.parametrize("name", (*SMI, *PENDING))
def test_random_smis_show_that_a_model_errs(name):
    found = fuzz(Faultless(), 1, 3000, model=planted(name), smm=True)
    assert found and sent(found.script), found
    assert fuzz(Faultless(), 1, 300, model=planted(name)) is None
