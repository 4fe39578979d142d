"""The whole suite, by the wall clock: ``msrward check`` against the player, which is all C.

Both play the same cases with as many workers. The player predicts and judges nothing. What a case
takes is mostly the kernel's (an install waits for its readers), so that no figure of milliseconds a
case would be an allowance: in C too, a running vCPU's case takes fifty times a batch's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.line import Line

MSRWARD = (sys.executable, "-P", "-m", "vmm")
PLAYER = Path(sys.executable).with_name("msrward-player")
STARTS = 10
"""How many starts of Python the C side is given for what Python loads and judges."""


def measure_suite(line: Line, rounds: int) -> None:
    """Fill the line, both sides in turns; the one that goes first changes from round to round."""
    from vmm.conformance.c.tape import is_playable
    from vmm.conformance.cases import CASES
    from vmm.conformance.host.cpus import default_jobs

    if not PLAYER.exists():
        line.skipped = f"no player at {PLAYER}: this host has no static libc"
        return
    cases = [case.id for case in CASES if is_playable(case) and not case.thorough]
    with tempfile.TemporaryDirectory(prefix="msrward-bench-") as place:
        tape = f"{place}/tape"
        subprocess.run([*MSRWARD, "tape", "-o", tape, *cases], check=True)
        for number in range(rounds):
            for python in (False, True) if number % 2 else (True, False):
                if python:
                    check = (*MSRWARD, "check", "-q", f"-j{default_jobs()}", *cases)
                    line.python.append(_wall(*check, good=(0, 1)))
                else:
                    start = _wall(sys.executable, "-c", "pass")
                    player = _wall(str(PLAYER), f"-j{default_jobs()}", tape)
                    line.c.append(STARTS * start + player)


def _wall(*command: str, good: tuple[int, ...] = (0,)) -> float:
    """Return the milliseconds that ``command`` took; RuntimeError if it ended otherwise."""
    began = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in good:
        said = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
        raise RuntimeError(f"{Path(command[0]).name}: {said}")
    return (time.perf_counter() - began) * 1e3
