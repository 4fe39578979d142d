"""A mutant that is judged by the player; this host's own stands for the wrong kernel."""

import subprocess
import sys
from pathlib import Path

import pytest

from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.mutants import judging
from vmm.lab.mutants.findings import Fate
from vmm.lab.mutants.source import Mutant

PLAYER = Path(sys.executable).with_name("msrward-player")
KERNEL = Kernel("k", "6.6.6", Path("x"))
MUTANT = Mutant("a.mutant", "A mistake.", ("R15",), ())


class Emulator:
    title, accelerated = "qemu 11", False


@pytest.fixture
def judge(has_kvm, monkeypatch):
    """Judge a kernel in which every text of a trace is turned from one into another."""
    if not PLAYER.exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")

    def judge(old="", new="", dies=False, cases=("slots.*",), **options):
        def play(kernel, vendor, playing, *, timeout, cpu, listener):
            ran = subprocess.run([PLAYER, "-j2", "-"], input=playing.tape, capture_output=True)
            for line in ran.stdout.decode().splitlines():
                if dies and line.startswith("done"):
                    return LabResult(Outcome.PANIC, None, (), ("oops",), 1.0, 2.0, "q", 1, "died")
                listener.line(line.replace(old, new) if line.startswith("text") else line)
            return LabResult(Outcome.DONE, ran.returncode, (), ("tail",), 1.0, 2.0, "qemu")

        monkeypatch.setattr(machine, "play", play)
        monkeypatch.setattr(machine, "emulator_of", lambda vendor: Emulator)
        return judging._boot(MUTANT, KERNEL, cases, judging.Options(**options))

    return judge


def test_a_kernel_that_keeps_its_promises_survives(judge):
    found = judge()
    assert (found.fate, found.killers) == (Fate.SURVIVED, ()) and found.ran > 5


def test_a_wrong_one_is_killed_as_often_as_is_enough(judge):
    found = judge("FILTER", "UNKNOWN", enough=3)
    assert found.fate is Fate.KILLED and len(found.killers) == 3 and found.more
    assert "expected" in found.evidence and "UNKNOWN" in found.evidence
    assert len(judge("FILTER", "UNKNOWN", enough=0).killers) > 3


def test_what_every_kernel_does_wrong_kills_no_mutant(judge):
    """INIT between exit and completion (B37) is open: the unchanged kernel fails there too."""
    after = judge(cases=("init.read_is_not_completed_after_it_a_value",))
    assert (after.fate, after.killers) == (Fate.SURVIVED, ())
    again = ("init.read_is_completed_before_it_a_value",)
    assert judge("FILTER", "UNKNOWN", cases=again).fate is Fate.KILLED


def test_one_that_goes_down_under_the_suite_is_killed(judge):
    assert judge(dies=True).fate is Fate.KILLED


def test_a_trace_that_is_none_says_nothing(judge, monkeypatch):
    def play(kernel, vendor, playing, *, timeout, cpu, listener):
        listener.line("PASS everything")

    judge()
    monkeypatch.setattr(machine, "play", play)
    found = judging._boot(MUTANT, KERNEL, ("slots.*",), judging.Options())
    assert found.fate is Fate.LOST and "does not begin as a trace" in found.reason
