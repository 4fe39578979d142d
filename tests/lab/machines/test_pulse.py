"""An emulator that does nothing any more ends its boot long before the deadline."""

import pytest

from vmm.lab.machines import machine, pulse
from vmm.lab.machines.console import Console, Records
from vmm.lab.machines.emulation import Command, run
from vmm.lab.machines.machine import Outcome

FROZEN = 0.4
STEPS = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"  # tens of milliseconds of CPU time


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(pulse, "FROZEN", FROZEN)


def judged(text, work, timeout):
    console, records = Console(), Records()
    went = run(Command(("sh", "-c", text)), work, console, records, timeout)
    return went, machine._judge(console, records, went)


def test_one_that_does_nothing_is_ended_and_named(tmp_path):
    went, (outcome, why) = judged("printf 'kvm 1\\n' >ttyS1; exec sleep 1000", tmp_path, 60.0)
    assert went.frozen and not went.expired
    assert went.total_seconds < 30
    assert outcome is Outcome.LOST
    assert why == f"the emulator froze: it used no CPU for {FROZEN:.0f} s"


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(f"while :; do {STEPS}; sleep 0.05; done", id="works now and then"),
        pytest.param("while :; do :; done", id="works always"),
        pytest.param("kill -STOP $$", id="is stopped"),
    ],
)
def test_one_that_works_or_is_stopped_has_its_whole_time(tmp_path, what):
    went, (outcome, _) = judged(f"printf 'kvm 1\\n' >ttyS1; {what}", tmp_path, 6 * FROZEN)
    assert went.expired and not went.frozen
    assert outcome is Outcome.TIMEOUT
