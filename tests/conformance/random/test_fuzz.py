"""Random scripts: Model against kernel, and planted mistakes that must be found and shrunk."""

import secrets
from dataclasses import fields, replace
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mutants_accessing import ACCESSING
from mutants_clean import CLEAN
from mutants_completing import COMPLETING
from mutants_exiting import EXITING
from mutants_host import HOST
from mutants_installing import INSTALLING
from mutants_level import LEVELS
from mutants_masking import MASKING
from mutants_matching import MATCHING
from mutants_stopping import STOPPING
from mutants_validation import VALIDATION

from vmm.conformance.host import parameters
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.language.needs import needs_of
from vmm.conformance.language.script import (
    ANY,
    begin,
    done,
    enable_exits,
    finish,
    first_difference,
    get_regs,
    install,
    rdmsr,
    scribble_bitmaps,
    steps,
)
from vmm.conformance.language.soundness import is_sound
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import EFER_RESERVED, STORABLE, is_unknown_to_kvm
from vmm.conformance.random.finding import Finding, code
from vmm.conformance.random.fuzz import compare, fuzz, run, shrunk
from vmm.conformance.random.gate import LONGEST, Gate
from vmm.conformance.random.levels import IS_HYPER_V
from vmm.conformance.random.opening import OPENING
from vmm.conformance.random.scripts import random_script
from vmm.conformance.random.shrink import shrink
from vmm.filter import default_allow
from vmm.msr import UNKNOWN, Msr

EXAMPLES = 200

MUTANTS = (
    *(*MATCHING, *VALIDATION, *INSTALLING, *MASKING),
    *(*ACCESSING, *EXITING, *COMPLETING, *STOPPING, *HOST),
)

# Mistakes of every kind: matching, validation, installing, mask, exit, completion, host.
PLANTED = (
    "base_before",
    "end_included",
    "most_significant_bit_first",
    "last_range_wins",
    "base_of_16_bits",
    "failed_install_clears",
    "index_of_rcx",
    "written_low_half",
    "error_bit_0_only",
    "fault_delivers_data",
    "upper_halves_kept",
    "two_skipped",
    "completion_replayed",
    "host_write_of_denied_dropped",
)


class Faultless:
    """What a kernel that keeps the contract would be seen to do: no pattern, only values."""

    def run(self, script, *, expected=None):
        cut = zip(script, steps(script, Model().predict(script)), strict=True)
        return tuple(event for action, step in cut for event in _as_seen(action, step))


def _as_seen(action, step):
    if step not in ((s.unfiltered,), (s.whatever,)):
        return [_without_any(event) for event in step]
    access = action.access if isinstance(action, s.Begin) else action
    return [s.wrote if isinstance(access, s.Wrmsr) else s.returned(0)]


def _without_any(event):
    loose = [each.name for each in fields(event) if getattr(event, each.name) is ANY]
    return replace(event, **dict.fromkeys(loose, 0)) if loose else event


def planted(name):
    (mutant,) = (each for each in (*MUTANTS, *LEVELS, *CLEAN) if each.name == name)
    return mutant.model()


def sample(count, seed=7):
    draw = Random(seed).randrange
    return [random_script(draw) for _ in range(count)]


@st.composite
def scripts(draw):
    return random_script(lambda end: draw(st.integers(0, end - 1)), most=8)


@pytest.fixture(scope="module")
def backend(has_kvm):
    from vmm.conformance.kernel.backend import KvmBackend

    with KvmBackend() as opened:
        if reason := opened.lacks("no_ignore_msrs"):
            pytest.skip(reason)
        yield opened


# --- the verdict ------------------------------------------------------------------------------


def test_the_kernel_does_what_the_model_predicts(backend):
    found = fuzz(backend, secrets.randbelow(1 << 32), EXAMPLES)
    assert found is None, f"\n{found}"


def test_the_kernel_does_what_the_model_predicts_of_hypothesis_scripts(backend):
    # The findings are shrunk by ``shrink``, which knows what a script is made of.
    @settings(max_examples=40, deadline=None, phases=[Phase.generate], database=None)
    @given(scripts())
    def differ(script):
        found = compare(backend, script)
        assert found is None, f"\n{shrunk(found, backend)}"

    differ()


