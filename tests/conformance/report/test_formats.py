"""Runs in the formats of others: each read back by what its readers use."""

import email
import email.policy
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import xmlschema
import yaml
from recorded import case_record

from vmm.conformance.records.saved import Saved
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import formats, junit, kcidb, lava, mail, markdown, tmt
from vmm.conformance.report.account import account, titles
from vmm.conformance.report.formats import FORMATS, Told

NASTY = "a & b <script>]]> \x00\x1b[31m `` ``` \ufffe </details>\nnext: | # 'q' \"d\" é"
DIFFERS = {"step": 1, "action": "rdmsr(1)", "expected": ["done"], "seen": [NASTY]}
HOST = {
    "release": "6.12.9",
    "version": "#1",
    "hostname": "box",
    "vendor_module": "kvm_amd",
    "cpu_model": None,
    "parameters": {"kvm": {"ignore_msrs": "N"}},
}
END = {"status": 1, "splats": [], "interrupted": False, "counts": {}, "seconds": 1.0, "lost": 0}
LAB = {"vendor": "vmx", "emulator": "qemu 11", "append": ""}
TOLD = Told({"origin": "me"}, lambda record, file: f"/* {record['id']}: {file} */\n")


def case(name, verdict="PASS", **more):
    return name, case_record(name, verdict, ms=1.5, **more)


def run(*cases, host=HOST, firsts=(), end=END, at=1700000000.5):
    started = {"started": at, "cases": len(cases), "catalogue": len(cases)}
    return Saved(Path("r"), host, dict(cases), end, dict(firsts), started)


OF_EACH = [
    case("m.pass"),
    case("m.observe", observation=NASTY),
    case("m.fail", "FAIL", **DIFFERS, script=["rdmsr(1)", NASTY], trace=[NASTY]),
    case("n.time", "TIMEOUT", error="no end within 10 s"),
    case("n.skip", "SKIP", reason=NASTY, need="x"),
    case("n.xfail", "XFAIL", **DIFFERS, script=["rdmsr(1)"]),
    case("n.xpass", "XPASS"),
    case("o.error", "ERROR", error=NASTY),
    case("o.unsteady", "UNSTEADY", first=Verdict.FAIL, **DIFFERS, script=["rdmsr(1)"]),
    case("o.p.deep", splats=[["BUG: " + NASTY]], verdict="FAIL"),
]
ALL = run(*OF_EACH)
CUT = run(
    case("m.pass"),
    firsts=[case("m.late", "FAIL", type="first", **DIFFERS, script=["x"])],
    end={},
    at=1.0,
)
OTHER = run(case("m.pass"), host={**HOST, "release": "6.18", "lab": LAB}, end=END)
RUNS = [[ALL], [CUT], [ALL, OTHER, CUT]]


def test_the_runs_have_every_verdict():
    assert {record["verdict"] for record in account(ALL)} == set(Verdict)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("runs", RUNS)
def test_every_format_takes_every_record(format_, runs):
    text = formats.render(format_, runs, TOLD)
    assert text.endswith("\n") and text.count("\n") > len(runs)


@pytest.mark.parametrize("runs", RUNS)
def test_junit_is_as_the_schema_has_it_and_counts_what_it_holds(runs):
    text = junit.render(runs)
    xmlschema.validate(text, str(Path(__file__).with_name("junit.xsd")))
    root = ElementTree.fromstring(text.encode())
    for suites in (root, *root):
        assert int(suites.get("tests")) == len([*suites.iter("testcase")])
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suites.get(name)) == len([*suites.iter(tag)])
    keys = [(each.get("classname"), each.get("name")) for each in root.iter("testcase")]
    assert len(set(keys)) == len(keys)


def test_junit_has_a_suite_a_theme_the_facts_and_the_difference():
    root = ElementTree.fromstring(junit.render([ALL]).encode())
    assert [suite.get("name") for suite in root] == ["m", "n", "o"]
    facts = {each.get("name"): each.get("value") for each in root[0].iter("property")}
    assert facts["parameters.kvm.ignore_msrs"] == "N" and "cpu_model" not in facts
    (failure,) = root[0].iter("failure")
    assert (
        "expected done" in failure.get("message") and "rerun: msrward check m.fail" in failure.text
    )
    assert root[1].find(".//skipped").get("message").startswith("a & b")


def test_the_schema_refuses_what_readers_do_not_agree_on():
    text = junit.render([ALL]).replace("<skipped", "<ignored").replace("</skipped", "</ignored")
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        xmlschema.validate(text, str(Path(__file__).with_name("junit.xsd")))


