"""A real scheduler and real workers on this machine; only the work is small."""

import os
import signal
import sys
from pathlib import Path

import pytest
from dask_here import DEADLINE, scheduler, wait_for, worker, workers_of
from errands import by_whom, forever, refuse, vanish

from vmm.lab import alone, cluster
from vmm.lab.errors import LabError

pytest.importorskip("distributed", reason="distributed: pip install 'msrward[fleet]'")


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """The address of a scheduler that has two workers."""
    place = tmp_path_factory.mktemp("dask")
    with scheduler(place) as (_, address), worker(address), worker(address):
        wait_for(lambda: workers_of(address) == 2)
        yield address


def test_calls_are_done_in_processes_of_their_own(at, tmp_path):
    (tmp_path / "go").touch()
    with cluster.cluster(at) as found:
        assert found.jobs == 2
        calls = [found.submit(by_whom, n, str(tmp_path)) for n in range(4)]
        told = [found.result(call) for call in calls]
    assert [number for number, _ in told] == [0, 1, 2, 3]
    assert len({pid for _, pid in told}) == 4
    assert len(list(tmp_path.glob("*.*.*"))) == 4


def test_a_worker_that_is_killed_has_its_work_done_again_and_nothing_twice(tmp_path):
    with scheduler(tmp_path) as (_, address), worker(address) as first, worker(address):
        wait_for(lambda: workers_of(address) == 2)
        with cluster.cluster(address) as found:
            running = {found.submit(by_whom, n, str(tmp_path)): n for n in range(6)}
            wait_for(lambda: len(list(tmp_path.glob("*.*.*"))) == 2)
            (lost,) = tmp_path.glob(f"*.{first.pid}.*")
            first.send_signal(signal.SIGKILL)
            first.wait(DEADLINE)
            (tmp_path / "go").touch()
            told = []
            while running:
                for done in found.first_of(running):
                    del running[done]
                    told.append(found.result(done)[0])
    assert sorted(told) == list(range(6))
    begun = [int(path.name.split(".")[0]) for path in tmp_path.glob("*.*.*")]
    assert sorted(begun) == sorted([*range(6), int(lost.name.split(".")[0])])


def test_what_a_killed_worker_did_ends_with_it(tmp_path):
    with scheduler(tmp_path) as (_, address), worker(address) as only:
        wait_for(lambda: workers_of(address) == 1)
        with cluster.cluster(address) as found:
            found.submit(forever, str(tmp_path / "pid"))
            wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
            pid = int((tmp_path / "pid").read_text())
            only.send_signal(signal.SIGKILL)
            wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_what_runs_is_ended_where_the_block_fails(at, tmp_path):
    with pytest.raises(KeyboardInterrupt), cluster.cluster(at) as found:
        found.submit(forever, str(tmp_path / "pid"))
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        raise KeyboardInterrupt
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_what_the_work_says_of_itself_comes_back(at):
    with cluster.cluster(at) as found:
        with pytest.raises(LabError, match="no qemu here"):
            found.result(found.submit(refuse))
        with pytest.raises(alone.Died, match="status -9"):
            found.result(found.submit(vanish))


def test_a_scheduler_that_goes_away_is_one_line(tmp_path, capfd):
    with scheduler(tmp_path) as (started, address), worker(address):
        wait_for(lambda: workers_of(address) == 1)
        gone = pytest.raises(LabError, match=r"went away; --resume goes on")
        with gone, cluster.cluster(address) as found:
            call = found.submit(by_whom, 1, str(tmp_path))
            wait_for(lambda: list(tmp_path.glob("1.*")))
            started.send_signal(signal.SIGKILL)
            found.first_of([call])
            found.result(call)
        assert capfd.readouterr().err == "", "Dask says it too, and more"
        (tmp_path / "go").touch()  # a worker that has lost its scheduler ends when its work does


def test_a_cluster_without_a_worker_is_refused(tmp_path):
    refused = pytest.raises(LabError, match="has no worker: start")
    with scheduler(tmp_path) as (_, address), refused, cluster.cluster(address):
        pass


def test_another_msrward_is_refused(at, monkeypatch):
    monkeypatch.setattr(alone, "identity", lambda: "0.0.9 (of old)")
    with pytest.raises(alone.Differs, match=r"at the worker .* and 0\.0\.9"), cluster.cluster(at):
        pass


def test_a_worker_that_came_later_is_compared_too(at, monkeypatch):
    with cluster.cluster(at) as found:
        monkeypatch.setattr(alone, "identity", lambda: "0.0.9 (of old)")
        with pytest.raises(alone.Differs, match=r"there and 0\.0\.9"):
            found.result(found.submit(refuse))


def test_a_worker_without_msrward_is_refused(tmp_path):
    (tmp_path / "vmm.py").write_text("raise ImportError('no msrward')")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with scheduler(tmp_path) as (_, address), worker(address, PYTHONPATH=path):
        wait_for(lambda: workers_of(address) == 1)
        with pytest.raises(alone.Differs, match="missing"), cluster.cluster(address):
            pass


@pytest.mark.parametrize(
    ("address", "said"),
    [("tcp://127.0.0.1:1", "no scheduler at tcp://127.0.0.1:1"), ("what://x", "no scheduler at")],
)
def test_an_address_where_nobody_is_is_one_line(address, said, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT", 1.0)
    with pytest.raises(LabError, match=said) as told, cluster.cluster(address):
        pass
    assert len(str(told.value).splitlines()) == 1


def test_without_distributed_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    said = pytest.raises(LabError, match=r"pip install 'msrward\[fleet\]'")
    with said, cluster.cluster("tcp://127.0.0.1:1"):
        pass
