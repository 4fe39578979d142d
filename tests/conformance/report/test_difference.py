"""Two runs compared: ``msrward diff``."""

import json
import subprocess
import sys

import pytest
from recorded import case_record as case

from vmm.conformance.records.results import ResultsError
from vmm.conformance.records.saved import load
from vmm.conformance.report.difference import difference, lines

FAILED = {"step": 2, "action": "install()", "expected": ["done"], "seen": ["rejected(EINVAL)"]}


@pytest.fixture
def save(tmp_path):
    def save(name, *cases, **facts):
        host = {"release": "6.1", "boot_id": name, "vendor_module": "kvm_amd", **facts}
        directory = tmp_path / name
        directory.mkdir()
        end = {"type": "end", "status": 0, "splats": [], "interrupted": False}
        end |= {"counts": {}, "seconds": 1.0, "fingerprint": "", "lost": 0}
        text = [json.dumps({"schema": 1, **record, "host": host}) for record in (*cases, end)]
        (directory / "results.jsonl").write_text("\n".join(text) + "\n")
        return directory

    return save


def diff(*directories):
    command = [sys.executable, "-P", "-m", "vmm", "diff", *map(str, directories)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_two_boots_of_one_kernel_are_the_same(save):
    ran = diff(save("a", case("x.y")), save("b", case("x.y")))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("the same: 1 cases")
    assert "boot_id" not in ran.stdout


def test_a_verdict_that_changed_comes_with_what_explains_it(save):
    ran = diff(
        save("a", case("x.y")), save("b", case("x.y", "FAIL", cause="B03", **FAILED), release="6.2")
    )
    assert ran.returncode == 1
    assert "x.y: PASS -> FAIL" in ran.stdout
    assert "seen     rejected(EINVAL)" in ran.stdout
    assert "b318e8decf6b" in ran.stdout
    assert "release: '6.1' -> '6.2'" in ran.stdout


def test_an_observation_that_changed_names_its_first_event(save):
    first = save("a", case("q.x", observation="done, RdmsrExit(0x1, FILTER), returned(1)"))
    second = save("b", case("q.x", observation="done, RdmsrExit(0x1, INVAL), returned(1)"))
    shown = "\n".join(lines(load(first), load(second)))
    assert "RdmsrExit(0x1, FILTER) -> RdmsrExit(0x1, INVAL)" in shown
    assert not difference(load(first), load(second)).same


def test_facts_alone_are_no_difference_of_behaviour(save):
    first, second = save("a", case("x.y")), save("b", case("x.y"), parameters={"kvm": {"tdp": "N"}})
    found = difference(load(first), load(second))
    assert found.same and found.facts == {"parameters.kvm.tdp": (None, "N")}


def test_a_case_that_only_one_run_has_is_a_difference(save):
    ran = diff(save("a", case("x.y"), case("x.z")), save("b", case("x.y")))
    assert (ran.returncode, "only in A: x.z" in ran.stdout) == (1, True)


def test_a_run_that_cannot_be_read_is_one_line(save, tmp_path):
    damaged = save("a", case("x.y"))
    with (damaged / "results.jsonl").open("a") as file:
        file.write("{cut")
    for place in (tmp_path / "nothing", damaged):
        ran = diff(place, place)
        assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    with pytest.raises(ResultsError, match="damaged at line 3"):
        load(damaged)


def test_what_was_added_to_the_command_line_tells_two_runs_apart(save):
    lab = {"vendor": "svm", "emulator": "qemu 11", "boot_seconds": 1.0}
    plain = save("a", case("x.y"), lab=lab)  # from before --append
    added = save("b", case("x.y"), lab={**lab, "append": "kvm.ignore_msrs=1"})
    assert difference(load(plain), load(added)).facts["lab.append"] == (None, "kvm.ignore_msrs=1")
    said = lines(load(plain), load(added))
    assert said[0].startswith("A: 6.1 (svm):")
    assert said[1].startswith("B: 6.1 (svm, kvm.ignore_msrs=1):")
