"""A bisection of packaged kernels by the command, asked of a real cluster."""

import json
import signal
from threading import Thread

import pytest
from dask_here import DEADLINE, scheduler, wait_for, worker, workers_of
from errands import judge_there

from vmm.cli import main
from vmm.lab.kernels import kernels, packaged
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.kernels.packaged import Reachable
from vmm.lab.runs import away

pytest.importorskip("distributed", reason="distributed: pip install 'msrward[fleet]'")

CASE = "matching.first_range_wins"
VERSIONS = [f"6.{number}" for number in range(12)]
FIRST_BAD = 8


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packaged kernels whose images say what becomes of them, and where to note it."""
    found = [Reachable(f"{each}-cloud", f"{each}-1", (), False) for each in VERSIONS]
    for number, each in enumerate(found):
        verdict = "FAIL" if number >= FIRST_BAD else "PASS"
        (tmp_path / each.release).write_text(f"{tmp_path}\0{verdict}")

    def resolve(name):
        (each,) = (each for each in found if each.name == name)
        return Kernel(name, each.release, tmp_path / each.release)

    monkeypatch.setattr(packaged, "reachable", lambda refresh=False: found)
    monkeypatch.setattr(kernels, "resolve", resolve)
    monkeypatch.setattr(away, "judge_there", judge_there)


def bisect(place, *more):
    ends = ("--good", "debian:6.0", "--bad", "debian:6.11")
    return main(["bisect", *ends, "-o", str(place / "records"), *more, CASE])


def test_a_worker_that_is_killed_changes_neither_finding_nor_what_is_asked(
    packages, tmp_path, capsys
):
    with scheduler(tmp_path) as (_, address), worker(address) as first, worker(address):
        wait_for(lambda: workers_of(address) == 2)

        def kill_in_the_middle():
            wait_for(lambda: len(list(tmp_path.glob("6.*-cloud.*.*"))) == 2)
            first.send_signal(signal.SIGKILL)
            first.wait(DEADLINE)
            (tmp_path / "go").touch()

        killer = Thread(target=kill_in_the_middle, daemon=True)
        killer.start()
        assert bisect(tmp_path, "--on", address) == 0
        killer.join()
    said = capsys.readouterr().out
    assert f"{CASE}: the first bad kernel is debian:6.8\n" in said
    assert "the last good one is debian:6.7: passed (1 case)\n" in said
    noted = (tmp_path / "records" / "steps.jsonl").read_text().splitlines()
    asked = [json.loads(line)["name"] for line in noted]
    assert len(set(asked)) == len(asked), "none is asked twice"
    assert f"{len(asked)} kernels in " in said, "two at once: two workers"
    begun = [path.name for path in tmp_path.glob("6.*-cloud.*.*")]
    assert len(begun) == len(asked) + 1, "what the killed one had, and nothing besides"
    assert sum(f".{first.pid}." in name for name in begun) == 1


def test_a_cluster_that_is_not_there_is_one_line(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vmm.lab.cluster._CONNECT", 1.0)
    assert bisect(tmp_path, "--on", "tcp://127.0.0.1:1") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "no scheduler at tcp://127.0.0.1:1" in said[0]


def test_a_scheduler_that_goes_away_ends_the_search_and_calls_no_kernel_untestable(
    packages, tmp_path, capsys
):
    with scheduler(tmp_path) as (started, address), worker(address):
        wait_for(lambda: workers_of(address) == 1)

        def kill():
            wait_for(lambda: list(tmp_path.glob("6.*-cloud.*.*")))
            started.send_signal(signal.SIGKILL)

        killer = Thread(target=kill, daemon=True)
        killer.start()
        assert bisect(tmp_path, "--on", address) == 2
        killer.join()
        (tmp_path / "go").touch()  # a worker that has lost its scheduler ends when its work does
    assert "went away" in capsys.readouterr().err
    assert not (tmp_path / "records" / "steps.jsonl").exists()
