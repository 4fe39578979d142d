"""Bisecting a git tree: git is real, the step is a stand-in that reads the file ``state``."""

import os
import shutil
import sys
from dataclasses import replace
from functools import partial

import pytest

from vmm.lab.errors import LabError
from vmm.lab.search import git
from vmm.lab.search.verdict import Evidence, Question, Step

# What a step does, told by the tree: a number is good below five, and anything else is 125. Like
# a step, it writes down what it answered.
STEP = """
import json, subprocess, sys
name = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
text = open("state").read()
status = (int(text) >= 5) if text.isdigit() else 125
about = {"case": "r.a", "observe": None, "vendor": "svm", "debug": False, "append": ""}
step = {0: "GOOD", 1: "BAD", 125: "SKIP"}[status]
answer = {**about, "name": name, "step": step, "line": "saw " + text}
open(sys.argv[1], "a").write(json.dumps(answer) + "\\n")
print("msrward: saw", text)
raise SystemExit(status)
"""


ASKED = Question("r.a")


@pytest.fixture
def history(in_git):
    """Make a tree whose commits have the given states; return it and the commits' ids."""
    tree, run = in_git

    def make(states):
        run("init", "-q", "-b", "topic")
        (tree / "Kconfig").touch()
        commits = []
        for state in states:
            (tree / "state").write_text(state)
            run("add", ".")
            run("commit", "-q", "--allow-empty", "-m", f"say {state}")
            commits.append(run("rev-parse", "HEAD"))
        return tree, commits, run

    return make


def search(tree, good, bad, place, said=None):
    command = (sys.executable, "-c", STEP, str(place.directory / "steps.jsonl"))
    ends = git.Ends(good, bad)
    return git.search(
        tree, ends, (place, ASKED), command, (said if said is not None else []).append
    )


def test_the_first_bad_commit_is_found_past_one_that_cannot_be_tested(history, place):
    tree, commits, run = history(["0", "1", "2", "skip", "4", "5", "6", "7"])
    said = []
    found = search(tree, commits[0], commits[7], place, said)
    describe = partial(git.describe, tree)
    assert found.first_bad == describe(commits[5]) == f'{commits[5][:12]} ("say 5")'
    assert (found.last_good, found.untested) == (describe(commits[4]), ())
    lines = {name: evidence.line for name, evidence in found.asked}
    assert lines[found.first_bad] == "saw 5"
    assert lines[found.last_good] == "saw 4"
    assert "msrward: saw 0" in said
    assert "msrward: saw 7" in said
    assert run("rev-parse", "--abbrev-ref", "HEAD") == "topic"


@pytest.mark.parametrize("term", ["bad", "'bad'"])
@pytest.mark.parametrize("states", ["0125", "0s5", "05"])
def test_git_says_it_with_quotes_or_without(history, place, tmp_path, monkeypatch, term, states):
    """As git before 2.55 does, and from then on."""
    tree, commits, _ = history([state if state.isdigit() else "skip" for state in states])
    say = f"""s/first '\\?bad'\\? commit/first {term} commit/"""
    shim = f"""{shutil.which("git")} "$@" 2>&1 | sed "{say}"\nexit ${{PIPESTATUS[0]}}"""
    (tmp_path / "git").write_text(f"#!/bin/bash\n{shim}\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = []
    found = search(tree, commits[0], commits[-1], place, said)
    assert found.first_bad == git.describe(tree, commits[-1])
    assert any(f"first {term} commit" in each for each in said)
    assert bool(found.untested) == ("s" in states)


def test_two_neighbours_need_no_search(history, place):
    tree, commits, _ = history(["4", "5"])
    found = search(tree, *commits, place)
    assert found.first_bad == git.describe(tree, commits[1])
    assert len(found.asked) == 2


def test_where_only_untestable_commits_are_left_all_candidates_are_named(history, place):
    tree, commits, _ = history(["3", "4", "does not build", "does not boot", "5", "6"])
    found = search(tree, commits[0], commits[5], place)
    assert found.last_good == git.describe(tree, commits[1])
    assert found.first_bad == git.describe(tree, commits[4])
    assert set(found.untested) == {git.describe(tree, commits[n]) for n in (2, 3)}


@pytest.mark.parametrize(
    ("states", "said"), [("565", "should be good: msrward: saw 5"), ("344", "should be bad: ")]
)
def test_ends_that_are_not_good_and_bad_end_the_search(history, place, states, said):
    tree, commits, run = history(states)
    with pytest.raises(LabError, match=said):
        search(tree, commits[0], commits[-1], place)
    assert run("rev-parse", "--abbrev-ref", "HEAD") == "topic"


def test_changes_that_a_checkout_would_lose_end_it_before_it_begins(history, place):
    tree, commits, _ = history(["4", "5"])
    (tree / "state").write_text("precious")
    with pytest.raises(LabError, match="not committed"):
        search(tree, *commits, place)
    assert (tree / "state").read_text() == "precious"


def test_a_bisection_that_is_under_way_is_left_alone(history, place):
    tree, commits, run = history("345")
    run("bisect", "start", commits[2], commits[0])
    log = run("bisect", "log")
    with pytest.raises(LabError, match="git bisect reset"):
        search(tree, commits[0], commits[2], place)
    assert run("bisect", "log") == log


def test_a_commit_is_known_by_its_id_only_while_the_tree_is_its_source(history, tmp_path):
    tree, commits, _ = history(["4", "5"])
    assert git.checked_out(tree) == commits[1]
    (tree / "state").write_text("6")
    assert git.checked_out(tree) is None
    assert git.checked_out(tmp_path) is None


def test_what_is_no_revision_is_one_line(history, tmp_path):
    tree, _, run = history(["4"])
    with pytest.raises(LabError, match=r"no revision v9\.9"):
        git.commit(tree, "v9.9")
    with pytest.raises(LabError, match="fetch the tags"):
        git.tag(tree, "debian:6.17.13")
    run("tag", "v6.17")
    assert git.tag(tree, "debian:6.17.13") == "v6.17"


def test_answers_are_kept_by_name_and_the_last_one_counts(place):
    place.note(ASKED, "a", Evidence(Step.SKIP, "does not build"))
    place.note(ASKED, "b", Evidence(Step.BAD, "failed: x"))
    place.note(ASKED, "a", Evidence(Step.GOOD, "passed"))
    found = place.answers(ASKED)
    assert [(name, e.step.name, e.line) for name, e in found.items()] == [
        ("a", "GOOD", "passed"),
        ("b", "BAD", "failed: x"),
    ]


def test_answers_to_another_question_or_of_another_machine_do_not_count(place):
    place.note(ASKED, "a", Evidence(Step.GOOD, "passed"))
    debug, other = replace(place, debug=True), replace(place, vendor="vmx")
    added = replace(place, append="kvm.ignore_msrs=1")
    assert not any(each.answers(ASKED) for each in (debug, other, added))
    assert not place.answers(Question("r.b")) and not place.answers(Question("r.a", "x"))
    assert len({each.records("a") for each in (place, debug, other, added)}) == 4


def test_a_step_that_git_runs_asks_with_the_same_command_line(place):
    added = replace(place, append="kvm.a=1 kvm.b=2")
    assert "--append=kvm.a=1 kvm.b=2" in git.step_command(ASKED, added, 1)
    assert not [word for word in git.step_command(ASKED, place, 1) if "append" in word]
