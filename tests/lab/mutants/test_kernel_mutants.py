"""The kernel mutants as data and as text; building and booting them is scripts/mutants' work."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from vmm.cli import mutants as command
from vmm.conformance.cases import CASES
from vmm.conformance.contract.requirements import REQUIREMENTS
from vmm.conformance.judge.selection import select
from vmm.lab import workers
from vmm.lab.errors import LabError
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.mutants import judging
from vmm.lab.mutants import laboratory as mutants
from vmm.lab.mutants import source as kernel_mutants
from vmm.lab.mutants.findings import (
    Collector,
    Enough,
    Fate,
    MutantRecord,
    conclude_churn,
    fate_of,
)
from vmm.lab.mutants.source import Change, DoesNotApply, Mutant, Tree

MUTANTS = kernel_mutants.load()
PLACES = [
    Path(os.environ.get("MSRWARD_CACHE", "~/.cache/msrward")).expanduser() / "mutants/tree",
    Path("/usr/src") / kernel_mutants.package(),
]
SOURCE = next((place for place in PLACES if (place / "Kconfig").exists()), None)


def source_of(mutant):
    """Return the tree that the mutant is of, where it has been fetched."""
    if not mutant.package:
        return SOURCE
    return next((at for at in (PLACES[0].parent / mutant.package / "tree",) if at.exists()), None)


def text_of(source, name):
    kept = source / ".msrward-pristine" / name
    return (kept if kept.exists() else source / name).read_text()


def test_there_are_enough_of_them_and_each_has_a_name_of_its_own():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) >= 30
    assert len(set(names)) == len(names)
    assert len({mutant.digest for mutant in MUTANTS}) == len(names), "two are the same change"


def test_they_are_spread_over_both_vendors_nesting_and_the_emulator():
    files = {Path(change.file).name for mutant in MUTANTS for change in mutant.changes}
    assert files >= {"x86.c", "svm.c", "vmx.c", "nested.c", "emulate.c"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_says_what_it_violates(mutant):
    assert re.fullmatch(r"[A-Z].*[.]", mutant.summary)
    assert mutant.violates and set(mutant.violates) <= set(REQUIREMENTS)
    assert mutant.vendor in ("svm", "vmx", "svm-nrips")
    assert mutant.changes and all(change.old != change.new for change in mutant.changes)
    if mutant.cases:
        assert select(CASES, list(mutant.cases), [])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_replaces_exactly_one_place(mutant):
    source, texts = source_of(mutant), {}
    if source is None:
        pytest.skip(f"no {mutant.package or kernel_mutants.package()} here")
    for change in mutant.changes:
        texts[change.file] = change.apply(texts.get(change.file) or text_of(source, change.file))
    assert all(text != text_of(source, name) for name, text in texts.items())


def test_the_themes_are_themes():
    for theme in judging.THEMES:
        assert select(CASES, [theme], [])


ONE = Mutant("one", "One.", ("R14",), (Change("kvm/x86.c", "count++;", "count--;"),))


@pytest.fixture
def source(tmp_path):
    (tmp_path / "kvm").mkdir()
    (tmp_path / "kvm/x86.c").write_text("first();\ncount++;\n")
    (tmp_path / "kvm/other.c").write_text("count++;\n")
    return tmp_path


def test_a_mutant_is_made_and_undone(source):
    tree = Tree(source, [ONE])
    with tree.mutated(ONE):
        assert (source / "kvm/x86.c").read_text() == "first();\ncount--;\n"
        assert (source / "kvm/other.c").read_text() == "count++;\n"
    assert (source / "kvm/x86.c").read_text() == "first();\ncount++;\n"


def test_ctrl_c_undoes_it(source):
    tree = Tree(source, [ONE])
    with pytest.raises(KeyboardInterrupt), tree.mutated(ONE):
        raise KeyboardInterrupt
    assert "count++" in (source / "kvm/x86.c").read_text()


def test_what_a_killed_run_left_is_put_right(source):
    Tree(source, [ONE])._set("kvm/x86.c", "half a mutant")
    Tree(source, [ONE]).restore()
    assert (source / "kvm/x86.c").read_text() == "first();\ncount++;\n"


def test_another_name_of_the_file_keeps_its_text(source, tmp_path):
    (source / "kvm/linked.c").hardlink_to(source / "kvm/x86.c")
    with Tree(source, [ONE]).mutated(ONE):
        assert "count++" in (source / "kvm/linked.c").read_text()


def test_a_file_that_is_right_is_not_built_again(source):
    tree = Tree(source, [ONE])
    before = (source / "kvm/x86.c").stat().st_mtime_ns
    tree.restore()
    assert (source / "kvm/x86.c").stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["nothing", "count++; count++;"])
def test_other_source_is_said(source, text):
    (source / "kvm/x86.c").write_text(text)
    with (
        pytest.raises(DoesNotApply, match=r"x86\.c has the text"),
        Tree(source, [ONE]).mutated(ONE),
    ):
        pass
    assert (source / "kvm/x86.c").read_text() == text


def record(name, verdict):
    return json.dumps({"type": "case", "id": name, "verdict": verdict})


def result(outcome=Outcome.DONE, status=0, reason=""):
    return LabResult(outcome, status, (), ("last words",), 1.0, 2.0, "qemu 10", 1, reason)


def collector(*lines, enough=0):
    watching = Collector(enough)
    for line in lines:
        watching.line(line)
    return watching


def test_a_failed_case_kills():
    seen = collector(record("a.b", "PASS"), record("a.c", "FAIL"), record("a.d", "SKIP"), "noise")
    assert (seen.killers, seen.ran) == (["a.c"], 2)
    assert fate_of(seen, result(status=1))[0] is Fate.KILLED


def test_the_first_killer_says_what_it_saw():
    differs = {"step": 3, "action": "rdmsr(1)", "expected": ["gp"], "seen": []}
    lines = [
        json.dumps({"type": "case", "id": "a.b", "verdict": "FAIL", **differs}),
        record("a.c", "TIMEOUT"),
    ]
    assert collector(*lines).evidence == "step 3, rdmsr(1): expected gp, seen nothing"
    late = json.dumps({"type": "case", "id": "a.c", "verdict": "TIMEOUT", "reason": "10 s"})
    assert collector(late, *lines).evidence == "TIMEOUT 10 s"


def test_what_does_not_repeat_kills_nobody_and_what_goes_down_before_does():
    first = json.dumps({"type": "first", "id": "a.b", "verdict": "FAIL"})
    assert collector(first, record("a.b", "FAIL")).killers == ["a.b"]
    unsteady = collector(first, record("a.c", "PASS"), record("a.b", "UNSTEADY"))
    assert (unsteady.killers, unsteady.ran) == ([], 2)
    assert fate_of(unsteady, result(status=2))[0] is Fate.LOST
    assert fate_of(collector(first), result(Outcome.PANIC, None))[0] is Fate.KILLED


def test_enough_is_enough():
    with pytest.raises(Enough):
        collector(record("a.b", "FAIL"), record("a.c", "TIMEOUT"), enough=2)


@pytest.mark.parametrize(
    ("seen", "result", "fate"),
    [
        (collector(record("a.b", "PASS")), result(), Fate.SURVIVED),
        (collector(record("a.b", "PASS")), result(status=1), Fate.KILLED),
        (collector(), result(status=4), Fate.LOST),
        (collector(record("a.b", "PASS")), result(Outcome.PANIC, None), Fate.KILLED),
        (collector(), result(Outcome.PANIC, None), Fate.LOST),
        (collector(), result(Outcome.NO_KVM, None), Fate.LOST),
        (collector(record("a.b", "FAIL")), None, Fate.KILLED),
    ],
)
def test_fates(seen, result, fate):
    assert fate_of(seen, result)[0] is fate


@pytest.mark.parametrize(
    ("result", "fate", "killers", "reason"),
    [
        (result(status=0), Fate.SURVIVED, (), ""),
        (result(status=1), Fate.KILLED, ("churn",), "installs: LEAK: +536.0 bytes"),
        (result(Outcome.PANIC, None, "panicked"), Fate.LOST, (), "panicked"),
        (result(status=2), Fate.LOST, (), "last words"),
    ],
)
def test_fates_of_a_churn(result, fate, killers, reason):
    result = replace(result, lines=("churn: FAILED", "  installs: LEAK: +536.0 bytes"))
    found = conclude_churn(ONE, Collector(5), result)
    assert (found.fate, found.killers, found.reason) == (fate, killers, reason)


class Bench:
    """A laboratory without a kernel: what becomes of each mutant is given."""

    def __init__(self, fates):
        self.fates, self.asked = fates, []
        self.options = mutants.Options()

    def controls(self, chosen):
        for mutant in chosen:
            yield MutantRecord("control", "", mutant.vendor, Fate.SURVIVED, ran=1)

    def judge(self, chosen):
        for mutant in chosen:
            self.asked.append(mutant.name)
            if self.fates[mutant.name] is None:
                raise KeyboardInterrupt
            yield MutantRecord(mutant.name, mutant.digest, mutant.vendor, self.fates[mutant.name])


def make(name, new="count--;"):
    return Mutant(name, "One.", ("R14",), (Change("kvm/x86.c", "count++;", new),))


def test_a_run_that_was_cut_short_goes_on(tmp_path):
    chosen = [make("one"), make("two", "count;"), make("three", ";")]
    bench = Bench({"one": Fate.KILLED, "two": None, "three": Fate.SURVIVED})
    results = tmp_path / "results.jsonl"
    with pytest.raises(KeyboardInterrupt):
        mutants.run(bench, chosen, results, lambda _: None)
    bench.fates["two"], bench.asked = Fate.LOST, []
    found = mutants.run(bench, chosen, results, lambda _: None, resume=True)
    assert bench.asked == ["two", "three"]
    assert {f.name for f in found} == {"one", "control", "two", "three"}
    bench.asked = []
    mutants.run(bench, chosen, results, lambda _: None, resume=True)
    assert bench.asked == ["two"], "lost is no verdict"


def test_a_changed_mutant_is_judged_again(tmp_path):
    results = tmp_path / "results.jsonl"
    bench = Bench({"one": Fate.KILLED})
    mutants.run(bench, [make("one")], results, lambda _: None)
    bench.asked = []
    mutants.run(bench, [make("one", "count -= 1;")], results, lambda _: None, resume=True)
    assert bench.asked == ["one"]


@pytest.fixture
def laboratory(source, cache_root, monkeypatch):
    """Open a laboratory with a small compiler, which judges by what stands for a boot."""
    (cache_root / "mutants").mkdir(parents=True)
    monkeypatch.setattr(mutants, "_tree_directory", lambda name: source / name)
    monkeypatch.setattr(mutants, "unpack", lambda *where: None)

    def compiler(tree, objects, jobs):
        (source / "bzImage").write_bytes((tree / "kvm/x86.c").read_bytes())
        return source / "bzImage"

    monkeypatch.setattr(mutants.build, "build", compiler)
    with workers.here(1) as found:
        yield mutants.Laboratory([ONE], mutants.Options(), found)


def test_a_mutant_that_does_not_build_says_what_the_compiler_said(laboratory, source, monkeypatch):
    def compiler(tree, objects, jobs):
        raise mutants.build.BuildError((tree / "kvm/x86.c").read_text())

    monkeypatch.setattr(mutants.build, "build", compiler)
    (finding,) = laboratory.judge([ONE])
    assert (finding.fate, finding.reason) == (Fate.UNBUILT, "first();\ncount--;\n")
    assert "count++" in (source / "kvm/x86.c").read_text()


def boot(mutant, kernel, cases, options):
    """Stands for a boot that kills what is in the image as it should be."""
    made = mutant.changes[0].new.encode() in kernel.image.read_bytes()
    fate = Fate.KILLED if made else Fate.LOST
    return MutantRecord(mutant.name, mutant.digest, mutant.vendor, fate, cases)


def image_of(wish):
    """Stands for the reading of a kernel's header."""
    return Kernel("k", "6.6.6", Path(wish))


