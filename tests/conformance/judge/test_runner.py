"""The runner against backends that hang, die, raise and lie."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from typing import get_args

import pytest
from stand_in import DIES, EXITS, GOOD, HANGS, MUTE, RAISES, WRONG, StandIn, Watcher, case, judge

from vmm.conformance.host import parameters
from vmm.conformance.judge.recording import Options
from vmm.conformance.judge.runner import run
from vmm.conformance.kernel import waits
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.script import (
    CloseVcpu,
    CloseVm,
    RaceAction,
    UntilRuns,
    get_msr,
    got,
    gp,
    ran,
    rdmsr,
    returned,
    until_runs,
)
from vmm.conformance.records.results import ResultsError

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_case_gets_one_record(jobs):
    seen = judge([case(f"n{number}") for number in range(20)], jobs=jobs)
    assert seen.verdicts() == {f"t.n{number}": "PASS" for number in range(20)}
    assert seen.records["t.n3"]["requirements"] == ["R14"]
    assert seen.records["t.n3"]["ms"] >= 0


def test_a_failure_says_which_step_differs_and_how():
    both = Case("t.two", "S.", "R1", [get_msr(GOOD), rdmsr(0x10)], [got(0), returned(1)])
    record = judge([case("wrong", WRONG), both]).records
    assert record["t.wrong"]["verdict"] == "FAIL"
    assert (record["t.wrong"]["step"], record["t.wrong"]["action"]) == (1, "get_msr(0x1)")
    assert (record["t.wrong"]["expected"], record["t.wrong"]["seen"]) == (["got(0)"], ["got(7)"])
    assert record["t.two"]["step"] == 2, "a trace that ends early differs where it ends"
    assert record["t.two"]["seen"] == []
    assert record["t.two"]["script"] == ["get_msr(0x0)", "rdmsr(Msr.IA32_TSC)"]


def test_surplus_events_fail():
    assert judge([case("surplus", trace=())]).records["t.surplus"]["step"] == 1


def test_observations_never_fail():
    record = judge([case("quirk", WRONG, trace=OBSERVE)]).records["t.quirk"]
    assert (record["verdict"], record["observation"]) == ("PASS", "got(7)")


def test_a_missing_need_skips_with_its_reason():
    record = judge([case("no", needs=("sun", "moon")), case("yes", needs=("sun",))]).records
    assert record["t.no"]["verdict"] == "SKIP"
    assert (record["t.no"]["need"], record["t.no"]["reason"]) == ("moon", "no moon here")
    assert record["t.yes"]["verdict"] == "PASS"


@pytest.mark.parametrize(
    ("doing", "verdict", "error"),
    [
        (RAISES, "ERROR", "RuntimeError: two lines"),
        (EXITS, "ERROR", "the worker exited with status 3"),
        (DIES, "ERROR", "the worker died: Killed"),
        (HANGS, "TIMEOUT", "killed at its deadline of 0.3 s"),
    ],
)
def test_only_the_case_that_broke_its_worker_is_lost(doing, verdict, error):
    cases = [case(f"a{n}") for n in range(5)] + [case("bad", doing), *(case(f"b{n}") for n in "12")]
    seen = judge(cases, jobs=2, timeout=0.3)
    assert seen.records["t.bad"]["error"] == error
    assert seen.verdicts() == {each.id: "PASS" for each in cases} | {"t.bad": verdict}


@pytest.fixture
def parameter(tmp_path, monkeypatch):
    """Stands for /sys/module/kvm/parameters/ignore_msrs."""
    path = tmp_path / "ignore_msrs"
    path.write_text("N\n")
    monkeypatch.setattr(parameters, "IGNORE_MSRS", path)
    return path


IGNORED = case("ignored", needs=("ignore_msrs",))
NEEDS_UNKNOWN = Case("t.unknown", "A sentence.", "R52", [rdmsr(0x5000_0000)], (gp,))


def test_cases_are_judged_where_the_parameter_is_as_they_need_it(parameter):
    records = judge([IGNORED, case("any")])
    assert records.verdicts() == {"t.ignored": "SKIP", "t.any": "PASS"}
    assert records.records["t.ignored"]["need"] == "ignore_msrs"
    assert "ignore_msrs" not in records.records["t.any"]
    parameter.write_text("Y\n")
    records = judge([IGNORED, case("any"), NEEDS_UNKNOWN])
    assert records.verdicts() == {"t.ignored": "PASS", "t.any": "PASS", "t.unknown": "SKIP"}
    assert records.records["t.unknown"]["reason"].startswith("ignore_msrs is 1")
    assert records.records["t.any"]["ignore_msrs"] is True


def test_a_parameter_that_changes_meanwhile_is_noticed_when_a_case_fails(parameter):
    class Meddler(StandIn):
        def run(self, script, *, expected=None):
            if script[0].index == 0x5000_0000:
                parameter.write_text("Y\n")
            return super().run(script, expected=expected)

    watcher = Watcher()
    run([NEEDS_UNKNOWN, case("wrong", WRONG), IGNORED], Meddler, Options(), watcher)
    assert watcher.verdicts() == {"t.unknown": "SKIP", "t.wrong": "FAIL", "t.ignored": "PASS"}


def test_others_go_on_while_one_hangs():
    cases = [case("hang", HANGS), *(case(f"n{n}") for n in range(50))]
    seen = judge(cases, jobs=2, timeout=1.0)
    assert list(seen.records)[-1] == "t.hang", "the 50 others ended before its deadline"
    assert all("t.hang" in running for running in seen.ticks[:-1])


def test_a_case_has_its_own_waits_beside_the_limit(monkeypatch):
    monkeypatch.setitem(waits._SECONDS, UntilRuns, 0.25)
    wait = until_runs(1)
    both = Case("t.waits", "S.", "R72", [get_msr(HANGS), wait, wait], [got(0), ran, ran])
    seen = judge([both, case("hang", HANGS)], jobs=2, timeout=0.1)
    errors = {name: record["error"] for name, record in seen.records.items()}
    assert errors == {
        "t.hang": "killed at its deadline of 0.1 s",
        "t.waits": "killed at its deadline of 0.6 s",
    }


def test_every_word_that_waits_for_the_kernel_has_its_seconds():
    assert set(waits._SECONDS) == {*get_args(RaceAction)} - {CloseVm, CloseVcpu}
    assert waits.seconds((get_msr(0), rdmsr(1))) == 0
    longest = waits.OBEYS_ALONE_WITHIN * waits.LONGER
    assert waits.seconds((until_runs(1), until_runs(1))) == 2 * longest


def test_two_hundred_workers_judge_right(monkeypatch):
    from vmm.conformance.judge import runner

    monkeypatch.setattr(runner, "DEATH_SECONDS", 30.0)  # two hundred take a busy machine longer
    cases = [case(f"n{n}", (GOOD, WRONG)[n % 7 == 0]) for n in range(600)]
    cases += [case("hang", HANGS), case("dies", DIES)]
    began = time.process_time()
    seen = judge(cases, jobs=200, timeout=5.0)
    wrong = {f"t.n{n}": "FAIL" for n in range(0, 600, 7)}
    right = {each.id: "PASS" for each in cases[:600]}
    assert seen.verdicts() == right | wrong | {"t.hang": "TIMEOUT", "t.dies": "ERROR"}
    assert time.process_time() - began < 10, "the master looks at all of them now and then only"


@pytest.mark.alone("it measures time")
def test_two_that_hang_take_one_deadline():
    began = time.monotonic()
    seen = judge([case("h1", HANGS), case("h2", HANGS)], jobs=2, timeout=0.5)
    assert set(seen.verdicts().values()) == {"TIMEOUT"}
    assert time.monotonic() - began < 0.95


@pytest.mark.parametrize("doing", [HANGS, MUTE])
def test_the_master_does_not_spin_while_it_waits(doing):
    before = time.process_time()
    judge([case("hang", doing)], timeout=1.0)
    assert time.process_time() - before < 0.2


def test_a_worker_that_sigkill_cannot_end_does_not_block_the_run(monkeypatch):
    from vmm.conformance.judge import runner, worker

    monkeypatch.setattr(runner, "DEATH_SECONDS", 0.2)
    stuck = []

    def kill(self):
        self.killed = True
        stuck.append(self.pid)

    monkeypatch.setattr(worker.Worker, "kill", kill)
    seen = judge([case("stuck", HANGS), case("next")], timeout=0.2)
    assert list(seen.verdicts().items()) == [("t.next", "PASS"), ("t.stuck", "TIMEOUT")]
    assert f"worker {stuck[0]} is stuck in the kernel" in seen.records["t.stuck"]["error"]
    assert os.waitpid(stuck[0], 0)[1] == signal.SIGKILL, "the lifeline ends what was left behind"


def test_a_factory_that_fails_is_an_error_of_each_case():
    def factory():
        raise OSError(24, "Too many open files")

    watcher = Watcher()
    run([case("a"), case("b")], factory, Options(), watcher)
    assert set(watcher.verdicts().values()) == {"ERROR"}
    assert "Too many open files" in watcher.records["t.a"]["error"]


def test_known_failures():
    quirk = case("quirk", trace=OBSERVE)
    seen = judge([case("wrong", WRONG), case("good"), case("x"), quirk], xfail=("t.[gwq]*",))
    assert seen.verdicts() == {
        "t.wrong": "XFAIL",
        "t.good": "XPASS",
        "t.x": "PASS",
        "t.quirk": "PASS",
    }


def test_an_error_of_the_watcher_ends_the_run():
    class Full(Watcher):
        def case(self, record):
            raise ResultsError("full")

    with pytest.raises(ResultsError):
        run([case("a"), case("hang", HANGS)], StandIn, Options(jobs=2), Full())


def test_workers_die_with_a_master_that_is_killed(tmp_path):
    told = tmp_path / "pids"
    os.mkfifo(told)
    program = f"""
        import os, signal
        from pathlib import Path
        from stand_in import HANGS, StandIn, Watcher, case
        from vmm.conformance.judge.recording import Options
        from vmm.conformance.judge.runner import run
        class Tells(StandIn):
            def run(self, script, *, expected=None):
                Path({str(told)!r}).write_text(str(os.getpid()))
                return super().run(script)
        run([case("hang", HANGS)], Tells, Options(timeout=60), Watcher())
    """
    path = os.pathsep.join(sys.path)
    master = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "PYTHONPATH": path}
    )
    worker = os.pidfd_open(int(told.read_text()))
    master.kill()
    master.wait()
    assert select.select([worker], [], [], 5)[0], "the worker outlived its master"
    os.close(worker)
