"""--baseline: a run is judged by what changed since another."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from vmm.conformance.records.baseline import Baseline
from vmm.conformance.records.results import Results
from vmm.conformance.records.saved import load
from vmm.conformance.records.status import Status
from vmm.conformance.records.summary import end_record
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import tap
from vmm.conformance.report.desk import Desk
from vmm.conformance.report.view import View

HOST = {"release": "6.1", "hostname": "box", "vendor_module": "kvm_intel"}
RUN = {"type": "run", "started": 1.0, "cases": 1, "catalogue": 9, "resumed": 0, "jobs": 1}
RUN |= {"timeout": 10.0, "kernel_log": "watched"}
ABOUT = {"type": "case", "sentence": "It is.", "requirements": ["R14"], "ms": 1.0}
DENIED = "WrmsrExit(Msr.IA32_TSC_DEADLINE, FILTER, 0x0)"
B12 = {
    "script": ["wrmsr(Msr.IA32_TSC_DEADLINE, 0x0)"],
    "trace": ["wrote"],
    "step": 1,
    "action": "wrmsr(Msr.IA32_TSC_DEADLINE, 0x0)",
    "expected": [DENIED, "wrote"],
    "seen": ["wrote"],
}
NEWS = {**B12, "script": ["rdmsr(0x10)"], "action": "rdmsr(0x10)"}
B06 = {
    "script": ["enter_l2()"],
    "trace": ["entry_failed('state')"],
    "step": 1,
    "action": "enter_l2()",
    "expected": ["entered"],
    "seen": ["entry_failed('state')"],
}
LATER = {**NEWS, "script": ["done()", "rdmsr(0x10)"], "step": 2}
KILLED = {"error": "killed at its deadline"}
SHAKY = {"first": Verdict.FAIL}
SKIPPED = {"reason": "no irqchip"}
SPLAT = {"splats": [["WARNING"]]}
_WHERE = "arch/x86/kvm/vmx/nested.c:4288 load_vmcs12_host_state+0x8bd/0xa00 [kvm_intel]"
B06_WARNS = {**B06, "splats": [[f"WARNING: CPU: 0 PID: 1340 at {_WHERE}"]]}


def case(verdict: str, fields: dict[str, Any] | None = None, name: str = "a.b") -> dict[str, Any]:
    return {**ABOUT, "id": name, "verdict": Verdict(verdict), **(fields or {})}


def judged(
    place: Path, cases: list[dict[str, Any]], since: Path | None = None
) -> tuple[dict[str, Any], str]:
    """Judge the cases as a run does, and return the ``end`` record and what was printed."""
    baseline = Baseline.of(load(since)) if since else None
    printed = io.StringIO()
    with Results(place, HOST) as results, redirect_stdout(printed):
        desk = Desk(results, HOST, [each["id"] for each in cases], View(baseline=baseline), None)
        desk.start(RUN)
        for each in cases:
            desk.case(each)
        end = end_record(desk.cases, 1.0)
        desk.finish(RUN, end)
    return load(place).end, printed.getvalue()


@pytest.mark.parametrize(
    ("before", "now", "verdict", "word"),
    [
        (case("PASS"), case("FAIL", NEWS), "FAIL", "failing"),
        (case("PASS"), case("FAIL", B12), "FAIL", "failing"),
        (case("SKIP", SKIPPED), case("FAIL", NEWS), "FAIL", "failing"),
        (case("PASS", name="other"), case("FAIL", NEWS), "FAIL", "failing"),
        (case("FAIL", NEWS), case("FAIL", NEWS), "XFAIL", ""),
        (case("XFAIL", NEWS), case("FAIL", NEWS), "XFAIL", ""),
        (case("FAIL", NEWS), case("FAIL", {**NEWS, **SPLAT}), "FAIL", "failing"),
        (case("FAIL", {**NEWS, **SPLAT}), case("FAIL", {**NEWS, **SPLAT}), "XFAIL", ""),
        (case("FAIL", B06), case("FAIL", B06_WARNS), "FAIL", "failing"),
        (case("FAIL", B06_WARNS), case("FAIL", B06_WARNS), "XFAIL", ""),
        (case("FAIL", NEWS), case("FAIL", LATER), "FAIL", "failing"),
        (case("FAIL", NEWS), case("TIMEOUT", KILLED), "TIMEOUT", "failing"),
        (case("TIMEOUT", KILLED), case("TIMEOUT", KILLED), "XFAIL", ""),
        (case("FAIL", B12), case("FAIL", B12), "XFAIL", ""),
        (case("FAIL", B12), case("FAIL", NEWS), "FAIL", "failing"),
        (case("FAIL", NEWS), case("FAIL", B12), "FAIL", "failing"),
        (case("FAIL", B12), case("FAIL", {**B12, "seen": ["gp"]}), "FAIL", "failing"),
        (case("TIMEOUT", KILLED), case("ERROR", KILLED), "ERROR", "failing"),
        (case("FAIL", B12, "other"), case("FAIL", B12), "XFAIL", ""),
        (case("FAIL", NEWS, "other"), case("FAIL", NEWS), "FAIL", "failing"),
        (case("UNSTEADY", NEWS | SHAKY), case("UNSTEADY", NEWS | SHAKY), "XFAIL", ""),
        (case("UNSTEADY", NEWS | SHAKY), case("FAIL", NEWS), "FAIL", "failing"),
        (case("FAIL", NEWS), case("UNSTEADY", NEWS | SHAKY), "XFAIL", ""),
        (case("ERROR", KILLED), case("ERROR", KILLED), "ERROR", ""),
        (case("PASS"), case("ERROR", KILLED), "ERROR", "failing"),
        (case("FAIL", NEWS), case("PASS"), "XPASS", "passing"),
        (case("ERROR", KILLED), case("PASS"), "XPASS", "passing"),
        (case("XPASS"), case("PASS"), "PASS", ""),
        (case("SKIP", SKIPPED), case("PASS"), "PASS", ""),
        (case("PASS"), case("SKIP", SKIPPED), "SKIP", "skipped"),
        (case("FAIL", NEWS), case("SKIP", SKIPPED), "SKIP", "skipped"),
        (case("SKIP", SKIPPED), case("SKIP", SKIPPED), "SKIP", ""),
    ],
)
def test_the_verdict_on_a_case_is_about_what_changed(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], verdict: str, word: str
) -> None:
    judged(tmp_path / "before", [before])
    end, said = judged(tmp_path / "now", [now], tmp_path / "before")
    assert load(tmp_path / "now").cases["a.b"]["verdict"] == verdict
    found = {each: ids for each, ids in end["baseline"].items() if each != "path" and ids}
    assert found == ({word: ["a.b"]} if word else {})
    assert (f"newly {word}: 1 case: a.b" if word else "no verdict changed") in said


def test_status_1_is_for_what_newly_fails_alone(tmp_path: Path) -> None:
    every = [case("FAIL", NEWS, "a.fails"), case("PASS", None, "a.passes")]
    assert judged(tmp_path / "before", every)[0]["status"] == Status.VIOLATES
    same, said = judged(tmp_path / "same", every, tmp_path / "before")
    assert same["status"] == Status.CONFORMS
    assert f"fails nothing that it did not in {tmp_path}/before/results.jsonl: " in said
    worse = [every[0], case("FAIL", NEWS, "a.passes")]
    end, said = judged(tmp_path / "worse", worse, tmp_path / "before")
    assert end["status"] == Status.VIOLATES and "fails what it did not in" in said
    assert tap.end_lines(end)[-1] == "# newly failing: a.passes"
    # What was judged so is a baseline as good as the first.
    assert judged(tmp_path / "third", every, tmp_path / "same")[0]["status"] == Status.CONFORMS


def test_an_entry_that_stood_does_not_excuse_a_case_that_passed(tmp_path: Path) -> None:
    judged(tmp_path / "before", [case("FAIL", B12, "a.other"), case("PASS"), case("SKIP", SKIPPED)])
    assert judged(tmp_path / "one", [case("FAIL", B12)], tmp_path / "before")[0]["status"] == 0
    judged(tmp_path / "before", [case("FAIL", B12, "a.other"), case("PASS")])
    assert judged(tmp_path / "two", [case("FAIL", B12)], tmp_path / "before")[0]["status"] == 1


def test_a_run_is_its_own_directorys_baseline(tmp_path: Path) -> None:
    judged(tmp_path, [case("FAIL", NEWS)])
    end, _ = judged(tmp_path, [case("PASS")], tmp_path)
    assert end["baseline"]["passing"] == ["a.b"]
