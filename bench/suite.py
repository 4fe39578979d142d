"""The whole suite, by the wall clock, against what its promise allows."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.line import Line


def measure_suite(line: Line, rounds: int) -> None:
    """Fill the line of ``msrward check``; its C side is what the promise allows, not a program."""
    from vmm.conformance.cases import CASES

    for _ in range(rounds):
        start, _ = _wall("-c", "pass")
        wall, status = _wall("-P", "-m", "vmm", "check", "-q")
        if status not in (0, 1):
            line.skipped = f"msrward check ended with status {status}"
            return
        line.c.append(start * 10 + 2.0 * len(CASES))
        line.python.append(wall)


def _wall(*arguments: str) -> tuple[float, int]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return (time.perf_counter() - began) * 1e3, done.returncode
