"""One run in a guest, seen from outside; what stands for the boot says so."""

import json
from dataclasses import replace

import pytest

from vmm.conformance.judge.check import Trouble
from vmm.conformance.judge.selection import Chosen
from vmm.conformance.language import codec
from vmm.conformance.language.case import Case
from vmm.conformance.records.baseline import Baseline
from vmm.conformance.records.results import ResultsError
from vmm.conformance.records.saved import load
from vmm.conformance.report.rerun import of_run
from vmm.conformance.report.view import View
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.runs import check
from vmm.lab.runs.order import CHECK, Inner, Order, told

IDS = ("plumbing.a", "plumbing.b", "plumbing.c")
CHOSEN = Chosen([Case(name, "S.", "R01", (), ()) for name in IDS], 3, ())
HOST = {"release": "6.6.6", "hostname": "lab", "vendor_module": "kvm_amd"}


class Emulator:
    title = "qemu 11"
    accelerated = False


class Guest:
    """Stands for a boot: runs what it is asked for until ``dies_before``; ``fails`` fails.

    ``dies_after`` has failed once when the guest dies.
    """

    def __init__(self):
        self.asked, self.dies_before, self.fails, self.host = [], None, None, HOST
        self.dies_after = None

    def boot(self, kernel, vendor, argv, *, timeout, append, cpu, files, listener):
        names = [name for name in IDS if name in " ".join(argv)] or IDS
        self.asked.append(tuple(names))
        self.append, self.cpu, self.files = append, cpu, files
        listener.start(1.0)
        ran = []
        run = {"cases": len(names), "catalogue": 3, "resumed": 0, "kernel_log": "watched"}
        self.say(listener, {"type": "run", **run})
        for name in names:
            if name == self.dies_before:
                return LabResult(Outcome.PANIC, None, (), ("oops",), 1.0, 2.0, "q", 1, "panicked")
            verdict = "FAIL" if name in (self.fails, self.dies_after) else "PASS"
            ran.append(verdict)
            case = {"id": name, "sentence": "S.", "requirements": ["R01"], "ms": 1.0}
            shown = {"script": ["x"], "step": 1, "action": "x", "expected": ["a"], "seen": ["b"]}
            more = shown if verdict == "FAIL" else {}
            if name == self.dies_after:
                self.say(listener, {"type": "first", "verdict": verdict, **case, **more})
                return LabResult(Outcome.PANIC, None, (), ("oops",), 1.0, 2.0, "q", 1, "panicked")
            self.say(listener, {"type": "case", "verdict": verdict, **case, **more})
        counts = {verdict: ran.count(verdict) for verdict in ran}
        status = int("FAIL" in ran)
        end = {"seconds": 1.0, "interrupted": False, "status": status, "fingerprint": ""}
        self.say(listener, {"type": "end", "counts": counts, "splats": [], "lost": 0, **end})
        return LabResult(Outcome.DONE, status, (), ("tail",), 1.0, 2.0, "qemu")

    def say(self, listener, record):
        listener.line(json.dumps({"schema": 1, **record, "host": self.host}))


@pytest.fixture
def guest(monkeypatch):
    guest = Guest()
    monkeypatch.setattr(machine, "boot", guest.boot)
    monkeypatch.setattr(machine, "emulator_of", lambda vendor: Emulator)
    return guest


@pytest.fixture
def order(tmp_path):
    kernel = Kernel("debian:6.6", "6.6.6", tmp_path)
    return Order(kernel, "svm", CHOSEN, executor="python")


def test_the_whole_catalogue_is_asked_for_without_naming_it(guest, order):
    first = (*told("svm"), *CHECK)
    assert order.argv() == (*first, "-j4")
    assert order.argv({"plumbing.b"}) == (*first, "-j4", "plumbing.a", "plumbing.c")
    chosen = replace(order, vendor="vmx", options=Inner(jobs=7))
    assert chosen.argv() == (*CHECK, "-j2", "-j7"), "the last one counts"


def test_a_saved_case_goes_along_and_is_named_by_its_file(guest, order, tmp_path, capsys):
    saved = replace(CHOSEN.cases[1], file="/home/me/found.json")
    order = replace(order, chosen=Chosen([saved], 3))
    path = "/cases/plumbing.b.json"
    first = (*told("svm"), *CHECK)
    assert order.argv() == (*first, "-j4", path)
    assert order.argv({"plumbing.b"}) == (*first, "-j4")
    assert codec.load(order.files[path]) == saved and len(order.files) == 1
    guest.fails = "plumbing.b"
    assert check.check(order, View(), tmp_path / "o") == 1
    assert f"  rerun: {order.rerun} /home/me/found.json\n" in capsys.readouterr().out
    assert guest.files == order.files


