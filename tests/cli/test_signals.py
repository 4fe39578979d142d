"""What a process inherits from who starts it, an agent or a daemon: ignored and blocked signals."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
CASES = ["callers.child_a_filter", "running.compat_install", "reentry.read_before_signal"]
LEFT = {
    "SIGCHLD ignored": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    "all blocked": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()),
}


@pytest.fixture(params=LEFT.values(), ids=LEFT)
def left(request, has_kvm):
    """What the child does between fork and exec."""
    return request.param


@pytest.mark.parametrize("how", [(), ("--both",)])
def test_a_kernel_is_judged_all_the_same(msrward, left, how):
    status, out, err = msrward("check", *how, *CASES, preexec_fn=left)
    assert (status, err) == (0, ""), out
    assert "3 passed" in out


def test_the_player_plays_all_the_same(tmp_path, msrward, left):
    tape, trace = tmp_path / "tape", tmp_path / "trace"
    assert msrward("tape", "-o", tape, *CASES)[0] == 0
    with trace.open("wb") as to:
        subprocess.run(
            [BIN / "msrward-player", tape], stdout=to, check=True, preexec_fn=left, timeout=60
        )
    status, out, _ = msrward("judge", trace, *CASES, "-o", tmp_path / "run")
    assert (status, "3 passed" in out) == (0, True), out


@pytest.mark.parametrize("case", CASES)
def test_a_program_that_was_exported_ends_as_ever(tmp_path, msrward, left, case):
    source, program = tmp_path / "repro.c", tmp_path / "repro"
    assert msrward("export", case, "-o", source)[0] == 0
    subprocess.run(["cc", "-pthread", "-o", program, source], check=True)
    ran = subprocess.run([program], capture_output=True, text=True, preexec_fn=left, timeout=60)
    assert (ran.returncode, ran.stdout[-5:]) == (0, "PASS\n"), ran.stderr


def test_what_is_ignored_on_purpose_stays_ignored(start, has_kvm):
    """As ``nohup`` has it."""
    process = start(
        *("check", "--tap", *CASES),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