def test_upper_bits_of_rcx_can_be_left_out_where_a_bitmap_is_looked_up_by_them():
    draws = (Random(3).randrange for _ in range(2))
    with_, without = (
        [need for _ in range(200) for need in needs_of(random_script(draw, upper_rcx=upper))]
        for draw, upper in zip(draws, (True, False), strict=True)
    )
    assert "upper_rcx" in with_ and "upper_rcx" not in without
    assert needs_of([rdmsr(0x1FFF, rcx_high=1)]) == ("upper_rcx",)
    assert needs_of([rdmsr(0x2000, rcx_high=1), rdmsr(0x10)]) == ()


@pytest.mark.parametrize("levels", ("svm", "vmx"))
def test_random_levels_can_be_run_and_each_has_a_meaning(levels):
    draw = Random(3).randrange
    written = [random_script(draw, levels=levels) for _ in range(150)]
    assert all(map(is_sound, written))
    cut = [
        pair
        for each in written
        for pair in zip(each, steps(each, Model().predict(each)), strict=True)
    ]
    left = {repr(step[-1]).partition("(")[0] for _, step in cut}
    assert left >= {"entered", "l1_exit", *(("entry_failed", "shutdown") * (levels == "vmx"))}
    moves = [step for action, step in cut if isinstance(action, s.EnterL2 | s.LeaveL2)]
    assert len(moves) > 200 and (s.whatever,) not in moves
    needs = {need for each in written for need in needs_of(each)}
    assert needs & {"nested_svm", "nested_vmx"} == {f"nested_{levels}"}


@pytest.mark.parametrize("levels", ("svm", "vmx"))
def test_an_l1_that_calls_its_bitmap_clean_tells_the_truth(levels):
    draw = Random(3).randrange
    written = [random_script(draw, levels=levels, clean=True) for _ in range(300)]
    gate = Gate(2, levels, lambda _: None)
    assert all(map(gate.lets, filter(lambda each: len(each) <= LONGEST, written)))
    clean = [each for each in written if any(getattr(a, "clean", False) for a in each)]
    assert len(clean) > 20 and all(IS_HYPER_V in each for each in clean)
    for each in clean:
        model, vm = Model(), Model().new_vm(each)
        for action in each:
            model.step(vm, action)
            assert not (isinstance(action, s.EnterL2) and vm.vcpu(action.vcpu).is_misled)
    assert not any(
        each.clean for script in sample(300) for each in script if hasattr(each, "clean")
    )


def test_without_levels_no_script_enters_an_l2():
    assert "nested" not in {need for each in sample(300) for need in needs_of(each)}


@pytest.mark.parametrize(
    ("levels", "name"),
    [
        *(("svm", name) for name in ("l0_first", "kinds_swapped", "l2_ended_by_exit")),
        *(("vmx", name) for name in ("counts_from_0", "loads_as_read", "stores_unfiltered")),
    ],
)
def test_random_levels_show_that_a_model_errs(levels, name):
    found = fuzz(Faultless(), 1, 2000, model=planted(name), levels=levels)
    assert found and len(found.script) <= 6, found


@pytest.mark.parametrize("name", ("clean_as_before", "clean_passes_none"))
def test_random_clean_bitmaps_show_that_a_model_errs(name):
    found = fuzz(Faultless(), 1, 2000, model=planted(name), levels="svm", clean=True)
    assert found and len(found.script) <= 8, found


@pytest.mark.parametrize("name", ("base_before", "upper_halves_kept", "completion_replayed"))
def test_the_kernel_shows_that_a_model_errs(backend, name):
    found = fuzz(backend, 1, 1000, model=planted(name))
    assert found and found.is_steady and len(found.script) <= 5, found
    assert compare(backend, found.script) is None


# --- what it finds ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found_and_shrunk(name):
    found = fuzz(Faultless(), 1, 3000, model=planted(name))
    assert found, f"{name} was not found"
    assert len(found.script) <= 5 and found.step == len(found.script) - 1, found
    assert all(len(each.filter.ranges) <= 2 for each in found.script if hasattr(each, "filter"))


def test_most_planted_mistakes_are_found_by_one_seed():
    seen = [(script, Faultless().run(script)) for script in sample(250)]
    some = MUTANTS[::5]
    missed = [each.name for each in some if not any(_differs(each.model(), *one) for one in seen)]
    assert len(missed) < len(some) / 4, missed


def _differs(model, script, trace):
    return first_difference(script, model.predict(script), trace) is not None


def test_a_model_that_does_not_err_is_not_accused():
    assert fuzz(Faultless(), 3, 300) is None


def test_a_seed_finds_the_same_again():
    found = [fuzz(Faultless(), 5, 500, model=planted("base_excluded")) for _ in range(2)]
    assert found[0] == found[1] and found[0].rerun == "msrward fuzz --seed 5 --examples 500"
    assert sample(20) == sample(20) != sample(20, seed=8)


