"""A kernel that lies: what it says of its run is no verdict unless its records bear it out."""

import json
import random

import pytest

from vmm.conformance.judge.check import Trouble
from vmm.conformance.judge.selection import Chosen
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.records.saved import load
from vmm.conformance.records.summary import end_record
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.view import View
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.runs import check
from vmm.lab.runs.claims import Claims, Damaged
from vmm.lab.runs.order import Order

CASES = [Case(f"c.{name}", "Ours.", "R14", (), ()) for name in "ab"]
CASES.append(Case("c.q", "Ours.", "R14", (), OBSERVE))
HOST = {"release": "6.6.6", "vendor_module": "kvm_amd"}
RUN = {"type": "run", "cases": 3, "catalogue": 3, "resumed": 0, "kernel_log": "watched"}
TOLD = {"type": "case", "sentence": "Theirs.", "requirements": ["R01"], "ms": 1.0}


def case(name, verdict="PASS", **more):
    return {**TOLD, "id": f"c.{name}", "verdict": Verdict(verdict), **more}


GOOD = [case("a"), case("b"), case("q", observation="done")]
BAD = [case("a", "FAIL"), *GOOD[1:]]


def ended(cases, **changes):
    return {**end_record(cases, 1.0), **changes}


def first(verdict):
    return {**case("a", verdict), "type": "first"}


def feed(records, options=(), repeat=1):
    claims = Claims(CASES, options, repeat)
    for record in records:
        list(claims.take(json.dumps({"schema": 1, **record, "host": HOST})))
    return claims


def repeated(*often):
    cases = [{**each, "repeats": {"PASS": 3}} for each in GOOD]
    cases[0] |= {"verdict": Verdict(often[0]), "repeats": often[1]}
    cases[0] |= {"first": "FAIL"} if often[0] == "UNSTEADY" else {}
    return [RUN, *cases, ended(cases)]


def test_under_repeat_the_guest_says_how_often():
    assert not feed(repeated("PASS", {"PASS": 3}), repeat=3).doubt(done(0))
    with pytest.raises(Damaged, match=r"judged c\.a 2 times, and was to 3"):
        feed(repeated("PASS", {"PASS": 2}), repeat=3)
    with pytest.raises(Damaged, match=r"judged c\.a 3 times, and was to 1"):
        feed(repeated("PASS", {"PASS": 3}))
    with pytest.raises(Damaged, match=r"calls c\.a PASS, which failed"):
        feed(repeated("PASS", {"PASS": 2, "FAIL": 1}), repeat=3)
    odd = feed(repeated("UNSTEADY", {"PASS": 2, "FAIL": 1}), repeat=3)
    assert odd.cases["c.a"]["repeats"] == {"PASS": 2, "FAIL": 1}


def done(status):
    return LabResult(Outcome.DONE, status, (), ("tail",), 1.0, 2.0, "q")


def test_an_honest_run_is_believed():
    assert feed([RUN, *GOOD, ended(GOOD)]).doubt(done(0)) == ""
    failed = [*GOOD[:2], case("q", "ERROR", error="x")]
    claims = feed([RUN, *failed, ended(failed)])
    assert (claims.doubt(done(2)), claims.is_troubled) == ("", False)
    cut = feed([RUN, ended([], status=2)])
    assert (cut.doubt(done(2)), cut.is_troubled) == ("", True), "the disk was full, say"


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([RUN, ended([], counts={"PASS": 1308}, status=0)], "counts"),
        ([RUN, ended(GOOD)], "counts"),
        ([RUN, *BAD, ended(GOOD)], "counts"),
        (
            [RUN, case("a", "FAIL"), *GOOD[1:], ended([case("a", "FAIL"), *GOOD[1:]], status=0)],
            "st",
        ),
        ([RUN, *GOOD[1:], ended(GOOD[1:])], "1 of 3 cases have no record, the first is c.a"),
        ([RUN, *GOOD, GOOD[0]], "judged c.a twice"),
        ([RUN, first("FAIL"), first("FAIL")], "judged c.a twice"),
        ([RUN, case("z")], "judged c.z unasked"),
        ([RUN, RUN], "out of turn"),
        ([GOOD[0]], "out of turn"),
        ([ended([])], "out of turn"),
        ([RUN, *GOOD, ended(GOOD), ended(GOOD)], "out of turn"),
        ([RUN, *GOOD, ended(GOOD, fingerprint="0")], "fingerprint"),
        ([RUN, *GOOD, ended(GOOD, interrupted=True)], "interrupted"),
        ([RUN, *GOOD, ended(GOOD, status=77)], "status is 77"),
        ([RUN, case("a", "XFAIL")], "no failure was known"),
        ([RUN, case("q")], "saw nothing"),
        ([RUN, {"type": "case"}], "verdict is missing"),
    ],
)
def test_a_lie_is_no_verdict(records, why):
    with pytest.raises(Damaged, match=why):
        feed(records)


