"""The corpus of fuzz: what is kept of a run, what the next makes of it, and what lies there."""

import os
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.cli import main
from vmm.conformance.language import codec
from vmm.conformance.language import script as s
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.script import gp, rdmsr, returned, through, wrmsr, wrote
from vmm.conformance.language.soundness import is_sound
from vmm.conformance.oracle.model import Model
from vmm.conformance.random import corpus as module
from vmm.conformance.random.corpus import Corpus, CorpusError, document, kinds
from vmm.conformance.random.fuzz import fuzz
from vmm.conformance.random.gate import LONGEST, Gate
from vmm.conformance.random.mutation import mutated
from vmm.conformance.random.scripts import random_script
from vmm.exits import RdmsrExit
from vmm.filter import default_allow
from vmm.msr import FILTER, UNKNOWN, Msr

DEADLINE = wrmsr(Msr.IA32_TSC_DEADLINE, 1)
DENIES_DEADLINE = default_allow().deny(Msr.IA32_TSC_DEADLINE)
NESTS = {"svm": "nested_vmx", "vmx": "nested_svm", "": "nested"}
LEVELS = tuple(NESTS)


def gate(levels="", *, vcpus=2, lacks=()):
    missing = {*lacks, NESTS[levels], *(("nested_svm", "nested_vmx") if not levels else ())}
    return Gate(vcpus, levels, lambda need: "not here" if need in missing else None)


def drawn(levels, number, seed=7):
    below = Random(seed).randrange
    return [random_script(below, levels=levels) for _ in range(number)]


class Faultless:
    """Sees what the Model predicts, and remembers what ran."""

    def __init__(self):
        self.ran = []

    def run(self, script, *, expected=None):
        self.ran.append(script)
        return Model().predict(script)


# --- kinds ------------------------------------------------------------------------------------


def test_a_kind_is_a_step_or_two_that_follow_each_other():
    read, write = rdmsr(0x474F4F00), wrmsr(Msr.STAR, 1)
    seen = (RdmsrExit(0x474F4F00, FILTER), returned(1), wrote)
    found = kinds((read, write), seen)
    assert len(found) == 3 and sum(" " in each and "wrmsr" in each for each in found) == 2
    other = (RdmsrExit(0x474F4F01, FILTER), returned(2, 5), wrote)
    assert kinds((rdmsr(0x474F4F01), wrmsr(Msr.STAR, 9)), other) == found, "values are no kind"
    for changed in (
        kinds((read, write), (RdmsrExit(0x474F4F00, UNKNOWN), *seen[1:])),
        kinds((read, write), (*seen[:2], gp)),
        kinds((rdmsr(Msr.STAR), write), seen),
        kinds((rdmsr(0x474F4F00, mode="real"), write), seen),
        kinds((rdmsr(0x474F4F00, after="sti"), write), seen),
        kinds((write, read), (wrote, *seen[:2])),
    ):
        assert changed != found


def test_there_are_thousands_of_kinds_and_not_more():
    scripts = drawn("svm", 600)
    numbers, seen = [], set()
    for script in scripts:
        seen |= kinds(script, Model().predict(script))
        numbers.append(len(seen))
    assert numbers[-1] < 6000
    assert numbers[-1] - numbers[299] < numbers[299], "fewer and fewer are new"


# --- the gate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", LEVELS)
def test_what_fuzz_draws_passes(levels):
    for script in drawn(levels, 250):
        assert gate(levels).lets(script), script


BAD = [
    (),
    (s.finish(),),
    (rdmsr(1),) * (LONGEST + 1),
    (rdmsr(1, vcpu=2),),
    (rdmsr(1, emulated=True),),
    (rdmsr(1, mode="smm"),),
    (wrmsr(Msr.IA32_APICBASE, 0),),
    (wrmsr(Msr.EFER, 0),),
    (wrmsr(Msr.EFER, 0xD01, mode="real"),),
    (wrmsr(Msr.IA32_XFD, 1),),
    (s.enable_exits(FILTER), s.install(DENIES_DEADLINE), DEADLINE),
    (s.set_cpuid_bits(1, "ecx", 1 << 24),),
    (wrmsr(Msr.LSTAR, 1 << 63),),
    (s.set_msr(Msr.LSTAR, 1 << 63),),
    (s.set_msr(0x10, 1),),
    (s.get_msr(0x10),),
    (s.begin(rdmsr(0x474F4F00)),),
    (s.sweep("wrmsr", 0xC0000080, 4),),
    (s.sweep("rdmsr", 0, 0x1000),),
    (s.execute("rsm", 1),),
    (s.disable_exits(1),),
    (s.create_irqchip(),),
    (s.close_vm(),),
    (s.install(default_allow(), caller="child"),),
    (s.install(default_allow(), on="vcpu"),),
    (s.begin_install(default_allow()), s.await_install()),
    (s.send_init(0),),
    (s.enter_l2(),),
]