def test_a_finding_is_a_case_to_paste():
    found = fuzz(Faultless(), 2, 500, model=planted("base_excluded"))
    names = {"Case": Case}
    exec(
        "from errno import *\nfrom vmm.conformance.language.script import *\n"
        "from vmm.filter import *\nfrom vmm.msr import *\nfrom vmm.exits import *",
        names,
    )
    text = str(found)
    pasted = eval(text[text.index("Case(") :], names)
    assert pasted.actions == found.script and pasted.expected == found.expected
    assert f"step {found.step + 1} of {len(found.script)}" in text
    assert f"rerun:    {found.rerun}" in text and max(map(len, text.splitlines())) <= 100


def test_a_long_sentence_with_quotes_survives_pasting():
    case = Case("a.b", 'It says "no" \\ ' * 20, "R01", (rdmsr(1),), (done,), ("vcpus",))
    pasted = eval(code(case), {"Case": Case, "rdmsr": rdmsr, "done": done, "Msr": Msr})
    assert (pasted.sentence, pasted.needs) == (case.sentence, case.needs)


def test_a_finding_that_does_not_come_again_says_so():
    class Once(Faultless):
        runs = 0

        def run(self, script, *, expected=None):
            self.runs += 1
            return (s.Lost("once"),) if self.runs == 1 else super().run(script)

    found = fuzz(Once(), 1, 10)
    assert found and not found.is_steady
    assert "not again in 20 more runs" in str(found)


# --- shrinking --------------------------------------------------------------------------------


def test_shrinking_keeps_what_it_must_and_nothing_else():
    smallest = shrink(sample(1)[0] + (rdmsr(0x99, 5, 6, 7, vcpu=1),), lambda t: _reads(t, 0x99))
    assert smallest == (rdmsr(0x99),)


def _reads(script, index):
    return any(isinstance(each, s.Rdmsr) and each.index == index for each in script)


def test_shrinking_never_tries_an_unsound_script():
    tried = []
    for script in sample(30):
        assert is_sound(script)
        shrink(script, lambda each: bool(tried.append(each)) or len(each) > 2)
    assert tried and all(map(is_sound, tried))


class Listening(Faultless):
    """A witness that keeps all scripts that it was given."""

    def __init__(self):
        self.given = []

    def run(self, script, *, expected=None):
        self.given.append(script)
        return super().run(script, expected=expected)


@pytest.mark.parametrize(
    ("levels", "name"),
    [
        ("svm", "l0_first"),
        ("svm", "l2_ended_by_exit"),
        ("vmx", "stores_unfiltered"),
        ("", "base_before"),
    ],
)
def test_shrinking_runs_nothing_that_the_gate_keeps_from_the_host(levels, name):
    witness, lets = Listening(), Gate(2, levels, lambda _: None).lets
    found = fuzz(witness, 1, 2000, model=planted(name), levels=levels)
    assert found and lets(found.script)
    assert [script for script in witness.given if not lets(script)] == []


def test_what_the_gate_keeps_out_is_found_and_not_shrunk():
    """Steady it is by itself, and no other script is run."""
    script = (rdmsr(0x10), rdmsr(0x99, vcpu=1))

    class AtOdds(Listening):
        def run(self, script, *, expected=None):
            return (*super().run(script, expected=expected), s.never)

    witness = AtOdds()
    found = shrunk(compare(witness, script), witness, lets=lambda _: False)
    assert (found.script, found.is_steady, {*witness.given}) == (script, True, {script})


@pytest.mark.parametrize(
    "script",
    [
        (get_regs(),),
        (finish(),),
        (begin(rdmsr(1)), finish(), get_regs()),
        (begin(rdmsr(1)), rdmsr(1)),
        (begin(rdmsr(1)), begin(rdmsr(1))),
        (begin(rdmsr(1)), get_regs(1)),
        (scribble_bitmaps(), install(default_allow())),
    ],
)
def test_unsound_scripts(script):
    assert not is_sound(script)


# --- scripts ----------------------------------------------------------------------------------


def test_no_random_write_can_break_the_guest():
    for script in sample(500):
        for action in script:
            access = action.access if isinstance(action, s.Begin) else action
            if isinstance(access, s.Wrmsr | s.SetMsr):
                assert _is_harmless(access), access


