"""The commands beside check: fuzz, export, run, stress and churn, as a user calls them."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from vmm.cli import mutants, selftests


def msrward(*words, timeout=120):
    command = [sys.executable, "-m", "vmm", *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd="/")
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


def a_case():
    from vmm.conformance.cases import CASES

    return next(case for case in CASES if case.id.startswith("rollback."))


@pytest.mark.parametrize("name", ["repro.c", "sent on.c"])
def test_an_exported_case_passes_by_the_command_in_its_head(has_kvm, tmp_path, name):
    if not shutil.which("cc"):
        pytest.skip("no cc")
    assert msrward("export", a_case().id, "-o", tmp_path / name).returncode == 0
    (command,) = re.findall(r"^ \* (cc .*)$", (tmp_path / name).read_text(), re.M)
    words = ["sh", "-c", command]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and "PASS" in ran.stdout, ran


def test_a_head_tells_of_no_file_that_a_compiler_takes_for_another_language(tmp_path):
    assert msrward("export", a_case().id, "-o", tmp_path / "repro.txt").returncode == 0
    assert " -o repro repro.c && ./repro\n" in (tmp_path / "repro.txt").read_text()


def test_a_saved_case_is_run_and_can_fail(has_kvm, tmp_path):
    saved = msrward("export", "--json", a_case().id)
    file = tmp_path / "case.json"
    file.write_text(saved.stdout)
    ran = msrward("run", file)
    assert ran.returncode == 0
    assert " passes the 1 selected case of " in ran.stdout and "keeps" not in ran.stdout
    document = json.loads(saved.stdout)
    document["trace"].pop()
    file.write_text(json.dumps(document))
    failed = msrward("run", file)
    assert failed.returncode == 2, failed.stdout
    assert "the expectation is wrong, not the kernel: at step " in failed.stdout
    assert "no verdict on kernel" in failed.stdout
    assert f"  rerun: msrward run {file}\n" in failed.stdout


@pytest.fixture
def saved(tmp_path):
    """Return a file that holds a case which the catalogue does not have."""
    file = tmp_path / "found.json"
    document = json.loads(msrward("export", "--json", a_case().id).stdout)
    file.write_text(json.dumps({**document, "id": "found.here"}))
    return file


def test_a_file_is_taken_wherever_a_case_is(saved, tmp_path):
    shown = msrward("show", saved)
    assert "found.here" in shown.stdout and a_case().sentence[:30] in shown.stdout
    assert "main(void)" in msrward("export", saved).stdout
    again = msrward("export", "--json", saved).stdout
    assert json.loads(again) == json.loads(saved.read_text())
    listed = msrward("list", saved, "plumbing.*").stdout
    assert "found.here" in listed and "plumbing." in listed
    lab = msrward("lab", "run", "-k", "none", "-l", saved)
    assert "found.here" in lab.stdout and lab.returncode == 0
    twin = tmp_path / "twin.json"
    twin.write_text(saved.read_text())
    assert "have the same id" in msrward("list", saved, twin).stderr


def test_check_judges_a_file_beside_the_catalogue(has_kvm, saved):
    ran = msrward("check", "-v", saved, "plumbing.*")
    assert ran.returncode == 0 and "PASS    found.here" in ran.stdout, ran.stdout
    document = json.loads(saved.read_text())
    document["trace"].pop()
    saved.write_text(json.dumps(document))
    failed = msrward("check", saved)
    assert failed.returncode == 2 and f"  rerun: msrward check {saved}\n" in failed.stdout


def test_bisect_takes_a_file_to_where_git_runs_it(tmp_path, monkeypatch):
    from argparse import Namespace

    from vmm.cli.bisect import _asked, _stem

    (tmp_path / "a").mkdir()
    made = msrward("export", "--json", a_case().id)
    (tmp_path / "a/found.json").write_text(made.stdout)
    monkeypatch.chdir(tmp_path)
    asked = _asked(Namespace(case="a/found.json", observe=None, lost_status="skip"))
    assert asked.case.startswith("/") and asked.case.endswith("/a/found.json")
    assert _stem(asked.case) == "found" and _stem("match.*") == "match._"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "/nonexistent.json"), "cannot read /nonexistent.json: No such file"),
        (("show", "/etc/hostname"), "/etc/hostname: not"),
        (("run", "nonesuch.case"), "no case matches"),
        (("export", "nonesuch.case"), "no case matches"),
        (("export", "rollback.*"), "cases: name one"),
        (("run", "/nonexistent.json"), "cannot read /nonexistent.json: No such file"),
        (("run", "/etc/hostname"), "/etc/hostname"),
        (("fuzz", "--examples", "0"), "whole number"),
        (("fuzz", "--seconds", "0"), "number of seconds above 0"),
        (("stress", "--seconds", "-1"), "above 0"),
        (("stress", "--vcpus", "99999"), "vcpus"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, said):
    ran = msrward(*words)
    assert ran.returncode == 2, ran
    assert said in ran.stderr and ran.stderr.count("\n") == 1


def test_fuzz_in_bulk_says_its_seed_and_its_verdict(has_kvm):
    ran = msrward("fuzz", "--bulk", "--examples", 200, "--seed", 7)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "--bulk --seed 7 --examples 200" in ran.stdout and "200 cases" in ran.stdout


def test_fuzz_goes_on_with_the_next_seed_until_the_time_is_over(has_kvm):
    ran = msrward("fuzz", "--examples", 5, "--seed", 7, "--seconds", 1.5)
    seeds = [int(line.split()[3]) for line in ran.stdout.splitlines() if "--seed" in line]
    assert ran.returncode == 0 and len(seeds) > 1
    assert seeds == [*range(7, 7 + len(seeds))]


def test_fuzz_says_its_seed_and_its_verdict(has_kvm):
    ran = msrward("fuzz", "--examples", 20, "--seed", 7)
    assert ran.returncode == 0, ran.stdout
    assert "--seed 7" in ran.stdout


def test_stress_says_its_seed_and_its_verdict(has_kvm):
    ran = msrward("stress", "--seconds", 0.5, "--seed", 7)
    assert ran.returncode == 0, ran.stdout
    assert "nothing seen was impossible" in ran.stdout and "--seed 7" in ran.stdout


def test_churn_says_what_it_ended_and_measured(has_kvm, has_userfaultfd):
    ran = msrward("churn", "--rounds", 2, "--installs", 2000, "--vms", 20)
    assert ran.returncode == ("nothing was lost" not in ran.stdout), ran.stdout
    assert "18 VMs" in ran.stdout
    assert "churn: " in ran.stdout and "SUnreclaim" in ran.stdout


@pytest.mark.parametrize("command", [mutants, selftests])
def test_what_is_wrong_with_a_scripts_words_is_one_line(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--nonesuch"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "--nonesuch" in said


def test_a_glob_that_no_case_has_is_one_line_and_builds_nothing(capsys):
    assert mutants.main(["svm.halves_swapped", "--cases", "nonesuch.*"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no case matches 'nonesuch.*'" in said