def test_what_opens_msrs_passes_where_it_does_no_harm():
    svme = wrmsr(Msr.EFER, 0x1D01)
    assert gate().lets((svme, wrmsr(Msr.EFER, 0xD01))) and gate("svm").lets((svme,))
    assert not gate("svm").lets((wrmsr(Msr.EFER, 0xD01),)), "no L1 of SVM is one without SVME"
    assert gate().lets((DEADLINE, s.enable_exits(FILTER), s.install(DENIES_DEADLINE)))


@pytest.mark.parametrize("script", BAD, ids=str)
def test_what_fuzz_never_draws_does_not_pass(script):
    assert not gate().lets(script)


def test_an_l2_that_an_install_left_behind_does_not_go_on():
    into = (s.enter_l2(), s.install(default_allow()))
    assert gate("svm").lets((*into, s.leave_l2(), rdmsr(Msr.STAR)))
    assert not gate("svm").lets((*into, rdmsr(Msr.STAR)))
    passes = (through(Msr.IA32_APICBASE),)
    assert not gate("svm").lets((s.enter_l2(passes=passes),)), "fuzz lets no such MSR pass"


def test_what_a_host_lacks_does_not_pass():
    script = (rdmsr(0x10, rcx_high=1),)
    assert gate().lets(script) and not gate(lacks=("upper_rcx",)).lets(script)
    assert not gate(vcpus=1).lets((rdmsr(0x10, vcpu=1),))


# --- mutation ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(LEVELS), st.integers(0, 999))
def test_what_is_made_of_scripts_passes_the_gate(data, levels, seed):
    lets = gate(levels).lets
    below = lambda end: data.draw(st.integers(0, end - 1))  # noqa: E731
    corpus = drawn(levels, 3, seed)
    made = mutated(below, corpus, lets)
    if made is not None:
        assert is_sound(made) and lets(made) and len(made) <= LONGEST
        assert {type(each) for each in made} <= {type(each) for one in corpus for each in one}


@pytest.mark.parametrize("levels", LEVELS)
def test_most_of_what_is_made_is_new_and_of_every_length(levels):
    corpus, below = drawn(levels, 20), Random(1).randrange
    made = [mutated(below, corpus, gate(levels).lets) for _ in range(200)]
    there = [each for each in made if each]
    assert len(there) > 150 and sum(each not in corpus for each in there) > 100
    assert any(len(each) > 20 for each in there) and any(len(each) < 4 for each in there)
    again = Random(1).randrange
    assert made == [mutated(again, corpus, gate(levels).lets) for _ in range(200)]


# --- between runs -----------------------------------------------------------------------------


def files(directory):
    return sorted(each.name for each in directory.iterdir())


def test_a_second_run_starts_from_what_the_first_kept(tmp_path):
    first = Corpus(tmp_path / "c", gate().lets)
    assert fuzz(Faultless(), 1, 200, corpus=first) is None
    assert len(first.scripts) > 5 and len(files(tmp_path / "c")) == len(first.scripts)
    assert f"{len(first.scripts)} of them new" in first.summary
    second, witness = Corpus(tmp_path / "c", gate().lets), Faultless()
    assert {*second.scripts} == {*first.scripts} and second.left_out == ""
    number = len(second.scripts)
    assert fuzz(witness, 2, number + 300, corpus=second) is None
    assert {*witness.ran[:number]} == {*first.scripts}, "the old ones come first"
    assert second.seen > first.seen
    made = [each for each in witness.ran[number:] if each not in first.scripts]
    plain = {random_script(below) for below in [Random(2).randrange] for _ in range(600)}
    assert sum(each not in plain for each in made) > 50, "what is made is not what is drawn"