@pytest.mark.parametrize("runs", RUNS)
def test_kcidb_is_as_its_own_validator_has_it(runs):
    reason = "kcidb-io is not installed: pip install kcidb-io"
    schema = pytest.importorskip("kcidb_io.schema", reason=reason)
    told = {"origin": "me", "tree_name": "mainline", "git_commit_hash": "0" * 40}
    data = json.loads(kcidb.render(runs, told))
    assert data["version"] == {"major": 5, "minor": 3}
    assert schema.V5_3.is_valid_exactly(data) and schema.V5_3.is_compatible(data)
    assert len({test["id"] for test in data["tests"]}) == len(data["tests"])
    builds = {build["id"] for build in data.get("builds", ())}
    assert {test["build_id"] for test in data["tests"]} == builds
    broken = {**data, "tests": [{**test, "status": "BAD"} for test in data["tests"]] or 1}
    assert not schema.V5_3.is_valid_exactly(broken)


def test_kcidb_means_what_kcidb_means():
    tests = json.loads(kcidb.render([ALL, CUT], {"origin": "me"}))["tests"]
    said = {test["path"]: test["status"] for test in tests}
    assert said == {
        **{"msrward.m.pass": "PASS", "msrward.m.observe": "DONE", "msrward.m.fail": "FAIL"},
        **{"msrward.n.time": "FAIL", "msrward.n.skip": "SKIP", "msrward.n.xfail": "FAIL"},
        **{"msrward.n.xpass": "PASS", "msrward.o.error": "ERROR", "msrward.o.unsteady": "ERROR"},
        **{"msrward.o.p.deep": "FAIL", "msrward.m.late": "MISS", "msrward": "MISS"},
    }


def test_kcidb_is_told_what_records_do_not_know_and_invents_nothing():
    data = json.loads(kcidb.render([OTHER], {"origin": "me"}))
    (checkout,), (build,) = data["checkouts"], data["builds"]
    assert checkout.keys() == {"id", "origin"}
    assert build.keys() == {"id", "origin", "checkout_id", "comment"}
    data = json.loads(kcidb.render([OTHER], {"origin": "me", "build_id": "ci:7"}))
    assert not data.keys() & {"checkouts", "builds"}
    assert {test["build_id"] for test in data["tests"]} == {"ci:7"}
    named = kcidb.words("origin=me compiler='gcc 14' checkout_id=ci:5")
    (build,) = json.loads(kcidb.render([OTHER], named))["builds"]
    assert (build["compiler"], build["checkout_id"]) == ("gcc 14", "ci:5")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "needs origin=NAME"),
        ("origin=A-B", "needs origin=NAME"),
        ("origin=a colour=red", "not NAME=VALUE"),
        ("origin=a 'b", "No closing quotation"),
        ("origin=a build_id=7", "begin with their origin"),
        ("origin=a git_commit_hash=beef", "40 hex"),
        ("origin=a git_repository_url=git://x", "https"),
        ("origin=a build_id=a:7", "2 kernels"),
    ],
)
def test_kcidb_says_in_one_line_what_it_lacks(words, why):
    with pytest.raises(kcidb.Untold, match=why) as caught:
        kcidb.render([ALL, OTHER], kcidb.words(words))
    assert "\n" not in str(caught.value)


def test_lava_reads_a_result_a_line():
    signals = lava.signals([ALL]).splitlines()
    pattern = r"<LAVA_SIGNAL_TEST(CASE TEST_CASE_ID=\S+ RESULT=(pass|fail|skip|unknown)|SET .*)>"
    assert all(re.fullmatch(pattern, line) for line in signals)
    assert "<LAVA_SIGNAL_TESTCASE TEST_CASE_ID=m.fail RESULT=fail>" in signals
    assert signals.count("<LAVA_SIGNAL_TESTSET STOP>") == 3
    words = dict(
        line.split() for line in lava.results([ALL]).splitlines() if "test-set" not in line
    )
    assert words["n.xfail"] == "fail" and words["o.unsteady"] == words["o.error"] == "unknown"
    assert words["n.xpass"] == words["m.observe"] == "pass" and words["n.skip"] == "skip"
    assert lava.results([ALL]).startswith("lava-test-set start m\n")


def test_tmt_reads_results_with_names_notes_and_durations():
    results = yaml.safe_load(formats.render("tmt", [ALL], TOLD))
    by_name = {each["name"]: each for each in results}
    assert [each["result"] for each in results] == [
        *("pass", "info", "fail", "fail", "skip", "warn", "warn", "error", "error", "fail")
    ]
    assert by_name["/o/p.deep"]["duration"] == "00:00:01"
    assert by_name["/n/skip"]["note"][0].startswith("a & b")
    many = yaml.safe_load(formats.render("tmt", [ALL, OTHER], TOLD))
    assert len({each["name"] for each in many}) == len(many)


def test_tap_has_a_plan_and_as_many_lines():
    lines = formats.render("tap", [ALL, CUT], TOLD).splitlines()
    tests = [line for line in lines if re.match(r"(not )?ok \d+ - ", line)]
    assert lines[1] == f"1..{len(tests)}" and lines[0] == "TAP version 13"
    assert [int(re.search(r"\d+", line)[0]) for line in tests] == [*range(1, len(tests) + 1)]
    assert len(set(tests)) == len(tests) == len(ALL.cases) + 3


