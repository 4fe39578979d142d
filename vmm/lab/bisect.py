"""Find the kernel that changed: one step for git bisect run, and a search over packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm.conformance.cases import CASES
from vmm.conformance.catalogue import select
from vmm.lab import kernels, matrix
from vmm.lab.check import Order, argv
from vmm.lab.errors import LabError
from vmm.lab.kernels import Kernel
from vmm.lab.matrix import Cell
from vmm.lab.verdict import Evidence, Question, Step, combine, judge

Judge = Callable[[str], Evidence]


@dataclass(frozen=True, slots=True)
class Place:
    """Where kernels are asked: the machine's vendor, a guest's seconds, where records are kept."""

    vendor: str
    directory: Path
    limit: float = 600.0

    def order(self, question: Question, kernel: Kernel) -> Order:
        """Return what is to be run of `kernel`."""
        ids = [case.id for case in select(CASES, [question.case])]
        return Order(kernel, self.vendor, ids, len(CASES), argv([question.case]), self.limit)


@dataclass(frozen=True, slots=True)
class Finding:
    """Two kernels that differ, and what was seen of each kernel that was asked, in order.

    `untested` are those between the two that could not be tested; without any, they are neighbours.
    """

    last_good: str
    first_bad: str
    untested: tuple[str, ...]
    asked: tuple[tuple[str, Evidence], ...]


def step(place: Place, question: Question, kernel: Kernel, *, repeat: int = 1) -> Evidence:
    """Judge `kernel`, `repeat` times for cases that race, and answer the question.

    What an earlier bisection has on record in the same place is not asked again.
    """
    return combine([_once(place, question, kernel, number) for number in range(repeat)])


def _once(place: Place, question: Question, kernel: Kernel, number: int) -> Evidence:
    directory = place.directory / f"{kernel.release}-{place.vendor}{f'-{number}' * bool(number)}"
    cell = Cell(kernel, place.vendor, directory)
    trouble = ""
    if not cell.finished:
        trouble = matrix.judge(cell, place.order(question, kernel))
    if cell.saved is None:
        return Evidence(Step.SKIP, trouble or "nothing is on record")
    return judge(question, cell.saved)


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


def step_command(question: Question, vendor: str, repeat: int) -> tuple[str, ...]:
    """Return the command of one step for `git bisect run`."""
    asked = (
        [f"--observe={question.case}={question.observe}"]
        if question.observe is not None
        else [question.case]
    )
    options = (f"--vendor={vendor}", f"--repeat={repeat}", f"--lost-status={_lost(question)}")
    return (sys.executable, "-P", "-m", "vmm", "bisect-step", "--tree=.", *options, *asked)


def _lost(question: Question) -> str:
    return question.lost.name.lower()


def revision(tree: Path, name: str) -> str:
    """Return the tag of a packaged kernel's version: v6.17.13, or v6.17 in a tree without it."""
    version = name.removeprefix("debian:")
    series = ".".join(version.split(".")[:2])
    for tag in (f"v{version}", f"v{series}"):
        done = subprocess.run(
            ["git", "-C", tree, "rev-parse", "-q", "--verify", f"{tag}^{{commit}}"],
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:
            return tag
    raise LabError(f"{tree} has neither v{version} nor v{series}; fetch the tags")


def in_git(
    tree: Path,
    good: str,
    bad: str,
    command: Sequence[str],
    on_line: Callable[[str], None] = lambda _: None,
) -> str:
    """Bisect a git tree between two revisions; returns the commit that git found.

    `command` is what `git bisect run` runs: a bisection step. `on_line` gets what git and the
    steps say, as they say it. The bisection is reset afterwards.
    """
    _git(tree, "bisect", "start", bad, good)
    try:
        said = _run(tree, command, on_line)
        for line in said:
            if line.endswith("is the first bad commit"):
                return line.split()[0]
        raise LabError(f"git bisect found no single commit: {(said or ['it said nothing'])[-1]}")
    finally:
        _git(tree, "bisect", "reset")


def _run(tree: Path, command: Sequence[str], on_line: Callable[[str], None]) -> list[str]:
    said = []
    with subprocess.Popen(
        ["git", "-C", tree, "bisect", "run", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            said.append(line.rstrip())
            on_line(said[-1])
    return said


def _git(tree: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", tree, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"git {' '.join(arguments[:2])} failed: {done.stderr.strip()[-200:]}")
    return done.stdout
