"""What tests of the kernel's own end with in a guest; the lines of a hostile one are no verdict."""

import pytest

from vmm.conformance.records.verdict import Verdict
from vmm.lab.errors import LabError
from vmm.lab.machines import machine
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.runs.selftests import run_selftests

PROGRAMS = {"control": b"", "msrward_a": b"", "msrward_b": b""}


class Kernel:
    name = "debian:6.12"


def guest(monkeypatch, *lines, outcome=Outcome.DONE):
    def boot(kernel, vendor, argv, *, files, on_line, timeout):
        assert argv[-3:] == (*PROGRAMS,) and [*files] == [f"selftests/{n}" for n in PROGRAMS]
        for line in lines:
            on_line(line)
        return LabResult(outcome, 0, (), (), 1.0, 2.0, "", reason="the guest kernel panicked")

    monkeypatch.setattr(machine, "boot", boot)
    return run_selftests(Kernel, "svm", PROGRAMS)


def test_each_test_has_its_status_and_the_end_of_what_it_said(monkeypatch):
    ran = guest(
        monkeypatch,
        *(
            "ended 0 control",
            "ended 254 msrward_a",
            "== Assertion ==",
            "  \x1b[2J",
        ),
        *("ended 4 msrward_b", "ok 1 # SKIP Requirement not met"),
    )
    verdicts = {name: each.verdict for name, each in ran.items()}
    assert verdicts == {
        "control": Verdict.PASS,
        "msrward_a": Verdict.FAIL,
        "msrward_b": Verdict.SKIP,
    }
    assert ran["msrward_a"].said[0] == "== Assertion =="
    assert "\x1b" not in ran["msrward_a"].said[1]


@pytest.mark.parametrize("status", [2, 124, 127, 134, 139, 255])
def test_other_ends_are_no_verdict(monkeypatch, status):
    ran = guest(monkeypatch, "ended 0 control", f"ended {status} msrward_a", "ended 0 msrward_b")
    assert ran["msrward_a"].verdict is Verdict.ERROR


def test_a_test_that_has_no_end_is_named(monkeypatch):
    with pytest.raises(LabError, match="msrward_b was not run to its end"):
        guest(monkeypatch, "ended 0 control", "ended 0 msrward_a", "ended 0 msrward_z")


def test_the_first_end_of_a_test_counts(monkeypatch):
    ends = ("ended 254 msrward_a", "ended 0 control", "ended 0 msrward_a", "ended 0 msrward_b")
    assert guest(monkeypatch, *ends)["msrward_a"].verdict is Verdict.FAIL


def test_a_boot_without_an_end_says_why(monkeypatch):
    with pytest.raises(LabError, match=r"debian:6\.12 on svm: the guest kernel panicked"):
        guest(monkeypatch, "ended 0 control", outcome=Outcome.PANIC)


def test_a_flood_is_bounded(monkeypatch):
    flood = ("x" * 1000 for _ in range(10_000))
    ends = ("ended 0 msrward_a", "ended 0 msrward_b")
    ran = guest(monkeypatch, "ended 0 control", *flood, *ends)
    assert len(ran["control"].said) == 12
