"""A run that is stopped for a while goes on where it was: the time does not count."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

STOPPED = 7.0
LIMIT = 5
"""A stop that is longer than the limit of a case."""

THEMES = ("running.*", "parked.*")


@contextmanager
def gone_afterwards(run):
    """Within: what ends this early leaves nobody behind, stopped or not."""
    try:
        yield
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.usefixtures("has_kvm")
@pytest.mark.parametrize("whom", ["everybody", "the workers"])
def test_a_stopped_run_blames_nobody(tmp_path, whom):
    command = [sys.executable, "-P", "-m", "vmm", "check", "-o", tmp_path, f"--timeout={LIMIT}"]
    with (
        subprocess.Popen(
            [*command, *THEMES],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as run,
        gone_afterwards(run),
    ):
        file = tmp_path / "results.jsonl"
        while not file.exists() or file.read_text().count('"case"') < 5:
            assert run.poll() is None, "it ended before it could be stopped"
        pids = [run.pid] if whom == "everybody" else []
        children = f"/proc/{run.pid}/task/{run.pid}/children"
        with open(children) as listed:
            pids += [int(pid) for pid in listed.read().split()]
        for signum in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                with suppress(ProcessLookupError):  # the child of a probe, gone by now
                    os.kill(pid, signum)
            time.sleep(STOPPED * (signum == signal.SIGSTOP))
        run.communicate(timeout=120)
    cases = [json.loads(line) for line in file.read_text().splitlines()]
    bad = [case for case in cases if case.get("verdict") in ("FAIL", "TIMEOUT", "ERROR")]
    shown = [
        {k: case.get(k) for k in ("id", "verdict", "error", "step", "action", "seen")}
        for case in bad
    ]
    assert not bad, shown
    assert run.returncode == 0
