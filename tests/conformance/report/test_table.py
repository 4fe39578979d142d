"""The matrix as a table and as a page."""

import base64
import hashlib
import html.parser
import re
from itertools import pairwise
from pathlib import Path

from vmm.conformance.records.saved import Saved
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import html as pages
from vmm.conformance.report import pictures, table
from vmm.conformance.report.style import STYLE


def case(name, verdict="PASS", requirement="R14", **more):
    fixed = {"sentence": f"<{name}>.", "requirements": [requirement], "ms": 1.0}
    return name, {"id": name, "verdict": Verdict(verdict), **fixed, **more}


def column(release, *cases, vendor="svm", status=0, **end):
    ended = {"status": status, "splats": [], "interrupted": False, **end}
    return table.Column(release, vendor, Saved(Path("r"), {"release": release}, dict(cases), ended))


COMPAT = "install_compat(default_allow())"
B09 = {"script": [COMPAT], "trace": ["rejected(ENOTTY)"], "step": 1, "action": COMPAT}
B09 |= {"expected": ["done"], "seen": ["rejected(ENOTTY)"]}
FAILED = {"step": 1, "action": "a & b", "expected": ["done"], "seen": ["<x>"]}
COLUMNS = [
    column("5.10.0-1", case("r.a", "FAIL", **FAILED), case("q.x", observation="1"), status=1),
    column("6.1.0-1", case("r.a"), case("q.x", observation="2")),
    column("6.1.0-1", case("r.a"), case("q.x", observation="2"), vendor="vmx"),
]


def test_a_change_is_against_the_same_vendors_neighbour():
    (row,) = table.cases(COLUMNS)
    assert (row.words, row.changes) == (("FAIL", "PASS", "PASS"), (False, True, False))
    (seen,) = table.observations(COLUMNS)
    assert (seen.words, seen.changes) == (("A", "B", "B"), (False, True, False))


def test_a_requirement_is_as_good_as_its_worst_case():
    mixed = column("6.1", case("r.a"), case("r.b", "FAIL"), case("r.c", "SKIP", "R15"))
    rows = {row.name: row.words for row in table.requirements([mixed])}
    assert rows == {"R14": ("FAIL",), "R15": ("SKIP",)}


def test_the_report_marks_changes_and_explains_failures():
    shown = "\n".join(table.report(COLUMNS))
    assert "R14" in shown and "*PASS" in shown and "*B" in shown
    assert "no known kernel bug explains 1 case, the first is r.a" in shown


def test_what_explains_a_requirement_is_what_explains_its_cases():
    """A bug may break a requirement that it is not known for, on some kernels alone."""
    lacks = column("5.10", case("c.a", "FAIL", "R57", **B09), case("c.b", "FAIL", "R57", **B09))
    good = column("6.1", case("c.a", "PASS", "R57"), case("c.b", "PASS", "R57"))
    (line,) = table.explanations([lacks, good])
    assert "fixed by" in line and "(v6.1); where it fails the kernel lacks it" in line
    assert "no known" not in line
    new = column("6.1", case("c.a", "FAIL", "R57", **FAILED), case("c.b", "XFAIL", "R57", **FAILED))
    (line,) = table.explanations([lacks, new, new])
    assert "(v6.1)" in line and line.endswith("explains 1 case, the first is c.a")
    two = column("6.1", case("c.a", "FAIL", "R57", **FAILED), case("c.b", "FAIL", "R57", **FAILED))
    (line,) = table.explanations([two])
    assert line.endswith(". no known kernel bug explains 2 cases, the first is c.a")


def test_a_requirement_fails_by_cases_that_are_about_it_alone():
    name, record = case("f.x", "FAIL")
    both = name, {**record, "requirements": ["R33", "R72", "R15"]}
    here = column("6.1", both, case("r.a", "FAIL"), case("r.b", "PASS", "R15"), status=1)
    lines = table.explanations([here])
    assert [line.split(":")[0] for line in lines] == ["R14", "R33"]
    rows = {row.name: (row.words, row.even) for row in table.requirements([here])}
    assert rows == {
        "R14": (("FAIL",), False),
        "R33": (("FAIL",), False),
        "R72": (("",), False),
        "R15": (("PASS",), True),
    }


