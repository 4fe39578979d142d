"""The command from outside, and where it keeps its state."""

import os
import subprocess
import sys

import pytest

pytest.register_assert_rewrite("complaint")

UNSET = ("NO_COLOR", "PYTHONUNBUFFERED")  # each changes what is tested here


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def start(state):
    """Start ``msrward`` with arguments, ``before`` which are the words of what starts it.

    It is killed if the test leaves it behind.
    """
    started = []

    def start(*args, env=(), before=(), **options):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(
            [*before, sys.executable, "-P", "-m", "vmm", *map(str, args)],
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
