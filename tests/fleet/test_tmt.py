"""scripts/fleet/tmt, run by tmt itself on this host: one result a record, and none invented."""

import re
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from vmm.conformance.records.saved import load

OUTCOMES = {
    **{"PASS": "pass", "FAIL": "fail", "TIMEOUT": "fail", "SKIP": "skip"},
    **{"XFAIL": "warn", "XPASS": "warn", "ERROR": "error", "UNSTEADY": "error"},
}
ENDS = {"fail": 1, "warn": 1, "error": 2}
"""What tmt ends with, the worst first come last: 0 where there are none of these."""


def command():
    """Return the words of the one command for tmt that the page has."""
    page = Path(__file__).parents[2] / "docs" / "fleet.md"
    [line] = re.findall("^    (tmt .*)$", page.read_text(), re.M)
    assert "prepare" not in line and "--all" not in line, "that step installs packages"
    return shlex.split(line)


@pytest.fixture
def tmt(files, tmp_path, environ):
    """Run the page's command with words for ``msrward check``; the status, and what tmt kept."""
    for program, why in (("tmt", "pip install tmt"), ("rsync", "tmt calls it")):
        if not shutil.which(program, path=environ["PATH"]):
            pytest.skip(f"{program} is not installed here ({why})")

    def run(check):
        place = tmp_path / "run"
        lacks = f"MSRWARD_LACKS='{environ['MSRWARD_LACKS']}'"
        words = [f"CHECK='{check}'" if each.startswith("CHECK=") else each for each in command()]
        words = [each.replace("$PATH", environ["PATH"]) for each in words]
        at = words.index("run") + 1
        ran = subprocess.run(
            [*words[:at], "--id", place, "-e", lacks, *words[at:]],
            cwd=files / "tmt",
            env=environ,
            capture_output=True,
            text=True,
            timeout=500,
        )
        said = ran.stdout + ran.stderr
        assert (place / "plan/execute/results.yaml").exists(), said
        results = yaml.safe_load((place / "plan/execute/results.yaml").read_text())
        return ran.returncode, results, said, place

    return run


def test_every_record_is_a_result_of_its_outcome_and_there_are_no_others(tmt, check):
    status, results, said, place = tmt(check)
    [records] = place.rglob("results.jsonl")
    cases = load(records).cases
    expected = {
        "/msrward/" + name.replace(".", "/", 1): "info"
        if "observation" in case
        else OUTCOMES[case["verdict"]]
        for name, case in cases.items()
    }
    assert {each["name"]: each["result"] for each in results} == expected
    assert len(results) == len(cases)
    count = Counter(expected.values())
    assert {"pass", "info", "skip", "warn", "error"} <= set(count), "one of every kind"
    assert status == max(ENDS.get(outcome, 0) for outcome in count)
    for outcome, word in (("error", "error"), ("skip", "skipped"), ("warn", "warn")):
        assert f"{count[outcome]} " in said and word in said


def test_a_run_that_leaves_nothing_is_an_error(tmt):
    status, results, said, _ = tmt("no.such_case")
    assert status == 2
    assert [(each["name"], each["result"]) for each in results] == [("/msrward", "error")]
    assert "1 error" in said
