"""What the user reads: text, TAP, JSON lines, progress, all from the same records."""

import io
import json
import os
import re

import pytest
from recorded import case_record as record

from vmm.conformance.contract.requirements import explain_case
from vmm.conformance.records.jsonl import decode, encoder
from vmm.conformance.records.summary import count, end_record, fingerprint
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import closing, listing, tap, text
from vmm.conformance.report.progress import Progress

HOST = {"release": "6.1.0", "vendor_module": "kvm_amd", "cpu_model": "CPU", "platform": "virtual"}
RUN = {"cases": 9, "catalogue": 9, "resumed": 0, "kernel_log": "watched"}


FAILED = record(
    "rollback.slot_0",
    "FAIL",
    script=["install(OLD)", "install(BAD)", "rdmsr(Msr.STAR)"],
    step=3,
    action="rdmsr(Msr.STAR)",
    expected=["RdmsrExit(Msr.STAR, FILTER)", "returned(0x1)"],
    seen=["returned(0)"],
    trace=["done", "rejected(EINVAL)", "returned(0)"],
)
SKIPPED = record("irqchip.a", "SKIP", reason="no irqchip", need="irqchip", requirements=["R45"])


def plain(colour, words):
    return words


def verdict(*cases, run=RUN, **ending):
    return closing.verdict(run, end_record(cases, 1.25, **ending), HOST, plain)


def test_of_a_machine_that_told_nothing_nothing_is_said():
    assert text.header(RUN, {"release": "6.1.0"}) == ["kernel 6.1.0 (kvm)"]
    assert text.header(RUN, {**HOST, "msrward": "1"})[0].endswith(" on CPU, virtual; msrward 1")


# --- the exit status and the verdict line --------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "ending", "status"),
    [
        (["PASS", "SKIP", "XFAIL", "XPASS"], {}, 0),
        (["PASS", "FAIL", "ERROR"], {}, 1),
        (["PASS", "TIMEOUT"], {}, 1),
        (["PASS"], {"splats": [["WARNING"]]}, 1),
        (["PASS", "ERROR"], {}, 2),
        (["PASS", "UNSTEADY"], {}, 2),
        (["UNSTEADY", "FAIL"], {}, 1),
        (["PASS", "FAIL"], {"trouble": True}, 2),
        (["SKIP", "SKIP"], {}, 4),
        (["FAIL"], {"interrupted": True}, 130),
    ],
)
def test_exit_status(verdicts, ending, status):
    cases = [record(f"n{number}", verdict) for number, verdict in enumerate(verdicts)]
    assert end_record(cases, 1.0, **ending)["status"] == status


def test_the_verdict_line_of_a_kernel_that_keeps_the_contract():
    quirk = record("q", observation="got(1)")
    assert verdict(record("a"), quirk, SKIPPED) == (
        "kernel 6.1.0 (kvm_amd) keeps the contract:"
        " 1 passed, 0 failed, 1 skipped, 1 observed in 1.2 s"
    )


@pytest.mark.parametrize(
    ("cases", "ending", "words"),
    [
        ([FAILED], {}, "kernel 6.1.0 (kvm_amd) does not keep the contract: 0 passed, 1 failed"),
        ([SKIPPED], {}, "nothing could be tested on kernel 6.1.0"),
        ([record("a", "ERROR")], {}, "no verdict on kernel 6.1.0"),
        ([record("a")], {"interrupted": True}, "interrupted before a verdict"),
        ([record("a", "TIMEOUT")], {}, ", 1 timed out in"),
    ],
)
def test_the_verdict_line_of_others(cases, ending, words):
    assert words in verdict(*cases, **ending)


def test_a_choice_of_cases_does_not_claim_the_whole_contract():
    run = {**RUN, "cases": 1}
    assert "passes the 1 selected case of 9:" in verdict(record("a"), run=run)


def test_observed_cases_are_counted_apart():
    assert count([record("a"), record("b", observation="x")]) == {"PASS": 1, "observed": 1}


# --- text ----------------------------------------------------------------------------------------


