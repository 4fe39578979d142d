"""The ``msrward`` command whatever its streams are: full, closed, or read by nobody."""

import os
import subprocess

import pytest
from complaint import assert_one_clear_line


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


def _without_stdin_and_stderr():
    os.close(0)
    os.close(2)


def test_a_closed_stdin_and_stderr_do_no_harm(start, command):
    process = start(*command, preexec_fn=_without_stdin_and_stderr)
    out, _ = process.communicate(timeout=60)
    assert process.returncode in ((0, 1) if command == ["doctor"] else (0,)), out
    assert out
    assert "Traceback" not in out


def test_what_is_for_a_closed_stderr_does_not_land_on_stdout(start):
    for words in (
        ["show", "nothing.such"],
        ["export", "nothing.such"],
        ["check", "--known", "B99"],
    ):
        process = start(*words, preexec_fn=_without_stdin_and_stderr)
        assert process.communicate(timeout=60)[0] == ""
        assert process.returncode == 2


@pytest.fixture(params=["mount -t tmpfs none", "mount -t proc -o subset=pid proc"])
def without_proc(request):
    """The words before a command that give it no /proc, or one of processes alone."""
    own = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else [])]
    words = [*own, "sh", "-c", f'umount -l /proc; {request.param} /proc && exec "$@"', "sh"]
    try:
        done = subprocess.run([*words, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode:
        pytest.skip(f"no /proc of one's own: {done.stderr.strip()}")
    return words


def test_no_proc_is_said_and_half_a_proc_does(has_kvm, without_proc, start):
    process = start("check", "stalled.*", before=without_proc)
    out, err = process.communicate(timeout=60)
    if "tmpfs" in " ".join(without_proc):
        assert_one_clear_line((process.returncode, out, err), "there is no /proc", "mount it")
    else:
        assert process.returncode == 0, err
        assert out.startswith(f"kernel {os.uname().release} ")


def test_the_doctor_says_what_no_proc_means(without_proc, start):
    process = start("doctor", before=without_proc)
    out, err = process.communicate(timeout=60)
    assert (process.returncode in (0, 1), err) == (True, "")
    assert "lab: memory" in out
