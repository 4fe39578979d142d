"""The bookkeeping round the boots, in real processes; what stands for a boot says so."""

import json

import pytest

from vmm.lab import check, initramfs, machine, matrix
from vmm.lab.errors import LabError
from vmm.lab.kernels import Kernel
from vmm.lab.machine import LabResult, Outcome

ORDERS = check.Orders(["plumbing.x"], 1, (), 5.0)


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


def pretend(kernel, vendor, argv, *, timeout, watcher):
    """Stands for a boot."""
    if vendor == "vmx":
        return LabResult(Outcome.HANG, None, (), ("stuck", ""), None, timeout, "bochs", 2, "hung")
    watcher.start(1.0)
    for line in records(kernel.release):
        watcher.line(line)
        watcher.tick()
    return LabResult(Outcome.DONE, 0, (), ("tail",), 1.0, 2.0, "qemu")


class Emulator:
    title = "qemu 11"


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


def test_every_cell_keeps_what_it_said(tmp_path, run):
    cells = [cell(tmp_path, release, vendor) for release in "ab" for vendor in ("svm", "vmx")]
    seen = run(cells)
    assert sorted(seen) == ["a-svm", "a-vmx", "b-svm", "b-vmx"]
    good, hung = cells[0].saved, cells[1].saved
    assert good.cases["plumbing.x"]["verdict"] == "PASS"
    assert good.host["lab"]["kernel"] == "a"
    assert good.cases["plumbing.x"]["rerun"] == "msrward lab run --kernel a --vendor svm"
    assert (hung.end["status"], hung.end["lab"]["console"]) == (2, ["stuck", ""])
    assert hung.trouble == "hung"
    assert "hung" in seen["a-vmx"] and "ended with: stuck" in seen["a-vmx"]
    assert "passed" in (tmp_path / "b-svm/report.txt").read_text()


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


def test_a_cell_that_cannot_be_booted_says_why(tmp_path, run, monkeypatch):
    def refuse(*_, **__):
        raise LabError("no qemu here")

    monkeypatch.setattr(machine, "boot", refuse)
    assert run([cell(tmp_path, "a", "svm")]) == {"a-svm": "no qemu here"}
    assert not cell(tmp_path, "a", "svm").finished