def _is_harmless(write):
    if write.index in STORABLE:
        return STORABLE[write.index](write.value)
    if write.index == Msr.EFER:
        as_it_is = write.value & ~(1 << 12) == 0xD01 and write.mode in ("long", "compat")
        return write.value & EFER_RESERVED != 0 or as_it_is
    if write.index in OPENING:
        return write.value in {Msr.IA32_XFD: (0, 1 << 18)}.get(write.index, (0, 1))
    return is_unknown_to_kvm(write.index) or (0x800 <= write.index <= 0x8FF and not write.value)


@pytest.mark.parametrize("levels", ("", "svm"))
def test_what_opens_msrs_is_drawn_where_it_may_be(levels):
    draw, written = Random(5).randrange, set()
    for script in (random_script(draw, levels=levels) for _ in range(1200)):
        cut = zip(script, steps(script, Model().predict(script)), strict=True)
        for action, step in cut:
            access = s.innermost(action)
            if isinstance(access, s.Wrmsr) and access.value in OPENING.get(access.index, ()):
                written.add((access.index, access.value))
                assert access.index != Msr.IA32_TSC_DEADLINE or step == (s.unfiltered,), script
    every = {(index, value) for index, values in OPENING.items() for value in values}
    assert written == every - ({(Msr.EFER, 0xD01)} if levels == "svm" else set())


def test_random_scripts_reach_every_kind_of_thing():
    many = sample(500)
    actions = {type(action) for script in many for action in script}
    assert actions >= {s.Rdmsr, s.Wrmsr, s.Install, s.EnableCap, s.Begin, s.Complete, s.Finish}
    assert actions >= {s.GetRegs, s.GetMsr, s.SetMsr, s.ScribbleBitmaps}
    sizes = {len(a.filter.ranges) for script in many for a in script if isinstance(a, s.Install)}
    assert sizes == set(range(17))
    seen = [step for script in many for step in steps(script, Model().predict(script))]
    assert sum(step == (s.whatever,) for step in seen) < len(seen) / 20
    kinds = {repr(event).split("(")[0] for step in seen for event in step}
    assert kinds >= {"RdmsrExit", "WrmsrExit", "gp", "returned", "wrote", "rejected", "regs"}


@settings(max_examples=30, deadline=None)
@given(scripts())
def test_hypothesis_draws_scripts_too(script):
    assert is_sound(script) and len(steps(script, Model().predict(script))) == len(script)


# --- the command ------------------------------------------------------------------------------


class Host(Faultless):
    missing = ()

    def lacks(self, need):
        return f"{need} is missing" if need in self.missing else None


def test_run_says_what_it_did():
    said = []
    assert run(Host(), 9, 5, said.append) == 0
    assert said == [
        "fuzzing with --seed 9 --examples 5",
        "5 scripts: the kernel did what the Model predicted",
    ]


def test_run_reports_a_finding():
    class Liar(Host):
        def run(self, script, *, expected=None):
            return tuple(s.wrote if event == s.gp else event for event in super().run(script))

    said = []
    assert run(Liar(), 9, 500, said.append) == 1
    assert "msrward fuzz --seed 9 --examples 500" in said[1] and "Case(" in said[1]


def test_run_chooses_a_seed_and_says_it():
    said = [[], []]
    for each in said:
        assert run(Host(), None, 1, each.append) == 0
    assert said[0][0].startswith("fuzzing with --seed ") and said[0][0] != said[1][0]


def test_run_tells_the_model_where_unknown_msrs_succeed(tmp_path, monkeypatch):
    parameter = tmp_path / "ignore_msrs"
    parameter.write_text("Y\n")
    monkeypatch.setattr(parameters, "IGNORE_MSRS", parameter)

    class Ignoring(Host):
        def run(self, script, *, expected=None):
            return Model(ignore_msrs=True).predict(script)

    said = []
    assert run(Ignoring(), 9, 50, said.append) == 0
    assert run(Host(), 9, 50, said.append) == 1
    assert "needs=('ignore_msrs',)" in said[-1]
    parameter.write_text("N\n")
    assert run(Ignoring(), 9, 50, said.append) == 1
    assert "needs=" not in said[-1]


def test_run_uses_one_vcpu_where_there_is_one():
    class OneVcpu(Host):
        missing = ("vcpus",)

        def run(self, script, *, expected=None):
            assert not any(getattr(each, "vcpu", 0) for each in script)
            return super().run(script)

    assert run(OneVcpu(), 9, 50, lambda line: None) == 0


def test_a_step_beyond_the_script_can_be_shown():
    script = (enable_exits(UNKNOWN),)
    assert "end of script" in str(Finding(script, (done,), (done, done), 1))
