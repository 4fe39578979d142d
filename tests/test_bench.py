"""The benchmark: both sides do the same work, and the table says what was measured."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
START = """import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module("bench", run_name="__main__", alter_sys=True)"""


@pytest.fixture(scope="module")
def bench():
    """The package, found after everything else: vmm is the installed one."""
    sys.path.append(str(ROOT))
    yield SimpleNamespace(
        **{
            name: importlib.import_module(f"bench.{name}")
            for name in ("bare", "exits", "lab", "line")
        },
        table=importlib.import_module("bench.table"),
    )
    sys.path.remove(str(ROOT))


def line_of(bench, at_most, c, python, target=1.15):
    return bench.line.Line("a line", "us", target, at_most, c=c, python=python)


def test_a_ratio_is_the_median_of_the_rounds_and_not_of_the_sides(bench):
    line = line_of(bench, True, [10, 100, 1000], [11, 110, 900])
    assert line.ratio() == pytest.approx(1.1) and line.verdict() == "PASS"
    assert line_of(bench, True, [10, 10, 10], [12, 12, 12]).verdict() == "MISS"


def test_a_rate_is_the_inverse_of_a_time(bench):
    line = line_of(bench, False, [30, 30], [40, 40], target=0.75)
    assert line.ratio() == pytest.approx(0.75) and line.verdict() == "PASS"
    assert line_of(bench, False, [30], [41], target=0.75).verdict() == "MISS"


def test_a_line_that_could_not_be_measured_is_no_pass(bench):
    line = bench.line.Line("a line", "us", 1.0, skipped="a reason")
    assert line.verdict() == "SKIP"
    assert "SKIP: a reason" in bench.table.table([bench.table.report(line)])


@pytest.fixture(scope="module")
def ran(compiler) -> subprocess.CompletedProcess[str]:
    """Run the bench once, small: it also runs the whole suite once a round."""
    work = ["--rounds", "2", "--exits", "50", "--cases", "70", "--json"]
    command = [sys.executable, "-P", "-c", START, str(ROOT), *work]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def compiler(has_kvm):
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler: the C side cannot be built")


def test_both_sides_make_the_same_exits_and_every_line_is_measured(ran):
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = json.loads(ran.stdout)["lines"]
    assert len(lines) == 7
    for each in lines[:6]:
        assert each["exits"]["c"] == each["exits"]["python"] > 0, each["name"]
        assert each["verdict"] == ("PASS" if in_target(each) else "MISS")
        assert 0 < each["c"]["p50"] <= each["c"]["p90"]
        assert 0 < each["python"]["p50"] <= each["python"]["p90"]
    assert [each["exits"]["c"] for each in lines[:4]] == [2 * 8 * 50] * 4
    for each in lines[4:6]:
        assert (
            each["install_gap_us"]["c"]["p50"] > 0 and each["install_gap_us"]["python"]["p50"] > 0
        )


def in_target(line) -> bool:
    least, most = sorted([line["ratio"], line["target"]])
    return (line["ratio"] == least) == line["at_most"] or least == most


def test_the_table_has_a_line_for_each_promise(bench, ran):
    table = bench.table.table(json.loads(ran.stdout)["lines"])
    rows = [row for row in table.splitlines() if row.endswith(("PASS", "MISS"))]
    assert len(rows) + table.count("SKIP: ") == 7
    assert "from one install to the next" in table


def test_the_c_program_names_a_command_it_does_not_know(bench, compiler, tmp_path):
    with bench.bare.BareC(tmp_path) as c, pytest.raises(RuntimeError, match="nonsense"):
        c.ask("nonsense")


def test_an_exit_that_is_not_as_expected_is_trouble(bench, kvm):
    vcpu = bench.exits.boot_spin(kvm)
    bench.exits.run_and_reply(vcpu, 2)
    vcpu.run()
    drained = bench.exits.Drained(vcpu, 10)
    assert drained.run() == 10
    drained._reply.data = 1
    with pytest.raises(RuntimeError, match="not as expected"):
        drained.run()


def test_the_lab_is_measured_by_what_its_records_say(bench, monkeypatch):
    from vmm.conformance.records import saved

    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    took = {"boot_seconds": 4.0, "total_seconds": 9.0}
    monkeypatch.setattr(bench.lab.subprocess, "run", run)
    monkeypatch.setattr(saved, "load", lambda place: SimpleNamespace(lab=took))
    lines = bench.lab.measure_lab("debian:6.12", "svm", 2)
    assert [line.verdict() for line in lines] == ["MISS", "PASS", "PASS"]
    assert [line.ratio() for line in lines] == [2.25] * 3 and len(asked) == 6
    executors = [command[command.index("--executor") + 1] for command in asked]
    assert executors == ["player", "player", "python"] * 2


def test_a_lab_that_cannot_be_measured_says_why(bench, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 2, "", "one\nmsrward: no qemu here\n")

    monkeypatch.setattr(bench.lab.subprocess, "run", run)
    lines = bench.lab.measure_lab("debian:6.12", "svm", 3)
    assert [line.skipped for line in lines] == ["msrward: no qemu here"] * 3
