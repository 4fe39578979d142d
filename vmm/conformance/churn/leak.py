"""Does the kernel lose memory? Samples of its counters against a count of what was done, R76."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
UNRECLAIMABLE = "SUnreclaim"
COUNTERS = UNRECLAIMABLE, "Slab", "KernelStack", "VmallocUsed", "Percpu", "MemAvailable"
SAMPLES = 24
LIMIT = 64.0
"""Bytes an operation. The smallest thing a filter can lose is one bitmap of 8 bytes a range, 64
bytes in the smallest slab of a range or two; what the rest of a machine does in the same seconds
stays far below that over 100,000 installs (6 MiB). Of a whole VM at least the filter's struct would
be lost, in a slab of 512 bytes: give that as the limit where there are fewer operations."""

Sample = tuple[int, dict[str, int]]
"""How many operations had been done, and the counters then, in bytes."""


@dataclass(frozen=True)
class Slope:
    """What one operation costs each counter for good: bytes an operation, by Theil and Sen.

    ``spread`` has the lower and upper quartile of the slopes between two samples of SUnreclaim.
    """

    what: str
    operations: int
    samples: int
    bytes_each: dict[str, float]
    spread: tuple[float, float]
    limit: float = LIMIT

    @property
    def leaks(self) -> bool:
        """Say whether SUnreclaim grew with the operations: more than the limit, and steadily."""
        grew = self.bytes_each.get(UNRECLAIMABLE, 0.0)
        return grew > self.limit and self.spread[0] > self.limit / 2

    def line(self) -> str:
        """Return the measurement in one line."""
        low, high = self.spread
        rest = ", ".join(
            f"{name} {each:+.1f}" for name, each in self.bytes_each.items() if name != UNRECLAIMABLE
        )
        return (
            f"{'LEAK: ' if self.leaks else ''}{self.bytes_each.get(UNRECLAIMABLE, 0.0):+.1f} bytes "
            f"of SUnreclaim for each of {self.operations} {self.what} "
            f"(quartiles {low:+.1f} and {high:+.1f}; {rest})"
        )


def read_counters(path: Path = MEMINFO) -> dict[str, int]:
    """Return the kernel's memory counters in bytes; {} where they cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    found = {name.rstrip(":"): int(number) * 1024 for name, number, *_ in pairs}
    return {name: found[name] for name in COUNTERS if name in found}


def measure(
    what: str,
    operations: int,
    work: Callable[[int], None],
    counters: Callable[[], dict[str, int]] = read_counters,
    *,
    limit: float = LIMIT,
) -> Slope:
    """Do ``work(count)`` until ``operations`` are done and return what each of them cost.

    The first part is not sampled: it fills the slabs' per-CPU lists, which is no leak. A slope that
    looks like a leak is measured once more; only what both say counts.
    """
    slope = replace(_measure(what, operations, work, counters), limit=limit)
    if slope.leaks:
        slope = replace(_measure(what, operations, work, counters), limit=limit)
    return slope


def _measure(
    what: str,
    operations: int,
    work: Callable[[int], None],
    counters: Callable[[], dict[str, int]],
) -> Slope:
    part = max(1, operations // (SAMPLES + 1))
    work(max(1, operations - SAMPLES * part))
    samples: list[Sample] = [(0, counters())]
    for number in range(1, SAMPLES + 1):
        work(part)
        samples.append((number * part, counters()))
    return slope_of(what, samples)


def slope_of(what: str, samples: Sequence[Sample]) -> Slope:
    """Return the slope through the samples: the median of the slopes between any two of them."""
    by_name = {
        name: sorted(_slopes((done, values[name]) for done, values in samples))
        for name in samples[0][1]
    }
    found = by_name.get(UNRECLAIMABLE) or [0.0]
    spread = found[len(found) // 4], found[len(found) * 3 // 4]
    medians = {name: statistics.median(slopes) for name, slopes in by_name.items()}
    return Slope(what, samples[-1][0], len(samples), medians, spread)


def _slopes(points: Iterable[tuple[int, int]]) -> Iterable[float]:
    for (x, y), (later, higher) in combinations(points, 2):
        yield (higher - y) / (later - x)
