"""The README is executed: what it shows must run, and must be what is seen."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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


def commands():
    """Return every msrward command line of the README's indented blocks, without its comment."""
    lines = re.findall(r"^    \$? ?((?:scripts/check|msrward) .*)$", README, re.M)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_command_of_the_readme_parses():
    from vmm.cli import command_line

    for command in commands():
        words = command[1:] if command[0] == "msrward" else ["check", *command[1:]]
        command_line().parse_args(words)


def test_the_readme_names_cases_that_exist():
    from vmm.conformance.cases import CASES

    known = {case.id for case in CASES}
    shown = {words[2] for words in commands() if words[:2] == ["msrward", "show"]}
    assert shown and shown <= known
