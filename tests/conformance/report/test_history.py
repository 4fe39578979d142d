"""Which kernel first showed or lost what, and what is new since other runs."""

import json
from pathlib import Path

import pytest
from recorded import case_record as case

from vmm.cli import main
from vmm.conformance.records.results import Results
from vmm.conformance.records.saved import Saved, load
from vmm.conformance.report import history, since


def run(release, *cases, vendor="svm", status=0, ended=True):
    host = {"release": release, "lab": {"vendor": vendor, "emulator": "qemu"}}
    end = {"type": "end", "status": status, "interrupted": False, "splats": []}
    return Saved(Path(release), host, {each["id"]: each for each in cases}, end if ended else None)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """What explains is tested elsewhere: here a record says it."""

    def cause(record, _=None):
        return record.get("cause", "")

    monkeypatch.setattr("vmm.conformance.records.causes.explains", cause)
    monkeypatch.setattr("vmm.conformance.report.since.explains", cause)


def failed(name, cause=""):
    return case(name, "FAIL", **({"cause": cause} if cause else {}))


def test_the_kernels_that_first_showed_and_lost_a_cause_stand_in_their_order():
    runs = [
        run("6.12.0", case("a.x"), case("a.y")),
        run("5.9.0", case("a.x"), case("a.z")),
        run("5.10.0", failed("a.x", "B12"), failed("a.y", "B12")),
        run("6.1.0", case("a.z")),
        run("5.10.0", case("a.x"), vendor="vmx"),
    ]
    svm, vmx = history.history(runs)
    assert svm.kernels == ("5.9.0", "5.10.0", "6.1.0", "6.12.0")
    (line,) = svm.causes
    assert (line.name, line.strip) == ("B12", ".#?.")
    assert [(each.kernel, each.word) for each in line.events] == [
        *(("5.9.0", history.ABSENT), ("5.10.0", history.SHOWN), ("6.12.0", history.ABSENT))
    ]
    assert history.told(line) == "not shown by 5.9.0, first shown by 5.10.0, lost by 6.12.0"
    assert not vmx.causes


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ([run("6.1", case("a.x"))], ["nothing is wrong on any kernel"]),
        (
            [run("6.1", case("a.x")), run("6.2", case("a.x"), ended=False)],
            [
                "nothing that was judged is wrong on any kernel",
                "6.2: no verdict: the run did not get to its end",
            ],
        ),
        ([run("6.1", case("a.x", "SKIP"), status=4)], ["nothing was judged"]),
    ],
)
def test_what_was_not_judged_is_not_called_good(runs, told):
    machines = history.history(runs)
    assert [line.strip() for line in history.lines(machines)[1:]] == told
    (shown,) = json.loads(history.as_json(machines))
    assert list(shown["troubles"]) == [each.host["release"] for each in runs if not each.end]


def test_what_nothing_explains_is_a_line_of_its_own_before_the_known():
    (machine,) = history.history([run("6.1", failed("a.x", "B12"), failed("z.y"))])
    assert [line.name for line in machine.causes] == ["z.y", "B12"]
    assert history.told(machine.causes[0]) == "shown by 6.1, the first that was judged"


def test_what_the_harness_did_is_no_cause():
    (machine,) = history.history([run("6.1", case("a.x", "ERROR"), case("a.y", "UNSTEADY"))])
    assert not machine.causes


def test_observations_have_letters_and_the_kernels_where_they_change():
    runs = [
        run(f"6.{n}", case("q.x", observation=seen), case("q.y", observation="same"))
        for n, seen in enumerate(["1", "1", "2"])
    ]
    (machine,) = history.history(runs)
    assert [line.strip for line in machine.observations] == ["AAB", "AAA"]
    shown = "\n".join(history.lines([machine]))
    assert "q.x: A from 6.0 on, B from 6.2 on" in shown and "q.y" not in shown
    assert "1 observations are the same" in shown


