"""Bisect a kernel tree with git: its revisions, its `bisect run`, and what came of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm.lab import processes
from vmm.lab.errors import LabError
from vmm.lab.search.bisect import Boundary, Place
from vmm.lab.search.verdict import Evidence, Question, Step

Say = Callable[[str], None]

_PATIENCE = 10.0
"""Seconds that a step has to take its guest, or its compilers, away."""
# From 2.55 on, git puts the terms of a bisection in quotes.
_FOUND = re.compile(r"is the first '?bad'? commit")
_SEVERAL = re.compile(r"first '?bad'? commit could be")
_MARK = re.compile(r"^git bisect (good|bad|skip) ([0-9a-f]{40})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ends:
    """The commits that a bisection begins with, by their full ids."""

    good: str
    bad: str


def run(tree: Path, *arguments: str) -> str:
    """Return what a git command prints; LabError says why it failed."""
    done = _run(tree, *arguments)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LabError(f"git {arguments[0]} failed in {tree}: {why}")
    return done.stdout


def checked_out(tree: Path) -> str | None:
    """Return the commit whose source the tree is, None where that is no commit's."""
    try:
        changed = run(tree, "status", "--porcelain", "--untracked-files=no")
        return None if changed else commit(tree, "HEAD")
    except LabError:
        return None


def commit(tree: Path, revision: str) -> str:
    """Return the full id of a revision; raises :class:`LabError` where there is none."""
    done = _run(tree, "rev-parse", "-q", "--verify", f"{revision}^{{commit}}")
    if done.returncode:
        why = done.stderr.strip().splitlines()
        raise LabError(f"{tree} has no revision {revision}{f' ({why[-1]})' if why else ''}")
    return done.stdout.strip()


def tag(tree: Path, name: str) -> str:
    """Return the tag of a packaged kernel's version: v6.17.13, or v6.17 in a tree without it."""
    version = name.removeprefix("debian:")
    series = ".".join(version.split(".")[:2])
    for wish in (f"v{version}", f"v{series}"):
        try:
            commit(tree, wish)
        except LabError:
            continue
        return wish
    raise LabError(f"{tree} has neither v{version} nor v{series}; fetch the tags")


def step_command(question: Question, place: Place, repeat: int, *more: str) -> tuple[str, ...]:
    """Return the command of one step for `git bisect run`, to be run in the tree.

    `more` is options that it has besides.
    """
    asked = (
        [f"--observe={question.case}={question.observe}"]
        if question.observe is not None
        else [question.case]
    )
    options = (
        f"--vendor={place.vendor}",
        f"--repeat={repeat}",
        f"--lost-status={question.lost.name.lower()}",
        f"--limit={place.limit:g}",
        f"--output={place.directory.absolute()}",
        *(["--debug"] if place.debug else []),
        *([f"--append={place.append}"] if place.append else []),
        *more,
    )
    return (sys.executable, "-P", "-m", "vmm", "bisect-step", "--tree=.", *options, *asked)


def search(
    tree: Path, ends: Ends, ask: tuple[Place, Question], command: Sequence[str], say: Say
) -> Boundary:
    """Find the first bad commit between two: git chooses, `command` is what it runs in the tree.

    `ask` is where and what the command asks. `say` gets what git and the steps say, as they say
    it. The ends are asked first. The tree is checked out as it was afterwards. Raises
    :class:`LabError` where the ends are not good and bad, and where the tree has changes that a
    checkout would lose.
    """
    _require_ready(tree)
    run(tree, "bisect", "start")
    try:
        for end, wanted in ((ends.good, Step.GOOD), (ends.bad, Step.BAD)):
            _ask_end(tree, end, wanted, command, say)
        said = run(tree, "bisect", "bad", ends.bad) + run(tree, "bisect", "good", ends.good)
        say(said.rstrip())
        if not _FOUND.search(said):
            said = _stream(tree, ("git", "bisect", "run", *command), say)[1]
        return _finding(tree, said, *ask)
    finally:
        run(tree, "bisect", "reset")


def parents(tree: Path, ends: Ends) -> dict[str, list[str]]:
    """Return what the bad end has and the good one has not, with its parents; those first."""
    between = f"{ends.good}..{ends.bad}"
    listed = run(tree, "rev-list", "--topo-order", "--reverse", "--parents", between)
    return {name: above for name, *above in map(str.split, listed.splitlines())}


def parents_of(tree: Path, name: str) -> list[str]:
    """Return the parents of a commit, the first one first."""
    return run(tree, "rev-list", "-1", "--parents", name).split()[1:]


def bases(tree: Path, ends: Ends) -> list[str]:
    """Return where the two ends part: the good one itself, if the bad one has it."""
    return run(tree, "merge-base", "--all", ends.good, ends.bad).split()


def describe(tree: Path, name: str) -> str:
    """Return a commit as kernel people quote it: its short id and ("its subject")."""
    return run(tree, "log", "-1", "--abbrev=12", '--format=%h ("%s")', name).strip()


def _require_ready(tree: Path) -> None:
    if not (tree / "Kconfig").is_file():
        raise LabError(f"{tree} is no kernel source tree: it has no Kconfig")
    if Path(tree, run(tree, "rev-parse", "--git-path", "BISECT_LOG").strip()).exists():
        raise LabError(f"{tree} is being bisected already: end that with `git bisect reset`")
    if checked_out(tree) is None:
        raise LabError(f"{tree} has changes that are not committed: commit or stash them first")


def _ask_end(tree: Path, end: str, wanted: Step, command: Sequence[str], say: Say) -> None:
    run(tree, "checkout", "-q", end)
    say(f"asking the {wanted.name.lower()} end, {describe(tree, end)}")
    status, said = _stream(tree, command, say)
    if status != wanted:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise LabError(f"{describe(tree, end)} should be {wanted.name.lower()}: {last}")


def _finding(tree: Path, said: str, place: Place, question: Question) -> Boundary:
    marks = _MARK.findall(run(tree, "bisect", "log"))
    last = dict(marks)
    several = bool(_SEVERAL.search(said))
    if not several and not _FOUND.search(said):
        raise LabError(f"git bisect gave up: {(said.strip().splitlines() or ['silence'])[-1]}")
    between = run(tree, "rev-list", f"{last['good']}..{last['bad']}^").split() if several else ()
    answers, marked = place.answers(question), dict.fromkeys(name for _, name in marks)
    asked = [*(name for name in answers if name in marked), *(marked.keys() - answers)]
    unknown = Evidence(Step.SKIP, "no answer is on record")
    return Boundary(
        describe(tree, last["good"]),
        describe(tree, last["bad"]),
        tuple(describe(tree, name) for mark, name in marks if mark == "skip" and name in between),
        tuple((describe(tree, name), answers.get(name, unknown)) for name in asked),
    )


def _stream(tree: Path, command: Sequence[str], say: Say) -> tuple[int, str]:
    said = []
    how = {"cwd": tree, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with processes.started(command, patience=_PATIENCE, **how) as process:
        for line in process.stdout or ():
            said.append(line)
            say(line.rstrip())
    return process.returncode, "".join(said)


def _run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", "-C", tree, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise LabError("git is missing: apt-get install git") from None