def test_a_baseline_is_held_against_what_the_guest_says(guest, order, tmp_path, capsys):
    guest.fails = "plumbing.b"
    assert check.check(order, View(), tmp_path / "before") == 1
    since = View(baseline=Baseline.of(load(tmp_path / "before")))
    assert check.check(order, since, tmp_path / "same") == 0
    assert "no verdict changed" in capsys.readouterr().out
    guest.fails = "plumbing.c"
    assert check.check(order, since, tmp_path / "now") == 1
    said = capsys.readouterr().out
    assert "newly failing: 1 case: plumbing.c" in said
    assert "newly passing: 1 case: plumbing.b" in said


def test_what_would_end_the_emulator_is_not_tried(guest, order, monkeypatch):
    argv = replace(order, vendor="svm-nrips").argv()
    assert argv[:2] == ("/bin/busybox", "env") and argv[2].startswith("MSRWARD_LACKS=single_step=")
    assert argv[3:] == (*CHECK, "-j2")
    monkeypatch.setattr(Emulator, "accelerated", True)
    assert replace(order, vendor="svm-nrips").argv() == (*CHECK, "-j2")


def test_a_run_that_was_cut_short_goes_on_with_what_is_missing(guest, order, tmp_path, capsys):
    guest.fails, guest.dies_before = "plumbing.a", "plumbing.b"
    with pytest.raises(Trouble, match="panicked after 1 of 3 cases"):
        check.check(order, View(), tmp_path / "o")
    guest.dies_before = None
    capsys.readouterr()
    assert check.check(order, View(), tmp_path / "o", resume=True) == 1
    assert guest.asked == [IDS, ("plumbing.b", "plumbing.c")]
    end = load(tmp_path / "o").end
    assert (end["counts"], end["status"]) == ({"FAIL": 1, "PASS": 2}, 1)
    said = capsys.readouterr().out
    assert "2 passed, 1 failed" in said and "FAIL plumbing.a" in said
    runs = [json.loads(line) for line in (tmp_path / "o/results.jsonl").read_text().splitlines()]
    assert [record["resumed"] for record in runs if record["type"] == "run"] == [0, 1]
    assert (
        check.check(
            replace(order, chosen=Chosen(CHOSEN.cases[1:], 3)), View(), tmp_path / "o", resume=True
        )
        == 0
    )
    last = [json.loads(line) for line in (tmp_path / "o/results.jsonl").read_text().splitlines()]
    assert [record["resumed"] for record in last if record["type"] == "run"][-1] == 2


def test_a_run_that_is_complete_boots_nothing(guest, order, tmp_path, capsys):
    assert check.check(order, View(), tmp_path / "o") == 0
    assert check.check(order, View(), tmp_path / "o", resume=True) == 0
    assert len(guest.asked) == 1
    assert "3 passed, 0 failed" in capsys.readouterr().out


def test_records_of_another_kernel_are_not_continued(guest, order, tmp_path):
    guest.dies_before = "plumbing.b"
    with pytest.raises(Trouble):
        check.check(order, View(), tmp_path / "o")
    guest.dies_before, guest.host = None, {**HOST, "release": "7.7.7"}
    with pytest.raises(ResultsError, match="another kernel"):
        check.check(order, View(), tmp_path / "o", resume=True)


def test_resuming_nothing_is_a_run(guest, order, tmp_path):
    assert check.check(order, View(), tmp_path / "o", resume=True) == 0
    assert guest.asked == [IDS]


def test_what_is_added_to_the_command_line_reaches_the_guest_and_the_records(
    guest, order, tmp_path, capsys
):
    guest.host = {**HOST, "parameters": {"kvm": {"ignore_msrs": "Y"}}}
    guest.fails, line = "plumbing.a", "kvm.ignore_msrs=1 quiet"
    assert check.check(replace(order, append=line), View(), tmp_path / "o") == 1
    assert guest.append == line
    saved = load(tmp_path / "o")
    assert saved.host["lab"]["append"] == line
    assert f"(svm, {line})" in saved.name
    rerun = f"msrward lab run --kernel debian:6.6 --vendor svm --append '{line}'"
    said = capsys.readouterr().out
    assert f"rerun: {rerun} plumbing.a" in said
    assert f"in the lab (qemu 11, {line})" in said


