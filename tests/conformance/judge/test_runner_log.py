"""The runner and the kernel log: which case a splat fails, and whose it is."""

import os
from pathlib import Path

import pytest
from stand_in import GOOD, HANGS, INIT, NOBODY, SPLAT, SPLATS, StandIn, Watcher, case, judge

from vmm.conformance.host import foreign
from vmm.conformance.host.klog import KernelLog
from vmm.conformance.judge.recording import Options
from vmm.conformance.judge.runner import run
from vmm.conformance.records.summary import end_record
from vmm.conformance.report import closing

pytestmark = pytest.mark.usefixtures("nothing_left")


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