def test_a_failure_is_explained():
    assert text.failure({**FAILED, "cause": "B03"}, plain) == [
        "",
        "FAIL rollback.slot_0",
        "  What rollback.slot_0 says.",
        "  R14: a failing call leaves the previous filter fully in force."
        " fixed by b318e8decf6b (v5.12); this kernel lacks it or undid it",
        "      1 install(OLD)",
        "      2 install(BAD)",
        "  >   3 rdmsr(Msr.STAR)",
        "        expected RdmsrExit(Msr.STAR, FILTER), returned(0x1)",
        "        seen     returned(0)",
        "  rerun: msrward check rollback.slot_0",
    ]


def test_of_a_failure_that_is_news_no_bug_is_suspected():
    line = text.failure(FAILED, plain)[3]
    assert line == (
        "  R14: a failing call leaves the previous filter fully in force."
        " no known kernel bug explains this; what has broken R14 elsewhere: B03"
    )
    (nowhere,) = explain_case(["R23"])
    assert nowhere.endswith("decides. no known kernel bug explains this")
    assert explain_case(["R99"], "B01") == ("R99: not a requirement of the contract",)
    assert explain_case(["R14"], "B99") == explain_case(["R14"])


def test_a_long_script_is_shown_round_the_step_that_differs():
    steps = [f"rdmsr({number:#x})" for number in range(100)]
    lines = text.failure({**FAILED, "script": steps, "step": 50}, plain)
    assert "      ... 38 steps before" in lines
    assert "  >  50 rdmsr(0x31)" in lines
    assert "      ... 47 steps after" in lines
    assert len(lines) < 30
    assert len(text.failure({**FAILED, "script": steps, "step": 50}, plain, verbose=1)) > 100


def test_surplus_events_are_marked_at_the_end_of_the_script():
    lines = text.failure({**FAILED, "step": 4, "expected": []}, plain)
    assert "  >   4 (end of the script)" in lines
    assert "        expected nothing" in lines


def test_long_lines_are_cut_unless_verbose():
    long = {**FAILED, "script": ["x" * 1000], "step": 1}
    assert max(map(len, text.failure(long, plain))) < 300
    assert max(map(len, text.failure(long, plain, verbose=1))) > 1000


def test_an_error_shows_its_line_and_the_traceback_only_at_vv():
    broken = record("a.b", "ERROR", error="RuntimeError: no", traceback="Traceback: x\n", script=[])
    assert "  RuntimeError: no" in text.failure(broken, plain)
    assert "Traceback" not in "".join(text.failure(broken, plain, verbose=1))
    assert "  Traceback: x" in text.failure(broken, plain, verbose=2)


def test_a_splat_is_shown_with_its_case():
    lines = text.failure({**FAILED, "splats": [["WARNING: x", "Call Trace:"]]}, plain)
    assert lines[-4:-1] == ["  the kernel log says:", "    WARNING: x", "    Call Trace:"]


def test_skips_are_a_line_a_reason_the_most_first_and_say_what_is_unknown():
    others = [record(f"irqchip.{n}", "SKIP", reason="no irqchip") for n in "bcdefgh"]
    one = record("x.a", "SKIP", reason="no x")
    assert text.skips([one, SKIPPED, *others, record("a")]) == [
        "",
        "not tested (-v names the cases):",
        "  8 cases: no irqchip: irqchip.*",
        "  1 case: no x: x.a",
        "  so nothing is known of R45",
    ]
    assert text.skips([one, SKIPPED, *others], verbose=1)[1:3] == [
        "not tested:",
        "  8 cases: no irqchip: " + ", ".join(f"irqchip.{n}" for n in "abcdefgh"),
    ]
    assert text.skips([record("a")]) == []


def test_the_themes_of_a_reason_are_those_with_the_most_cases():
    ids = [
        f"{theme}.{n}"
        for theme, count in zip("abcde", (1, 3, 2, 4, 1), strict=True)
        for n in range(count)
    ]
    assert text.themes(ids) == "d.*, b.*, c.* and 2 themes more"
    assert text.themes(ids[:4]) == "b.*, a.*"
    assert text.themes(ids[:1]) == "a.0"


