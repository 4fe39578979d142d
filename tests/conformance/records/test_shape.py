"""Whatever a line of records holds, it is read as a record that can be shown, or refused."""

import json
import random
from html.parser import HTMLParser
from typing import Required, get_origin, get_type_hints, is_typeddict

import pytest

from vmm.conformance.records.jsonl import decode, encoder
from vmm.conformance.records.plain import plain, plain_lines, plain_painted
from vmm.conformance.records.results import ResultsError
from vmm.conformance.records.saved import load
from vmm.conformance.records.shape import KINDS
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import formats, history, html, since, table, tap
from vmm.conformance.report.difference import lines

HOST = {
    **{"release": "6.1", "version": "#1", "vendor_module": "kvm_amd", "hostname": "h"},
    **{"parameters": {"kvm": {"ignore_msrs": "N"}}, "capabilities": {"a": 1}},
    "lab": {"kernel": "debian:6.1", "vendor": "svm", "emulator": "qemu", "boot_seconds": 1.5},
}
DIFFERENCE = {"step": 1, "action": "rdmsr(0x10)", "expected": ["done"], "seen": ["gp"]}
CASE = {"type": "case", "id": "a.b", "sentence": "S.", "requirements": ["R14"], "ms": 1.0}
RUN = {"type": "run", "cases": 3, "catalogue": 3, "resumed": 0, "kernel_log": "watched"}
END = {
    **{"type": "end", "counts": {"PASS": 1, "FAIL": 1}, "seconds": 2.0, "interrupted": False},
    **{"status": 1, "fingerprint": "", "splats": [["WARN"]], "foreign": ["x"], "lost": 0},
    "lab": {"outcome": "done", "reason": "", "attempts": 1, "console": ["x"]},
}
FAILED = {
    **{"verdict": "FAIL", "script": ["rdmsr(0x10)"], "trace": ["gp"], "also": [DIFFERENCE]},
    **{"again": {"verdict": "FAIL", "ms": 1.0, **DIFFERENCE}, "splats": [["oops"]]},
    **DIFFERENCE,
}
RECORDS = [
    RUN,
    {**CASE, "verdict": "PASS", "observation": "done, done", "series": {"n/s": [[1, 2], [2, 3]]}},
    {**CASE, "verdict": "PASS", "histograms": {"ns": [0] * 64}},
    {**CASE, "id": "a.c", **FAILED},
    {**CASE, "id": "a.d", "verdict": "SKIP", "reason": "no irqchip", "need": "irqchip"},
    END,
]
TOLD = formats.Told({"origin": "me"}, lambda record, _: f"/* {record['id']} */")
ODD = [
    *(None, True, -1, 1 << 70, 0.5, 1e308, "", "x", [], {}, [[]], {"a": {}}, "\x1b[2J", "\ud800"),
    *(
        "\r\n",
        "<script>",
        "</pre><script>alert(1)</script>",
        "'; rm -rf /; '",
        '" onclick="x" y="',
        "' onclick='x' y='",
        "javascript:x",
        "PASS",
        [1],
        ["x"],
    ),
]


def saved(tmp_path, records, host=HOST):
    line = encoder(host)
    path = tmp_path / "results.jsonl"
    path.write_text("".join(map(line, records)))
    return path


def is_plain(text):
    return all(each == "\n" or each.isprintable() for each in text)


class _Active(HTMLParser):
    """What runs in a page: its scripts' texts, and the attributes that are handlers."""

    def __init__(self):
        super().__init__()
        self.found, self._in = set(), False

    def handle_starttag(self, tag, attrs):
        self._in = tag == "script"
        self.found |= {tag} if tag in ("script", "iframe", "object", "img") else set()
        self.found |= {f"{tag} {name}" for name, _ in attrs if name.startswith(("on", "src"))}
        links = [value or "" for name, value in attrs if name in ("href", "action", "formaction")]
        self.found |= {value for value in links if value.strip().startswith("javascript:")}

    def handle_data(self, data):
        self.found |= {data} if self._in else set()
        self._in = False


def active(page):
    parser = _Active()
    parser.feed(page)
    return parser.found


def test_the_records_these_tests_start_from_are_good(tmp_path):
    run = load(saved(tmp_path, RECORDS))
    assert [*run.cases] == ["a.b", "a.c", "a.d"] and run.end["status"] == 1


WHOLE = {"run": RUN, "case": {**CASE, "id": "a.c", **FAILED}, "end": END}


def fields(type_, place=()):
    """Every field that a type has, and those of the types in it, as the keys that lead to it."""
    for name, hint in get_type_hints(type_).items():
        yield (*place, name)
        yield from fields(hint, (*place, name)) if is_typeddict(hint) else ()


@pytest.mark.parametrize(
    "path",
    [(kind, *path) for kind in WHOLE for path in fields(KINDS[kind])],
    ids=lambda path: ".".join(path),
)
def test_a_field_that_the_type_has_is_checked_when_it_is_read(path):
    kind, *where, last = path
    record = json.loads(encoder(HOST)(WHOLE[kind]))
    decode(json.dumps(record))
    holder = record
    for name in where:
        holder = holder.setdefault(name, {})
    holder[last] = -1 if last != "seed" else 0.5
    with pytest.raises(ValueError):
        decode(json.dumps(record))


