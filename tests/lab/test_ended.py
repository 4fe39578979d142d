"""Who ends a command ends all that it has started: make or a compiler, and what is under it."""

import functools
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path

import pytest
from told import DEADLINE, STAND_IN, Told, ended

from vmm.conformance.host.interrupts import terminable
from vmm.lab import alone, processes, workers
from vmm.lab.errors import LabError
from vmm.lab.kernels.selftests import CONTROL, SELFTESTS
from vmm.lab.mutants.source import load

SCRIPTS = Path(__file__).parents[2] / "scripts"
CASE = "rollback.bitmap_lost_in_slot_0"


@pytest.fixture
def told(tmp_path, monkeypatch, cache_root):
    """A ``make`` that never ends, first of all on PATH, and where it tells that it has begun."""
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text(STAND_IN)
    make.chmod(make.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{make.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    return Told(tmp_path / "told")


@pytest.fixture
def tree(tmp_path):
    """What is taken for a kernel's source: two commits of all that the commands look for."""
    place = tmp_path / "source"
    for mutant in load():
        for change in mutant.changes:
            file = place / change.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    first = load()[0].changes
    for name in {change.file for change in first}:
        (place / name).write_text("".join(each.old for each in first if each.file == name))
    control = place / SELFTESTS / "x86" / f"{CONTROL}.c"
    control.parent.mkdir(parents=True)
    for file in (place / "Kconfig", control):
        file.touch()
    git = ("git", "-C", place, "-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "init", "-q", place], check=True)
    for _ in range(3):
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "."], check=True)
    return place


def command(name, tree, kernel):
    """Return the words of a command that comes to ``make``."""
    vmm = (sys.executable, "-P", "-m", "vmm")
    search = ("bisect", CASE, "--tree", tree, "--good=HEAD~2", "--bad=HEAD", "--build=make")
    out, make = f"-o{tree.parent / 'records'}", tree.parent / "bin" / "make"
    return {
        "mutants": (*vmm[:3], "vmm.cli.mutants", "--no-control", "--source", tree, load()[0].name),
        "selftests": (*vmm[:3], "vmm.cli.selftests", "--source", tree, "--kernel", kernel),
        "bisect": (*vmm, *search, out),
        "bisect -j2": (*vmm, *search, out, "-j2"),
        "exports": (*vmm[:3], "vmm.cli.exports", "--cc", make, CASE.replace("slot_0", "slot_?")),
        "bisect-step": (*vmm, "bisect-step", CASE, "--tree", tree, "--build=make"),
    }[name]


@pytest.mark.parametrize(
    ("name", "how", "status"),
    [
        ("mutants", signal.SIGTERM, 130),
        ("mutants", signal.SIGINT, 130),
        ("selftests", signal.SIGTERM, 130),
        ("bisect", signal.SIGTERM, 130),
        ("bisect", signal.SIGINT, 130),
        ("bisect -j2", signal.SIGTERM, 130),
        ("exports", signal.SIGTERM, 130),
        ("exports", signal.SIGINT, 130),
        ("bisect-step", signal.SIGTERM, 125),
        ("bisect-step", signal.SIGINT, 125),
    ],
)
def test_a_command_that_is_ended_leaves_nothing_running(
    request, told, tree, tmp_path, bzimage, name, how, status
):
    if name == "exports":
        request.getfixturevalue("has_kvm")
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(bzimage())
    with subprocess.Popen(
        command(name, tree, kernel),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        children = told.children(process, 2 if name in ("bisect -j2", "exports") else 1)
        process.send_signal(how)
        _, err = process.communicate(timeout=DEADLINE)
    assert ended(children)
    assert process.returncode == status
    assert "Traceback" not in err


CAN = os.geteuid() == 0 and os.path.exists("/dev/kvm")


@pytest.mark.skipif(not CAN, reason="scripts/distros needs root and /dev/kvm")
@pytest.mark.parametrize("stage", ["debootstrap", "unshare"])
def test_distros_leaves_nothing_running_and_no_half_system(told, tmp_path, cache_root, stage):
    make = tmp_path / "bin" / "make"
    for name in ("debootstrap", stage):
        shutil.copy(make, make.with_name(name))
    if stage == "unshare":  # a system that has been made before
        (cache_root / "distros" / "sid").mkdir(parents=True)
    with subprocess.Popen(
        [SCRIPTS / "distros", "sid"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        children = told.children(process, 1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE)
    assert ended(children)
    assert process.returncode == 130
    assert not list((cache_root / "distros").glob("run.*"))


@pytest.mark.skipif(not CAN, reason="scripts/distros needs root and /dev/kvm")
def test_distros_that_is_told_again_while_it_ends_still_waits_for_its_own(told, tmp_path):
    """As timeout(1) does it."""
    go = tmp_path / "go"
    os.mkfifo(go)
    slow = f"""#!/bin/sh
trap 'echo $$ >"$TOLD"; read _ <{go}; exit' TERM
echo $$ >"$TOLD"
while :; do sleep 0.1; done
"""
    program = tmp_path / "bin" / "debootstrap"
    program.write_text(slow)
    program.chmod(0o755)
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([SCRIPTS / "distros", "sid"], start_new_session=True, **out) as process:
        begun = told.children(process, 1)
        process.send_signal(signal.SIGTERM)
        ending = told.children(process, 1)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        go.write_text("\n")
        assert process.wait(DEADLINE) == 130
    assert ended(begun) and ended(ending)


def _wait_for_ever(began):
    began.write_text("")  # a FIFO: it is read
    signal.pause()


def _wait_and_answer(began):
    try:
        _wait_for_ever(began)
    except KeyboardInterrupt:
        return "what was judged until then"


def _wait_and_fail(began):
    try:
        _wait_for_ever(began)
    except KeyboardInterrupt:
        raise LabError("interrupted") from None


@pytest.mark.parametrize("judge", [_wait_for_ever, _wait_and_answer, _wait_and_fail])
def test_a_process_of_a_pool_that_is_told_to_end_does_and_waits_for_no_more_work(tmp_path, judge):
    others, began = set(active_children()), tmp_path / "began"
    os.mkfifo(began)
    with processes.pool(2) as pool:
        answer = pool.submit(processes.interruptibly, functools.partial(judge, began))
        began.read_text()
        for child in set(active_children()) - others:
            child.terminate()
        with pytest.raises(BrokenProcessPool):
            answer.result(DEADLINE)


def test_what_does_not_end_when_it_is_told_is_killed(tmp_path):
    told = Told(tmp_path / "told")
    deaf = ("sh", "-c", f"trap '' TERM; {STAND_IN.replace('$TOLD', str(tmp_path / 'told'))}")
    with (
        pytest.raises(KeyboardInterrupt),
        processes.started(deaf, patience=0.1, stderr=subprocess.PIPE) as process,
    ):
        process._sigint_wait_secs = 0  # as if the machine was so busy that it is over
        children = told.children(process, 1)
        raise KeyboardInterrupt
    assert ended(children)
    assert process.returncode == -signal.SIGKILL


def test_what_ends_by_itself_is_told_to_nobody():
    ran = processes.run(["sh", "-c", "echo said; echo complained >&2; exit 3"])
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "said\n", "complained\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_to_end_while_a_command_begins_takes_it_along(monkeypatch, number):
    """A make may say that it runs before Popen has returned to us."""
    begun = []

    class Told(subprocess.Popen):
        def __init__(self, *arguments, **how):
            super().__init__(*arguments, **how)
            begun.append(os.pidfd_open(self.pid))
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Told)
    with pytest.raises(KeyboardInterrupt), terminable(), processes.started(["sleep", "1000"]):
        pytest.fail("it went on")
    assert len(begun) == 1
    assert ended(begun)


def _dies():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_pool_that_broke_has_no_thread_beside_the_forks_of_the_next(monkeypatch):
    """From Python 3.12 on that is a DeprecationWarning, and it may lock up the child."""
    before, left = threading.active_count(), []

    @contextmanager
    def pool(jobs):
        left.append(threading.active_count() - before)
        with ProcessPoolExecutor(jobs, get_context("fork")) as executor:
            tidy = executor.shutdown
            executor.shutdown = lambda **how: (left.append("over"), tidy(**how))
            yield executor

    monkeypatch.setattr(processes, "pool", pool)
    with workers.here(2) as crew:
        (died,) = crew.first_of([crew.submit(_dies)])
        with pytest.raises(alone.Died):
            crew.result(died)
        assert crew.result(crew.submit(os.getppid)) == os.getpid()
        assert left == [0, "over", 0]
