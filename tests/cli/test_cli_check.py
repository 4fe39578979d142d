"""``msrward check`` on the real kernel, from outside: its output, its records, and how it ends."""

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
from itertools import dropwhile, islice
from pathlib import Path

import pytest
from complaint import FEW, assert_one_clear_line

pytestmark = pytest.mark.usefixtures("has_kvm")


def records(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def case_ids(path):
    return [each["id"] for each in records(path) if each["type"] == "case"]


def test_check_judges_this_kernel(msrward, state):
    status, out, err = msrward("check", FEW, "-j", 2)
    assert status == 0, out
    assert f"kernel {os.uname().release} (" in out.splitlines()[-1]
    assert err == ""
    assert "\x1b" not in out
    first, *cases, end = records(state / "msrward" / "latest" / "results.jsonl")
    assert (first["type"], end["type"], end["status"]) == ("run", "end", 0)
    assert first["host"]["capabilities"]["KVM_CAP_X86_MSR_FILTER"] == 1
    assert len({case["id"] for case in cases}) == len(cases) == first["cases"] > 10


def test_tap_and_json_agree_with_the_records(msrward, tmp_path):
    status, out, _ = msrward("check", FEW, "--tap", "-o", tmp_path, f"--json={tmp_path / 'j'}")
    version, plan, *lines = out.splitlines()
    ids = case_ids(tmp_path / "results.jsonl")
    assert (status, version, plan) == (0, "TAP version 13", f"1..{len(ids)}")
    assert [line for line in lines if line[0] != "#"] == [
        f"ok {number} - {name}" for number, name in enumerate(ids, start=1)
    ]
    assert (tmp_path / "j").read_text() == (tmp_path / "results.jsonl").read_text()


def test_bare_json_is_stdout_alone_and_takes_no_glob(msrward, tmp_path):
    status, out, _ = msrward("check", "--json", FEW, "-o", tmp_path)
    assert status == 0
    assert out == (tmp_path / "results.jsonl").read_text()


def test_quiet_and_verbose(msrward):
    status, out, _ = msrward("check", "R01", "-q")
    assert (status, out.count("\n")) == (0, 1)
    status, out, _ = msrward("check", "R01", "-v")
    assert "PASS    plumbing.capability_msr_filter (" in out


def test_resume_runs_only_what_is_missing(msrward, tmp_path):
    assert msrward("check", "R01", "-o", tmp_path)[0] == 0
    file = tmp_path / "results.jsonl"
    before = file.read_bytes()
    file.write_bytes(before + b'{"schema": 1, "type": "ca')
    status, out, _ = msrward("check", FEW, "-o", tmp_path, "--resume")
    assert status == 0
    assert "are already recorded" in out
    assert file.read_bytes().startswith(before)
    assert sorted(case_ids(file)) == sorted(set(case_ids(file)))
    assert set(case_ids(file)) == {line.split()[0] for line in msrward("list", FEW)[1].splitlines()}


def test_a_damaged_file_is_not_resumed_and_not_touched(msrward, tmp_path):
    (tmp_path / "results.jsonl").write_text("nonsense\n")
    answer = msrward("check", FEW, "-o", tmp_path, "--resume")
    assert_one_clear_line(answer, "damaged at line 1", "--resume")
    assert (tmp_path / "results.jsonl").read_text() == "nonsense\n"


def test_an_unwritable_output_directory(msrward):
    assert_one_clear_line(msrward("check", FEW, "-o", "/proc/nowhere"), "/proc/nowhere")
    assert_one_clear_line(msrward("check", FEW, "--json=/proc/nowhere"), "/proc/nowhere")


@pytest.mark.parametrize("name", ["results.jsonl", "../run/results.jsonl", "link"])
def test_json_lines_do_not_replace_the_records(msrward, tmp_path, name):
    """What ``--resume`` goes on with, above all."""
    run = tmp_path / "run"
    assert msrward("check", FEW, "-o", run)[0] == 0
    kept = (run / "results.jsonl").read_bytes()
    (run / "link").symlink_to(run / "results.jsonl")
    for more in ((), ("--resume",)):
        answer = msrward("check", FEW, "-o", run, f"--json={run / name}", *more)
        assert_one_clear_line(answer, "has the records of this run")
        assert (run / "results.jsonl").read_bytes() == kept


def test_a_directory_that_is_in_use(msrward, tmp_path):
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_one_clear_line(msrward("check", FEW, "-o", tmp_path), "in use by another run")


def test_a_stdout_closed_early_loses_no_results(start, tmp_path):
    read, write = os.pipe()
    os.close(read)
    process = start("check", FEW, "--tap", "-o", tmp_path, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert_one_clear_line((process.returncode, "", err), "closed early", "results.jsonl")
    assert records(tmp_path / "results.jsonl")[-1]["type"] == "end"


def test_a_full_disk_is_one_clear_line_after_what_ran(msrward, tmp_path):
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "none", tmp_path], capture_output=True
    )
    if mount.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mount.stderr.decode().strip()}")
    try:
        status, out, err = msrward("check", FEW, "-o", tmp_path)
        assert_one_clear_line((status, out, err), "No space left on device", "results.jsonl")
        assert "no verdict on kernel" in out
        left = (tmp_path / "results.jsonl").read_bytes()
        assert len([json.loads(line) for line in left.split(b"\n")[:-1]]) > 5
    finally:
        subprocess.run(["umount", tmp_path], check=True)


