"""Mutants that a real cluster judges: built here, sent there, each with one finding."""

import json
import signal

import pytest
from dask_here import DEADLINE, scheduler, wait_for, worker, workers_of
from errands import judge, judge_nowhere

from vmm.cli import mutants as command
from vmm.lab import alone, workers
from vmm.lab.mutants import laboratory as mutants
from vmm.lab.mutants.findings import Fate
from vmm.lab.mutants.source import Change, Mutant

pytest.importorskip("distributed", reason="distributed: pip install 'msrward[fleet]'")


@pytest.fixture
def source(tmp_path, cache_root, monkeypatch):
    """A tree of one file, and a compiler that copies it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "x86.c").write_text("count++;")
    monkeypatch.setattr(mutants, "_tree_directory", lambda _: tree)
    monkeypatch.setattr(mutants, "unpack", lambda *where: None)
    monkeypatch.setattr(mutants.build, "build", lambda tree, objects, jobs: tree / "x86.c")
    return tree


def chosen(place, number):
    """Mutants that note at a place who judges them, and wait there for word to go on."""
    changes = [(Change("x86.c", "count++;", f"count += {n};"),) for n in range(number)]
    return [Mutant(f"m{n}", str(place), ("R14",), each) for n, each in enumerate(changes)]


def test_a_worker_that_is_killed_has_its_mutant_judged_again_and_none_twice(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(mutants.judging, "judge", judge)
    todo, results, told = chosen(tmp_path, 6), tmp_path / "results.jsonl", []
    options = mutants.Options(control=False)
    with scheduler(tmp_path) as (_, address), worker(address) as first, worker(address):
        wait_for(lambda: workers_of(address) == 2)
        with mutants.laboratory(todo, options, on=address) as lab:
            built = lab._build

            def kill_in_the_middle(mutant):
                if mutant.name == "m2":  # the two before it are with the two workers now
                    wait_for(lambda: len(list(tmp_path.glob("m*.*.*"))) == 2)
                    first.send_signal(signal.SIGKILL)
                    first.wait(DEADLINE)
                    (tmp_path / "go").touch()
                return built(mutant)

            monkeypatch.setattr(lab, "_build", kill_in_the_middle)
            found = mutants.run(lab, todo, results, told.append)
    (lost,) = tmp_path.glob(f"m*.{first.pid}.*")
    begun = [path.name.split(".")[0] for path in tmp_path.glob("m*.*.*")]
    assert sorted(begun) == sorted([*(m.name for m in todo), lost.name.split(".")[0]])
    assert sorted(f.name for f in found) == [mutant.name for mutant in todo]
    assert told == found, "each is told as it comes"
    assert {f.killers for f in found} == {(f"count += {n};",) for n in range(6)}
    written = [json.loads(line)["name"] for line in results.read_text().splitlines()]
    assert written == [f.name for f in found]


def test_what_a_worker_cannot_judge_is_lost_and_says_why(source, tmp_path, monkeypatch):
    monkeypatch.setattr(mutants.judging, "judge", judge_nowhere)
    with scheduler(tmp_path) as (_, address), worker(address):
        wait_for(lambda: workers_of(address) == 1)
        with workers.of(address, 1) as found:
            lab = mutants.Laboratory(chosen(tmp_path, 2), mutants.Options(), found)
            findings = list(lab.judge(chosen(tmp_path, 2)))
    assert [(f.name, f.fate, f.reason) for f in findings] == [
        ("m0", Fate.LOST, "no qemu here"),
        ("m1", Fate.LOST, "no qemu here"),
    ]


def test_another_msrward_is_refused_before_anything_is_built(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mutants.build, "build", None)
    with scheduler(tmp_path) as (_, address), worker(address):
        wait_for(lambda: workers_of(address) == 1)
        monkeypatch.setattr(alone, "identity", lambda: "0.0.9 (of old)")
        assert command.main(["--on", address, "R36"]) == 2
    said = capsys.readouterr().err
    assert "0.0.9 (of old) here: install the same on both" in said
    assert len(said.splitlines()) == 1
