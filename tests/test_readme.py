"""The README is executed: what it shows must run, and must be what is seen; docs/ is parsed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted(ROOT.glob("docs/*.md"))


QUICK_START, CASE = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_quick_start_runs_verbatim(has_kvm):
    ran = subprocess.run(
        [sys.executable, "-c", QUICK_START], capture_output=True, text=True, cwd="/", timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "guest read KERNEL_GS_BASE: denied by FILTER\n"


def test_the_case_it_shows_is_one_that_model_and_human_agree_on():
    from vmm.conformance.language import script
    from vmm.conformance.language.case import Case
    from vmm.conformance.oracle.model import Model
    from vmm.filter import default_allow
    from vmm.msr import FILTER

    case = eval(
        CASE,
        {
            **vars(script),
            "Case": Case,
            "default_allow": default_allow,
            "FILTER": FILTER,
            "A": 0x474F4F00,
        },
    )
    assert Model().predict(case.actions) == case.expected


def commands(text=README):
    """Return every msrward command line of a page's indented blocks, without its comment."""
    lines = re.findall(r"^    \$? ?((?:scripts/check|msrward) .*)$", text, re.M)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_command_of_a_page_parses(page):
    from vmm.cli import command_line

    for command in commands(page.read_text()):
        words = command[1:] if command[0] == "msrward" else ["check", *command[1:]]
        command_line().parse_args(words)


def test_every_page_is_found_from_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w.]+)", README))
    assert {page.name for page in PAGES} == {name for name in linked if name.endswith(".md")}


def test_the_readme_is_short():
    assert README.count("\n") <= 200


def test_the_readme_names_cases_that_exist():
    from vmm.conformance.cases import CASES

    known = {case.id for case in CASES}
    shown = {words[2] for words in commands() if words[:2] == ["msrward", "show"]}
    assert shown and shown <= known