def test_each_mutant_is_booted_from_an_image_of_its_own(laboratory, monkeypatch):
    monkeypatch.setattr(judging.kernels, "resolve", image_of)
    monkeypatch.setattr(judging, "_boot", boot)
    found = list(laboratory.judge([ONE, make("two", "count -= 1;")]))
    assert [f.fate for f in found] == [Fate.KILLED, Fate.KILLED]
    assert found[0].killers == ("R14",), "the cases of what it violates come first"


def test_a_mutant_of_another_package_is_made_in_a_tree_of_its_own(laboratory, source, monkeypatch):
    """It is booted on the CPU that it names, and so is its control."""

    def tells(mutant, kernel, cases, options):
        text = f"{mutant.cpu}: {kernel.image.read_text()}"
        return MutantRecord(mutant.name, "", mutant.vendor, Fate.SURVIVED, evidence=text, ran=1)

    monkeypatch.setattr(judging.kernels, "resolve", image_of)
    monkeypatch.setattr(judging, "_boot", tells)
    (source / "newer/kvm").mkdir(parents=True)
    (source / "newer/kvm/x86.c").write_text("second();\ncount++;\n")
    newer = replace(ONE, name="two", package="newer", cpu="arrow_lake")
    laboratory._mutants = [ONE, newer]
    told = [(f.name, f.evidence) for f in mutants._judged(laboratory, [ONE, newer])]
    assert told == [
        ("control", ": first();\ncount++;\n"),
        ("control", "arrow_lake: second();\ncount++;\n"),
        ("one", ": first();\ncount--;\n"),
        ("two", "arrow_lake: second();\ncount--;\n"),
    ]


