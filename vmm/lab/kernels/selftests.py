"""The kernel's own KVM selftests: build cases that were written as tests by a kernel's harness."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vmm.lab import processes
from vmm.lab.errors import LabError

SELFTESTS = Path("tools/testing/selftests/kvm")
CONTROL = "userspace_msr_exit_test"
"""The kernel's own test of the filter: where it fails, the harness does not work there."""


def prefix(name: str) -> str:
    """Return what a case is called as a test."""
    return "msrward_" + name.replace(".", "_")


def build(tree: Path, sources: Mapping[str, str], *, jobs: int | None = None) -> dict[str, bytes]:
    """Return the static programs of ``sources`` (C by the name of a test), and of CONTROL.

    They are built in ``tree``, a kernel's source of our own, by its Makefile and its warnings.
    :class:`LabError` has the compiler's first error, or its first warning about what we wrote.
    """
    place = _place(tree)
    for old in place.glob("msrward_*"):
        old.unlink()
    for name, text in sources.items():
        (place / f"{name}.c").write_text(text)
    tests = [f"{place.name}/{name}" for name in (CONTROL, *sources)]
    _make(tree, "headers", jobs=jobs)
    objects = tree / ".msrward-selftests"
    targets = (str(objects / each) for each in tests)
    lists = (f"TEST_GEN_PROGS_{arch}={' '.join(tests)}" for arch in ("x86", "x86_64"))
    how = (f"OUTPUT={objects}", "LDFLAGS=-static")
    said = _make(tree / SELFTESTS, *targets, *how, *lists, jobs=jobs)
    if ours := [line for line in said.splitlines() if "msrward_" in line and "warning:" in line]:
        raise LabError(f"a test that we wrote does not build clean: {ours[0]}")
    return {Path(each).name: (objects / each).read_bytes() for each in tests}


def _place(tree: Path) -> Path:
    """Return the directory of the tests for x86: 6.14 has renamed it."""
    for name in ("x86", "x86_64"):
        if (place := tree / SELFTESTS / name).joinpath(f"{CONTROL}.c").is_file():
            return place
    raise LabError(f"{tree} has no {SELFTESTS}/x86/{CONTROL}.c: take the source of 6.12 or later")


def _make(where: Path, *targets: str, jobs: int | None) -> str:
    """Run make; return what it said of warnings."""
    command = ["make", "-s", f"-j{jobs or os.cpu_count() or 1}", "ARCH=x86_64", "-C", str(where)]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        ran = processes.run([*command, *targets], env=environment)
    except FileNotFoundError:
        raise LabError("no make: apt-get install make gcc libc6-dev") from None
    if ran.returncode:
        lines = ran.stderr.splitlines()
        first = [line for line in lines if "error:" in line] or lines or ["make said nothing"]
        raise LabError(f"the selftests do not build: {first[0].strip()}")
    return ran.stderr
