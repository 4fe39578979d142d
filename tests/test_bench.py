"""The benchmark: both sides do the same work, and the table says what was measured."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "scripts" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", BENCH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench"]


def line_of(bench, at_most, c, python, target=1.15):
    return bench.Line("a line", "us", target, at_most, c=c, python=python)


def test_a_ratio_is_the_median_of_the_rounds_and_not_of_the_sides(bench):
    line = line_of(bench, True, [10, 100, 1000], [11, 110, 900])
    assert line.ratio() == pytest.approx(1.1) and line.verdict() == "PASS"
    assert line_of(bench, True, [10, 10, 10], [12, 12, 12]).verdict() == "MISS"


def test_a_rate_is_the_inverse_of_a_time(bench):
    line = line_of(bench, False, [30, 30], [40, 40], target=0.75)
    assert line.ratio() == pytest.approx(0.75) and line.verdict() == "PASS"
    assert line_of(bench, False, [30], [41], target=0.75).verdict() == "MISS"


def test_a_line_that_could_not_be_measured_is_no_pass(bench):
    line = bench.Line("a line", "us", 1.0, skipped="a reason")
    assert line.verdict() == "SKIP"
    assert "SKIP: a reason" in bench._table([bench.report(line)])


@pytest.fixture(scope="module")
def ran(compiler) -> subprocess.CompletedProcess[str]:
    """Run the bench once, small: it also runs the whole suite once a round."""
    command = [sys.executable, str(BENCH), "--rounds", "2", "--exits", "50", "--cases", "70"]
    return subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def compiler(has_kvm):
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler: the C side cannot be built")


def test_both_sides_make_the_same_exits_and_every_line_is_measured(ran):
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = json.loads(ran.stdout)["lines"]
    assert len(lines) == 5
    for each in lines[:4]:
        assert each["exits"]["c"] == each["exits"]["python"] > 0, each["name"]
        assert each["verdict"] == ("PASS" if in_target(each) else "MISS")
        assert 0 < each["c"]["p50"] <= each["c"]["p90"]
        assert 0 < each["python"]["p50"] <= each["python"]["p90"]
    assert [each["exits"]["c"] for each in lines[:2]] == [2 * 8 * 50] * 2
    for each in lines[2:4]:
        assert (
            each["install_gap_us"]["c"]["p50"] > 0 and each["install_gap_us"]["python"]["p50"] > 0
        )


def in_target(line) -> bool:
    least, most = sorted([line["ratio"], line["target"]])
    return (line["ratio"] == least) == line["at_most"] or least == most


def test_the_table_has_a_line_for_each_promise(bench, ran):
    table = bench._table(json.loads(ran.stdout)["lines"])
    rows = [row for row in table.splitlines() if row.endswith(("PASS", "MISS"))]
    assert len(rows) + table.count("SKIP: ") == 5
    assert "from one install to the next" in table


def test_the_c_program_names_a_command_it_does_not_know(bench, compiler, tmp_path):
    with bench.BareC(tmp_path) as c, pytest.raises(RuntimeError, match="nonsense"):
        c.ask("nonsense")


def test_an_exit_that_is_not_as_expected_is_trouble(bench, kvm):
    vcpu = bench.boot_spin(kvm)
    bench.run_and_reply(vcpu, 2)
    drained = bench.Drained(vcpu, 10)
    assert drained.run() == 10
    drained._reply.data = 1
    with pytest.raises(RuntimeError, match="not as expected"):
        drained.run()
