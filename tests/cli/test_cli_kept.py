"""The records of stress, churn and fuzz: every report reads them."""

import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from vmm.cli import main
from vmm.conformance.churn.leak import UNRECLAIMABLE, Slope
from vmm.conformance.churn.result import ChurnResult, as_cases
from vmm.conformance.language.script import gp, rdmsr, returned
from vmm.conformance.random.finding import Finding, as_case
from vmm.conformance.records.saved import load
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import formats, rerun
from vmm.conformance.stress import stress
from vmm.conformance.stress.violation import Mishap
from vmm.msr import Msr

HAPPENED = stress.Tally(2.0, 100, 0, (5, 0, 0, 0, 0))
STRESSED = stress.StressResult(1, 2, 2, 2, HAPPENED, 0, 9, 0, None, (), "")
CHURNED = ChurnResult(1, 2.0, {"VM first": 3}, {"by SIGKILL": "no fork"}, (), "", (), "")
FOUND = Finding((rdmsr(Msr.STAR),), (returned(1),), (gp,), 0, "msrward fuzz --seed 1")


def test_a_stress_is_one_case_with_its_rates_over_time():
    early = replace(HAPPENED, seconds=1.0, swaps=40, outcomes=(1, 0, 0, 0, 0))
    case = stress.as_case(STRESSED, [early, HAPPENED])
    assert case["verdict"] is Verdict.PASS
    assert case["series"] == {"swaps/s": [[2.0, 60.0]], "observations/s": [[2.0, 4.0]]}
    timed = stress.as_case(replace(STRESSED, took=(0, 2, 3, 0)))
    assert timed["histograms"] == {stress.TOOK: [0, 2, 3]} and "histograms" not in case
    bad = stress.as_case(replace(STRESSED, violation=Mishap("what\n  cannot be")))
    assert bad["verdict"] is Verdict.FAIL and bad["error"] == "what cannot be"
    assert rerun.line(rerun.HERE, bad) == "msrward stress"
    nothing = stress.as_case(replace(STRESSED, progress=replace(HAPPENED, outcomes=(0,) * 5)))
    assert nothing["verdict"] is Verdict.SKIP


def test_a_churn_is_a_case_an_ending_and_a_measurement():
    steady = Slope("installs", 100, 9, {UNRECLAIMABLE: 1.0}, (0.0, 1.0))
    leaky = Slope("VMs", 100, 9, {UNRECLAIMABLE: 999.0}, (900.0, 999.0))
    cases = as_cases(replace(CHURNED, slopes=(steady, leaky), failure="x: it hangs"))
    assert {each["id"]: str(each["verdict"]) for each in cases} == {
        **{"churn.ended.VM_first": "PASS", "churn.ended.by_SIGKILL": "SKIP"},
        **{"churn.memory.installs": "PASS", "churn.memory.VMs": "FAIL", "churn.stuck": "FAIL"},
    }


def test_what_fuzz_finds_has_its_script_and_where_it_differs(tmp_path):
    case = as_case(FOUND, 10, tmp_path / "found.json")
    assert case["verdict"] is Verdict.FAIL and case["step"] == 1
    assert (case["expected"], case["seen"]) == (["returned(1)"], ["gp"])
    assert case["action"] == "rdmsr(Msr.STAR)" and case["file"].endswith("found.json")
    assert as_case(None, 10)["verdict"] is Verdict.PASS


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "words",
    [
        ("stress", "--seconds", "1000"),
        ("churn", "--rounds", "100000"),
        ("fuzz", "--seconds", "1000", "--no-corpus"),
        ("fuzz", "--bulk", "--seconds", "1000"),
    ],
    ids=" ".join,
)
def test_who_is_interrupted_tells_what_was_done_until_then(has_kvm, tmp_path, words, how):
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "vmm", *words, "--json", "-o", tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert json.loads(process.stdout.readline())["type"] == "live", "it has begun"
        process.send_signal(how)
        told, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (Status.INTERRUPTED, "")
    end = json.loads(told.splitlines()[-1])
    assert end["type"] == "end" and end["interrupted"]
    assert "interrupted" in end["report"][0]
    assert load(tmp_path / "run").end["interrupted"]


@pytest.mark.parametrize(
    "words",
    [
        ["stress", "--seconds", "1.6", "--vcpus", "1"],
        ["churn", "--rounds", "1", "--installs", "48", "--vms", "24"],
        ["fuzz", "--examples", "3", "--seed", "1"],
    ],
)
def test_each_leaves_records_that_every_report_reads(has_kvm, tmp_path, capsys, words):
    status = main([*words, "-o", str(tmp_path / "run")])
    assert status in (0, 1), capsys.readouterr().err
    saved = load(tmp_path / "run")
    assert saved.end["status"] == status and saved.host["release"]
    assert saved.run["cases"] == len(saved.cases) == sum(saved.end["counts"].values()) > 0
    told = formats.Told({"origin": "me"})
    for format_ in formats.FORMATS:
        text = formats.render(format_, [saved], told)
        assert words[0] in text or format_ in ("mail", "md"), "what passes is named"
    assert "keeps the contract" not in formats.render("md", [saved], told), "of few cases"
    drawn = "observations/s over" in formats.render("html", [saved], told)
    assert drawn is (words[0] == "stress")
    timed = [sum(each["histograms"][stress.TOOK]) for each in saved.cases.values() if drawn]
    assert all(timed) and len(timed) == drawn


def test_what_fuzz_found_is_kept_as_a_case(has_kvm, tmp_path, monkeypatch, capsys):
    def run(_, seed, examples, say, on_found, corpus):
        on_found(FOUND)
        return 1

    monkeypatch.setattr("vmm.conformance.random.fuzz.run", run)
    assert main(["fuzz", "--no-corpus", "-o", str(tmp_path)]) == 1
    saved = load(tmp_path)
    assert Counter(str(case["verdict"]) for case in saved.cases.values()) == {"FAIL": 1}
    assert json.loads((tmp_path / "found.json").read_text())
    assert main(["show", str(tmp_path / "found.json")]) == 0
    assert "rdmsr(Msr.STAR)" in capsys.readouterr().out
