"""The supervision of an emulator, with shell scripts in the place of the emulator."""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vmm.lab.errors import LabError
from vmm.lab.machines import emulation
from vmm.lab.machines.console import Console, Records
from vmm.lab.machines.emulation import Command, Listener, run


def script(text):
    return Command(("sh", "-c", text))


def go(tmp_path, text, timeout=20.0):
    console, records = Console(), Records()
    return run(script(text), tmp_path, console, records, timeout), console, records


def alive(pid):
    """Whether a process exists and is no zombie; one that was killed may take a moment to go."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z"):
                return False
        except OSError:
            return False
        time.sleep(0.02)
    return True


def test_the_end_of_the_records_ends_the_emulator(tmp_path):
    text = "printf 'kvm 1.0\\n1 2 0 hi\\nend 0 1 2.0\\n' >ttyS1; echo $$ >pid; exec sleep 1000"
    went, _, records = go(tmp_path, text)
    assert (records.status, records.lines, went.expired) == (0, ["hi"], False)
    assert went.boot_seconds is not None


def test_nothing_is_left_running(tmp_path):
    go(tmp_path, "sleep 1000 & echo $! >child; echo $$ >pid; printf 'nokvm\\n' >ttyS1; wait")
    for name in ("pid", "child"):
        assert not alive(int((tmp_path / name).read_text()))


def test_output_before_the_exit_is_not_lost(tmp_path):
    went, console, _ = go(tmp_path, "echo oops >ttyS0; echo firmware missing; exit 3")
    assert console.tail == ("oops",)
    assert went.said.strip() == "firmware missing"
    assert not went.expired


@pytest.mark.parametrize("end", ["printf 'nokvm\\n' >ttyS1; touch over; exec sleep 1000", "exit 3"])
def test_a_long_output_before_the_end_is_not_lost(tmp_path, end):
    """A terminal gives 4 KiB a read, so much is still to come when we see the end."""

    def wait_for_the_end():
        while not (tmp_path / "over").exists() and alive(int((tmp_path / "pid").read_text())):
            time.sleep(0.001)

    (tmp_path / "all").write_text("".join(f"line {number}\n" for number in range(1000)))
    console = Console()
    went = run(
        script(f"echo $$ >pid; cat all >ttyS0; cat all; {end}"),
        tmp_path,
        console,
        Records(),
        20.0,
        listener=Listener(tick=wait_for_the_end),
    )
    assert went.said.split()[-1] == console.tail[-1].split()[-1] == "999"


def test_a_deadline_ends_it(tmp_path):
    went, _, records = go(tmp_path, "exec sleep 1000", timeout=0.3)
    assert went.expired
    assert records.status is None


def test_a_blocked_signal_stays_outside(tmp_path):
    """It is blocked in the emulator, whatever handler that sets up, and not in us."""
    handles = "trap 'echo handled' ALRM; kill -ALRM $$; echo went on; printf 'nokvm\\n' >ttyS1"
    said = [
        run(replace(script(handles), blocked=blocked), tmp_path, Console(), Records(), 20.0).said
        for blocked in (frozenset(), frozenset({signal.SIGALRM}))
    ]
    assert [text.split() for text in said] == [["handled", "went", "on"], ["went", "on"]]
    assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_hours_in_which_nobody_ran_are_not_its_deadline(tmp_path, monkeypatch):
    """A laptop that slept, a paused VM: the clock went on, and neither we nor the emulator did."""
    slept, now = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + slept[0])

    def sleep():
        if not slept[0]:
            slept[0] = 36000.0
            (tmp_path / "woken").touch()

    text = "until [ -e woken ]; do sleep 0.01; done; printf 'nokvm\\n' >ttyS1; exec sleep 1000"
    console, records = Console(), Records()
    listener = Listener(tick=sleep)
    went = run(script(text), tmp_path, console, records, 600.0, listener=listener)
    assert not went.expired
    assert records.no_kvm


def test_a_panic_ends_it(tmp_path):
    went, console, _ = go(tmp_path, "echo '---[ end Kernel panic ]---' >ttyS0; exec sleep 1000")
    assert console.panicked
    assert not went.expired


HAS_SETPRIV = shutil.which("setpriv") is not None


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGINT,
        signal.SIGTERM,
        pytest.param(
            signal.SIGKILL, marks=pytest.mark.skipif(not HAS_SETPRIV, reason="no setpriv here")
        ),
    ],
)
def test_an_interrupted_or_killed_msrward_leaves_no_emulator(tmp_path, how):
    program = (
        "import signal, sys; from pathlib import Path; from vmm.lab.machines.emulation import *\n"
        "from vmm.conformance.host.interrupts import terminable\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "command = Command(('sh', '-c', 'echo $$ >pid.new; mv pid.new pid; exec sleep 1000'))\n"
        "with terminable(): run(command, Path(sys.argv[1]), Console(), Records(), 60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, tmp_path], stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists():
        assert parent.poll() is None
        time.sleep(0.01)
    parent.send_signal(how)
    assert parent.wait(20) != 0
    assert not alive(int((tmp_path / "pid").read_text()))


def test_without_a_pseudo_terminal_it_says_what_to_mount(tmp_path, monkeypatch):
    def refuse():
        raise OSError("out of pty devices")

    monkeypatch.setattr(emulation.pty, "openpty", refuse)
    with (
        pytest.raises(LabError, match="mount -t devpts devpts /dev/pts"),
        emulation._emulator(emulation.Command(("true",)), tmp_path),
    ):
        pass