NOT_A_PASS = {
    "junit": 'errors="2"',
    "kcidb": '"MISS"',
    "lava": "m.late RESULT=unknown",
    "lava-results": "run.end unknown",
    "tmt": "result: error",
    "tap": "not ok 3 - run.end",
    "html": "the run did not get to its end",
    "md": "no verdict on",
    "mail": "no verdict",
}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_run_that_was_cut_short_is_no_pass_anywhere(format_):
    assert NOT_A_PASS[format_] in formats.render(format_, [CUT], TOLD)


def test_a_time_that_no_calendar_has_is_none():
    odd = run(case("m.pass"), at=9e15)
    assert 'timestamp="1970-01-01T00:00:00"' in junit.render([odd])
    assert "start_time" not in kcidb.render([odd], {"origin": "me"})


def test_a_stray_splat_is_told():
    stray = run(case("m.pass"), end={**END, "splats": [["BUG: bad", "more"]]})
    for format_ in set(FORMATS) - {"html"}:
        told = formats.render(format_, [stray], TOLD)
        assert "BUG: bad" in told or format_.startswith("lava"), format_
    assert "run.end fail" in lava.results([stray])


def test_a_mail_is_plain_of_72_columns_with_programs_attached():
    text = mail.render([ALL], TOLD.program)
    message = email.message_from_bytes(text.encode(), policy=email.policy.default)
    body, *programs = message.iter_parts() if message.is_multipart() else [message]
    lines = body.get_content().splitlines()
    assert max(map(len, lines)) <= mail.WIDTH
    names = [part.get_filename() for part in programs]
    assert "m.fail.c" in names and len(names) <= mail.ATTACHED
    assert programs[names.index("m.fail.c")].get_content() == "/* m.fail: m.fail.c */\n"
    assert "6.12.9" in message["Subject"] and "base64" not in text


@pytest.mark.parametrize("format_", ["mail", "md"])
def test_what_a_guest_that_died_did_not_tell_is_unknown(format_):
    page = FORMATS[format_].write([run(host={"release": "6.12.9"})], TOLD)
    assert "unknown" in page
    assert "None" not in page


def test_a_mail_says_why_a_program_is_missing():
    def none(*_):
        raise ValueError("it has no form in C")

    assert "it has no form in C" in mail.render([ALL], none)


def test_markdown_shows_what_a_record_says_as_it_is():
    fenced = markdown.fenced("a ```` b")
    assert fenced.splitlines()[0] == "`````text" and fenced.endswith("`````")
    text = markdown.render([ALL, OTHER])
    outside = re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", text)
    assert "<script>" not in outside and outside.count("</details>") == outside.count("<details>")
    assert markdown.plain("a|b_c\n<d>") == r"a\|b\_c \<d\>"


def test_a_case_of_the_lab_is_run_again_there():
    of_lab = run(OF_EACH[2], host={**HOST, "lab": {**LAB, "kernel": "debian:6.18"}})
    for format_ in ("junit", "kcidb", "md", "mail"):
        told = " ".join(formats.render(format_, [of_lab], TOLD).split())
        assert "msrward lab run --kernel debian:6.18 --vendor vmx m.fail" in told, format_


def test_no_two_runs_have_one_title():
    assert titles([ALL, ALL, OTHER, ALL]) == [
        *("6-12-9_box", "6-12-9_box_run2", "6-18_vmx", "6-12-9_box_run3")
    ]


PAGE = Path(__file__).parents[3] / "docs" / "reports.md"


def test_the_page_says_who_reads_each_format():
    assert re.findall(r"(?m)^\| `([\w-]+)` \|", PAGE.read_text()) == list(FORMATS)


def documented():
    table = PAGE.read_text().split("What a verdict is called:")[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["verdict", "junit", "kcidb", "lava", "tmt"]
    names = [[row[0]] if row[0] in NAMED else row[0].split(", ") for row in rows[2:]]
    return {name: row[1:] for row, each in zip(rows[2:], names, strict=True) for name in each}


LATE = {"type": "first", "verdict": Verdict.ERROR, "first": Verdict.FAIL}
NAMED = {
    "PASS that observes": {"type": "case", "verdict": Verdict.PASS, "observation": "x"},
    "failed, and not judged again": LATE,
}


def test_the_page_says_what_each_verdict_is_called():
    rows = documented()
    assert {name for name in rows if name in set(Verdict)} == set(Verdict)
    for name, said in rows.items():
        record = NAMED.get(name) or {"type": "case", "verdict": Verdict(name)}
        kind = {"failures": "failure", "errors": "error", "skipped": "skipped", "": "passed"}
        called = [
            *(kind[junit.kind(record["verdict"])], kcidb.status(record).name),
            *(lava.result(record["verdict"]), tmt.result(record)),
        ]
        assert called == said, name
