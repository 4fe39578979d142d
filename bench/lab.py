"""What a run in the lab takes, by each executor, against the bare boot within it: wall seconds."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.line import Line


def lab_lines() -> list[tuple[Line, str, list[str]]]:
    """Return each line, its executor, and the cases that it judges."""
    from vmm.conformance.c.tape import is_playable
    from vmm.conformance.cases import CASES

    whole = [case.id for case in CASES if is_playable(case) and not case.thorough]
    one = next(case.id for case in CASES if is_playable(case))
    return [
        (Line("lab: one case, player (C: its boot)", "s", 1.5), "player", [one]),
        (Line("lab: the suite, player (C: its boot)", "s", 2.5), "player", whole),
        (Line("lab: the suite, Python (C: its boot)", "s", 2.5), "python", whole),
    ]


def measure_lab(kernel: str, vendor: str, rounds: int) -> list[Line]:
    """Return the lines, each measured in turn with the others."""
    lines = lab_lines()
    for _ in range(rounds):
        for line, executor, cases in lines:
            if not line.skipped:
                _measure(line, kernel, vendor, executor, cases)
    return [line for line, _, _ in lines]


def _measure(line: Line, kernel: str, vendor: str, executor: str, cases: list[str]) -> None:
    from vmm.conformance.records.saved import load

    with tempfile.TemporaryDirectory() as place:
        how = ("--kernel", kernel, "--vendor", vendor, "--executor", executor, "-q", "-o", place)
        command = (sys.executable, "-P", "-m", "vmm", "lab", "run", *how, *cases)
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode not in (0, 1):
            line.skipped = ran.stderr.strip().rpartition("\n")[2] or f"status {ran.returncode}"
            return
        took = load(Path(place)).lab
    line.c.append(took.get("boot_seconds") or math.nan)
    line.python.append(took.get("total_seconds") or math.nan)