def test_one_that_ends_its_process_is_lost_and_the_next_is_judged(laboratory, monkeypatch):
    monkeypatch.setattr(judging.kernels, "resolve", image_of)

    def dies(mutant, kernel, cases, options):
        if mutant.name == "one":
            os.kill(os.getpid(), signal.SIGKILL)
        return boot(mutant, kernel, cases, options)

    monkeypatch.setattr(judging, "_boot", dies)
    first, second = laboratory.judge([ONE, make("two", "count -= 1;")])
    assert (first.name, first.fate) == ("one", Fate.LOST)
    assert first.reason == "the process that judged it died"
    assert (second.name, second.fate) == ("two", Fate.KILLED)


def test_a_survivor_faces_all_themes(monkeypatch):
    asked = []

    def survived(mutant, kernel, cases, options):
        asked.append(cases)
        return MutantRecord(mutant.name, mutant.digest, mutant.vendor, Fate.SURVIVED)

    monkeypatch.setattr(judging.kernels, "resolve", image_of)
    monkeypatch.setattr(judging, "_boot", survived)
    judging.judge(ONE, b"image", judging.Options())
    assert asked == [("R14",), judging.THEMES]


def test_long_cases_face_those_that_name_them(monkeypatch):
    asked = []

    def play(kernel, mutant, cases, collector, options):
        asked.append({case.thorough for case in cases})

    monkeypatch.setattr(judging, "_play", play)
    monkeypatch.setattr(judging, "_check", play)
    for mutant in (ONE, replace(ONE, cases=("R72",))):
        judging._boot(mutant, image_of("k"), ("R72",), judging.Options())
    assert asked == [{False}, {False, True}]