MANY = "rollback.*"
"""So many cases that a run of them can be stopped in the middle."""


def cases_shown(process, count):
    """Return the first lines of cases; above them it says which kernel, and how it is watched."""
    lines = iter(process.stdout.readline, "")
    return list(islice(dropwhile(lambda line: not line.startswith("PASS"), lines), count))


def test_ctrl_c_prints_a_summary_and_is_130(start, tmp_path):
    process = start("check", "-v", "-o", tmp_path, start_new_session=True)
    assert cases_shown(process, 1), "the first case has ended"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted before a verdict on kernel" in out.splitlines()[-1]
    assert err == ""
    assert records(tmp_path / "results.jsonl")[-1]["status"] == 130


def test_kill_9_loses_only_cases_in_flight(start, msrward, tmp_path):
    process = start("check", MANY, "-v", "-j1", "-o", tmp_path)
    shown = cases_shown(process, 19)
    process.kill()
    process.wait()
    done = case_ids_of_whole_lines(tmp_path / "results.jsonl")
    assert [line.split()[1] for line in shown] == done[: len(shown)]
    status, out, _ = msrward("check", MANY, "-o", tmp_path, "--resume")
    assert status == 0, out
    catalogue = {line.split()[0] for line in msrward("list", MANY)[1].splitlines()}
    ids = case_ids(tmp_path / "results.jsonl")
    assert len(ids) > 100
    assert (len(ids), set(ids)) == (len(catalogue), catalogue)


def case_ids_of_whole_lines(path):
    lines = path.read_text().rpartition("\n")[0].splitlines()
    return [each["id"] for each in map(json.loads, lines) if each["type"] == "case"]


def test_a_terminal_gets_colour_and_a_live_line_and_no_color_is_honoured(start):
    def on_terminal(*cases, **env):
        master, slave = pty.openpty()
        process = start("check", "-j1", *cases, stdout=slave, stderr=slave, env=env)
        os.close(slave)
        shown = b""
        while select.select([master], [], [], 60)[0]:
            try:
                shown += os.read(master, 4096)
            except OSError:  # EIO: the other end is closed
                break
        os.close(master)
        assert process.wait(60) == 0
        return shown.decode()

    shown = on_terminal("between.*", "running.*", "--known", "open")
    assert "\x1b[32mkernel " in shown
    assert " done, 0 failed, " in shown
    assert "; running " in shown
    assert "\x1b[32m" not in on_terminal(MANY, NO_COLOR="1")


def test_a_run_imports_nothing_heavy(state):
    program = "import sys; from vmm.cli import main; main(['check', 'R01', '-q']);"
    program += "print(*sorted(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_STATE_HOME": str(state)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(run.stdout.split())
    heavy = {"hypothesis", "psutil", "multiprocessing", "asyncio", "ctypes", "importlib.metadata"}
    assert "vmm.conformance.kernel.backend" in loaded
    assert not loaded & (heavy | {"difflib", "traceback", "subprocess", "logging"})
