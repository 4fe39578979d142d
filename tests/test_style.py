"""The checkers that hold the source to its style: part of the tests, so that CI runs them."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "format", "--check", "vmm", "tests", "native", "scripts"),
        ("ruff", "check", "vmm", "tests", "native", "scripts"),
        ("mypy", "--no-incremental", "vmm"),
    ],
    ids=["ruff format", "ruff check", "mypy"],
)
def test_the_tree_is_clean(command):
    ran = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_c_has_lines_as_the_kernel_has_them():
    """Some of it is sent on. A text alone may be longer: it is one, so that grep finds it."""
    native = ROOT / "native"
    for file in (*native.rglob("*.c"), *native.rglob("*.h")):
        for line in file.read_text().splitlines():
            assert len(re.sub('"[^"]*"', '""', line.expandtabs(8))) <= 100, f"{file.name}: {line}"


def test_a_warning_from_our_package_is_an_error():
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "worker.py", 1, module="vmm.cli")
