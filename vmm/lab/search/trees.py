"""Bisect a kernel tree with several commits at once, each in a worktree of its own.

The tree itself is not checked out, and may have changes. The worktrees and what is built of them
lie in the cache, and go when the search ends, however it does; what a run that was killed left, the
next one takes away. The records are those of ``git bisect run``, so that each goes on with the
other's.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from vmm.lab import cache, processes
from vmm.lab.errors import LabError
from vmm.lab.kernels.tree import key, objects
from vmm.lab.processes import Commands
from vmm.lab.search import git
from vmm.lab.search.bisect import Boundary, Place
from vmm.lab.search.dag import Candidates
from vmm.lab.search.git import Ends, Say
from vmm.lab.search.verdict import Evidence, Question, Step

_PATIENCE = 10.0
"""Seconds that a step has to take its guest away."""
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")


@dataclass
class _Steps:
    """Runs steps in worktrees, as many at once as there are of those."""

    tree: Path
    command: Sequence[str]
    say: Say
    slots: Sequence[Path]
    guard: Lock = field(default_factory=Lock)

    def ask(self, names: Sequence[str]) -> list[tuple[Step, str]]:
        """Return what the step says of each commit, with its last line."""
        free: SimpleQueue[Path] = SimpleQueue()
        for slot in self.slots:
            free.put(slot)

        def one(commands: Commands, name: str) -> tuple[Step, str]:
            slot = free.get()
            try:
                return self._step(commands, slot, name)
            finally:
                free.put(slot)

        with processes.threads(len(self.slots), _PATIENCE) as (threads, commands):
            return list(threads.map(partial(one, commands), names))

    def _step(self, commands: Commands, slot: Path, name: str) -> tuple[Step, str]:
        git.run(slot, *_QUIET, "checkout", "-q", "-f", "--detach", name)
        last = "it said nothing"
        pipe, both = subprocess.PIPE, subprocess.STDOUT
        with commands.started(self.command, cwd=slot, stdout=pipe, stderr=both) as process:
            for line in process.stdout or ():
                last = line.rstrip() or last
                with self.guard:
                    self.say(f"{name[:12]}: {line.rstrip()}")
        status = process.returncode
        return (Step(status) if status in (Step.GOOD, Step.BAD) else Step.SKIP), last


def search(
    tree: Path,
    ends: Ends,
    ask: tuple[Place, Question],
    command: Sequence[str],
    say: Say,
    *,
    jobs: int,
) -> Boundary:
    """Find the first bad commit between two, asking `jobs` commits at once; as ``git.search``."""
    if not (tree / "Kconfig").is_file():
        raise LabError(f"{tree} is no kernel source tree: it has no Kconfig")
    with _worktrees(tree, ends.bad, jobs) as slots:
        steps = _Steps(tree, command, say, slots)
        return _Search(tree, ends, ask, steps, jobs).found()


@dataclass
class _Search:
    tree: Path
    ends: Ends
    about: tuple[Place, Question]
    steps: _Steps
    jobs: int
    asked: dict[str, tuple[Step, str]] = field(default_factory=dict)
    rounds: int = 0

    def found(self) -> Boundary:
        """Ask until nothing that may be the first bad commit can be asked."""
        self._ask_ends()
        candidates = Candidates(git.parents(self.tree, self.ends))
        bad, left = self.ends.bad, [*candidates.names]
        while askable := [name for name in left if name not in self.asked]:
            self._ask(candidates.split(left, askable, self.jobs))
            goods, bads = (
                [name for name in candidates.names if self._is(name, step)]
                for step in (Step.GOOD, Step.BAD)
            )
            self._require_sense(candidates, goods, bads)
            bad = candidates.narrowest(bads, goods)
            left = candidates.left(bad, goods)
        return self._boundary(bad, left)

    def _is(self, name: str, step: Step) -> bool:
        return name in self.asked and self.asked[name][0] is step

    def _ask(self, names: Sequence[str]) -> None:
        self.rounds += 1
        self.asked |= zip(names, self.steps.ask(names), strict=True)

    def _ask_ends(self) -> None:
        bases = git.bases(self.tree, self.ends)  # not the good end alone, if that is on a branch
        self._ask(list(dict.fromkeys((self.ends.good, self.ends.bad, *bases))))
        for end, wanted in ((self.ends.good, Step.GOOD), (self.ends.bad, Step.BAD)):
            if self.asked[end][0] is not wanted:
                should = f"should be {wanted.name.lower()}"
                raise LabError(f"{git.describe(self.tree, end)} {should}: {self.asked[end][1]}")
        for base in bases:
            if self._is(base, Step.BAD):
                raise LabError(
                    f"{git.describe(self.tree, base)}, where the two ends part, is bad:"
                    " what was changed is on the good end's side; exchange them"
                )

    def _require_sense(
        self, candidates: Candidates, goods: Sequence[str], bads: Sequence[str]
    ) -> None:
        for good in goods:
            if before := [name for name in candidates.left(good, ()) if name in bads]:
                one, other = (git.describe(self.tree, each) for each in (good, before[0]))
                raise LabError(
                    f"{one} is good and {other}, which it has, is bad: this is no change from"
                    " good to bad, or a race (--repeat N asks more often)"
                )

    def _boundary(self, bad: str, left: Sequence[str]) -> Boundary:
        place, question = self.about
        answers = place.answers(question)

        def evidence(name: str) -> Evidence:
            step, line = self.asked[name]
            on_record = answers.get(name)
            return on_record if on_record and on_record.step is step else Evidence(step, line)

        return Boundary(
            git.describe(self.tree, self._last_good(bad)),
            git.describe(self.tree, bad),
            tuple(git.describe(self.tree, name) for name in left if name != bad),
            tuple((git.describe(self.tree, name), evidence(name)) for name in self.asked),
            self.rounds,
        )

    def _last_good(self, bad: str) -> str:
        """Return a good parent of the first bad commit, or what was the last to be found good."""
        goods = [name for name in self.asked if self._is(name, Step.GOOD)]
        near = [name for name in git.parents_of(self.tree, bad) if name in goods]
        return (near or goods[::-1])[0]


@contextmanager
def _worktrees(tree: Path, commit: str, number: int) -> Iterator[list[Path]]:
    """Make worktrees in the cache, alone: a second search of this tree waits."""
    place = cache.root() / "worktrees" / key(tree)
    with cache.in_use(), cache.lock(f"worktrees-{key(tree)}"), ExitStack() as stack:
        _remove(tree, place)
        stack.callback(_remove, tree, place)
        slots = [place / f"{slot}" for slot in range(number)]
        with cache.no_space_in_one_line():
            place.mkdir(parents=True)
        for slot in slots:
            added = ("worktree", "add", "-q", "--detach", "--force", str(slot), commit)
            git.run(tree, *_QUIET, *added)
        yield slots


def _remove(tree: Path, place: Path) -> None:
    """Take away the worktrees below a place, and what was built of them."""
    for slot in place.glob("*"):
        for debug in (False, True):
            shutil.rmtree(objects(slot, debug=debug), ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    git.run(tree, "worktree", "prune")
