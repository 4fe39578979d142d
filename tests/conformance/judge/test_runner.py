"""The runner against backends that hang, die, raise and lie; results on disk; kernel log splats.

The backends here are stand-ins, legitimate because the runner alone is under test: what a worker
does is chosen by the MSR index of its script.
"""

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import get_args

import pytest

from vmm.conformance.host import foreign, parameters
from vmm.conformance.host.klog import KernelLog
from vmm.conformance.judge.recording import Options
from vmm.conformance.judge.runner import run
from vmm.conformance.kernel import waits
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.script import (
    CloseVcpu,
    CloseVm,
    Got,
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
from vmm.conformance.records.results import FILE, Held, Results, ResultsError, default_directory
from vmm.conformance.records.summary import end_record
from vmm.conformance.report import closing

GOOD, WRONG, RAISES, EXITS, DIES, HANGS, SPLATS, MUTE = range(8)
INIT, NOBODY = 1, 4194304
"""A process that is none of ours, and a pid that no process has."""

HOST = {"release": "6.1.0", "version": "#1", "hostname": "here", "cpu_model": "a CPU"}
SPLAT = (
    "4,{seq},0,-;------------[ cut here ]------------\n"
    "4,{seq},0,-;WARNING: CPU: 0 PID: {pid} at arch/x86/kvm/x86.c:1 kvm_msr_allowed+0x1/0x2\n"
    "4,{seq},0,-;---[ end trace 0000000000000000 ]---\n"
)


class StandIn:
    """A backend whose ``run`` does what the script's first MSR index says."""

    def __init__(self, kmsg=None):
        self.kmsg = kmsg

    def run(self, script, *, expected=None):
        doing = script[0].index
        if doing == RAISES:
            raise RuntimeError("two\nlines")
        if doing == EXITS:
            os._exit(3)
        if doing == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        if doing == MUTE:
            os.closerange(3, 1000)
        if doing in (HANGS, MUTE):
            while True:
                signal.pause()
        if doing == SPLATS:
            self.kmsg.write_text(SPLAT.format(seq=1, pid=script[0].vcpu or os.getpid()))
        return (Got(7 if doing == WRONG else 0),)

    def lacks(self, need):
        return f"no {need} here" if need == "moon" else None

    def close(self):
        pass


class Watcher:
    interval = 5.0

    def __init__(self):
        self.records, self.ticks = {}, []

    def case(self, record):
        assert record["id"] not in self.records, "one record a case"
        self.records[record["id"]] = record

    def tick(self, running):
        self.ticks.append(tuple(running))

    def verdicts(self):
        return {name: record["verdict"] for name, record in self.records.items()}


ZERO = (got(0),)


def case(name, doing=GOOD, trace=ZERO, needs=(), **fields):
    return Case(f"t.{name}", "A sentence.", "R14", [get_msr(doing, **fields)], trace, needs)


def judge(cases, log=None, kmsg=None, **options):
    watcher = Watcher()
    watcher.stray = run(cases, lambda: StandIn(kmsg), Options(**options), watcher, log)
    return watcher


def children():
    """Return the pids of this process's children, zombies included."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


@pytest.fixture(autouse=True)
def nothing_survives():
    fds = set(os.listdir("/proc/self/fd"))
    yield
    assert not children()
    assert set(os.listdir("/proc/self/fd")) == fds


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


def test_two_hundred_workers_judge_right():
    cases = [case(f"n{n}", (GOOD, WRONG)[n % 7 == 0]) for n in range(600)]
    cases += [case("hang", HANGS), case("dies", DIES)]
    began = time.process_time()
    seen = judge(cases, jobs=200, timeout=5.0)
    wrong = {f"t.n{n}": "FAIL" for n in range(0, 600, 7)}
    right = {each.id: "PASS" for each in cases[:600]}
    assert seen.verdicts() == right | wrong | {"t.hang": "TIMEOUT", "t.dies": "ERROR"}
    assert time.process_time() - began < 10, "the master looks at all of them now and then only"


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
        from test_runner import HANGS, StandIn, Watcher, case
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


# --- the kernel log ------------------------------------------------------------------------------


@pytest.fixture
def kmsg(tmp_path):
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    return path


def test_a_splat_fails_the_case_of_the_process_it_names(kmsg):
    with KernelLog(str(kmsg)) as log:
        cases = [case("hang", HANGS), case("splat", SPLATS), case("after")]
        seen = judge(cases, log, kmsg, jobs=2, timeout=1.0)
    assert seen.verdicts() == {"t.splat": "FAIL", "t.after": "PASS", "t.hang": "TIMEOUT"}
    assert "kvm_msr_allowed" in "".join(seen.records["t.splat"]["splats"][0])
    assert "splats" not in seen.records["t.after"]


def test_a_splat_that_names_no_worker_fails_all_cases_in_flight(kmsg):
    with KernelLog(str(kmsg)) as log:
        cases = [case("hang", HANGS), case("splat", SPLATS, vcpu=NOBODY), case("after")]
        seen = judge(cases, log, kmsg, jobs=2, timeout=1.0)
    assert seen.verdicts() == {"t.splat": "FAIL", "t.after": "PASS", "t.hang": "FAIL"}
    assert "deadline" in seen.records["t.hang"]["error"]


def test_a_splat_in_no_case_is_handed_back(kmsg):
    class Late(Watcher):
        def case(self, record):
            kmsg.write_text(SPLAT.format(seq=1, pid=NOBODY))

    with KernelLog(str(kmsg)) as log:
        (stray,) = run([case("a")], StandIn, Options(), Late(), log)
    assert stray.kind == "WARN" and not stray.foreign


def test_a_splat_of_another_process_fails_no_case_and_is_told(kmsg):
    if not foreign._in_initial_namespace(Path("/proc")):
        pytest.skip("not in the initial PID namespace: the kernel's pids are not ours")
    with KernelLog(str(kmsg)) as log:
        seen = judge([case("splat", SPLATS, vcpu=INIT), case("after")], log, kmsg)
    assert seen.verdicts() == {"t.splat": "PASS", "t.after": "PASS"}
    (stray,) = seen.stray
    assert stray.foreign.endswith("(1)")
    end = end_record(list(seen.records.values()), 1.0, foreign=[f"{stray.foreign}: {stray.first}"])
    assert end["status"] == 0
    (said,) = [line for line in closing.summary([], end, lambda _, words: words) if line]
    assert said.startswith("foreign, of no case here: it names ")


@pytest.mark.parametrize(("index", "verdict"), [(GOOD, "PASS"), (0x1A1, "FAIL")])
def test_an_msr_error_is_ours_only_where_a_script_uses_that_msr(kmsg, index, verdict):
    class Says(StandIn):
        def run(self, script, *, expected=None):
            kmsg.write_text("4,1,0,-;unchecked MSR access error: RDMSR from 0x1a1 at rIP: 0x0\n")
            return super().run(script)

    watcher = Watcher()
    with KernelLog(str(kmsg)) as log:
        run([case("a", index)], Says, Options(), watcher, log)
    assert watcher.verdicts() == {"t.a": verdict}


# --- the results on disk -------------------------------------------------------------------------


def record(name, verdict="PASS"):
    about = {"sentence": "It is.", "requirements": ["R14"], "ms": 1.0}
    return {"type": "case", "id": name, "verdict": verdict, **about}


def write(directory, *names, host=HOST):
    with Results(directory, host) as results:
        for name in names:
            results.write(record(name))


def test_each_record_is_one_line_with_schema_and_host(tmp_path):
    write(tmp_path, "a", "b")
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b"]
    assert all((line["schema"], line["host"]) == (1, HOST) for line in lines)


def test_lines_are_on_disk_before_the_file_is_closed(tmp_path):
    with Results(tmp_path, HOST) as results:
        line = results.write(record("a"))
        assert (tmp_path / FILE).read_text() == line


def test_an_earlier_file_is_kept_as_old(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b")
    assert '"a"' in (tmp_path / (FILE + ".old")).read_text()
    assert '"a"' not in (tmp_path / FILE).read_text()


def test_resume_knows_what_is_recorded_and_drops_a_line_cut_short(tmp_path):
    write(tmp_path, "a", "b")
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-7])
    with Results(tmp_path, HOST, resume=True) as results:
        assert set(results.recorded) == {"a"}
        results.write(record("b"))
    assert (tmp_path / FILE).read_bytes() == whole
    assert not (tmp_path / (FILE + ".old")).exists()


def test_resume_of_nothing_starts_anew(tmp_path):
    with Results(tmp_path / "new", HOST, resume=True) as results:
        assert not results.recorded


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (b"not json\n", "line 2"),
        (b"\xff\xfe\n", "line 2"),
        (b'{"schema": 9, "type": "case"}\n', "schema '9'"),
        (b'{"schema": 1, "type": "case", "host": {}}\n', "id is missing"),
        (b'{"schema": 1, "type": "end"}\n', "counts is missing"),
        (b"[]\n", "not a record"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, damage, why):
    write(tmp_path, "a")
    with (tmp_path / FILE).open("ab") as file:
        file.write(damage)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ResultsError, match=why):
        Results(tmp_path, HOST, resume=True)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("fact", ["release", "hostname", "vendor_module"])
def test_results_of_another_kernel_or_host_are_not_continued(tmp_path, fact):
    write(tmp_path, "a")
    with pytest.raises(ResultsError, match=f"another kernel or host .{fact}"):
        Results(tmp_path, {**HOST, fact: "other"}, resume=True)
    assert (tmp_path / FILE).exists()


def test_one_run_at_a_time(tmp_path):
    with Results(tmp_path, HOST), pytest.raises(Held, match="in use by another run"):
        Results(tmp_path, HOST)
    write(tmp_path, "a")  # free again


def test_the_default_directory_steps_aside_for_a_run_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with Results.open_default(HOST) as first, Results.open_default(HOST) as second:
        assert first.directory == default_directory() == tmp_path / "msrward" / "latest"
        assert second.directory.name == f"latest-{os.getpid()}"


def test_an_unwritable_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"cannot write to .*file/dir: Not a directory"):
        Results(tmp_path / "file" / "dir", HOST)
