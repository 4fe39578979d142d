"""Runs whose every text is hostile: each format stays what its readers take, or is one line."""

import email
import email.policy
import itertools
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
import xmlschema
import yaml

from vmm.conformance.records.jsonl import encoder
from vmm.conformance.records.results import ResultsError
from vmm.conformance.records.saved import load
from vmm.conformance.report import formats
from vmm.conformance.report.account import account
from vmm.conformance.report.formats import FORMATS, Told

SEEDS = (*range(24), 142, 155, 199)
HOSTILE = [
    *(
        "\x00",
        "\x07\x08\x1b[2J\x1b]0;title\x07",
        "\x7f\x80\x9b31m",
        "\t",
        "\r\n",
        "\n",
        "\u2028\x85",
    ),
    *("\ud800", "\udfff\ud800", "\ufffe\uffff", "\U0010ffff", "\u202e\u2066", "e\u0301" * 9),
    *(
        "]]>",
        "<![CDATA[",
        "<!--",
        "-->",
        "&",
        "&lt;",
        "&#0;",
        "<?xml?>",
        "<!DOCTYPE a [<!ENTITY b '",
    ),
    *("<script>alert(1)</script>", "</pre></section>", "<img src=x onerror=y>", "</style>"),
    *('" onclick="x" y="', "' onclick='x' y='", "javascript:x", "</textarea>", "<svg onload=x>"),
    *("not ok 1 - x", "ok 2", "1..0", "Bail out!", "# TODO x", "# SKIP", "TAP version 13", "  ..."),
    *("\nnot ok 1 - x\n", "\n1..9\n", "\nBail out! x\n", "\n  ---\n", "\r1..9\r", "\n# x\n"),
    *("<LAVA_SIGNAL_TESTCASE TEST_CASE_ID=x RESULT=pass>", "\n<LAVA_SIGNAL_ENDRUN x>\n", "x pass"),
    *(
        "\nlava-test-set start x\n",
        "`",
        "```",
        "\n```\n",
        "~~~",
        "|",
        "\\",
        "[a](javascript:b)",
        "#",
    ),
    *(
        "\n- name: x\n  result: pass\n",
        "{}",
        "%YAML",
        "!!python/object:os.system",
        "*a",
        "&a",
        ": ",
    ),
    *(
        "Subject: x",
        "\nBcc: a@b\n",
        "\n\nbody",
        "=?utf-8?q?x?=",
        "--===============",
        "\n.\n",
        "From x",
    ),
    *(
        "/",
        "../../x",
        ".",
        "..",
        " ",
        "  ",
        "é",
        "'",
        '"',
        "%s{0}",
        "x" * 5000,
        "x " * 3000,
        "\n" * 50,
    ),
]
"""What texts are made of: control bytes, halves of surrogates, markup, and lines of the formats."""
KEPT = {"type", "verdict", "first"}
"""What holds words of a table: another is refused (tests/conformance/records/test_shape.py)."""

HOST = {
    **{"release": "6.12.9", "version": "#1", "hostname": "box", "vendor_module": "kvm_amd"},
    **{"cpu_model": "AMD", "platform": "virtual", "msrward": "0.1", "taint_letters": "W"},
    **{"boot_id": "b", "parameters": {"kvm": {"ignore_msrs": "N"}}, "capabilities": {"A": "1"}},
}
LAB = {"kernel": "debian:6.1", "vendor": "svm", "emulator": "qemu 11", "append": "a=b", "cpu": "m"}
DIFFERS = {"step": 1, "action": "rdmsr(0x10)", "expected": ["done"], "seen": ["gp", "x"]}
FAILED = {**DIFFERS, "script": ["rdmsr(0x10)"], "trace": ["gp"], "also": [DIFFERS]}
RUN = {"type": "run", "cases": 9, "catalogue": 9, "resumed": 0, "kernel_log": "watched"}
END = {
    **{"type": "end", "counts": {"FAIL": 1}, "seconds": 1.0, "interrupted": False, "status": 1},
    **{
        "fingerprint": "f",
        "splats": [["WARN", "x"]],
        "lost": 1,
        "foreign": ["y"],
        "broken": ["R14"],
    },
    **{"unseen": ["B12"], "report": ["said"]},
    "lab": {"outcome": "panic", "reason": "r", "attempts": 1, "console": ["a", "b"]},
}


def case(verdict, **more):
    about = {"type": "case", "sentence": "S.", "requirements": ["R14", "x"], "ms": 1.5}
    return {**about, "id": f"m.{verdict.lower()}", "verdict": verdict, **more}