def test_a_history_is_json_too():
    (machine,) = json.loads(history.as_json(history.history([run("6.1", failed("a.x", "B12"))])))
    assert machine["machine"] == "svm" and machine["kernels"] == ["6.1"]
    assert machine["causes"][0]["events"] == [{"kernel": "6.1", "word": "shown", "before": ""}]


def change(before, now):
    (found,) = since.changes(before, now)
    return found


OLD = run("6.1", failed("a.x", "B12"), failed("a.y", "B03"), failed("n.x"), case("n.y"))


def test_new_fixed_gone_and_standing_go_by_cause():
    now = run("6.2", failed("a.x", "B12"), case("a.y"), failed("n.y"), failed("n.z", "B12"))
    found = change([OLD], [now])
    assert (found.before, found.now) == ("6.1", "6.2")
    assert dict(found.new) == {"n.y": ("n.y",)}
    assert dict(found.fixed) == {"B03": ("a.y",)} and dict(found.gone) == {"n.x": ("n.x",)}
    assert dict(found.standing) == {"B12": ("a.x", "n.z")}
    assert since.status([found]) == 1
    told = "\n".join(since.lines([found]))
    assert "new   n.y" in told and "fixed B03: " in told and "1 machine: 1 new, 1 fixed" in told


def test_a_case_that_passed_is_new_even_by_a_known_cause():
    now = run("6.2", failed("a.x", "B12"), failed("n.y", "B12"))
    assert dict(change([OLD], [now]).new) == {"B12": ("a.x", "n.y")}


def test_only_what_is_new_makes_status_1():
    assert since.status([change([OLD], [OLD])]) == 0
    assert since.status([change([OLD], [run("6.2", case("a.x"), case("n.x"))])]) == 0
    cut = run("6.2", case("a.x"), ended=False)
    assert since.status([change([OLD], [cut])]) == 2
    assert since.status(since.changes([OLD], [])) == 2
    assert since.status([change([], [OLD])]) == 1


def test_what_repeated_runs_saw_both_ways_is_flaky_and_not_new():
    now = [run("6.2", failed("n.y")), run("6.2", case("n.y")), run("6.2", case("n.y"))]
    found = change([OLD], now)
    assert dict(found.flaky) == {"n.y": ("n.y",)} and not found.new
    older = change([OLD], [run("6.0", failed("n.y")), *now])
    assert older == found, "a machine's older kernel is no repetition of its newest"
    assert found.now == "6.2 (3 runs)" and since.status([found]) == 0
    unsteady = change([OLD], [run("6.2", case("n.y", "UNSTEADY"))])
    assert dict(unsteady.flaky) == {"n.y": ("n.y",)}


def test_machines_are_compared_with_themselves():
    other = run("6.1", case("a.x"), vendor="vmx")
    found = since.changes([OLD, other], [OLD, run("6.1", failed("a.x", "B12"), vendor="vmx")])
    assert [(each.machine, bool(each.new)) for each in found] == [("svm", False), ("vmx", True)]


END = {"type": "end", "status": 0, "splats": [], "interrupted": False, "counts": {}, "lost": 0}
END |= {"seconds": 1.0, "fingerprint": ""}


def on_disk(place, release, *cases):
    host = {"release": release, "lab": {"vendor": "svm", "emulator": "qemu"}}
    with Results(place, host) as results:
        for record in (*cases, END):
            results.write(record)
    return str(place)


def test_the_commands(tmp_path, capsys):
    old = on_disk(tmp_path / "old", "6.1", case("a.x"))
    new = on_disk(tmp_path / "new", "6.2", case("a.x", "FAIL"))
    assert load(Path(new)).cases
    assert main(["diff", "--since", old, new]) == 1
    assert "new   a.x" in capsys.readouterr().out
    assert main(["diff", "--since", new, old]) == 0
    assert main(["diff", old]) == 2
    assert "two runs" in capsys.readouterr().err
    assert main(["history", str(tmp_path)]) == 0
    assert ".#  a.x: not shown by 6.1, first shown by 6.2" in capsys.readouterr().out
    assert main(["history", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["kernels"] == ["6.1", "6.2"]