def test_the_summary_names_everything_that_is_not_as_it_should_be():
    cases = [record(v.lower(), v) for v in ("PASS", "FAIL", "TIMEOUT", "ERROR", "XFAIL", "XPASS")]
    end = end_record(cases, 1.0, splats=[["BUG: x"]], lost=3)
    lines = closing.summary(cases, end, plain)
    assert lines[1:7] == [
        "FAIL    fail",
        "TIMEOUT timeout",
        "ERROR   error",
        "XFAIL   xfail",
        "XPASS   xpass",
        "not kept: R14",
    ]
    assert "    BUG: x" in lines
    assert lines[-1].startswith("3 kernel log records")


def test_the_summary_says_a_cause_once_and_then_only_what_none_explains(monkeypatch):
    monkeypatch.setattr(
        "vmm.conformance.records.causes.explains",
        lambda case, _: "B12" if case["id"].startswith("fast") else "",
    )
    names = ("fast.a", "new.a", "fast.b", "fast.c")
    cases = [record(each, "FAIL", requirements=["R36", "R14"]) for each in names]
    cases += [record("fast.d", "XFAIL", requirements=["R36"]), record("fast.e")]
    lines = closing.summary(cases, end_record(cases, 1.0), plain, HOST)[1:]
    assert [line.split(": ")[:2] for line in lines] == [
        ["FAIL    B12 (open)", "3 cases, the first is fast.a"],
        ["XFAIL   B12 (open)", "1 case, the first is fast.d"],
        ["FAIL    new.a"],
        ["not kept", "R36"],
    ]


def test_what_is_not_kept_is_said_by_cases_that_are_about_it():
    cases = [record("a", "FAIL", requirements=["R36", "R14"]), record("b", requirements=["R14"])]
    cases += [record("c", "XFAIL", requirements=["R15"]), record("d", "TIMEOUT", observation="x")]
    end = end_record(cases, 1.0)
    assert end["broken"] == ["R36"]
    assert tap.end_lines(end) == ["# not kept: R36"]
    assert decode(encoder(HOST)({"type": "end", **end}))["broken"] == ["R36"]


def test_a_known_bug_that_passes_is_said():
    end = {**end_record([record("a")], 1.0), "unseen": ["B12"]}
    (said,) = closing.summary([record("a")], end, plain)[1:]
    assert said.startswith("XPASS   B12: known, and no case fails by it: ")
    assert tap.end_lines(end) == ["# known, and no case fails by it: B12"]
    assert decode(encoder(HOST)({"type": "end", **end}))["unseen"] == ["B12"]


def test_only_the_first_requirement_of_a_case_is_explained():
    about = {**FAILED, "requirements": ["R27", "R19"], "cause": "B10"}
    lines = "\n".join(text.failure(about, plain))
    assert "  R27: an allowed MSR" in lines and "this kernel lacks it or undid it" in lines
    assert "\n  R19, touched: bit index-base" in lines and "no known kernel bug" not in lines


def test_the_fingerprint_is_stable_and_tells_kernels_apart():
    a, b = record("a", observation="got(1)"), record("b", observation="gp")
    assert fingerprint([a, b]) == fingerprint([b, a, record("c")])
    assert re.fullmatch("[0-9a-f]{12}", fingerprint([a, b]))
    assert fingerprint([a, b]) != fingerprint([{**a, "observation": "got(2)"}, b])
    assert fingerprint([record("c")]) == ""
    assert text.observations([a], "f00", verbose=0) == [
        "",
        "fingerprint f00 of 1 observation; -v shows them",
    ]
    assert "  a: got(1)" in text.observations([a], "f00", verbose=1)


def test_the_header_says_what_is_not_watched_and_what_is_resumed():
    run = {**RUN, "resumed": 4, "kernel_log": "/dev/kmsg: Permission denied"}
    lines = text.header(run, HOST)
    assert lines[0].startswith("kernel 6.1.0 (kvm_amd) on CPU, virtual")
    assert lines[1] == "resumed: 4 of 9 cases are already recorded"
    assert "not watched" in lines[2]
    assert "Permission denied" in lines[2]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colour_on_a_terminal_alone_and_never_under_no_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert text.painter(Terminal())("red", "x") == "\x1b[31mx\x1b[m"
    assert text.painter(io.StringIO())("red", "x") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert text.painter(Terminal())("red", "x") == "x"


# --- TAP -----------------------------------------------------------------------------------------