def test_another_cpu_reaches_the_guest_and_is_told_apart(
    guest, order, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    added = replace(order, vendor="vmx", cpu="broadwell_ult", append="quiet")
    guest.dies_before = "plumbing.b"
    with pytest.raises(Trouble):
        check.check(added, View(), tmp_path / "o")
    assert guest.cpu == "broadwell_ult"
    saved, said = load(tmp_path / "o"), capsys.readouterr().out
    assert saved.host["lab"]["cpu"] == "broadwell_ult"
    assert "(vmx, broadwell_ult, quiet)" in saved.name
    assert "in the lab (qemu 11, broadwell_ult, quiet)" in said
    words = "--vendor vmx --cpu broadwell_ult --append quiet"
    assert of_run(saved.host).endswith(words)
    with pytest.raises(ResultsError, match=r"lab\.cpu 'broadwell_ult', here ''"):
        check.check(replace(added, cpu=""), View(), tmp_path / "o", resume=True)
    guest.dies_before = None
    for model in ("", "a", "b"):
        assert check.check(replace(order, cpu=model), View()) == 0
    assert len(list(tmp_path.glob("state/msrward/lab-6.6.6-svm*"))) == 3


def test_runs_that_differ_by_it_are_not_continued_by_each_other(guest, order, tmp_path):
    guest.dies_before = "plumbing.b"
    with pytest.raises(Trouble):
        check.check(order, View(), tmp_path / "o")
    guest.dies_before = None
    added = replace(order, append="kvm.ignore_msrs=1")
    with pytest.raises(ResultsError, match=r"lab\.append '', here 'kvm.ignore_msrs=1'"):
        check.check(added, View(), tmp_path / "o", resume=True)
    assert check.check(order, View(), tmp_path / "o", resume=True) == 0
    with pytest.raises(ResultsError, match=r"lab\.append"):  # complete: nothing would boot
        check.check(added, View(), tmp_path / "o", resume=True)


def test_runs_that_differ_by_it_have_directories_of_their_own(guest, order, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for line in ("", "kvm.a=1", "kvm.a=2"):
        assert check.check(replace(order, append=line), View()) == 0
    assert len(list(tmp_path.glob("msrward/lab-6.6.6-svm*"))) == 3


def test_a_parameter_that_the_kernel_does_not_have_ends_the_run(guest, order, tmp_path):
    guest.host = {**HOST, "parameters": {"kvm": {"ignore_msrs": "N"}}}
    with pytest.raises(Trouble, match=r"debian:6\.6 has no parameter kvm\.ignoremsrs"):
        check.check(replace(order, append="kvm.ignoremsrs=1"), View(), tmp_path / "o")


def test_records_are_not_continued_under_other_parameters(guest, order, tmp_path):
    guest.host = {**HOST, "parameters": {"kvm": {"ignore_msrs": "N"}}}
    guest.dies_before = "plumbing.b"
    with pytest.raises(Trouble):
        check.check(order, View(), tmp_path / "o")
    guest.dies_before, guest.host = None, {**HOST, "parameters": {"kvm": {"ignore_msrs": "Y"}}}
    with pytest.raises(ResultsError, match=r"kvm\.ignore_msrs 'N', here 'Y'"):
        check.check(order, View(), tmp_path / "o", resume=True)


def test_what_failed_once_before_the_guest_died_is_not_forgotten(guest, order, tmp_path, capsys):
    guest.dies_after = "plumbing.b"
    with pytest.raises(Trouble, match="panicked"):
        check.check(order, View(), tmp_path / "o")
    assert "FAIL    plumbing.b" in capsys.readouterr().out
    assert load(tmp_path / "o").firsts["plumbing.b"]["seen"] == ["b"]
    guest.dies_after = None
    assert check.check(order, View(), tmp_path / "o", resume=True) == 2
    record = load(tmp_path / "o").cases["plumbing.b"]
    assert (record["verdict"], record["first"], record["seen"]) == ("UNSTEADY", "FAIL", ["b"])
    assert "no verdict on kernel 6.6.6" in capsys.readouterr().out


@pytest.mark.parametrize("left", ["", '{"schema": 1, "ty'])
def test_an_end_during_boot_is_gone_on_with_as_a_run(guest, order, tmp_path, left, monkeypatch):
    def dies(*args, **options):
        return LabResult(Outcome.HANG, None, (), ("stuck",), None, 2.0, "q", 2, "hung")

    with monkeypatch.context() as patch:
        patch.setattr(machine, "boot", dies)
        for resume in (False, True, True):
            with pytest.raises(Trouble, match="hung"):
                check.check(order, View(), tmp_path / "o", resume=resume)
    with (tmp_path / "o/results.jsonl").open("a") as file:
        file.write(left)
    assert check.check(order, View(), tmp_path / "o", resume=True) == 0
    (tmp_path / "o/results.jsonl").write_text("")
    assert check.check(order, View(), tmp_path / "o", resume=True) == 0


def test_a_line_that_a_kill_cut_is_left_out(guest, order, tmp_path):
    guest.dies_before = "plumbing.b"
    with pytest.raises(Trouble):
        check.check(order, View(), tmp_path / "o")
    guest.dies_before = None
    with (tmp_path / "o/results.jsonl").open("a") as file:
        file.write('{"schema": 1, "type": "ca')
    assert check.check(order, View(), tmp_path / "o", resume=True) == 0
    assert guest.asked == [IDS, ("plumbing.b", "plumbing.c")]