CASES = [
    case("PASS"),
    {**case("PASS", observation="o", varied=["a", "b"]), "id": "n.observed"},
    case("FAIL", **FAILED, cause="B12", again={"verdict": "FAIL", "ms": 1.0, **DIFFERS}),
    {**case("FAIL", splats=[["oops", "more"]], traceback="t"), "id": "m.splat"},
    case("TIMEOUT", error="e"),
    case("SKIP", reason="r", need="n"),
    case("XFAIL", **FAILED, cause="B10"),
    case("XPASS"),
    case("ERROR", error="e", traceback="a\nb"),
    case("UNSTEADY", first="FAIL", **FAILED, series={"n/s": [[1, 2], [2, 3]]}, file="f.json"),
    {**case("PASS", histograms={"ns": [0, 1, 5]}), "id": "k.drawn"},
    {**case("FAIL", **FAILED), "type": "first", "id": "m.late"},
]


def text(rng):
    """A hostile text, which now and then is empty, or plain."""
    return "".join(rng.choice(HOSTILE) for _ in range(rng.choice((0, 1, 1, 1, 2, 3))))


def spoiled(rng, value, name="", share=0.6):
    """The value, in which most texts, and names that a record may choose, are hostile."""
    if isinstance(value, str):
        return text(rng) if name not in KEPT and rng.random() < share else value
    if isinstance(value, list):
        return [spoiled(rng, each, name, share) for each in value]
    if isinstance(value, dict):
        chosen = name in ("parameters", "kvm", "capabilities", "series", "histograms")
        names = {key: text(rng) if chosen and rng.random() < 0.3 else key for key in value}
        return {names[key]: spoiled(rng, each, key, share) for key, each in value.items()}
    return value


def hostile_run(rng, place):
    """A results file of such a run; some are of the lab, and some were cut short."""
    host = {**HOST, "lab": LAB} if rng.random() < 0.5 else {**HOST, text(rng): "new"}
    cases = rng.sample(CASES, rng.randint(1, len(CASES)))
    kept = [spoiled(rng, each) for each in cases]
    for number, each in enumerate(kept):
        each["id"] += f"{number}" * (rng.random() < 0.95)
    records = [spoiled(rng, RUN), *kept, *([spoiled(rng, END)] if rng.random() < 0.8 else [])]
    place.mkdir()
    line = encoder(spoiled(rng, host, share=0.4))
    (place / "results.jsonl").write_text("".join(map(line, records)))
    return place


def loaded(place):
    """The run, or None where it is refused: in one line that can be shown."""
    try:
        return load(place)
    except ResultsError as error:
        assert str(error).isprintable() and len(str(error)) < 400, error
        return None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By seed, one or two runs that can be read; what is refused on the way is drawn again."""
    top, found = tmp_path_factory.mktemp("hostile"), {}
    for seed in SEEDS:
        rng = random.Random(seed)
        drawn = (loaded(hostile_run(rng, top / f"{seed}-{n}")) for n in range(50))
        found[seed] = list(itertools.islice(filter(None, drawn), 1 + seed % 2))
        assert len(found[seed]) == 1 + seed % 2
    return found


def program(record, _):
    """A program with the hostile id in it; for some cases there is none, for a hostile reason."""
    if len(record["id"]) % 3 == 0:
        raise ValueError(f"no C of {record['id']}")
    return f"/* {record['id']} */\n"


def check(format_, runs):
    """Render the runs, and hold them against what the format's readers take."""
    told = Told({"origin": "me", "tree_name": "mainline"}, program)
    written = formats.render(format_, runs, told)
    written.encode()
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", written)
    CHECKS[format_](written, [each for run in runs for each in account(run)], runs)


def junit(written, cases, runs):
    xmlschema.validate(written, str(Path(__file__).with_name("junit.xsd")))
    root = ElementTree.fromstring(written.encode())
    assert len([*root.iter("testcase")]) == len(cases)
    assert len([*root.iter("failure")]) == int(root.get("failures"))


def texts_of(data):
    """All texts of a document, one after the other."""
    if isinstance(data, dict):
        return "".join(texts_of([*pair]) for pair in data.items())
    return "".join(map(texts_of, data)) if isinstance(data, list) else str(data)


def kcidb(written, cases, runs):
    schema = pytest.importorskip("kcidb_io.schema", reason="pip install kcidb-io")
    data = json.loads(written)
    assert schema.V5_3.is_valid_exactly(data) and schema.V5_3.is_compatible(data)
    assert len(data["tests"]) == len(cases)
    assert not re.search("[\0\ud800-\udfff]", texts_of(data))


def lava(written, cases, runs):
    result = r"<LAVA_SIGNAL_TESTCASE TEST_CASE_ID=[^\s<>]+ RESULT=(pass|fail|skip|unknown)>"
    edge = r"<LAVA_SIGNAL_TESTSET (START [^\s<>]+|STOP)>"
    lines = written.split("\n")[:-1]
    assert all(re.fullmatch(f"{result}|{edge}", line) for line in lines)
    assert sum(line.startswith("<LAVA_SIGNAL_TESTCASE") for line in lines) == len(cases)


def lava_results(written, cases, runs):
    lines = written.split("\n")[:-1]
    results = [each for each in lines if re.fullmatch(r"\S+ (pass|fail|skip|unknown)", each)]
    edges = [each for each in lines if re.fullmatch(r"lava-test-set (start|stop) \S+", each)]
    assert len(results) == len(cases) and len(results) + len(edges) == len(lines)


