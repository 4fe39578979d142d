"""How many workers a host can carry: its CPUs, the cgroup's share of them, and no more than 16."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

MOST = 16
"""More workers than this gain nothing: a run of all cases takes seconds."""


def default_jobs(proc: Path = Path("/proc/self/cgroup"), top: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many workers to start: at least one, and at most ``MOST``.

    The CPU quota of every cgroup from ours up counts, of version 2 (``cpu.max``) and of version 1
    (``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``); half a CPU carries one worker.
    """
    cpus = len(os.sched_getaffinity(0))
    return max(1, min([cpus, MOST, *map(math.ceil, _quotas(proc, top))]))


def _quotas(proc: Path, top: Path) -> Iterator[float]:
    for folder in _groups(proc, top):
        for quota, period in (_version_2(folder), _version_1(folder)):
            if quota > 0 and period > 0:
                yield quota / period


def _groups(proc: Path, top: Path) -> Iterator[Path]:
    """Yield our cgroup's directories, and all above each, wherever the hierarchy is mounted."""
    for line in _text(proc).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        roots = [top] if number == "0" else [top / controllers, top / "cpu"]
        if number == "0" or "cpu" in controllers.split(","):
            inner = Path(path.lstrip("/"))
            for root in roots:
                yield from (root / each for each in (inner, *inner.parents))


def _version_2(folder: Path) -> tuple[int, int]:
    match _text(folder / "cpu.max").split():
        case [quota, period] if quota.isdecimal() and period.isdecimal():
            return int(quota), int(period)
    return 0, 0


def _version_1(folder: Path) -> tuple[int, int]:
    quota, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return (int(quota), int(period)) if quota.isdecimal() and period.isdecimal() else (0, 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
