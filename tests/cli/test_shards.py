"""--shard and merge: every case is in one part, and the parts together are the whole run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.judge.selection import Shard, UnknownCase, choose
from vmm.conformance.records.saved import load

THEME = "slots.*"


def msrward(*words):
    command = [sys.executable, "-P", "-m", "vmm", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_every_case_is_in_one_part_of_a_run(total):
    parts = [choose(CASES, (), shard=Shard(n + 1, total)).ids for n in range(total)]
    every = choose(CASES, ()).ids
    assert sorted(name for part in parts for name in part) == sorted(every)
    assert max(map(len, parts)) < 2 * len(every) / total


def test_which_part_a_case_is_in_its_name_alone_decides():
    assert choose(CASES, ["slots.*"], shard=Shard(2, 3)).ids == [
        name for name in choose(CASES, (), shard=Shard(2, 3)).ids if name.startswith("slots.")
    ]
    assert [n for n in (1, 2, 3) if Shard(n, 3).has("stalled.a")] == [2], "for ever"


def test_a_part_without_a_case_says_so():
    with pytest.raises(UnknownCase, match=r"^none of the 1 chosen cases is in shard \d/2$"):
        for number in (1, 2):
            choose(CASES, [CASES[0].id], shard=Shard(number, 2))


@pytest.mark.parametrize("word", ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_shard_that_is_none_is_refused_in_one_line(word):
    ran = msrward("check", f"--shard={word}")
    assert ran.returncode == 2 and "is not I/N" in ran.stderr.splitlines()[-1]


@pytest.fixture
def parts(has_kvm, tmp_path):
    for number in (1, 2, 3):
        ran = msrward("check", "-q", "--shard", f"{number}/3", "-o", tmp_path / f"{number}", THEME)
        assert ran.returncode == 0, ran.stdout
    return [tmp_path / f"{number}" for number in (1, 2, 3)]


def test_the_parts_together_are_the_whole(parts, tmp_path):
    assert msrward("check", "-q", "-o", tmp_path / "whole", THEME).returncode == 0
    ran = msrward("merge", *parts, "-o", tmp_path / "merged")
    assert (ran.returncode, ran.stderr) == (0, "")
    merged, whole = load(tmp_path / "merged"), load(tmp_path / "whole")
    assert {n: r["verdict"] for n, r in merged.cases.items()} == {
        n: r["verdict"] for n, r in whole.cases.items()
    }
    for field in ("counts", "status", "fingerprint", "splats"):
        assert merged.end[field] == whole.end[field]
    assert merged.run["merged"] == 3 and "shard" not in merged.run
    assert f"{len(whole.cases)} passed, 0 failed" in ran.stdout


def test_a_part_that_is_missing_is_a_hole_and_no_verdict(parts, tmp_path):
    ran = msrward("merge", *parts[:2], "-o", tmp_path / "merged")
    assert (ran.returncode, ran.stderr) == (2, "msrward: hole: no shard 3/3\n")


def test_a_part_that_is_not_whole_is_a_hole(parts, tmp_path):
    file = parts[0] / "results.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    ran = msrward("merge", *parts, "-o", tmp_path / "merged")
    assert ran.returncode == 2 and ran.stderr.startswith(f"msrward: hole: {parts[0]}: ")


def test_the_whole_does_not_take_the_place_of_a_part(parts):
    before = (parts[0] / "results.jsonl").read_bytes()
    ran = msrward("merge", *parts, "-o", parts[0])
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "holds the records that are read" in ran.stderr
    assert (parts[0] / "results.jsonl").read_bytes() == before


def test_what_is_twice_is_named(parts, tmp_path):
    ran = msrward("merge", *parts, parts[0], "-o", tmp_path / "merged")
    name = next(iter(load(parts[0]).cases))
    assert ran.returncode == 0
    assert f"msrward: twice: {name}, in {parts[0]} too, the same" in ran.stderr


def test_what_is_twice_and_differs_is_no_verdict(parts, tmp_path):
    file = parts[0] / "results.jsonl"
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.jsonl").write_text(file.read_text().replace('"PASS"', '"XPASS"', 1))
    ran = msrward("merge", *parts, other, "-o", tmp_path / "merged")
    assert ran.returncode == 2 and "it differs: PASS, XPASS" in ran.stderr


def test_parts_of_two_kernels_are_no_run(parts, tmp_path):
    file = parts[1] / "results.jsonl"
    release = json.loads(file.read_text().splitlines()[0])["host"]["release"]
    file.write_text(file.read_text().replace(release, "6.66.6"))
    ran = msrward("merge", *parts, "-o", tmp_path / "merged")
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert "is of another release: 6.66.6" in ran.stderr


def test_mutants_are_in_parts_too():
    script = Path(__file__).parents[2] / "scripts" / "mutants"
    listed = [
        {line.split()[0] for line in ran.stdout.splitlines() if line and line[0] != " "}
        for ran in (
            subprocess.run(
                [sys.executable, "-P", "-m", "vmm.cli.mutants", "--list", *words],
                capture_output=True,
                text=True,
            )
            for words in ((), ("--shard", "1/2"), ("--shard", "2/2"))
        )
    ]
    assert script.exists() and listed[0] == listed[1] | listed[2] and not listed[1] & listed[2]
