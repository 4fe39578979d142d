"""A line of the table, and the rounds that fill it: both sides in turns."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Line:
    """One line of the table: times of a unit on both sides, in ``unit``, of each round.

    By the wall clock; with ``cpu`` by the thread's CPU time, where nothing waits or works beside
    it: other load on the machine then counts on neither side.
    """

    name: str
    unit: str
    target: float
    at_most: bool = True
    c: list[float] = field(default_factory=list)
    python: list[float] = field(default_factory=list)
    c_exits: int = 0
    python_exits: int = 0
    c_gaps: list[float] = field(default_factory=list)
    python_gaps: list[float] = field(default_factory=list)
    skipped: str = ""
    cpu: bool = False

    def ratio(self) -> float:
        """Return Python's time (or, for a rate, Python's rate) divided by C's."""
        ratios = [p / c for c, p in zip(self.c, self.python, strict=True)]
        return median(ratios) if self.at_most else 1 / median(ratios)

    def verdict(self) -> str:
        """Return PASS or MISS, or SKIP for what could not be measured."""
        if self.skipped:
            return "SKIP"
        passes = self.ratio() <= self.target if self.at_most else self.ratio() >= self.target
        return "PASS" if passes else "MISS"


def take_turns(
    line: Line, number: int, bare: Callable[[], list[int]], side: Callable[[], int], units: int
) -> None:
    """Do one round: both sides, the one that goes first changing from round to round."""
    for python in (False, True) if number % 2 else (True, False):
        if python:
            clock = time.thread_time_ns if line.cpu else time.perf_counter_ns
            began = clock()
            line.python_exits += side()
            line.python.append((clock() - began) / units / 1e3)
        else:
            ns, exits, *began_at = bare()
            line.c_exits += exits
            line.c.append(ns / units / 1e3)
            line.c_gaps += _gaps(began_at)


def _gaps(began: Sequence[int]) -> list[float]:
    return [(after - before) / 1e3 for before, after in itertools.pairwise(began)]