@pytest.mark.parametrize("kind", WHOLE)
def test_a_field_that_must_be_there_is_missed(kind):
    record = json.loads(encoder(HOST)(WHOLE[kind]))
    hints = get_type_hints(KINDS[kind], include_extras=True).items()
    must = {name for name, hint in hints if get_origin(hint) is Required}
    assert must >= {"type"} and must <= record.keys()
    for name in must:
        with pytest.raises(ValueError):
            decode(json.dumps({key: each for key, each in record.items() if key != name}))


def test_what_was_read_is_of_its_type():
    case, end = (decode(encoder(HOST)(WHOLE[kind])) for kind in ("case", "end"))
    assert (case["verdict"], case["again"]["verdict"]) == (Verdict.FAIL, Verdict.FAIL)
    assert isinstance(case["verdict"], Verdict) and isinstance(case["again"]["verdict"], Verdict)
    assert isinstance(end["status"], Status)


def places(value, path=()):
    """Every place in a record, as the keys that lead to it."""
    yield path
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    for key, each in inside:
        yield from places(each, (*path, key))


def changed(random_, value):
    """The value, in which one place is gone or holds something else."""
    value = json.loads(json.dumps(value))
    *where, last = random_.choice([path for path in places(value) if path])
    holder = value
    for key in where:
        holder = holder[key]
    if random_.random() < 0.3:
        del holder[last]
    else:
        holder[last] = random_.choice(ODD)
    return value


@pytest.mark.parametrize("seed", range(12))
def test_no_mutation_of_a_run_is_more_than_one_line_of_complaint(tmp_path, seed):
    random_ = random.Random(seed)
    good, refused, read = load(saved(tmp_path, RECORDS)), 0, 0
    ours = active(html.page([table.Column("6.1", "svm", good)] * 2))
    for _ in range(150):
        records, host = RECORDS, HOST
        for _ in range(random_.randint(1, 3)):
            both = changed(random_, {"records": records, "host": host})
            records, host = both.get("records", []), both.get("host", {})
        if not (isinstance(records, list) and all(isinstance(each, dict) for each in records)):
            continue
        try:
            other = load(saved(tmp_path, records, host))
        except ResultsError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        read += 1
        columns = [table.Column("6.1", "svm", run) for run in (good, other)]
        shown = [*lines(good, other), *lines(other, good), *table.report(columns)]
        for number, case in enumerate(other.cases.values(), start=1):
            shown += tap.case_lines(case, number)
        assert all(map(is_plain, shown)), [line for line in shown if not is_plain(line)]
        assert active(html.page(columns)) <= ours, "no markup of theirs"
        for format_ in formats.FORMATS:
            formats.render(format_, [good, other], TOLD)
        history.lines(history.history([good, other]))
        since.lines(since.changes([good], [other]))
    assert refused > 20 and read > 5, "both happen"


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_to_the_bytes_is_more_than_one_line_of_complaint(tmp_path, seed):
    random_, path = random.Random(seed), saved(tmp_path, RECORDS)
    whole = path.read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(random_.randint(1, 4)):
            at = random_.randrange(len(data))
            data[at : at + random_.randint(0, 3)] = random_.randbytes(random_.randint(0, 3))
        path.write_bytes(data)
        try:
            load(path)
        except ResultsError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[" * 100_000, "without end"),
        ("[1]", "not a record"),
        ('{"type": "case", "schema": 1e999}', "schema"),
        ('{"type": "end", "seconds": NaN}', "NaN"),
        (f'{{"x": "{"y" * (5 << 20)}"}}', "4 MiB"),
        (encoder(HOST)({**RUN, "cases": [[]]}), "cases is"),
        (encoder(HOST)({**RUN, "cases": True}), "cases is True"),
        (encoder(HOST)({**RUN, "more": json.loads("[" * 20 + "]" * 20)}), "12 deep"),
        (encoder(HOST)({**RUN, "more": [0] * 100_001}), "100000 values"),
        (encoder({**HOST, "more": "x" * 70_000})(RUN), "64 KiB"),
        (encoder({**HOST, "more": [0] * 3000})(RUN), "values"),
        (encoder(HOST)({**END, "status": 77}), "status is 77"),
        (encoder(HOST)({**END, "counts": {"GOOD": 1}}), "counts is"),
        (encoder(HOST)({**CASE, "verdict": "FINE"}), "verdict is 'FINE'"),
        (encoder(HOST)({**CASE, "verdict": "SKIP"}), "without reason"),
        (encoder(HOST)({**CASE, "verdict": "FAIL", "step": 1}), "missing beside step"),
        (encoder(HOST)({**CASE, "verdict": "FAIL", "also": [{}]}), r"also\[0\]\.step is missing"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(line, why):
    with pytest.raises(ValueError, match=why):
        decode(line)


def test_text_is_made_plain_and_lines_stay_lines_where_they_are_meant():
    evil = "a\x1b]0;t\x07\nPASS forged\u202e\ud800\x9b"
    record = decode(encoder(HOST)({**CASE, "verdict": "ERROR", "error": evil, "traceback": evil}))
    assert record["error"] == r"a\x1b]0;t\x07\nPASS forged\u202e\ud800\x9b"
    assert record["traceback"].count("\n") == 1 and "\x1b" not in record["traceback"]
    assert decode(encoder(HOST)(record))["error"] == record["error"], "twice is once"


def test_what_is_shown_is_plain():
    assert plain("a\tb\nc\x7f\x00é") == r"a\tb\nc\x7f\x00é"
    assert plain_lines("a\tb\nc\r") == "a\tb\nc\\r"
    assert plain_painted("\x1b[31mFAIL\x1b[m\x1b[2J\n") == "\x1b[31mFAIL\x1b[m\\x1b[2J\\n"
