"""Asking several kernels at once: in processes of this machine, or of the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from vmm.lab import processes
from vmm.lab.alone import Unreachable
from vmm.lab.errors import LabError
from vmm.lab.search.verdict import Evidence, Step

Judge = Callable[[str], Evidence]
Together = Callable[[Judge, Sequence[str]], list[Evidence]]
"""Asks several kernels at once, and returns what each says, in their order."""


def one_by_one(answer: Judge, names: Sequence[str]) -> list[Evidence]:
    """Ask one after the other."""
    return [asked(answer, name) for name in names]


def side_by_side(jobs: int) -> Together:
    """Return what asks up to `jobs` kernels at once, each in a process of its own."""

    def together(answer: Judge, names: Sequence[str]) -> list[Evidence]:
        global _answer  # noqa: PLW0603 - the processes are forked with it: it cannot be sent
        _answer = answer
        with processes.pool(min(jobs, len(names))) as pool:
            return list(pool.map(_ask_here, names))

    return together


def elsewhere(jobs: int) -> Together:
    """Return what asks up to `jobs` at once where the answer itself has workers do the work."""

    def together(answer: Judge, names: Sequence[str]) -> list[Evidence]:
        with ThreadPoolExecutor(min(jobs, len(names))) as threads:
            return list(threads.map(lambda name: asked(answer, name), names))

    return together


_answer: Judge | None = None


def _ask_here(name: str) -> Evidence:
    assert _answer is not None
    answer = _answer
    return processes.interruptibly(lambda: asked(answer, name))


def asked(answer: Judge, name: str) -> Evidence:
    """Ask about one kernel; one that cannot be had (gone from the mirror) cannot be tested."""
    try:
        return answer(name)
    except Unreachable:
        raise
    except LabError as error:
        return Evidence(Step.SKIP, str(error))