def test_a_control_faces_what_those_violate_that_are_judged_alike(
    laboratory, monkeypatch, tmp_path
):
    """What the unchanged kernel fails there would kill any mutant."""
    told = tmp_path / "told"

    def survives(mutant, kernel, cases, options):
        with told.open("a") as file:  # it is another process
            file.write(f"{mutant.name}: {' '.join(cases)}\n")
        return MutantRecord(mutant.name, "", mutant.vendor, Fate.SURVIVED, ran=1)

    monkeypatch.setattr(judging.kernels, "resolve", image_of)
    monkeypatch.setattr(judging, "_boot", survives)
    two = replace(make("two", "count -= 1;"), violates=("R19", "R13"))
    mine = replace(make("mine", "count -= 2;"), violates=("R01",), cases=("match.*",))
    list(mutants._judged(laboratory, [ONE, two, mine]))
    assert told.read_text().splitlines()[:3] == [
        "control: R13 R14 R19",
        f"control: {' '.join(judging.THEMES)}",
        "control: match.*",
    ]


def test_a_control_that_fails_is_trouble(laboratory, monkeypatch):
    failed = MutantRecord("control", "", "svm", Fate.KILLED, ("rollback.x",), ran=3)
    monkeypatch.setattr(laboratory, "judge", lambda chosen: iter([failed]))
    with pytest.raises(LabError, match=r"unchanged kernel does not pass on svm: rollback\.x"):
        list(laboratory.controls([ONE]))


@pytest.mark.parametrize(
    ("fates", "status"),
    [
        ([Fate.KILLED], 0),
        ([Fate.KILLED, Fate.SURVIVED], 1),
        ([Fate.SURVIVED, Fate.LOST], 2),
        ([Fate.UNBUILT], 2),
    ],
)
def test_exit_status(fates, status):
    found = [MutantRecord(str(n), "", "svm", fate) for n, fate in enumerate(fates)]
    assert command._status(found, dict.fromkeys(map(str, range(len(fates))), "")) == status


def test_an_explained_survivor_is_no_failure():
    assert command._status([MutantRecord("n", "", "svm", Fate.SURVIVED)], {"n": "needs an L2"}) == 0


def test_the_command_lists_and_complains(capsys):
    assert command.main(["--list", "R36"]) == 0
    assert "nested.svm_filter_forgotten" in capsys.readouterr().out
    assert command.main(["no.such"]) == 2
    assert capsys.readouterr().err == "msrward: no mutant is called that; --list shows them\n"
