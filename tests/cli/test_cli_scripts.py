"""The commands beside check: fuzz, export, run, stress and churn, as a user calls them."""

import json
import shutil
import subprocess
import sys

import pytest


def msrward(*words, timeout=120):
    command = [sys.executable, "-m", "vmm", *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd="/")
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


def a_case():
    from vmm.conformance.cases import CASES

    return next(case for case in CASES if case.id.startswith("rollback."))


def test_an_exported_case_compiles_and_passes(has_kvm, tmp_path):
    if not shutil.which("cc"):
        pytest.skip("no cc")
    source = tmp_path / "repro.c"
    assert msrward("export", a_case().id, "-o", source).returncode == 0
    subprocess.run(["cc", "-Wall", "-o", tmp_path / "repro", source], check=True)
    ran = subprocess.run([tmp_path / "repro"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and "PASS" in ran.stdout, ran.stdout


def test_a_saved_case_is_run_and_can_fail(has_kvm, tmp_path):
    saved = msrward("export", "--json", a_case().id)
    file = tmp_path / "case.json"
    file.write_text(saved.stdout)
    assert msrward("run", file).returncode == 0
    document = json.loads(saved.stdout)
    document["trace"].pop()
    file.write_text(json.dumps(document))
    failed = msrward("run", file)
    assert failed.returncode == 1, failed.stdout
    assert "does not keep the contract" in failed.stdout
    assert f"  rerun: msrward run {file}\n" in failed.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "nonesuch.case"), "no case matches"),
        (("export", "rollback.*"), "cases: name one"),
        (("run", "/nonexistent.json"), "cannot read /nonexistent.json: No such file"),
        (("run", "/etc/hostname"), "/etc/hostname"),
        (("fuzz", "--examples", "0"), "whole number"),
        (("stress", "--seconds", "-1"), "above 0"),
        (("stress", "--vcpus", "99999"), "vcpus"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, said):
    ran = msrward(*words)
    assert ran.returncode == 2, ran
    assert said in ran.stderr and ran.stderr.count("\n") == 1


def test_fuzz_says_its_seed_and_its_verdict(has_kvm):
    ran = msrward("fuzz", "--examples", 20, "--seed", 7)
    assert ran.returncode == 0, ran.stdout
    assert "--seed 7" in ran.stdout


def test_stress_says_its_seed_and_its_verdict(has_kvm):
    ran = msrward("stress", "--seconds", 0.5, "--seed", 7)
    assert ran.returncode == 0, ran.stdout
    assert "nothing seen was impossible" in ran.stdout and "--seed 7" in ran.stdout


def test_churn_says_what_it_ended_and_measured(has_kvm):
    ran = msrward("churn", "--rounds", 2, "--installs", 2000, "--vms", 20)
    assert ran.returncode == ("nothing was lost" not in ran.stdout), ran.stdout
    assert "18 VMs" in ran.stdout
    assert "churn: " in ran.stdout and "SUnreclaim" in ran.stdout