def test_the_status_is_that_of_the_worst_column():
    assert table.status(COLUMNS) == 1
    assert table.status(COLUMNS[1:]) == 0
    assert table.status([*COLUMNS, table.Column("6.6", "svm", None)]) == 2
    panicked = column("6.6", status=2, lab={"reason": "the guest kernel panicked"})
    assert table.status([panicked]) == 2
    assert "the guest kernel panicked" in "\n".join(table.report([panicked]))


def test_a_debian_kernel_is_called_by_its_upstream_version():
    host = {"version": "#1 SMP Debian 5.10.262-1 (2026-07-31)"}
    assert table.Column("5.10.0-46", "svm", Saved(Path("r"), host, {}, None)).version == "5.10.262"
    assert table.Column("6.17.13+deb13", "svm", None).version == "6.17.13"


class Links(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.open, self.scripts = set(), set(), [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        self.links |= {attrs["href"]} if "href" in attrs else set()
        self.scripts += tag in ("script", "link", "img")
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_every_link_leads_somewhere():
    page = Links(pages.page(COLUMNS))
    assert not page.open and page.scripts == 1
    assert page.links and page.links <= {f"#{name}" for name in page.ids}


def test_the_page_may_run_its_filter_and_nothing_else():
    text = pages.page(COLUMNS)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in text
    assert text.count('class="filter" hidden') == 1 and not re.search(r"\son\w+=", text)


def test_causes_are_on_top_with_their_cases_and_a_strip(monkeypatch):
    explained = "vmm.conformance.records.causes.explains"
    monkeypatch.setattr(explained, lambda case, _: "B12" if case["id"] == "r.a" else "")
    columns = [
        column("5.10.0", case("r.a", "FAIL"), case("n.x", "FAIL")),
        column("6.1.0", case("r.a")),
    ]
    text = pages.page(columns)
    news, known = text.index("<b>n.x</b>"), text.index("<b>B12</b>")
    assert text.index("<h2>Causes</h2>") < news < known < text.index("<h2>Requirements")
    assert '<summary>1 case</summary><a href="#r.a">r.a</a>' in text
    boxes = re.findall(r'<rect [^>]*class="(\w+)"><title>([^<]*)', text)
    assert boxes == [
        *(("shown", "5.10.0: shown"), ("unknown", "6.1.0: not judged")),
        *(("shown", "5.10.0: shown"), ("absent", "6.1.0: absent")),
    ]
    assert 'aria-label="B12: shown by 5.10.0' in text


def test_who_cannot_see_or_point_can_read_it():
    text = pages.page(COLUMNS)
    cells = re.findall(r"<td[^>]*><a ([^>]*)>", text)
    assert cells and all("aria-label=" in cell for cell in cells)
    assert (
        text.count("<caption>") == text.count("<table>") == text.count('role="region" tabindex="0"')
    )
    assert '<html lang="en">' in text and '<a class="skip" href="#main">' in text
    assert '<label for="filter">' in text and "@media print" in text and "light dark" in text


def contrast(one, other):
    """How far two colours are apart, as WCAG 2 counts it: 4.5 is enough for text."""

    def light(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_colour_can_be_read_on_white_and_on_black():
    assert round(contrast("#000000", "#ffffff")) == 21
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    for paper, text in (("#ffffff", light), ("#121212", dark)):
        colours = dict(re.findall(r"--(good|bad|odd): (#\w{6})", text))
        assert colours.keys() == {"good", "bad", "odd"}
        assert all(contrast(paper, each) >= 4.5 for each in colours.values()), (paper, colours)
    assert contrast("#ffffff", re.search(r"--alarm: (#\w{6})", STYLE)[1]) >= 4.5


def test_a_table_has_no_header_without_words_and_says_what_it_spans():
    text = pages.page(COLUMNS)
    assert "<th></th>" not in text
    for grid in re.findall(r"<table>.*?</table>", text):
        spans = sum(int(each) for each in re.findall(r'<colgroup span="(\d+)">', grid))
        heads = re.findall(r'<th scope="col"[^>]*>', grid)
        assert spans == len(heads) - 1 == len(COLUMNS), "the first is that of the rows"


def test_paper_has_what_is_wrong_and_not_all_that_passes():
    text = pages.page(COLUMNS)
    paper = text[text.index("@media print") : text.index("</style>")]
    assert "details:not(.rest)::details-content { content-visibility: visible" in paper
    assert ".index { display: none }" in paper and '<nav class="index"' in text


def test_what_a_record_says_is_escaped():
    text = pages.page(COLUMNS)
    assert "a &amp; b" in text and "&lt;x&gt;" in text and "<x>" not in text


def test_rates_are_drawn_from_records():
    series = {"swaps/s": [[1.0, 10.0], [2.0, 30.0]], "one<x>": [[1.0, 1.0]]}
    text = pages.page([column("6.1", case("stress.swaps", series=series))])
    assert 'aria-label="swaps/s over 2 s: 10 to 30"' in text and "one<x>" not in text
    assert 'points="240.0,53.3 480.0,0.0"' in text


def test_a_histogram_is_drawn_from_records_with_its_words():
    counts = {"ns <x>": [0, 0, 1, 0, 4], "wide": [1] * 20, "none": [0, 0], "large": [0] * 63 + [1]}
    text = pages.page([column("6.1", case("stress.swaps", histograms=counts))])
    assert 'aria-label="ns &lt;x&gt;: 5; the middle one 16 to 32, 99% below 32 (a bar' in text
    assert "<title>4 to 8: 1</title>" in text and "<title>8 to 16: 0</title>" in text
    assert 'y="40.0"' in text and 'height="80.0"' in text, "a quarter as many is half as high"
    ticks = [float(x) for x in re.findall(r'class="tick" x="([\d.]+)"', text)]
    spans = [after - at for at, after in pairwise(ticks) if after > at]
    assert spans and min(spans) >= pictures.TICK, "no two words lie on each other"
    assert "none: " not in text and "large: 1; the middle one 8E to 16E" in text


def run_in(place, release="6.1.0-1", started=1.0):
    host = {"release": release, "version": "Debian 6.1.192-1", "vendor_module": "kvm_amd"}
    ended = {"status": 1, "splats": [], "interrupted": False}
    cases = dict([case("r.a", "FAIL", **FAILED), case("q.x", observation="1")])
    return Saved(Path(place), host, cases, ended, run={"started": started})


def test_runs_of_one_kernel_are_told_apart_by_the_first_thing_that_differs():
    def names(*runs):
        return [column.name for column in table.columns(runs)]

    check, stress = run_in("a/check/results.jsonl"), run_in("a/stress/results.jsonl")
    assert names(check) == ["6.1.192"]
    assert names(check, stress) == ["6.1.192 (check)", "6.1.192 (stress)"]
    assert names(run_in("a/one.jsonl"), run_in("a/two.jsonl")) == [
        "6.1.192 (one.jsonl)",
        "6.1.192 (two.jsonl)",
    ]
    other = run_in("b/check/results.jsonl")
    assert names(check, other) == ["6.1.192 (a/check)", "6.1.192 (b/check)"]
    assert names(check, run_in("a/check/results.jsonl", started=2.0)) == [
        "6.1.192 (1970-01-01 00:00:01)",
        "6.1.192 (1970-01-01 00:00:02)",
    ]
    assert names(check, check) == ["6.1.192 (run 1)", "6.1.192 (run 2)"]
    rebuilt = run_in("a/check/results.jsonl", release="6.1.0-2")
    assert names(check, rebuilt) == ["6.1.192 (6.1.0-1)", "6.1.192 (6.1.0-2)"]


def test_no_two_columns_of_the_page_or_the_table_have_one_name():
    runs = [run_in(f"a/{name}/results.jsonl") for name in ("check", "<b>", "fuzz")]
    columns = table.columns(runs)
    page = pages.page(columns)
    heads = re.findall(r'<a href="#machine-\d">([^<]*)</a>', page)
    assert len(heads) > 3 and len(set(heads)) == 3 and "6.1.192 (&lt;b&gt;)" in heads
    assert len(set(re.findall(r'<p id="machine-\d">(.*?)</b>', page))) == 3
    assert "<b> </b>" not in page and "(<b>)" not in page
    head = next(line for line in table.report(columns) if "(check)" in line)
    assert all(each in head for each in ("(check)", "(fuzz)"))
