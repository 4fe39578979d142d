"""The README is executed: what it shows must run, and must be what is seen."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_quick_start_runs_verbatim(has_kvm):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    ran = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, cwd="/", timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "guest read KERNEL_GS_BASE: denied by FILTER\n"


def commands():
    """Return every msrward command line of the README's indented blocks, without its comment."""
    lines = re.findall(r"^    \$? ?((?:scripts/check|msrward) .*)$", README, re.M)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_command_of_the_readme_parses():
    from vmm.cli import command_line

    for command in commands():
        words = command[1:] if command[0] == "msrward" else ["check", *command[1:]]
        command_line().parse_args(words)