def tmt(written, cases, runs):
    results = yaml.safe_load(written)
    known = {"name", "result", "duration", "note"}
    assert len(results) == len(cases) and all(each.keys() <= known for each in results)
    assert all(each["name"].startswith("/") for each in results)
    assert all(isinstance(note, str) for each in results for note in each.get("note", ()))


def tap(written, cases, runs):
    version, plan, *lines = written.split("\n")[:-1]
    assert (version, plan) == ("TAP version 13", f"1..{len(cases)}")
    tests = [line for line in lines if re.match(r"(not )?ok\b", line)]
    numbers = [int(re.match(r"(?:not )?ok (\d+) - ", line)[1]) for line in tests]
    assert numbers == [*range(1, len(cases) + 1)]
    for line, each in zip(tests, cases, strict=True):
        said = re.fullmatch(r"(not )?ok \d+ - \S+(?: # (SKIP|TODO)\b.*)?", line)
        assert bool(said[1]) is not each["verdict"].is_good
        assert (said[2] == "SKIP") is (each["verdict"] == "SKIP")
        assert (said[2] == "TODO") is (each["verdict"] in ("XFAIL", "XPASS"))
    rest = [line for line in lines if line not in tests]
    assert all(line.startswith(("# ", "  ")) for line in rest)
    for block in re.findall(r"(?m)^  ---\n((?:  .*\n)*?)  \.\.\.$", written):
        assert "verdict" in yaml.safe_load(block)


class Elements(HTMLParser):
    """The elements of a page, and whether they lie in each other as they should."""

    VOID = frozenset({"meta", "br", "input", "col"})

    def __init__(self):
        super().__init__()
        self.seen, self.open, self.ids, self.links, self.comments = [], [], [], [], 0

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name == "href"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, tuple(sorted(name for name, _ in attrs))))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_comment(self, data):
        self.comments += 1

    @classmethod
    def of(cls, page):
        found = cls()
        found.feed(page)
        found.close()
        assert not found.open and not found.comments
        return found


def tame(tmp_path):
    """The elements that a page of the same records has where nothing in them is hostile."""
    found = set()
    for name, host in (("here", HOST), ("lab", {**HOST, "lab": LAB})):
        (tmp_path / name).mkdir()
        text = "".join(map(encoder(host), [RUN, *CASES, END]))
        (tmp_path / name / "results.jsonl").write_text(text)
    both = [load(tmp_path / name) for name in ("here", "lab")]
    for runs in (both[:1], both[1:], both, both * 2):
        page = formats.render("html", runs, Told({}, program))
        found |= {*Elements.of(page).seen}
    return found


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return tame(tmp_path_factory.mktemp("tame"))


def html(written, cases, runs):
    page = Elements.of(written)
    assert [tag for tag, _ in page.seen].count("script") == 1
    assert all(link.startswith("#") for link in page.links)


def md(written, cases, runs):
    outside = re.sub(r"(?ms)^(`{3,})text$\n.*?^\1$", "", written)
    plain = re.sub(r"\\[\\`*_{}\[\]<>#|~!&]", "", outside)
    shown = re.sub(r"`[\w.-]+`", "", plain)
    ours = re.sub(r"<details><summary>\d+ cases? more</summary>|</details>", "", shown)
    assert not re.search(r"[<>`\[\]]", ours), ours
    assert shown.count("<details>") == shown.count("</details>")
    heads = [line for line in outside.split("\n") if re.match(r"#+ ", line)]
    assert sum(line.startswith("## ") for line in heads) == len(runs)


def mail(written, cases, runs):
    message = email.message_from_bytes(written.encode(), policy=email.policy.default)
    assert [*message.keys()] in (
        ["Subject", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"],
        ["Subject", "MIME-Version", "Content-Type"],
    )
    for part in message.walk():
        assert not part.defects, part.defects
    assert message["Subject"].startswith("KVM MSR filter on")
    body, *programs = message.iter_parts() if message.is_multipart() else [message]
    assert all(len(line) <= 72 for line in body.get_content().split("\n"))
    assert all(part.get_content().startswith("/* ") for part in programs)
    names = [part.get_filename() for part in programs]
    assert all(re.fullmatch(r"[A-Za-z0-9_.+=-]+\.c", name) for name in names), names


CHECKS = {
    **{"junit": junit, "kcidb": kcidb, "lava": lava, "lava-results": lava_results, "tmt": tmt},
    **{"tap": tap, "html": html, "md": md, "mail": mail},
}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_format_is_well_formed_whatever_a_run_says(runs, format_, seed):
    check(format_, runs[seed])


def test_a_page_has_no_element_and_no_attribute_that_a_tame_one_has_not(runs, known):
    for each in runs.values():
        page = formats.render("html", each, Told({}, program))
        assert {*Elements.of(page).seen} - known == set()
