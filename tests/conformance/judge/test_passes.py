"""The second pass under ignore_msrs=1, where the parameter is ours; a file stands for it."""

import json

import pytest

from vmm.conformance.host import facts, parameters
from vmm.conformance.judge.check import check
from vmm.conformance.judge.recording import Options
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import gp, rdmsr, returned
from vmm.conformance.report.view import View

X = 0x5000_0000
CASES = [
    Case("t.later", "A sentence.", "R56", [rdmsr(X)], (returned(0),), ("ignore_msrs",)),
    Case("t.plain", "A sentence.", "R50", [rdmsr(X)], (gp,)),
]


class Host:
    """A backend that does as the parameter says."""

    def run(self, script, *, expected=None):
        return (returned(0),) if parameters.ignores_msrs() else (gp,)

    def lacks(self, need):
        return None

    def close(self):
        pass


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Judge both cases; return the verdicts in the order they came, and what was said."""
    path = tmp_path / "ignore_msrs"
    path.write_text("N\n")
    monkeypatch.setattr(parameters, "IGNORE_MSRS", path)
    monkeypatch.delenv(parameters.OWN_GUEST, raising=False)

    def run(ours, on=False):
        path.write_text("Y\n" if on else "N\n")
        told = {"release": "6.6", "parameters": {"kvm": {"ignore_msrs": "NY"[on]}}}
        monkeypatch.setattr(facts, "facts", lambda: told)
        if ours:
            monkeypatch.setenv(parameters.OWN_GUEST, "1")
        out = tmp_path / "out"
        status = check(CASES, 2, Options(), View(), directory=out, factory=Host)
        assert status == 0
        assert path.read_text() == ("Y\n" if on else "N\n")
        records = map(json.loads, (out / "results.jsonl").read_text().splitlines())
        cases = [(r["id"], r["verdict"]) for r in records if r["type"] == "case"]
        return cases, capsys.readouterr().out

    return run


def test_a_host_is_left_as_it_is(run):
    cases, said = run(ours=False)
    assert cases == [("t.later", "SKIP"), ("t.plain", "PASS")]
    assert "1 case: ignore_msrs is 0 here" in said


def test_a_guest_of_the_lab_is_judged_both_ways_and_the_report_says_so(run):
    cases, said = run(ours=True)
    assert cases == [("t.plain", "PASS"), ("t.later", "PASS")]
    assert "1 case judged in a second pass, under kvm.ignore_msrs=1" in said


def test_where_it_is_on_already_there_is_one_pass(run):
    cases, said = run(ours=True, on=True)
    assert cases == [("t.later", "PASS"), ("t.plain", "SKIP")]
    assert "second pass" not in said