def test_tap_lines():
    assert tap.header(3, HOST) == ["TAP version 13", "1..3", "# kernel 6.1.0 (kvm_amd)"]
    assert tap.case_lines(record("a.b_1"), 1) == ["ok 1 - a.b_1"]
    assert tap.case_lines(SKIPPED, 2) == ["ok 2 - irqchip.a # SKIP no irqchip"]
    assert tap.case_lines(record("x", "XPASS"), 3)[0].startswith("ok 3 - x # TODO ")
    assert tap.case_lines(record("x", "XFAIL"), 4)[0] == "not ok 4 - x # TODO known failure"
    assert tap.case_lines(record("Odd name#"), 5) == ["ok 5 - odd_name_"]


@pytest.mark.parametrize("verdict", ["FAIL", "TIMEOUT", "ERROR", "XFAIL"])
def test_tap_explains_what_is_not_ok_in_a_yaml_block(verdict):
    first, *block = tap.case_lines({**FAILED, "verdict": Verdict(verdict), "error": "a: b\n#"}, 1)
    assert first.startswith("not ok 1 - rollback.slot_0")
    assert (block[0], block[-1]) == ("  ---", "  ...")
    fields = dict(line.strip().split(": ", 1) for line in block[1:-1])
    assert fields["verdict"] == verdict
    assert json.loads(fields["expected"]) == FAILED["expected"]
    assert json.loads(fields["error"]) == "a: b\n#"


def test_tap_bails_out_of_an_interrupted_run():
    assert tap.end_lines(end_record([], 1.0, interrupted=True)) == ["Bail out! interrupted"]
    assert tap.end_lines(end_record([], 1.0)) == []


# --- JSON lines ----------------------------------------------------------------------------------


def test_json_lines_read_back():
    line = encoder(HOST)(FAILED)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert decode(line) == {"schema": 1, **FAILED, "host": HOST}


# --- the catalogue -------------------------------------------------------------------------------


def test_every_case_of_the_catalogue_can_be_listed_and_shown():
    from vmm.conformance.cases import CASES

    lines = listing.listing(CASES)
    assert [line.split()[0] for line in lines] == [case.id for case in CASES]
    for case in CASES:
        card = listing.card(case)
        assert card[0] == case.id
        assert len(card) >= 2 + len(case.requirements) + len(case.actions)
        if not case.observes:
            assert sum(line.startswith("      -> ") for line in card) == len(case.expected)


def test_by_requirement_shows_gaps_only_of_the_whole_catalogue():
    from vmm.conformance.cases import CASES

    one = [case for case in CASES if "R14" in case.requirements][:1]
    lines = listing.by_requirement(one, whole=False)
    assert lines[-1] == f"    {one[0].id}" or f"    {one[0].id}" in lines
    assert "    (no case)" not in lines
    assert "    (no case)" in listing.by_requirement(one)


# --- progress ------------------------------------------------------------------------------------


def test_heartbeat_off_a_terminal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(stream, 3)
    progress.case(record("a"))
    progress.case(record("b", "FAIL"))
    progress.tick(["c"])
    assert stream.getvalue() == "", "not yet"
    now[0] += 5
    progress.tick(["c"])
    progress.tick(["c"])
    assert stream.getvalue() == "msrward: 2/3 done, 1 failed, 0 skipped; running c\n"


def test_the_heartbeat_of_a_long_run_is_no_noise(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(stream, 3)
    for second in range(1, 301):
        now[0] = second
        progress.note(str(second))
    shown = [int(line.removeprefix("msrward: ")) for line in stream.getvalue().splitlines()]
    assert shown == [5, 15, 35, 75, 135, 195, 255]


def test_live_line_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = Terminal()
    progress = Progress(stream, 3)
    now[0] += 1
    progress.tick(["c" * 200])
    assert stream.getvalue().startswith("\r\x1b[K0/3 done, 0 failed, 0 skipped; running c")
    assert len(stream.getvalue()) <= 84, "it never wraps"
    progress.clear()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_progress_survives_the_loss_of_stderr(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = os.fdopen(write, "w")
    progress = Progress(stream, 3)
    now[0] += 10
    progress.tick([])
    with pytest.raises(BrokenPipeError):
        stream.close()