def test_the_same_seed_and_corpus_make_the_same_run(tmp_path):
    fuzz(Faultless(), 1, 100, corpus=Corpus(tmp_path, gate().lets))
    ran = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in tmp_path.glob("*.json"):
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        witness = Faultless()
        fuzz(witness, 9, 150, corpus=Corpus(tmp_path / name, gate().lets))
        ran.append(witness.ran)
    assert ran[0] == ran[1]


def test_a_finding_says_the_corpus_that_it_came_of(tmp_path):
    class Wrong(Faultless):
        def run(self, script, *, expected=None):
            return (*super().run(script), gp)

    found = fuzz(Wrong(), 3, 5, corpus=Corpus(tmp_path / "a b", gate().lets))
    assert found.rerun == f"msrward fuzz --seed 3 --examples 5 --corpus '{tmp_path}/a b'"


def test_what_is_no_script_of_fuzz_is_left_out_and_said_in_one_line(tmp_path):
    good = (rdmsr(0x474F4F00),)
    (tmp_path / "0.json").write_text(document(good))
    for name, content in {
        "1.json": "{",
        "2.json": document((s.create_irqchip(),)),
        "3.json": "x" * (module.BYTES + 1),
        "4.json": codec.dump(Case("a.b", "\x1b[2J", "", (rdmsr(1),), OBSERVE))[:-9],
        "5.json": "[" * 100_000,
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "6.json").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "7.json")
    (tmp_path / "8.json").mkdir()
    (tmp_path / "notes.txt").write_text("not looked at")
    read = Corpus(tmp_path, gate().lets)
    assert read.scripts == [good]
    assert read.left_out.startswith(f"left out 8 files of the corpus in {tmp_path}: 1.json: ")
    assert "\n" not in read.left_out


def test_a_corpus_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SCRIPTS", 6)
    for n in range(9):
        (tmp_path / f"{n}.json").write_text(document((rdmsr(0x474F4F00 + n),)))
    read = Corpus(tmp_path, gate().lets)
    assert len(read.scripts) == 6 and "6.json: there are 6 already" in read.left_out
    before = files(tmp_path)
    assert fuzz(Faultless(), 1, 100, corpus=read) is None
    assert len(read.scripts) == 6 and files(tmp_path) == before
    monkeypatch.setattr(module, "BYTES", 10)
    assert Corpus(tmp_path / "new", gate().lets).note((rdmsr(1),), (returned(1),)) is False


def test_a_directory_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(CorpusError, match="symbolic link"):
        Corpus(tmp_path / "link", gate().lets)


def test_a_corpus_that_goes_away_ends_the_keeping_and_not_the_run(tmp_path):
    corpus = Corpus(tmp_path / "c", gate().lets)
    (tmp_path / "c").rmdir()
    (tmp_path / "c").symlink_to(tmp_path)
    assert corpus.note((rdmsr(1),), (returned(1),)) is False
    assert "cannot write to the corpus" in corpus.summary and files(tmp_path) == ["c"]


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "msrward" / "corpus"


def test_the_command_keeps_a_corpus_unless_it_is_told_a_seed(has_kvm, state, capsys, tmp_path):
    assert main(["fuzz", "--examples", "20", "--seed", "3"]) == 0
    assert main(["fuzz", "--examples", "20", "--no-corpus"]) == 0
    assert "corpus" not in capsys.readouterr().out and not state.exists()
    assert main(["fuzz", "--examples", "20"]) == 0
    number = len(files(state))
    assert (
        number > 1 and f"corpus: {number} scripts, {number} of them new" in capsys.readouterr().out
    )
    assert main(["fuzz", "--examples", "20"]) == 0
    assert f", from {number} scripts of {state}\n" in capsys.readouterr().out
    other = ["--seed", "3", "--corpus", str(tmp_path / "mine")]
    assert main(["fuzz", "--examples", "20", *other]) == 0
    assert files(tmp_path / "mine")


def test_a_corpus_that_cannot_be_used_is_one_line(has_kvm, state, capsys, tmp_path):
    state.parent.mkdir(parents=True)
    state.symlink_to("/etc")
    assert main(["fuzz", "--examples", "2"]) == 0
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.endswith("; going on without one\n")
    assert main(["fuzz", "--examples", "2", "--corpus", str(state)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "it is a symbolic link" in said.err
    assert main(["fuzz", "--bulk", "--examples", "2", "--corpus", str(tmp_path)]) == 2
