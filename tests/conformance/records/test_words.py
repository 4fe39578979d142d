"""Verdicts and exit statuses stand in records/ alone, and the README and --help say the same."""

import argparse
import ast
import re
from pathlib import Path

import pytest

from vmm.cli import command_line, main
from vmm.conformance.records.status import _OF, DONE, MEANINGS, Status, statuses
from vmm.conformance.records.verdict import Verdict

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "vmm/conformance/records"
MODULES = [path for path in sorted((ROOT / "vmm").rglob("*.py")) if RECORDS not in path.parents]


def leaves(node):
    """Return what an expression may come out as."""
    if isinstance(node, ast.IfExp):
        return leaves(node.body) + leaves(node.orelse)
    return [node]


def is_number(node):
    return isinstance(node, ast.Constant) and type(node.value) is int


def is_status(node):
    """Whether the expression is ``x["status"]``, ``x.status`` or ``status``."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "status"
    return "status" in (getattr(node, "attr", ""), getattr(node, "id", ""))


def bare(tree, *, commands):
    """Yield the line of each verdict or status that is written out; see MODULES for where."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(word)) if word in set(Verdict):
                yield node.lineno
            case ast.Return(value=value) if commands and any(map(is_number, leaves(value))):
                yield node.lineno
            case ast.Compare(left=left, comparators=others):
                sides = [left, *others]
                if any(map(is_status, sides)) and any(map(is_number, sides)):
                    yield node.lineno
            case ast.Call(func=ast.Attribute(attr="exit"), args=[code, *_]) if is_number(code):
                yield node.lineno
            case ast.Assign(targets=[*targets], value=value):
                names = {each.id for t in targets for each in ast.walk(t) if hasattr(each, "id")}
                if names & set(Status.__members__) and any(map(is_number, ast.walk(value))):
                    yield node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "vmm")))
def test_no_verdict_and_no_status_is_written_out(path):
    commands = "cli" in path.parts or path.name in ("fuzz.py", "table.py")
    assert not [f"{path}:{line}" for line in bare(ast.parse(path.read_text()), commands=commands)]


@pytest.mark.parametrize(
    "text",
    [
        'x = "FAIL"',
        'x = y in ("PASS", "")',
        'match x:\n case "SKIP": pass',
        "def f():\n return 2",
        "def f():\n return a if b else 2",
        'end["status"] == 1',
        "0 != result.status",
        "sys.exit(2)",
        "TROUBLE = 2",
        "CONFORMS, UNTESTED = 0, 4",
    ],
)
def test_one_that_is_written_out_is_found(text):
    assert list(bare(ast.parse(text), commands=True))


def test_the_page_says_what_the_statuses_mean():
    rows = re.findall(
        r"^\| (\d+) \| (.*) \|$", (ROOT / "docs" / "environment.md").read_text(), re.M
    )
    assert {int(number): meaning for number, meaning in rows} == MEANINGS
    assert set(MEANINGS) == set(Status)


def commands(parser, above=""):
    """Return the parser of each command that does something, by its name: "lab run"."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                found |= commands(inner, f"{above}{name} ") or {above + name: inner}
    return found


COMMANDS = commands(command_line())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_its_statuses_mean(name, capsys):
    assert main([*name.split(), "--help"]) == DONE
    said = capsys.readouterr().out
    table = dict(re.findall(r"^  (\d+) +(\S.*)$", said[said.index("\nexit status:\n") :], re.M))
    assert {int(number): meaning for number, meaning in table.items()} == statuses(name)
    wrong = main([*name.split(), "--no-such-option"])
    assert wrong in statuses(name) and wrong not in (DONE, Status.VIOLATES)


def test_the_table_of_statuses_names_commands_that_are_there():
    assert set(_OF) - {""} <= set(COMMANDS)
    judging = {name for name in COMMANDS if statuses(name) == MEANINGS}
    assert {"check", "run", "lab run", "judge"} <= judging
    assert not [name for name in COMMANDS if statuses(name).keys() - {125} - set(Status)]


def test_a_verdict_is_its_word_and_every_one_is_judged():
    assert [str(each) for each in Verdict] == list(Verdict.__members__)
    assert {each for each in Verdict if each.is_bad} == {"FAIL", "TIMEOUT", "ERROR", "UNSTEADY"}
    assert {each for each in Verdict if each.is_good} == {"PASS", "SKIP", "XPASS"}
    assert {each for each in Verdict if each.is_violation} == {"FAIL", "TIMEOUT"}
    assert (Verdict.FAIL.expected, Verdict.PASS.expected) == (Verdict.XFAIL, Verdict.XPASS)
    assert Verdict.ERROR.expected is Verdict.ERROR
