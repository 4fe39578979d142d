"""Random scripts with Xen's MSR: they harm no guest, and find who writes before the filter."""

from random import Random

import pytest
from mutants_xen import XEN

from vmm.conformance.language import script as s
from vmm.conformance.language.needs import needs_of
from vmm.conformance.language.soundness import is_sound
from vmm.conformance.oracle.model import Model
from vmm.conformance.random.fuzz import fuzz, xen_of
from vmm.conformance.random.gate import LONGEST, Gate
from vmm.conformance.random.scripts import random_script
from vmm.conformance.random.xen import is_safe

M = 0x474F4F00
BOTH = (0, s.XEN_INTERCEPT)


class Faultless:
    """Sees what the Model predicts."""

    def run(self, script, *, expected=None):
        return Model().predict(script)


class Lacking:
    """A host that lacks the needs it is given."""

    def __init__(self, *lacked):
        self.lacked = lacked

    def lacks(self, need):
        return "not here" if need in self.lacked else None


def drawn(xen, number=600):
    below = Random(11).randrange
    return [random_script(below, xen=xen) for _ in range(number)]


def test_scripts_with_xens_msr_are_sound_and_pass_the_gate():
    gate = Gate(2, "", lambda need: "no" if need.startswith("nested") else None)
    scripts = [each for each in drawn(BOTH) if len(each) <= LONGEST]
    assert all(is_sound(each) and is_safe(each) and gate.lets(each) for each in scripts)
    with_it = [each for each in scripts if any(isinstance(a, s.XenHvmConfig) for a in each)]
    assert len(with_it) > 60
    pages = {
        step
        for script in with_it
        for action, step in zip(script, s.steps(script, Model().predict(script)), strict=True)
        if isinstance(action, s.GetHypercallPage)
    }
    made, copied = (s.got(0xB8),), {(s.got(0x64000000 | page),) for page in range(3)}
    assert {(s.got(0),), made} <= pages and copied & pages


@pytest.mark.parametrize("xen", [(), (0,)])
def test_a_script_names_xens_msr_only_as_the_host_can(xen):
    needs = {need for each in drawn(xen) for need in needs_of(each)}
    assert needs & {"xen_hvm", "xen_intercept"} == ({"xen_hvm"} if xen else set())


def test_a_host_is_asked_which_flags_it_knows():
    assert xen_of(Lacking()) == BOTH
    assert xen_of(Lacking("xen_intercept")) == (0,)
    assert xen_of(Lacking("xen_hvm", "xen_intercept")) == ()


CONFIG = s.xen_hvm_config(M, pages=1)


@pytest.mark.parametrize(
    "words",
    [
        (CONFIG, s.wrmsr(M, 0x10000)),
        (CONFIG, s.begin(s.wrmsr(M, 0x3000))),
        (CONFIG, s.meanwhile(s.set_msr(M, 0x3000))),
        (CONFIG, s.sweep("wrmsr", M - 2, 3, value=0x3000)),
        (CONFIG, s.xen_hvm_config(0), s.xen_hvm_config(M + 1), s.wrmsr(M, 0x3000)),
    ],
)
def test_what_could_write_over_the_guest_is_not_safe(words):
    assert not is_safe(words)
    assert is_safe(words[-1:]), "without Xen's MSR it writes no page"


def test_what_writes_to_a_page_of_its_own_is_safe():
    writes = [s.wrmsr(M, at) for at in (0xF0000, 0xF0003, 0x40000000)]
    assert is_safe((CONFIG, *writes, s.wrmsr(M + 1, 0x3000), s.sweep("rdmsr", M, 9)))


@pytest.mark.parametrize(
    "words",
    [
        (s.xen_hvm_config(0xC0000080, pages=1),),
        (s.xen_hvm_config(0x40000000, flags=2),),
        (s.xen_hvm_config(M, pages=200),),
        (s.xen_hvm_config(M, flags=4),),
        (CONFIG, s.wrmsr(M, 0x10000)),
    ],
)
def test_the_gate_keeps_what_is_not_drawn_from_a_host(words):
    gate = Gate(2, "", lambda _: None)
    assert gate.lets((CONFIG, s.wrmsr(M, 0xF0000), s.get_hypercall_page()))
    assert not gate.lets(words)


@pytest.mark.parametrize(
    "name",
    ["xen_first", "xen_page_first", "xen_page_on_gp", "xen_any_page"],
)
def test_random_scripts_show_that_a_model_errs(name):
    model = next(each for each in XEN if each.name == name).model()
    found = fuzz(Faultless(), 1, 3000, model=model, xen=BOTH)
    assert found and len(found.script) <= 7, found
