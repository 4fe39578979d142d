"""scripts/exports as a user runs it: right programs agree, a wrong one is named."""

import shutil

import pytest

from vmm.cli import exports
from vmm.conformance.records.verdict import Verdict


@pytest.fixture
def a_case(has_kvm, has_userfaultfd):
    if not shutil.which("cc"):
        pytest.skip("no C compiler (cc)")
    return next(each.id for each in exports.CASES if each.id.startswith("stalled."))


def test_programs_that_say_what_msrward_says(a_case, capsys):
    assert exports.main([a_case]) == 0
    assert capsys.readouterr().out == "cc: 1 PASS, all as msrward says\n"


def test_a_program_that_says_something_else_is_named(a_case, capsys, monkeypatch):
    monkeypatch.setattr(
        exports, "_verdicts", lambda cases: {each.id: Verdict.FAIL for each in cases}
    )
    assert exports.main([a_case]) == 1
    assert capsys.readouterr().out == (
        "cc: 1 PASS, 1 that differ from msrward\n"
        f"  {a_case}: msrward says FAIL, the program PASS: PASS\n"
    )


def test_a_program_that_does_not_build_is_named(a_case, capsys):
    assert exports.main(["--cc", "cc -DPASS=(", a_case]) == 1
    assert "1 not built" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, why",
    [
        (("nonesuch.*",), "no case with a form in C is called that"),
        (("--cc", "nonesuch"), "no compiler"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, why, capsys):
    assert exports.main([*arguments]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1
