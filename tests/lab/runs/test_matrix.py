"""The bookkeeping round the boots, in real processes; what stands for a boot says so."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from vmm.conformance.judge.selection import Chosen
from vmm.conformance.language.case import Case
from vmm.lab.errors import LabError
from vmm.lab.initramfs import archive as initramfs
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.runs import matrix
from vmm.lab.runs.order import Inner, Orders

CHOSEN = Chosen([Case("plumbing.x", "S.", "R01", (), ())], 1)
ORDERS = Orders(CHOSEN, Inner(), 5.0, executor="python")


def cell(tmp_path, release, vendor):
    return matrix.Cell(Kernel(release, release, tmp_path), vendor, tmp_path / f"{release}-{vendor}")


def records(release):
    host = {"release": release, "vendor_module": "kvm_amd"}
    case = {"id": "plumbing.x", "sentence": "S.", "requirements": ["R01"], "ms": 1.0}
    end = {"counts": {"PASS": 1}, "seconds": 1.0, "interrupted": False, "status": 0}
    for record in (
        {"type": "run", "cases": 1, "catalogue": 1, "resumed": 0, "kernel_log": "watched"},
        {"type": "case", "verdict": "PASS", **case},
        {"type": "end", "fingerprint": "", "splats": [], "lost": 0, **end},
    ):
        yield json.dumps({"schema": 1, **record, "host": host})


def pretend(kernel, vendor, argv, *, timeout, append, cpu, files, listener):
    """Stands for a boot."""
    if vendor == "vmx":
        return LabResult(Outcome.HANG, None, (), ("stuck", ""), None, timeout, "bochs", 2, "hung")
    listener.start(1.0)
    for line in records(kernel.release):
        listener.line(line)
        listener.tick()
    return LabResult(Outcome.DONE, 0, (), ("tail",), 1.0, 2.0, "qemu")


class Emulator:
    title = "qemu 11"
    accelerated = False


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(machine, "boot", pretend)
    monkeypatch.setattr(machine, "emulator_of", lambda vendor: Emulator)
    monkeypatch.setattr(initramfs, "base", lambda: b"")

    def run(cells, **options):
        seen = {}
        told = lambda cell, trouble: seen.update({cell.directory.name: trouble})  # noqa: E731
        matrix.run(cells, ORDERS, on_cell=told, jobs=2, **options)
        return seen

    return run


@pytest.mark.parametrize(
    ("wish", "name"),
    [("6.12", "debian:6.12"), ("newest", "debian:newest"), ("/x/bzImage", "/x/bzImage")],
)
def test_a_bare_version_is_a_package(wish, name):
    assert matrix.named(wish) == name


def test_a_kernel_that_cannot_be_had_does_not_stop_the_rest(tmp_path):
    missing = []
    wish = str(tmp_path / "no-such-kernel")
    assert matrix.cells([wish], ["svm"], tmp_path, lambda *why: missing.append(why)) == []
    assert missing[0][0] == wish
    assert "no kernel" in str(missing[0][1])


def test_the_machines_that_take_longest_begin_first(tmp_path, monkeypatch):
    begun = []

    class Crew:
        jobs = 1

        def submit(self, cell, order):
            begun.append(cell.directory.name)
            return Future()

        def first_of(self, running):
            return list(running)

        def received(self, cell, done):
            return ""

    vendors = ("svm", "vmx", "svm-nrips")
    cells = [cell(tmp_path, release, vendor) for vendor in vendors for release in "ab"]
    team = lambda jobs: nullcontext(Crew())  # noqa: E731
    matrix.run(cells, ORDERS, on_cell=lambda *_: None, team=team)
    assert begun == ["a-vmx", "b-vmx", "a-svm-nrips", "b-svm-nrips", "a-svm", "b-svm"]


def test_every_cell_keeps_what_it_said(tmp_path, run):
    cells = [cell(tmp_path, release, vendor) for release in "ab" for vendor in ("svm", "vmx")]
    seen = run(cells)
    assert sorted(seen) == ["a-svm", "a-vmx", "b-svm", "b-vmx"]
    good, hung = cells[0].saved, cells[1].saved
    assert good.cases["plumbing.x"]["verdict"] == "PASS"
    assert good.host["lab"]["kernel"] == "a"
    assert (hung.end["status"], hung.end["lab"]["console"]) == (2, ["stuck", ""])
    assert hung.trouble == "hung"
    assert "hung" in seen["a-vmx"] and "ended with: stuck" in seen["a-vmx"]
    assert "passed" in (tmp_path / "b-svm/report.txt").read_text()


def test_cells_that_differ_by_the_command_line_are_told_apart(tmp_path, bzimage):
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage())
    lines = ("", "kvm.ignore_msrs=1", "kvm.ignore_msrs=0")
    made = [matrix.cells([str(image)], ["svm"], tmp_path, print, line)[0] for line in lines]
    assert len({cell.directory for cell in made}) == 3
    assert [cell.title for cell in made] == ["svm", *(f"svm {line}" for line in lines[1:])]
    assert ORDERS.of(made[0].kernel, "svm").append == ""
    added = Orders(CHOSEN, Inner(), 5.0, lines[1], "python")
    assert added.of(made[1].kernel, "svm").append == lines[1]


def test_resume_boots_only_what_is_unfinished(tmp_path, run):
    cells = [cell(tmp_path, release, "svm") for release in "abc"]
    run(cells[:2])
    marked = tmp_path / "a-svm/report.txt"
    marked.write_text("kept")
    cut = tmp_path / "b-svm/results.jsonl"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:-1]))
    assert len(run(cells, resume=True)) == 3
    assert marked.read_text() == "kept"
    assert cells[1].finished


FOREVER = """
import os, signal, sys, time
from pathlib import Path
from vmm.conformance.host.interrupts import terminable
from vmm.conformance.judge.selection import Chosen
from vmm.conformance.language.case import Case
from vmm.lab.runs.order import Inner, Orders
from vmm.lab.errors import LabError
from vmm.lab.initramfs import archive as initramfs
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.runs import matrix
from vmm.lab.runs.order import Inner, Orders

