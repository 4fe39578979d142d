"""A guest that plays a tape, seen from outside; this host's own player stands for the machine."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmm.cli import main
from vmm.conformance.cases import CASES
from vmm.conformance.host.told import lacks_of
from vmm.conformance.judge.check import Trouble
from vmm.conformance.judge.selection import Chosen
from vmm.conformance.records.saved import load
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.view import View
from vmm.lab.errors import LabError
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.runs import check, spread
from vmm.lab.runs.order import Inner, Order

PLAYER = Path(sys.executable).with_name("msrward-player")
SOME = [case for case in CASES if case.id.startswith(("slots.", "quirks.short"))][:8]
RACE = next(case for case in CASES if case.id.startswith("stalled."))


class Emulator:
    title = "qemu 11"
    accelerated = False


class Guest:
    """Plays each tape here; ``wrong`` says which text is turned into which, boot by boot."""

    def __init__(self):
        self.tapes, self.wrong, self.dies_after = [], [], None
        self.dies_with = b"nothing"
        self.is_late_once = False

    def play(self, kernel, vendor, playing, *, timeout, append, cpu, listener):
        self.tapes.append(playing)
        ran = subprocess.run([PLAYER, "-"], input=playing.tape, capture_output=True, timeout=120)
        old, new = self.wrong.pop(0) if self.wrong else ("", "")
        listener.start(1.0)
        if self.dies_with in playing.tape:
            return LabResult(Outcome.PANIC, None, (), ("oops",), 1.0, 2.0, "q", 1, "it died")
        lines = ran.stdout.decode().splitlines()
        if self.is_late_once:
            at = [n for n, line in enumerate(lines) if line.startswith("done")][-3]
            lines[at] = re.sub(r"^(done \d+ \d+) ok.*", r"\1 timeout", lines[at])
        for number, line in enumerate(lines):
            if self.dies_after is not None and line.startswith("done"):
                self.dies_after -= 1
                if self.dies_after < 0:
                    return LabResult(
                        Outcome.PANIC, None, (), ("oops",), 1.0, 2.0, "q", 1, "it died"
                    )
            listener.line(line.replace(old, new) if old and line.startswith("text") else line)
            assert number < 10_000
        return LabResult(Outcome.DONE, ran.returncode, (), ("tail",), 1.0, 2.0, "qemu")


@pytest.fixture
def guest(has_kvm, monkeypatch):
    if not PLAYER.exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    guest = Guest()
    monkeypatch.setattr(machine, "play", guest.play)
    monkeypatch.setattr(machine, "emulator_of", lambda vendor: Emulator)
    return guest


def order_of(cases, tmp_path, **how):
    kernel = Kernel("debian:6.6", "6.6.6", tmp_path)
    return Order(kernel, "svm", Chosen(cases, len(CASES)), **how)


def verdicts(directory):
    return {name: record["verdict"] for name, record in load(directory).cases.items()}


def test_what_is_played_is_judged_and_filed(guest, tmp_path, capsys):
    assert check.check(order_of(SOME, tmp_path), View(), tmp_path / "o") == 0
    assert {*verdicts(tmp_path / "o").values()} == {Verdict.PASS}
    saved = load(tmp_path / "o")
    assert saved.host["lab"]["executor"] == "player" and saved.end["lab"]["outcome"] == "done"
    assert saved.host["release"] and len(saved.cases) == len(SOME) and len(guest.tapes) == 1
    assert "0 failed" in capsys.readouterr().out


WRONG = ("FILTER", "UNKNOWN")


def test_what_fails_is_played_once_more_alone(guest, tmp_path):
    guest.wrong = [WRONG, WRONG]
    assert check.check(order_of(SOME, tmp_path), View(), tmp_path / "o") == 1
    failed = [name for name, verdict in verdicts(tmp_path / "o").items() if verdict == Verdict.FAIL]
    assert failed and len(guest.tapes) == 2 and guest.tapes[1].jobs == 1
    assert all(load(tmp_path / "o").cases[name]["again"]["verdict"] == "FAIL" for name in failed)


def test_what_does_not_repeat_is_unsteady(guest, tmp_path):
    guest.wrong = [WRONG]
    assert check.check(order_of(SOME, tmp_path), View(), tmp_path / "o") == 2
    assert Verdict.UNSTEADY in verdicts(tmp_path / "o").values()
    assert Verdict.FAIL not in verdicts(tmp_path / "o").values()


def test_under_repeat_each_is_played_so_often_and_what_fails_at_times_is_flaky(
    guest, tmp_path, capsys
):
    guest.is_late_once = True
    order = order_of(SOME, tmp_path, options=Inner(repeat=3))
    assert check.check(order, View(), tmp_path / "now") == 2
    saved = load(tmp_path / "now")
    (odd,) = [each for each in saved.cases.values() if each["verdict"] is Verdict.UNSTEADY]
    assert (odd["first"], odd["repeats"]) == ("TIMEOUT", {"PASS": 2, "TIMEOUT": 1})
    rest = [each["repeats"] for name, each in saved.cases.items() if name != odd["id"]]
    assert rest == [{"PASS": 3}] * (len(SOME) - 1)
    assert saved.run["repeat"] == 3 and saved.run["cases"] == len(SOME)
    assert len(guest.tapes) == 1, "it was judged often enough"
    kept = map(json.loads, (tmp_path / "now" / "results.jsonl").read_text().splitlines())
    types = [(each["type"], each.get("id")) for each in kept]
    assert types[-3:] == [("first", odd["id"]), ("case", odd["id"]), ("end", None)]
    said = capsys.readouterr().out
    assert "each case is judged 3 times" in said
    assert "judged 3 times: 2 PASS, 1 TIMEOUT" in said
    guest.is_late_once = False
    assert check.check(order_of(SOME, tmp_path), View(), tmp_path / "old") == 0
    capsys.readouterr()
    main(["diff", "--since", str(tmp_path / "old"), str(tmp_path / "now")])
    told = capsys.readouterr().out
    assert f"flaky {odd['id']}" in told and "new " not in told.replace("0 new", "")


def test_under_repeat_what_fails_every_time_is_played_once_more_alone(guest, tmp_path):
    guest.wrong = [WRONG, WRONG]
    order = order_of(SOME, tmp_path, options=Inner(repeat=2))
    assert check.check(order, View(), tmp_path / "o") == 1
    failed = [c for c in load(tmp_path / "o").cases.values() if c["verdict"] is Verdict.FAIL]
    assert failed and all(each["repeats"] == {"FAIL": 2} for each in failed)
    assert all(each["again"]["verdict"] == "FAIL" for each in failed)
    alone = guest.tapes[1].tape
    assert all(alone.count(each["id"].encode()) == 1 for each in failed)


def test_a_search_asks_once(guest, tmp_path):
    guest.wrong = [WRONG]
    assert check.check(order_of(SOME, tmp_path, again=False), View(), tmp_path / "o") == 1
    assert len(guest.tapes) == 1


def test_a_guest_that_dies_is_no_verdict_and_goes_on_later(guest, tmp_path):
    guest.dies_after = 3
    order = order_of(SOME, tmp_path)
    with pytest.raises(Trouble, match=r"it died after 3 of 8 cases, while [a-z0-9_.]+ ran; "):
        check.check(order, View(), tmp_path / "o")
    guest.dies_after = None
    assert check.check(order, View(), tmp_path / "o", resume=True) == 0
    assert len(verdicts(tmp_path / "o")) == len(SOME)


def test_what_the_machine_lacks_is_not_tried(guest, tmp_path, monkeypatch):
    monkeypatch.setattr(Order, "lacks", {"userfaultfd": "it would end the emulator"})
    assert check.check(order_of([*SOME, RACE], tmp_path), View(), tmp_path / "o") == 0
    record = load(tmp_path / "o").cases[RACE.id]
    assert (record["verdict"], record["reason"]) == (Verdict.SKIP, "it would end the emulator")
    assert RACE.id.encode() not in guest.tapes[0].tape


def test_who_does_the_cases(guest, tmp_path):
    unplayable = replace(SOME[0], id="a.b", needs=("moonlight",))
    assert order_of(SOME, tmp_path).is_played
    assert not order_of([*SOME, unplayable], tmp_path).is_played
    assert not order_of(SOME, tmp_path, executor="python").is_played
    with pytest.raises(LabError, match=r"^1 cases have no form in C yet, the first is a\.b"):
        assert order_of([unplayable], tmp_path, executor="player").is_played


def test_what_a_vendor_lacks_is_read_as_it_is_written():
    assert lacks_of("single_step=Bochs ends;pt=it is none") == {
        "single_step": "Bochs ends",
        "pt": "it is none",
    }
    assert lacks_of("") == {}


def test_machines_side_by_side_are_one_run(guest, tmp_path, capsys):
    assert check.check(order_of(SOME, tmp_path, machines=3), View(), tmp_path / "o") == 0
    tapes = [playing.tape for playing in guest.tapes]
    assert len(tapes) == 3
    for case in SOME:
        assert sum(b"%c%s" % (len(case.id), case.id.encode()) in tape for tape in tapes) == 1
    saved = load(tmp_path / "o")
    assert {*saved.cases} == {case.id for case in SOME} and saved.host["lab"]["machines"] == 3
    assert saved.end["counts"] == {"PASS": len(SOME)} and saved.end["lab"]["outcome"] == "done"
    assert saved.end["lab"]["total_seconds"] == 2.0, "of the slowest, not the sum"
    assert capsys.readouterr().out.count("0 failed") == 1


def test_what_failed_on_one_of_several_machines_is_played_once_more_alone(guest, tmp_path):
    guest.wrong = [WRONG] * 3
    assert check.check(order_of(SOME, tmp_path, machines=2), View(), tmp_path / "o") == 1
    failed = [name for name, verdict in verdicts(tmp_path / "o").items() if verdict == Verdict.FAIL]
    assert failed and len(guest.tapes) == 3 and guest.tapes[2].jobs == 1
    assert all(load(tmp_path / "o").cases[name]["again"]["verdict"] == "FAIL" for name in failed)


def test_one_of_several_machines_dies_and_the_run_goes_on_later(guest, tmp_path):
    guest.dies_with = SOME[1].id.encode()
    order = order_of(SOME, tmp_path, machines=2)
    with pytest.raises(Trouble, match=r"^machine 2 of 2: it died; the console ended with: oops"):
        check.check(order, View(), tmp_path / "o")
    assert {*verdicts(tmp_path / "o")} == {case.id for case in SOME[::2]}
    guest.dies_with = b"nothing"
    assert check.check(order, View(), tmp_path / "o", resume=True) == 0
    assert {*verdicts(tmp_path / "o")} == {case.id for case in SOME}


def test_damage_on_one_of_several_machines_is_no_verdict(guest, tmp_path):
    guest.wrong = [("text", "txet")]
    with pytest.raises(Trouble, match="trace"):
        check.check(order_of(SOME, tmp_path, machines=2), View(), tmp_path / "o")


def test_how_many_machines(guest, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "carried", lambda: 4)
    auto = order_of(SOME, tmp_path, machines=None)
    assert [auto.machines_for(cases) for cases in (1, 399, 400, 799, 2300)] == [1, 1, 2, 3, 4]
    monkeypatch.setattr(spread, "carried", lambda: 64)
    assert auto.machines_for(10_000) == spread.MOST
    assert order_of(SOME, tmp_path).machines_for(2300) == 1, (
        "who boots many kernels has no CPU free"
    )
    monkeypatch.setattr(Emulator, "accelerated", True)
    assert auto.machines_for(2300) == 1
    assert order_of(SOME, tmp_path, machines=2).machines_for(1) == 2
    with pytest.raises(LabError, match=r"^--machines spreads what the player does"):
        check.check(order_of(SOME, tmp_path, machines=2, executor="python"), View(), tmp_path / "o")
