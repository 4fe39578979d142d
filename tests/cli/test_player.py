"""The player as a user runs it: a tape, a trace, a verdict."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vmm.conformance.cases import CASES

BIN = Path(sys.executable).parent


def run(*command, data=b""):
    return subprocess.run([BIN / command[0], *command[1:]], input=data, capture_output=True)


@pytest.fixture(scope="module")
def trace(has_kvm, has_userfaultfd, tmp_path_factory):
    if not (BIN / "msrward-player").exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    tape = tmp_path_factory.mktemp("trace") / "some.tape"
    made = run("msrward", "tape", "stalled.*", "-o", tape)
    assert (made.returncode, made.stdout) == (0, b"")
    played = run("msrward-player", "-j2", tape)
    assert (played.returncode, played.stderr) == (0, b"")
    return played.stdout


def judge(trace, tmp_path, *globs):
    return run("msrward", "judge", "-", *globs, "-o", tmp_path / "records", data=trace)


def test_no_case_begins_before_it_is_known_what_the_host_lacks(trace):
    stalled = sum(case.id.startswith("stalled.") for case in CASES)
    lines = [line.split() for line in trace.splitlines()]
    needs = int(lines[-1][1]) - stalled
    first = next(at for at, line in enumerate(lines) if line[:2] == [b"begin", b"%d" % needs])
    assert needs > 0
    assert [line[1] for line in lines[:first] if line[0] == b"done"] == [
        b"%d" % need for need in range(needs)
    ]


def test_the_verdict_is_that_of_a_check(trace, tmp_path):
    judged = judge(trace, tmp_path, "stalled.*")
    assert judged.returncode == 0, judged
    assert b" passed, 0 failed, " in judged.stdout.splitlines()[-1]
    assert (tmp_path / "records" / "results.jsonl").exists()


def test_a_trace_of_other_cases_is_no_verdict(trace, tmp_path):
    judged = judge(trace, tmp_path, "parked.*")
    assert judged.returncode == 2 and judged.stderr.count(b"\n") == 1
    assert b"another tape" in judged.stderr


def test_a_trace_that_is_cut_is_no_verdict(trace, tmp_path):
    judged = judge(trace[: len(trace) // 2], tmp_path, "stalled.*")
    assert judged.returncode == 2 and b"the trace stops after " in judged.stderr


def test_a_trace_of_all_cases_without_its_last_line_is_no_verdict(trace, tmp_path):
    lines = trace.splitlines(keepends=True)
    assert lines[-1].startswith(b"over ")
    judged = judge(b"".join(lines[:-1]), tmp_path, "stalled.*")
    assert judged.returncode == 2
    assert b" cases, and not its last line, which says that it is whole" in judged.stderr


def test_a_kernel_that_saw_something_else_does_not_conform(trace, tmp_path):
    lines = trace.splitlines(keepends=True)
    at = next(at for at, line in enumerate(lines) if line.endswith(b" stalled\n"))
    lines[at] = lines[at].replace(b"stalled", b"blocked")
    judged = judge(b"".join(lines), tmp_path, "stalled.*")
    assert judged.returncode == 1 and b" passed, 0 failed, " not in judged.stdout


@pytest.mark.parametrize("limit", range(6, 15, 2))
def test_too_few_descriptors_make_no_skip(trace, tmp_path, limit):
    run("msrward", "tape", "stalled.*", "-o", tmp_path / "tape")
    command = f'ulimit -n {limit} && exec "$0" "$1"'
    words = ["sh", "-c", command, BIN / "msrward-player", tmp_path / "tape"]
    played = subprocess.run(words, capture_output=True)
    judged = judge(played.stdout, tmp_path, "stalled.*")
    assert judged.returncode == 2
    assert played.returncode == 2 or b" 0 failed, 0 skipped, " in judged.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-j0", "x"),
        ("-j99", "x"),
        ("-j4x", "x"),
        ("--nonesuch", "x"),
        ("a", "b"),
        ("/nonesuch",),
    ],
)
def test_the_player_says_what_is_wrong(arguments):
    if not (BIN / "msrward-player").exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    ran = run("msrward-player", *arguments)
    assert ran.returncode == 2 and ran.stdout == b"" and ran.stderr


@pytest.mark.parametrize(
    ("redirected", "why"),
    [
        (">/dev/full", "No space left on device"),
        (">&-", "Bad file descriptor"),
        ("| :", "Broken pipe"),
    ],
)
def test_a_trace_that_cannot_be_written_ends_the_player_in_one_line(
    has_kvm, tmp_path, redirected, why
):
    if not (BIN / "msrward-player").exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    run("msrward", "tape", "matching.*", "stalled.*", "-o", tmp_path / "some.tape")
    script = f'set -o pipefail; "{BIN}/msrward-player" -j2 "{tmp_path}/some.tape" {redirected}'
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    expected = f"msrward-player: the trace cannot be written: {why}\n"
    assert (ran.returncode, ran.stderr) == (2, expected)


def test_too_few_descriptors_for_its_workers_are_said_to_be(has_kvm, tmp_path):
    if not (BIN / "msrward-player").exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    run("msrward", "tape", "stalled.*", "-o", tmp_path / "some.tape")
    script = f'ulimit -n 8; "{BIN}/msrward-player" -j16 "{tmp_path}/some.tape"'
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2 and "over " not in ran.stdout
    assert ran.stderr == (
        "msrward-player: pipes for a worker (-j asks for fewer, ulimit -n allows more):"
        " Too many open files\n"
    )


def test_the_player_helps():
    if not (BIN / "msrward-player").exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    helped = run("msrward-player", "--help")
    assert helped.returncode == 0 and b"usage: msrward-player [-jN]" in helped.stdout


def test_the_player_needs_no_library_and_is_small():
    player = BIN / "msrward-player"
    if not player.exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    assert player.stat().st_size < 1_500_000
    assert b"/lib64/ld-linux" not in player.read_bytes()


@pytest.mark.parametrize("own", [["--own"], []])
def test_who_plays_a_case_is_told_where_the_kernel_calls_him_so(has_kvm, tmp_path, own):
    if not (BIN / "msrward-player").exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    run("msrward", "tape", "matching.*", "-o", tmp_path / "some.tape")
    said = run("msrward-player", *own, tmp_path / "some.tape").stdout.decode().splitlines()
    begun = [line.split()[2:] for line in said if line.startswith("begin ")]
    assert len(begun) > 40
    if own:
        assert 0 < len({int(pid) for (pid,) in begun}) < len(begun) / 2, "a worker plays many"
    else:
        assert begun == [[]] * len(begun)


def test_a_baseline_makes_the_verdict_one_on_what_changed(trace, tmp_path):
    bad = trace.replace(b" stalled\n", b" blocked\n")
    for name, data in (("good", trace), ("bad", bad)):
        run("msrward", "judge", "-", "stalled.*", "-o", tmp_path / name, data=data)

    def since(name, data, *words):
        where = ("-o", tmp_path / "now", "--baseline", tmp_path / name)
        return run("msrward", "judge", "-", "stalled.*", *where, *words, data=data)

    worse, same, better = since("good", bad), since("bad", bad), since("bad", trace)
    assert (worse.returncode, same.returncode, better.returncode) == (1, 0, 0)
    assert b"\n  newly failing: " in worse.stdout and b"fails what it did not in" in worse.stdout
    assert b"no verdict changed" in same.stdout and b" 0 failed, " in same.stdout
    assert b"\n  newly passing: " in better.stdout and b" passed unexpectedly" in better.stdout
    assert b"# newly passing: stalled." in since("bad", trace, "--tap").stdout


def test_a_baseline_that_is_none_is_named_in_one_line(tmp_path):
    (tmp_path / "results.jsonl").touch()
    for place, why in ((tmp_path, b"is empty"), (tmp_path / "nowhere", b"cannot read")):
        judged = run("msrward", "judge", "-", "--baseline", place)
        assert judged.returncode == 2 and judged.stderr.count(b"\n") == 1
        assert why in judged.stderr


def test_two_reports_that_both_want_stdout_are_refused():
    judged = run("msrward", "judge", "-", "--tap", "--json")
    assert (judged.returncode, judged.stdout) == (2, b"")
    assert b"--tap and --json both want stdout" in judged.stderr


def test_a_worker_that_is_stopped_at_the_end_holds_nobody_up(has_kvm, has_userfaultfd, tmp_path):
    """It is stopped when it has done its last case, while the supervisor is stopped too."""
    player = BIN / "msrward-player"
    if not player.exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    made = run("msrward", "tape", "parked.install_waits", "-o", tmp_path / "some.tape")
    assert made.returncode == 0
    command = [player, "-j1", tmp_path / "some.tape"]
    playing = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    too_long = threading.Timer(30, playing.kill)
    too_long.start()
    try:
        lines = iter(playing.stdout.readline, "")
        last = next(int(line.split()[3]) for line in lines if line.startswith("msrward-p")) - 1
        assert f"begin {last}\n" in lines
        children = Path(f"/proc/{playing.pid}/task/{playing.pid}/children")
        worker = int(children.read_text())
        wait_until(lambda: len(os.listdir(f"/proc/{worker}/task")) > 1)  # a vCPU is parked
        os.kill(playing.pid, signal.SIGSTOP)
        wait_until(lambda: is_idle(worker))
        os.kill(worker, signal.SIGSTOP)
        os.kill(playing.pid, signal.SIGCONT)
        assert "".join(lines).splitlines()[-1].startswith("over ")
        assert playing.wait() == 0
        assert not Path(f"/proc/{worker}").exists()
    finally:
        too_long.cancel()
        playing.kill()
        playing.wait()


def is_idle(worker):
    """Say whether the process sleeps in read(2), which a player's worker does between cases."""
    return Path(f"/proc/{worker}/syscall").read_text().startswith("0 ")


def wait_until(condition):
    """Wait for a state of the kernel that has no event: a process asleep in read(2)."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
