"""Several commits at once in worktrees: git is real, the step reads the file ``state``."""

import os
import signal
import subprocess
import sys
import time

import pytest
from test_git import ASKED, STEP

from vmm.lab.errors import LabError
from vmm.lab.search import git, trees


@pytest.fixture
def repository(in_git, cache_root):
    """A repository, and what runs git in it and makes a commit of a state."""
    tree, run = in_git

    def commit(state, name="state"):
        (tree / name).write_text(state)
        run("add", ".")
        run("commit", "-q", "--allow-empty", "-m", f"say {state}")
        return run("rev-parse", "HEAD")

    run("init", "-q", "-b", "topic")
    (tree / "Kconfig").touch()
    return tree, run, commit


def command(place, step=STEP):
    return sys.executable, "-c", step, str(place.directory / "steps.jsonl")


def search(tree, good, bad, place, jobs, said=None, step=STEP):
    said = [] if said is None else said
    ends = git.Ends(good, bad)
    return trees.search(tree, ends, (place, ASKED), command(place, step), said.append, jobs=jobs)


def state_of(repository):
    tree, run, _ = repository
    listed = sorted(path.name for path in tree.iterdir())
    return run("status", "--porcelain"), run("rev-parse", "HEAD"), run("worktree", "list"), listed


@pytest.mark.parametrize("jobs", [1, 2, 3, 9])
def test_a_line_with_one_that_cannot_be_tested(repository, place, jobs):
    tree, _, commit = repository
    commits = [commit(state) for state in ["0", "1", "2", "skip", "4", "5", "6", "7"]]
    (tree / "state").write_text("precious")
    before = state_of(repository)
    said = []
    found = search(tree, commits[0], commits[-1], place, jobs, said)
    assert (found.last_good, found.first_bad) == tuple(
        git.describe(tree, commits[n]) for n in (4, 5)
    )
    assert found.untested == ()
    assert dict(found.asked)[found.first_bad].line == "saw 5"
    assert f"{commits[7][:12]}: msrward: saw 7" in said
    assert state_of(repository) == before, "the tree is as it was, changes and all"


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_what_is_left_where_none_can_be_tested_is_named(repository, place, jobs):
    tree, _, commit = repository
    commits = [commit(state) for state in ["3", "4", "no build", "no boot", "5", "6"]]
    found = search(tree, commits[0], commits[-1], place, jobs)
    assert found.last_good == git.describe(tree, commits[1])
    assert found.first_bad == git.describe(tree, commits[4])
    assert set(found.untested) == {git.describe(tree, commits[n]) for n in (2, 3)}
    alone = git.search(
        tree, git.Ends(commits[0], commits[-1]), (place, ASKED), command(place), print
    )
    assert (alone.first_bad, set(alone.untested)) == (found.first_bad, set(found.untested))


@pytest.fixture
def merged(repository):
    """Two branches; one of them has the change, and both are merged and go on."""
    tree, run, commit = repository
    root = commit("0")
    main = [commit(f"{n}", "other") for n in range(4)]
    run("checkout", "-q", "-b", "side", root)
    side = [commit(state) for state in ["1", "2", "5", "6"]]
    run("checkout", "-q", "topic")
    run("merge", "-q", "--no-ff", "-m", "merge", "side")
    ends = [commit("7") for _ in range(2)]
    return tree, root, main, side, ends


@pytest.mark.parametrize("jobs", [1, 2, 3, 16])
def test_a_branch_that_was_merged(merged, place, jobs):
    tree, root, _, side, ends = merged
    found = search(tree, root, ends[-1], place, jobs)
    assert found.first_bad == git.describe(tree, side[2])
    assert found.last_good == git.describe(tree, side[1])
    alone = git.search(tree, git.Ends(root, ends[-1]), (place, ASKED), command(place), print)
    assert alone.first_bad == found.first_bad


def test_several_at_once_take_fewer_rounds(merged, place):
    tree, root, _, _, ends = merged
    rounds = [search(tree, root, ends[-1], place, jobs).rounds for jobs in (1, 3, 16)]
    assert rounds[0] > rounds[1] > rounds[2] == 2


def test_a_good_end_on_another_branch(merged, place):
    tree, root, main, side, _ = merged
    found = search(tree, main[-1], side[-1], place, 2)
    assert found.first_bad == git.describe(tree, side[2])
    assert git.describe(tree, root) in dict(found.asked)


def test_a_change_on_the_good_side_is_told(repository, place):
    tree, run, commit = repository
    base = commit("5")
    fixed = commit("1")
    run("checkout", "-q", "-b", "other", base)
    still = commit("6")
    with pytest.raises(LabError, match="where the two ends part, is bad"):
        search(tree, fixed, still, place, 2)


def test_answers_that_make_no_sense_are_told(repository, place):
    tree, _, commit = repository
    commits = [commit(state) for state in "058147258"]
    with pytest.raises(LabError, match="which it has, is bad"):
        search(tree, commits[0], commits[-1], place, 9)


@pytest.mark.parametrize(
    ("states", "said"), [("565", "should be good: msrward: saw 5"), ("344", "should be bad")]
)
def test_ends_that_are_not_good_and_bad_end_the_search(repository, place, states, said):
    tree, _, commit = repository
    commits = [commit(state) for state in states]
    with pytest.raises(LabError, match=said):
        search(tree, commits[0], commits[-1], place, 2)


SLOW = """
import os, pathlib, subprocess, sys
place = pathlib.Path(sys.argv[1]).parent
(place / f"{os.getpid()}.pid").touch()
subprocess.run(["sleep", "300"])
"""
RUN = """
import signal, sys
from pathlib import Path
from vmm.lab.search import git, trees
from vmm.lab.search.bisect import Place
from vmm.lab.search.verdict import Question

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
tree, good, bad, records, *command = sys.argv[1:]
about = (Place("svm", Path(records)), Question("r.a"))
try:
    trees.search(Path(tree), git.Ends(good, bad), about, command, lambda line: None, jobs=2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def slow(repository, place, tmp_path):
    """A search whose steps do not end, once two of them run; the pids, and the commits."""
    tree, _, commit = repository
    commits = [commit(state) for state in "012345678"]
    words = (str(tree), commits[0], commits[-1], str(place.directory), *command(place, SLOW))
    with subprocess.Popen([sys.executable, "-P", "-c", RUN, *words]) as process:
        deadline = time.monotonic() + 60
        while len(list(place.directory.glob("*.pid"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        pids = [int(path.stem) for path in place.directory.glob("*.pid")]
        assert len(pids) == 2
        yield process, pids, commits
        process.kill()
        for pid in pids:
            if os.path.exists(f"/proc/{pid}"):
                os.killpg(pid, signal.SIGKILL)


def test_ctrl_c_ends_the_steps_and_takes_the_worktrees_away(repository, place, slow, cache_root):
    process, pids, commits = slow
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert not list((cache_root / "worktrees").glob("*"))
    assert len(repository[1]("worktree", "list").splitlines()) == 1
    found = search(repository[0], commits[0], commits[-1], place, 2)
    assert found.first_bad == git.describe(repository[0], commits[5])


def test_what_a_killed_search_left_the_next_one_takes_away(repository, place, slow, cache_root):
    process, _, commits = slow
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert len(list((cache_root / "worktrees").glob("*/*"))) == 2
    found = search(repository[0], commits[0], commits[-1], place, 2)
    assert found.first_bad == git.describe(repository[0], commits[5])
    assert not list((cache_root / "worktrees").glob("*"))
    assert len(repository[1]("worktree", "list").splitlines()) == 1
