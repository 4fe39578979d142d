"""``msrward report``, and ``--report`` of the commands that leave records."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from recorded import case_record

from vmm.cli import main, reports
from vmm.conformance.records.results import Results
from vmm.conformance.records.saved import load
from vmm.conformance.report.formats import FORMATS

HOST = {"release": "6.1", "hostname": "box", "vendor_module": "kvm_intel"}
CASE = case_record("match.x")
END = {"type": "end", "status": 0, "splats": [], "interrupted": False, "counts": {"PASS": 1}}
END |= {"seconds": 1.0, "lost": 0, "fingerprint": "", "foreign": []}
RUN = {"type": "run", "started": 1.0, "cases": 1, "catalogue": 1, "resumed": 0, "jobs": 1}
RUN |= {"timeout": 10.0, "kernel_log": "watched"}


@pytest.fixture
def records(tmp_path):
    """A directory of two runs, as a matrix leaves it."""
    for name in ("6.1-svm", "6.1-vmx"):
        with Results(tmp_path / "many" / name, {**HOST, "hostname": name}) as results:
            for record in (RUN, CASE, END):
                results.write(record)
    return tmp_path / "many"


@pytest.mark.parametrize("format_", FORMATS)
def test_each_format_of_one_run_and_of_a_directory_of_runs(records, capsys, format_, monkeypatch):
    monkeypatch.setenv("MSRWARD_KCIDB", "origin=me")
    assert main(["report", str(records / "6.1-svm"), "--format", format_]) == 0
    one = capsys.readouterr().out
    assert main(["report", str(records), "--format", format_]) == 0
    many = capsys.readouterr().out
    assert len(many) > len(one) > 10


def test_a_report_goes_to_a_file_and_options_add_to_the_environment(records, tmp_path, monkeypatch):
    monkeypatch.setenv("MSRWARD_KCIDB", "origin=me tree_name=a")
    file = tmp_path / "out.json"
    words = ["--format=kcidb", "--kcidb", "tree_name=b compiler='gcc 14'", "-o", str(file)]
    assert main(["report", str(records), *words]) == 0
    data = json.loads(file.read_text())
    assert data["checkouts"][0]["tree_name"] == "b" and data["builds"][0]["compiler"] == "gcc 14"
    assert len(data["tests"]) == 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--format", "xml"], "not one of html, junit"),
        (["--format", "kcidb"], "origin=NAME"),
        (["--format", "kcidb", "--kcidb", "a=b"], "not NAME=VALUE"),
        (["--format", "md", "-o", "/nowhere/x"], "cannot write /nowhere/x: No such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(records, capsys, monkeypatch, words, why):
    monkeypatch.delenv("MSRWARD_KCIDB", raising=False)
    assert main(["report", str(records), *words]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_a_report_does_not_take_the_place_of_its_records(records, capsys):
    file = records / "6.1-svm" / "results.jsonl"
    before = file.read_bytes()
    assert main(["report", str(records), "--format", "junit", "-o", str(file)]) == 2
    assert "holds the records that are read" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_directory_without_records_is_no_empty_report(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--format", "junit"]) == 2
    assert "has no records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("xml=x", "not one of"),
        ("junit", "names no file"),
        ("junit=/nowhere/x", "is no file in a directory that exists"),
        ("kcidb=x", "origin=NAME"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_judged(
    tmp_path, capsys, monkeypatch, words, why
):
    monkeypatch.delenv("MSRWARD_KCIDB", raising=False)
    monkeypatch.setattr("vmm.conformance.judge.check.check", None)  # calling it would raise
    monkeypatch.chdir(tmp_path)
    assert main(["check", "R14", "--report", words]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_check_writes_the_reports_that_it_is_asked_for(has_kvm, tmp_path, capsys):
    junit, tap = tmp_path / "j.xml", tmp_path / "t.tap"
    glob = "plumbing.capability_*"
    wanted = [f"--report=junit={junit}", f"--report=tap={tap}"]
    status = main(["check", glob, "-q", "-j1", f"-o{tmp_path / 'dir'}", *wanted])
    root = ElementTree.parse(junit).getroot()
    lines = (tmp_path / "dir" / "results.jsonl").read_text().splitlines()
    cases = [line for line in lines if json.loads(line)["type"] == "case"]
    assert status in (0, 1, 4) and int(root.get("tests")) == len(cases) > 0
    assert f"1..{len(cases)}" in tap.read_text()


def test_a_case_of_the_catalogue_has_its_program():
    from vmm.conformance.cases import CASES

    name = CASES[0].id
    program = reports._program({"id": name}, "sent.c")
    assert "int main(void)" in program and " -o sent sent.c && ./sent\n" in program
    with pytest.raises(ValueError, match="no such case"):
        reports._program({"id": "no.such"}, "a.c")
    with pytest.raises(ValueError, match="cannot read"):
        reports._program({"id": "x", "file": "/nowhere.json"}, "a.c")


def test_the_help_names_every_format():
    assert all(name in reports.FORMAT_HELP for name in FORMATS)


def test_a_run_of_other_cases_is_no_baseline(records, capsys):
    assert main(["check", "--baseline", str(records / "6.1-svm")]) == 2
    said = capsys.readouterr().err
    assert "none of the chosen cases" in said and said.count("\n") == 1


def test_the_pictures_of_a_real_stress_are_of_its_records(has_kvm, tmp_path, capsys):
    place, page = tmp_path / "run", tmp_path / "page.html"
    assert main(["stress", "--seconds", "1.6", "-o", str(place)]) == 0
    assert main(["report", str(place), "--format", "html", "-o", str(page)]) == 0
    record = load(place).cases["stress.swaps"]
    [(name, counts)] = record["histograms"].items()
    pattern = r"<figure>(<svg.*?</svg>)<figcaption[^>]*>(.*?)</figcaption>"
    figures = re.findall(pattern, page.read_text())
    assert len(figures) == len(record["series"]) + 1 == 3
    for (picture, caption), series in zip(figures, record["series"], strict=False):
        line = ElementTree.fromstring(picture).find("polyline").get("points").split()
        assert len(line) == len(record["series"][series]) and caption.startswith(f"{series} over")
    drawn = ElementTree.fromstring(figures[-1][0])
    bars = [(bar.find("title").text, float(bar.get("height"))) for bar in drawn.iter("rect")]
    told = [int(title.rpartition(": ")[2].replace(",", "")) for title, _ in bars]
    assert told == counts[-len(told) :] and not any(counts[: -len(told)])
    assert max(bars, key=lambda bar: bar[1])[0].endswith(f": {max(counts):,}")
    assert drawn.get("aria-label").startswith(f"{name}: {sum(counts):,}; the middle one ")
    frame = float(drawn.get("width"))
    assert all(0 <= float(bar.get("x")) <= frame for bar in drawn.iter("rect"))
    ends = [seconds for seconds, _ in record["series"]["swaps/s"]]
    assert ends == sorted(ends) and ends[-1] - ends[-2] > 0.2, "no sliver of time has a rate"
