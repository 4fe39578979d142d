"""The ``msrward`` command from outside: what it prints, where, and its exit status."""

import json
import os
import subprocess
import sys

import pytest
from complaint import FEW, assert_one_clear_line


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
        (["check", "--timeout", "1e-9"], ["seconds from 0.1 up"]),
        (["lab", "run", "--timeout", "0.01"], ["seconds from 0.1 up"]),
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


# --- one line, whatever the words are ------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *(["check", "--json=--", "R01"], ["check", "--output=--", "R01"], ["list", "a\nb"]),
        *(["list", "\x1b[2J"], ["check", "--timeout=a\nb"], ["show", "a\nb"], ["no\nsuch"]),
        *(["run", "/dev/zero"], ["diff", "/dev/zero", "/dev/zero"], ["diff", "/proc", "a\nb"]),
        *(["lab", "run", "-k", "/dev/zero"], ["lab", "matrix", "--kernels=x", "-o", "/proc/x"]),
        *(["lab", "matrix", "--kernels=x", "-o", "/proc"], ["docs", "/proc/x"]),
        *(["lab", "matrix", "--kernels=,,"], ["lab", "matrix", "--kernels=x", "--vendors="]),
        ["tape", "-o", "/dev/full", "matching.first_range_wins"],
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
