"""The ``msrward`` command from outside: what it prints, where, and its exit status."""

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

FEW = "plumbing.*"
UNSET = ("NO_COLOR", "PYTHONUNBUFFERED")  # each changes what is tested here


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def start(state):
    """Start ``msrward`` with arguments; it is killed if the test leaves it behind."""
    started = []

    def start(*args, env=(), **options):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vmm", *map(str, args)],
            text=True,
            env={
                **{name: value for name, value in os.environ.items() if name not in UNSET},
                "PYTHONPATH": os.pathsep.join(sys.path),
                "XDG_STATE_HOME": str(state),
                "TERM": "xterm",
                **dict(env),
            },
            **streams,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def msrward(start):
    """Run ``msrward`` and return (status, stdout, stderr)."""

    def run(*args, **options):
        process = start(*args, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return run


def assert_one_clear_line(answer, *words, status=2):
    code, _, err = answer
    assert code == status
    assert err.startswith("msrward: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err


# --- without KVM ---------------------------------------------------------------------------------


def test_help_has_the_exit_statuses(msrward):
    for args in (["--help"], ["check", "--help"]):
        status, out, _ = msrward(*args)
        assert status == 0
        assert all(f"  {code:<4} " in out for code in (0, 1, 2, 4, 130))


def test_version(msrward):
    status, out, _ = msrward("-V")
    assert status == 0
    assert out.startswith("msrward ")


def test_list_and_check_list_agree(msrward):
    status, out, err = msrward("list", "rollback.*", "-x", "*slot*")
    assert (status, err) == (0, "")
    assert out
    assert all(line.startswith("rollback.") and "slot" not in line for line in out.splitlines())
    assert msrward("check", "--list", "rollback.*", "-x", "*slot*")[:2] == (0, out)
    assert msrward("check", "-l", "rollback.*", "-x", "*slot*")[:2] == (0, out)


def test_list_by_requirement(msrward):
    status, out, _ = msrward("list", "--by-requirement")
    assert status == 0
    assert "R14 a failing call leaves the previous filter fully in force\n    " in out


def test_show(msrward):
    status, out, _ = msrward("show", "matching.first_range_wins")
    assert status == 0
    assert out.splitlines()[0] == "matching.first_range_wins"
    assert "R23: " in out
    assert "    1 " in out
    assert "      -> " in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["COMMAND"]),
        (["jump"], ["jump"]),
        (["check", "--jump"], ["--jump"]),
        (["check", "-j", "0"], ["'0' is not a whole number from 1 up"]),
        (["check", "-j", "-1"], ["-1"]),
        (["check", "-j", "x"], ["'x'"]),
        (["check", "--timeout", "0"], ["seconds above 0"]),
        (["check", "--timeout", "-3"], ["seconds above 0"]),
        (["check", "--timeout", "nan"], ["seconds above 0"]),
        (["check", "--tap", "--json"], ["--json=FILE"]),
        (["check", "matching.first_range_win"], ["did you mean matching.first_range_wins"]),
        (["check", "zzz.*"], ["no case matches 'zzz.*'", "msrward list"]),
        (["check", "-x", "zzz"], ["no case matches 'zzz'"]),
        (["check", "--xfail", "zzz"], ["no case matches 'zzz'"]),
        (["check", "-x", "*"], ["no case is left"]),
        (["list", "zzz"], ["no case matches"]),
        (["show", "matching.first"], ["did you mean matching.first_range_wins"]),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(msrward, args, words):
    assert_one_clear_line(msrward(*args), *words)


def test_a_reader_that_stops_reading_leaves_no_traceback(start):
    read, write = os.pipe()
    os.close(read)
    process = start("list", stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert_one_clear_line((process.returncode, "", err), "stdout was closed early")


@pytest.mark.parametrize("args", [["list"], ["--help"], ["check", "--help"], ["-V"]])
def test_stdout_that_cannot_be_written(msrward, args):
    with open("/dev/full", "w") as full:
        answer = msrward(*args, stdout=full)
    assert_one_clear_line(answer, "cannot write to stdout: No space left on device")


def test_another_machine_is_one_clear_line(monkeypatch, capsys):
    from vmm import cli

    uname = os.uname_result(("Linux", "host", "6.1", "#1", "aarch64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    status = cli.main(["check", FEW])
    assert_one_clear_line((status, "", capsys.readouterr().err), "aarch64", "x86-64")


@pytest.mark.parametrize(
    ("errno", "words"), [(2, "modprobe"), (13, "run as root"), (19, "modprobe"), (16, "doctor")]
)
def test_a_device_that_does_not_open_is_one_clear_line(monkeypatch, capsys, errno, words):
    pytest.importorskip("vmm._native")
    from vmm import cli, kvm
    from vmm.errors import KvmError

    def refuse(*_):
        raise KvmError(errno, "open", "/dev/kvm")

    monkeypatch.setattr(kvm.Kvm, "__init__", refuse)
    status = cli.main(["check", FEW])
    answer = (status, "", capsys.readouterr().err)
    assert_one_clear_line(answer, "cannot use /dev/kvm", os.strerror(errno), words)


@pytest.mark.usefixtures("has_kvm")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody without rights")
def test_no_permission():
    if os.stat("/dev/kvm").st_mode & 0o006:
        pytest.skip("everybody may use /dev/kvm here")
    drop = "import os, vmm.cli, vmm.kvm, vmm.conformance.judge.check, vmm.conformance.host.cpus;"
    drop += "vmm.cli.main(['list', 'R01']);"
    drop += "os.setgroups([]); os.setgid(65534); os.setuid(65534);"  # all is imported by now
    drop += f"raise SystemExit(vmm.cli.main(['check', '{FEW}']))"
    run = subprocess.run(
        [sys.executable, "-P", "-c", drop],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    answer = (run.returncode, run.stdout, run.stderr)
    assert_one_clear_line(answer, "/dev/kvm: Permission denied", "run as root")


def test_the_doctor_answers(msrward):
    status, out, err = msrward("doctor")
    assert status in (0, 1)
    assert err == ""
    assert all(line[:5] in ("PASS ", "WARN ", "FAIL ") for line in out.splitlines())
    status_of_json, out, _ = msrward("doctor", "--json")
    assert status_of_json == status
    assert {"check", "verdict", "fact", "remedy"} == set(json.loads(out)["checks"][0])


# --- on the real kernel --------------------------------------------------------------------------

pytestmark_kvm = pytest.mark.usefixtures("has_kvm")


def records(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def case_ids(path):
    return [each["id"] for each in records(path) if each["type"] == "case"]


@pytestmark_kvm
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


@pytestmark_kvm
def test_tap_and_json_agree_with_the_records(msrward, tmp_path):
    status, out, _ = msrward("check", FEW, "--tap", "-o", tmp_path, f"--json={tmp_path / 'j'}")
    version, plan, *lines = out.splitlines()
    ids = case_ids(tmp_path / "results.jsonl")
    assert (status, version, plan) == (0, "TAP version 13", f"1..{len(ids)}")
    assert [line for line in lines if line[0] != "#"] == [
        f"ok {number} - {name}" for number, name in enumerate(ids, start=1)
    ]
    assert (tmp_path / "j").read_text() == (tmp_path / "results.jsonl").read_text()


@pytestmark_kvm
def test_bare_json_is_stdout_alone_and_takes_no_glob(msrward, tmp_path):
    status, out, _ = msrward("check", "--json", FEW, "-o", tmp_path)
    assert status == 0
    assert out == (tmp_path / "results.jsonl").read_text()


@pytestmark_kvm
def test_quiet_and_verbose(msrward):
    status, out, _ = msrward("check", "R01", "-q")
    assert (status, out.count("\n")) == (0, 1)
    status, out, _ = msrward("check", "R01", "-v")
    assert "PASS    plumbing.capability_msr_filter (" in out


@pytestmark_kvm
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


@pytestmark_kvm
def test_a_damaged_file_is_not_resumed_and_not_touched(msrward, tmp_path):
    (tmp_path / "results.jsonl").write_text("nonsense\n")
    answer = msrward("check", FEW, "-o", tmp_path, "--resume")
    assert_one_clear_line(answer, "damaged at line 1", "--resume")
    assert (tmp_path / "results.jsonl").read_text() == "nonsense\n"


@pytestmark_kvm
def test_an_unwritable_output_directory(msrward):
    assert_one_clear_line(msrward("check", FEW, "-o", "/proc/nowhere"), "/proc/nowhere")
    assert_one_clear_line(msrward("check", FEW, "--json=/proc/nowhere"), "/proc/nowhere")


@pytestmark_kvm
def test_a_directory_that_is_in_use(msrward, tmp_path):
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_one_clear_line(msrward("check", FEW, "-o", tmp_path), "in use by another run")


@pytestmark_kvm
def test_a_stdout_closed_early_loses_no_results(start, tmp_path):
    read, write = os.pipe()
    os.close(read)
    process = start("check", FEW, "--tap", "-o", tmp_path, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert_one_clear_line((process.returncode, "", err), "closed early", "results.jsonl")
    assert records(tmp_path / "results.jsonl")[-1]["type"] == "end"


@pytestmark_kvm
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


def cases_shown(process, count):
    """Return the first lines of cases; above them it says which kernel, and how it is watched."""
    lines = iter(process.stdout.readline, "")
    return list(islice(dropwhile(lambda line: not line.startswith("PASS"), lines), count))


@pytestmark_kvm
def test_ctrl_c_prints_a_summary_and_is_130(start, tmp_path):
    process = start("check", "-v", "-o", tmp_path, start_new_session=True)
    assert cases_shown(process, 1), "the first case has ended"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted before a verdict on kernel" in out.splitlines()[-1]
    assert err == ""
    assert records(tmp_path / "results.jsonl")[-1]["status"] == 130


OPEN = ("--known", "open")
"""For a whole run: what no kernel has a fix for is no failure of the command."""


@pytestmark_kvm
def test_kill_9_loses_only_cases_in_flight(start, msrward, tmp_path):
    process = start("check", "-v", "-j1", "-o", tmp_path)
    shown = cases_shown(process, 19)
    process.kill()
    process.wait()
    done = case_ids_of_whole_lines(tmp_path / "results.jsonl")
    assert [line.split()[1] for line in shown] == done[: len(shown)]
    status, out, _ = msrward("check", "-o", tmp_path, "--resume", *OPEN)
    assert status == 0, out
    catalogue = {line.split()[0] for line in msrward("list")[1].splitlines()}
    ids = case_ids(tmp_path / "results.jsonl")
    assert (len(ids), set(ids)) == (len(catalogue), catalogue)


def case_ids_of_whole_lines(path):
    lines = path.read_text().rpartition("\n")[0].splitlines()
    return [each["id"] for each in map(json.loads, lines) if each["type"] == "case"]


@pytestmark_kvm
def test_a_terminal_gets_colour_and_a_live_line_and_no_color_is_honoured(start):
    def on_terminal(**env):
        master, slave = pty.openpty()
        process = start("check", "-j1", *OPEN, stdout=slave, stderr=slave, env=env)
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

    shown = on_terminal()
    assert "\x1b[32mkernel " in shown
    assert " done, 0 failed, " in shown
    assert "; running " in shown
    assert "\x1b[32m" not in on_terminal(NO_COLOR="1")


@pytestmark_kvm
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


# --- whatever stdout is --------------------------------------------------------------------------


SAVED = "rollback.no_flags_in_slot_0"
COMMANDS = [
    *(["--help"], ["--version"], ["list", "R01"], ["show", "R01"], ["doctor"], ["lab", "config"]),
    *(["check", "--help"], ["check", "--list", "R01"], ["export", "--json", SAVED]),
    *(["export", SAVED], ["lab", "run", "--list", "-k", "x", "R01"]),
]
JUDGING = [
    *(["check", "R01"], ["check", "R01", "-q"], ["check", "R01", "--tap"], ["check", "R01", "-v"]),
    *(["check", "--json", "R01"], ["run", "plumbing.capability_msr_filter"]),
    *(["fuzz", "--examples", "2"], ["fuzz", "--bulk", "--examples", "2"]),
]


@pytest.fixture(params=[*COMMANDS, *JUDGING], ids=" ".join)
def command(request):
    """A command that prints; those that judge only where there is a kernel to judge."""
    if request.param in JUDGING:
        request.getfixturevalue("has_kvm")
    return request.param


def test_a_stdout_that_cannot_be_written_is_one_line_and_status_2(start, command):
    with open("/dev/full", "w") as full:
        process = start(*command, stdout=full)
        _, err = process.communicate(timeout=60)
    assert_one_clear_line((process.returncode, "", err), "No space left on device")
    process = start(*command, preexec_fn=lambda: os.close(1))
    _, err = process.communicate(timeout=60)
    assert_one_clear_line((process.returncode, "", err), "stdout is closed")


def test_a_closed_stdin_and_stderr_do_no_harm(start, tmp_path):
    def close():
        os.close(0)
        os.close(2)

    process = start("list", "R01", preexec_fn=close)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out


# --- one line, whatever the words are ------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *(["check", "--json=--", "R01"], ["check", "--output=--", "R01"], ["list", "a\nb"]),
        *(["list", "\x1b[2J"], ["check", "--timeout=a\nb"], ["show", "a\nb"], ["no\nsuch"]),
        *(["run", "/dev/zero"], ["diff", "/dev/zero", "/dev/zero"], ["diff", "/proc", "a\nb"]),
        *(["lab", "run", "-k", "/dev/zero"], ["lab", "matrix", "--kernels=x", "-o", "/proc/x"]),
        *(["lab", "matrix", "--kernels=x", "-o", "/proc"], ["docs", "/proc/x"]),
    ],
    ids=repr,
)
def test_odd_words_are_one_line_of_complaint(msrward, command):
    answer = msrward(*command)
    assert_one_clear_line(answer)
    assert "Errno" not in answer[2] and "\x1b" not in answer[2]


def test_the_example_of_the_help_is_a_case(msrward):
    import re

    _, out, _ = msrward("check", "--help")
    (glob,) = re.findall(r"'(\w+\.\*)'", " ".join(out.split()))
    assert msrward("list", glob)[0] == 0
