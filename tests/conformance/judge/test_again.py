"""What fails is judged once more, alone: what does not repeat is UNSTEADY, and never swept away."""

import json
import os
import signal
from types import SimpleNamespace

import pytest

from vmm.conformance.host import facts
from vmm.conformance.judge import again
from vmm.conformance.judge.check import check
from vmm.conformance.judge.recording import Options
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.script import Got, get_msr, got
from vmm.conformance.records.results import FILE
from vmm.conformance.records.saved import load
from vmm.conformance.records.shape import checked
from vmm.conformance.records.status import Status
from vmm.conformance.records.steadiness import is_doubtful, settle, together
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import difference, html, since
from vmm.conformance.report.formats import FORMATS, Told, render
from vmm.conformance.report.table import Column
from vmm.conformance.report.view import View

GOOD, ONCE, WRONG, HANGS_ONCE, HANGS, RACY, KILLS = range(7)


def case(name, doing=GOOD):
    return Case(f"t.{name}", "A sentence.", "R14", [get_msr(doing)], (got(0),))


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Judge cases by a backend that fails as their MSR says, once where it says once."""
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setattr(facts, "facts", lambda: {"release": "6.6"})

    class Backend:
        def __init__(self):
            self.number = len(os.listdir(made))
            (made / f"{self.number}-{os.getpid()}").touch()
            self.served = 0

        def run(self, script, *, expected=None):
            doing, self.served = script[0].index, self.served + 1
            seen = tmp_path / f"seen-{doing}"
            before = seen.read_text().split() if seen.exists() else []
            seen.write_text(" ".join([*before, f"{os.getpid()}/{self.served}"]))
            if doing == HANGS or (doing == HANGS_ONCE and not before):
                signal.pause()
            if doing == KILLS and before:
                os.kill(os.getppid(), signal.SIGINT)
                signal.pause()
            if doing == RACY:
                return (Got(len(before) + 1),)
            return (Got(7 if doing in (WRONG, KILLS) or (doing == ONCE and not before) else 0),)

        def lacks(self, need):
            return None

        def close(self):
            pass

    def judge(*cases, view=None, resume=False, **options):
        how = Options(**{"timeout": 0.3, **options})
        view, out = view or View(), tmp_path / "out"
        status = check(cases, len(cases), how, view, directory=out, resume=resume, factory=Backend)
        told = capsys.readouterr()
        records = [json.loads(line) for line in (out / FILE).read_text().splitlines()]
        ended = {r["id"]: r for r in records if r["type"] == "case"}
        assert len(ended) == sum(r["type"] == "case" for r in records), "one record a case"
        return SimpleNamespace(
            status=status,
            said=told.out,
            records=records,
            cases=ended,
            workers=lambda doing: (tmp_path / f"seen-{doing}").read_text().split(),
            saved=load(out),
        )

    return judge


@pytest.mark.parametrize(("doing", "verdict"), [(ONCE, "FAIL"), (HANGS_ONCE, "TIMEOUT")])
def test_what_does_not_repeat_is_unsteady_and_no_verdict_on_the_kernel(bench, doing, verdict):
    run = bench(case("a"), case("odd", doing), case("b"), jobs=2)
    assert run.status == 2
    record = run.cases["t.odd"]
    assert (record["verdict"], record["first"]) == ("UNSTEADY", verdict)
    assert record["again"]["verdict"] == "PASS"
    assert record["script"] == [f"get_msr({doing:#x})"], "the first evidence is kept"
    assert ("seen" if doing == ONCE else "error") in record
    assert f"{verdict} did not repeat" in run.said and "UNSTEADY t.odd" in run.said
    assert "no verdict on kernel 6.6 (kvm), what failed did not repeat: 2 passed" in run.said
    assert ", 1 unsteady in" in run.said
    assert [r["verdict"] for r in run.records if r["type"] == "first"] == [verdict]


def test_a_case_that_fails_again_fails(bench):
    run = bench(case("a"), case("bad", WRONG), case("b"))
    assert run.status == 1
    record = run.cases["t.bad"]
    assert (record["verdict"], record["again"]["verdict"]) == ("FAIL", "FAIL")
    assert record["again"]["seen"] == record["seen"] == ["got(7)"]
    assert "judged once more, alone: FAIL: got(7)" in run.said
    assert "first" not in record


def test_a_race_that_fails_in_another_way_each_time_fails_and_both_are_on_record(bench):
    record = bench(case("race", RACY)).cases["t.race"]
    assert record["verdict"] == "FAIL"
    assert (record["seen"], record["again"]["seen"]) == (["got(1)"], ["got(2)"])


def test_it_is_judged_in_a_fresh_worker_after_all_others_have_ended(bench):
    run = bench(case("bad", WRONG), *(case(f"n{n}") for n in range(9)), jobs=2)
    first, second = (each.split("/") for each in run.workers(WRONG))
    assert first[0] != second[0], "another process"
    assert second[1] == "1", "which did nothing before"
    assert next(reversed(run.cases)) == "t.bad", "no other case was left to run beside it"


def test_a_failure_that_did_not_repeat_does_not_hide_one_that_did(bench):
    run = bench(case("odd", ONCE), case("bad", WRONG))
    assert run.status == 1
    assert (run.cases["t.odd"]["verdict"], run.cases["t.bad"]["verdict"]) == ("UNSTEADY", "FAIL")


def test_after_three_that_hang_twice_others_that_hung_are_believed(bench, monkeypatch):
    monkeypatch.setattr(again, "HANGS", 2)
    run = bench(*(case(f"h{n}", HANGS) for n in range(3)), case("bad", WRONG), jobs=3)
    assert [run.cases[f"t.h{n}"]["verdict"] for n in range(3)] == ["TIMEOUT"] * 3
    assert ["again" in run.cases[f"t.h{n}"] for n in range(3)] == [True, True, False]
    assert "again" in run.cases["t.bad"], "a failure takes no deadline to see"


def test_a_run_that_is_ended_between_the_two_keeps_the_first_for_the_next(bench):
    cut = bench(case("a"), case("odd", KILLS))
    assert cut.status == 130
    assert "t.odd" not in cut.cases and "FAIL    t.odd" in cut.said
    assert cut.saved.firsts["t.odd"]["verdict"] is Verdict.FAIL
    healed = [case("a"), Case("t.odd", "A sentence.", "R14", [get_msr(GOOD)], (got(0),))]
    run = bench(*healed, resume=True)
    assert run.status == 2
    assert (run.cases["t.odd"]["verdict"], run.cases["t.odd"]["seen"]) == ("UNSTEADY", ["got(7)"])
    assert not run.saved.firsts
    assert bench(*healed, resume=True).status == 2, "and nothing of it is forgotten"


def test_known_failures_are_not_judged_again(bench):
    run = bench(case("bad", WRONG), xfail=("t.bad",))
    assert (run.status, run.cases["t.bad"]["verdict"]) == (0, "XFAIL")
    assert len(run.workers(WRONG)) == 1


def test_tap_shows_both(bench):
    run = bench(case("odd", ONCE), view=View(tap=True))
    lines = run.said.splitlines()
    assert "not ok 1 - t.odd" in lines and "  verdict: UNSTEADY" in lines
    assert '  first: "FAIL"' in lines
    assert any(line.startswith('  again: {"verdict": "PASS"') for line in lines)
    assert [line for line in lines if "ok " in line] == ["not ok 1 - t.odd"], "once"


def test_json_lines_the_matrix_and_a_difference_show_it(bench):
    run = bench(case("odd", ONCE), view=View(json="-"))
    types = [json.loads(line)["type"] for line in run.said.splitlines()]
    assert types == ["run", "first", "case", "end"]
    page = html.page([Column("6.6", "svm", run.saved)])
    assert 'class="UNSTEADY"' in page and "FAIL did not repeat" in page
    said = "\n".join(difference.lines(run.saved, run.saved))
    assert said.endswith("have the same verdicts and observations")


def test_a_difference_of_two_runs_says_that_it_did_not_repeat(bench):
    odd = bench(case("odd", ONCE)).saved
    even = bench(case("odd")).saved
    said = "\n".join(difference.lines(even, odd))
    assert "t.odd: PASS -> UNSTEADY" in said
    assert "B: FAIL did not repeat" in said


# --- many times ----------------------------------------------------------------------------------


def test_under_repeat_what_fails_and_passes_is_unsteady_and_says_how_often(bench):
    run = bench(case("a"), case("odd", ONCE), case("b"), repeat=4)
    assert run.status == 2
    record = run.cases["t.odd"]
    assert (record["verdict"], record["first"], record["seen"]) == ("UNSTEADY", "FAIL", ["got(7)"])
    assert record["repeats"] == {"FAIL": 1, "PASS": 3}
    assert run.cases["t.a"]["repeats"] == {"PASS": 4}
    assert len(run.workers(ONCE)) == 4, "and it is not judged once more"
    assert "each case is judged 4 times" in run.said
    assert "judged 4 times: 1 FAIL, 3 PASS" in run.said and "FAIL did not repeat" in run.said
    assert run.records[0]["repeat"] == 4
    assert run.saved.cases["t.odd"]["repeats"] == {"FAIL": 1, "PASS": 3}


def test_under_repeat_what_fails_every_time_is_still_judged_alone(bench):
    run = bench(case("bad", WRONG), repeat=3)
    record = run.cases["t.bad"]
    assert (run.status, record["verdict"], record["repeats"]) == (1, "FAIL", {"FAIL": 3})
    assert record["again"]["verdict"] == "FAIL" and len(run.workers(WRONG)) == 4
    assert sum(each["type"] == "first" for each in run.records) == 1


def test_under_repeat_a_first_failure_is_on_disk_before_the_last_time(bench):
    cut = bench(case("odd", KILLS), repeat=5)
    assert cut.status == 130 and "t.odd" not in cut.cases
    assert cut.saved.firsts["t.odd"]["seen"] == ["got(7)"]


def test_a_known_failure_that_does_not_always_fail_is_flaky_and_stays_known(bench):
    run = bench(case("odd", ONCE), repeat=3, xfail=("t.odd",))
    record = run.cases["t.odd"]
    assert (run.status, record["verdict"]) == (0, "XFAIL")
    assert record["repeats"] == {"XFAIL": 1, "XPASS": 2}


def test_under_repeat_an_observation_that_varies_is_named(bench):
    racy = Case("t.racy", "A sentence.", "R14", [get_msr(RACY)], OBSERVE)
    steady = Case("t.steady", "A sentence.", "R14", [get_msr(GOOD)], OBSERVE)
    run = bench(racy, steady, repeat=3)
    assert run.status == 0, "an observation never fails"
    assert run.cases["t.racy"]["varied"] == ["got(1)", "got(2)", "got(3)"]
    assert "varied" not in run.cases["t.steady"]
    assert "flaky: t.racy: judged 3 times: observed got(1) or got(2) or got(3)" in run.said
    assert run.said.count("flaky") == 1
    assert "observed got(1) or got(2)" in render("junit", [run.saved], Told())


def test_every_format_says_how_often(bench):
    saved = bench(case("odd", ONCE), repeat=3).saved
    for format_ in set(FORMATS) - {"lava", "lava-results", "tap"}:
        told = " ".join(render(format_, [saved], Told({"origin": "me"})).split())
        assert "judged 3 times: 1 FAIL, 2 PASS" in told, format_
    assert 'repeats: {"FAIL": 1, "PASS": 2}' in render("tap", [saved], Told())


@pytest.mark.parametrize("xfail", [(), ("t.odd",)])
def test_a_difference_between_fleets_has_the_flaky_apart(bench, xfail):
    odd = bench(case("odd", ONCE), repeat=3, xfail=xfail).saved
    even = bench(case("odd"), repeat=3).saved
    [found] = since.changes([even], [odd])
    assert dict(found.flaky) == {"t.odd": ("t.odd",)} and not found.new
    assert since.status([found]) != Status.VIOLATES


def test_a_count_of_what_is_no_verdict_is_refused(bench):
    run = bench(case("odd", ONCE), repeat=3)
    line = next(each for each in run.records if each["type"] == "case")
    with pytest.raises(ValueError, match="repeats"):
        checked({**line, "repeats": {"observed": 1}})


# --- the rule ------------------------------------------------------------------------------------

FAIL = {"type": "case", "id": "t", "verdict": Verdict.FAIL, "seen": ["got(7)"]}


@pytest.mark.parametrize("verdict", list(Verdict))
def test_only_a_violation_that_comes_again_is_one(verdict):
    record = settle(FAIL, {**FAIL, "verdict": verdict, "seen": ["x"]})
    repeats = verdict in ("FAIL", "TIMEOUT")
    assert record["verdict"] == ("FAIL" if repeats else "UNSTEADY")
    assert record["seen"] == ["got(7)"] and record["again"]["seen"] == ["x"]


def test_a_splat_is_believed_at_once_whenever_it_falls():
    splat = [["WARNING: x"]]
    assert is_doubtful(FAIL)
    assert not is_doubtful({**FAIL, "splats": splat})
    record = settle(FAIL, {**FAIL, "splats": splat})
    assert (record["verdict"], record["splats"]) == ("FAIL", splat)


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (("FAIL", "FAIL"), "FAIL"),
        (("PASS", "FAIL"), "UNSTEADY"),
        (("SKIP", "TIMEOUT"), "UNSTEADY"),
        (("ERROR", "FAIL"), "FAIL"),
        (("PASS", "ERROR"), "ERROR"),
        (("XFAIL", "PASS"), "XFAIL"),
        (("PASS", "PASS"), "PASS"),
    ],
)
def test_the_worst_of_many_times_is_the_evidence(verdicts, whole):
    records = [{**FAIL, "verdict": Verdict(each)} for each in verdicts]
    record = together(records)
    assert record["verdict"] == whole and sum(record["repeats"].values()) == len(verdicts)
    assert together(records[:1]) is records[0]


def test_a_splat_in_one_of_many_times_is_believed():
    record = together([{**FAIL, "verdict": Verdict.PASS}, {**FAIL, "splats": [["WARNING: x"]]}])
    assert (record["verdict"], record["splats"]) == ("FAIL", [["WARNING: x"]])