def test_what_was_known_may_fail():
    assert feed([RUN, case("a", "XFAIL")], ("--xfail=c.*",)).cases
    assert feed([RUN, case("a", "XFAIL")], ("--known=B12",)).cases


def test_the_status_of_the_process_must_agree():
    claims = feed([RUN, *GOOD, ended(GOOD)])
    assert "ended with status 77, and its records with 0" in claims.doubt(done(77))
    lost = LabResult(Outcome.LOST, None, (), ("tail",), 1.0, 2.0, "q", 1, "it is cut")
    assert "it is cut after 3 of 3 cases" in claims.doubt(lost)
    assert "ended with status 0: tail" in feed([RUN, *GOOD]).doubt(done(0))


def test_the_words_of_the_contract_are_ours():
    evil = case("a", file="/etc/passwd", rerun="rm -rf /", cause="B12")
    kept = feed([RUN, evil]).cases["c.a"]
    assert (kept["sentence"], kept["requirements"]) == ("Ours.", ["R14"])
    assert not {"file", "rerun", "cause"} & kept.keys()


class Emulator:
    title = "qemu 11"
    accelerated = False


@pytest.fixture
def judged(tmp_path, monkeypatch, capsys):
    """What `lab run` makes of a guest that says ``lines`` and ends as ``result``."""
    monkeypatch.setattr(machine, "emulator_of", lambda vendor: Emulator)

    def judged(lines, result):
        def boot(*args, listener, **options):
            listener.start(1.0)
            for line in lines:
                listener.line(line)
            return result

        monkeypatch.setattr(machine, "boot", boot)
        kernel = Kernel("k", "6.6.6", tmp_path)
        order = Order(kernel, "svm", Chosen(CASES, 3, ()), executor="python")
        try:
            return check.check(order, View(), tmp_path / "o")
        except Trouble as error:
            assert "\n" not in str(error)
            return 2

    return judged


def lines(records, host=HOST):
    return [json.dumps({"schema": 1, **record, "host": host}) for record in records]


def test_a_lie_is_status_2_and_on_record(judged, tmp_path, capsys):
    assert judged(lines([RUN, *GOOD, ended(GOOD)]), done(0)) == 0
    assert judged(lines([RUN, ended([], counts={"PASS": 1308}, status=0)]), done(0)) == 2
    said = capsys.readouterr().out
    assert "no verdict on kernel 6.6.6" in said and "1308" not in said
    end = load(tmp_path / "o").end
    assert (end["status"], end["counts"]) == (2, {})
    assert "1308" in load(tmp_path / "o").trouble
    assert judged(lines([RUN, case("a", "FAIL"), ended(GOOD, status=0)]), done(0)) == 2
    assert judged(lines([RUN, *GOOD, ended(GOOD)]), done(77)) == 2
    assert judged(["[" * 9999], done(0)) == 2
    assert judged([], done(0)) == 2


@pytest.mark.parametrize("seed", range(8))
def test_no_stream_gives_a_traceback_or_a_pass(judged, seed, capsys):
    random_ = random.Random(seed)
    honest = lines([RUN, *GOOD, ended(GOOD)])
    for _ in range(40):
        stream = list(honest)
        at = random_.randrange(len(stream))
        match random_.randrange(4):
            case 0:
                del stream[at]
            case 1:
                stream.insert(at, random_.choice(stream))
            case 2:
                text = stream[at]
                cut = random_.randrange(len(text))
                stream[at] = text[:cut] + random_.choice('\x1b]{0"[9') + text[cut + 1 :]
            case 3:
                stream[at] = json.dumps({**json.loads(stream[at]), "verdict": "\x1b[2J", "ms": []})
        status = judged(stream, done(0))
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err
        if status == 0:  # what changed is in a text that nobody goes by
            read = [json.loads(line) for line in stream]
            cases = [(each["id"], each["verdict"]) for each in read if each["type"] == "case"]
            assert cases == [(each["id"], "PASS") for each in GOOD]
