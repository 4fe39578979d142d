"""Find the kernel that changed: one step for git bisect run, and a search over packages."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm.lab import kernels, machine
from vmm.lab.errors import LabError
from vmm.lab.kernels import Kernel
from vmm.lab.verdict import Evidence, Question, Step, combine, judge

Judge = Callable[[str], Evidence]


@dataclass(frozen=True, slots=True)
class Finding:
    """Two kernels that differ, and what was seen of each kernel that was asked, in order.

    `untested` are those between the two that could not be tested; without any, they are neighbours.
    """

    last_good: str
    first_bad: str
    untested: tuple[str, ...]
    asked: tuple[tuple[str, Evidence], ...]


def step(
    kernel: Kernel, vendor: str, question: Question, *, repeat: int = 1, timeout: float = 300.0
) -> Evidence:
    """Boot `kernel` and answer the question, `repeat` times for cases that race."""
    boots = (machine.boot(kernel, vendor, question.argv, timeout=timeout) for _ in range(repeat))
    return combine([judge(question, result) for result in boots])


def step_status(answer: Callable[[], Evidence], say: Callable[[str], None]) -> int:
    """Return the exit status of a bisection step: 0, 1 or 125, whatever goes wrong.

    git bisect run stops at 128 and above and takes any other failure for "bad", so a failed
    build, a missing emulator and a bug of ours must all end as 125.
    """
    try:
        evidence = answer()
    except Exception as error:  # see above: nothing but "cannot be tested" may come of it
        say(f"skip: {str(error) or type(error).__name__}")
        return Step.SKIP
    say(f"{evidence.step.name.lower()}: {evidence.line}")
    return evidence.step


def between(good: str, bad: str) -> list[str]:
    """Return the packaged kernels from `good` to `bad`, oldest first, one of each version."""
    ordered = list(dict.fromkeys(kernel.name for kernel in kernels.reachable()))
    ends = [_position(ordered, wish) for wish in (good, bad)]
    low, high = min(ends), max(ends)
    chosen = ordered[low : high + 1]
    return chosen if ends == sorted(ends) else chosen[::-1]


def _position(ordered: Sequence[str], wish: str) -> int:
    release = kernels.newest(wish).name
    if release not in ordered:
        raise LabError(f"{wish} is no packaged kernel; `msrward lab kernels` lists them")
    return ordered.index(release)


def search(
    names: Sequence[str], answer: Judge, on_step: Callable[[str, Evidence], None]
) -> Finding:
    """Find two neighbours, the first good and the second bad; the ends are asked as well.

    A kernel that cannot be tested is passed over for the nearest one that can.
    Raises :class:`LabError` where the ends are not good and bad.
    """
    asked: list[tuple[str, Evidence]] = []

    def ask(index: int) -> Step:
        evidence = _asked(answer, names[index])
        asked.append((names[index], evidence))
        on_step(names[index], evidence)
        return evidence.step

    for index, wanted in ((0, Step.GOOD), (len(names) - 1, Step.BAD)):
        if (got := ask(index)) is not wanted:
            seen = f"{got.name.lower()} ({asked[-1][1].line})"
            raise LabError(f"{names[index]} should be {wanted.name.lower()}, but is {seen}")
    low, high = _narrow(0, len(names) - 1, ask)
    return Finding(names[low], names[high], tuple(names[low + 1 : high]), tuple(asked))


def _asked(answer: Judge, name: str) -> Evidence:
    """Ask about one kernel; one that cannot be had (gone from the mirror) cannot be tested."""
    try:
        return answer(name)
    except LabError as error:
        return Evidence(Step.SKIP, str(error))


def _narrow(low: int, high: int, ask: Callable[[int], Step]) -> tuple[int, int]:
    """Halve the range until nothing between its ends can be tested."""
    untestable: set[int] = set()
    while left := [index for index in range(low + 1, high) if index not in untestable]:
        middle = left[len(left) // 2]
        match ask(middle):
            case Step.GOOD:
                low = middle
            case Step.BAD:
                high = middle
            case Step.SKIP:
                untestable.add(middle)
    return low, high


def in_git(tree: Path, good: str, bad: str, command: Sequence[str]) -> str:
    """Bisect a git tree between two revisions; returns the commit that git found.

    `command` is what `git bisect run` runs: a bisection step. The bisection is reset afterwards.
    """
    _git(tree, "bisect", "start", bad, good)
    try:
        said = _git(tree, "bisect", "run", *command)
        for line in said.splitlines():
            if line.endswith("is the first bad commit"):
                return line.split()[0]
        raise LabError(f"git bisect found no single commit: {said.strip().splitlines()[-1]}")
    finally:
        _git(tree, "bisect", "reset")


def _git(tree: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", tree, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode and arguments[1] != "run":
        raise LabError(f"git {' '.join(arguments[:2])} failed: {done.stderr.strip()[-200:]}")
    return done.stdout