place = Path(sys.argv[1])

class Emulator:
    title = "qemu 11"
    accelerated = False

def boot(kernel, vendor, argv, *, timeout, append, cpu, files, listener):
    if kernel.release == "quick":
        raise LabError("it has no /dev/kvm")
    (place / f"{kernel.release}.new").write_text(str(os.getpid()))
    (place / f"{kernel.release}.new").rename(place / f"{kernel.release}.pid")
    try:
        time.sleep(300)
    finally:
        (place / f"{kernel.release}.ended").touch()
        while "slow" in kernel.release and not (place / "go").exists():
            time.sleep(0.01)

machine.boot, machine.emulator_of, initramfs.base = boot, lambda vendor: Emulator, lambda: b""
cells = [matrix.Cell(Kernel(n, n, place), "svm", place / n) for n in sys.argv[2:]]
chosen = Chosen([Case("plumbing.x", "S.", "R01", (), ())], 1)
orders = Orders(chosen, Inner(), 5.0, executor="python")
try:
    with terminable():
        matrix.run(cells, orders, on_cell=lambda *_: None, jobs=2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def forever(tmp_path):
    """Begin a matrix of boots without an end, two at once, in a session of its own."""
    begun = []

    def begin(*releases):
        begun.append(
            subprocess.Popen(
                [sys.executable, "-P", "-c", FOREVER, str(tmp_path), *releases],
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return begun[-1]

    yield begin
    for process in begun:  # where the test failed, it may not have come to its end
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_group", [False, True])
def test_ctrl_c_ends_every_boot_and_begins_none(forever, tmp_path, to_group, how):
    process = forever(*"abcd")
    until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    pids = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
    (os.killpg if to_group else os.kill)(process.pid, how)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert sorted(file.stem for file in tmp_path.glob("*.ended")) == ["a", "b"]
    assert len(list(tmp_path.glob("*.pid"))) == 2, "no boot began after Ctrl-C"
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_being_told_twice_does_not_hold_up_the_end(forever, tmp_path, how):
    """As timeout(1) does it: the process, and at once its group, where one worker is idle."""
    process = forever("quick", "slow")
    until((tmp_path / "slow.pid").exists)
    pid = int((tmp_path / "slow.pid").read_text())
    os.killpg(process.pid, how)
    until((tmp_path / "slow.ended").exists)
    os.kill(process.pid, how)
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert not Path(f"/proc/{pid}").exists()


def test_a_cell_whose_process_dies_is_told_and_the_others_are_judged(tmp_path, run, monkeypatch):
    def boot(kernel, vendor, argv, **told):
        if kernel.release == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        return pretend(kernel, vendor, argv, **told)

    monkeypatch.setattr(machine, "boot", boot)
    cells = [cell(tmp_path, release, "svm") for release in "abcd"]
    died = "the process that judged it died"
    assert run(cells) == {"a-svm": "", "b-svm": died, "c-svm": "", "d-svm": ""}
    assert [each.finished for each in cells] == [True, False, True, True]


def test_a_cell_that_cannot_be_booted_says_why(tmp_path, run, monkeypatch):
    def refuse(*_, **__):
        raise LabError("no qemu here")

    monkeypatch.setattr(machine, "boot", refuse)
    assert run([cell(tmp_path, "a", "svm")]) == {"a-svm": "no qemu here"}
    assert not cell(tmp_path, "a", "svm").finished
