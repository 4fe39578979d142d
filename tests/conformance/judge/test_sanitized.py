"""The player under ASan and UBSan: it plays the suite, and neither says a word."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.conformance.c.tape import is_playable, tape
from vmm.conformance.cases import CASES
from vmm.conformance.judge.selection import choose

NATIVE = Path(__file__).parents[3] / "native"
COMPILE = "gcc -fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1 -pthread"
THEMES = ("rollback", "stalled", "parked", "init", "named", "compat.bitmaps", "running", "modes")
WRONG = {
    "reads beyond an array": "volatile int at = 16; vm.vcpus[at].run = vm.vcpus[at + 1].run;",
    "shifts too far": "volatile int by = 40; by = 1 << by;",
    "uses what is freed": "char *volatile gone = malloc(8); free(gone); gone[0] = 1;",
}


def build(source, into):
    words = [*COMPILE.split(), str(source / "player.c"), "-o", str(into)]
    made = subprocess.run(words, capture_output=True, text=True)
    if "cannot find" in made.stderr and "san" in made.stderr:
        pytest.skip(f"this compiler has no sanitizers: {made.stderr.splitlines()[0]}")
    assert made.returncode == 0, made.stderr
    return into


def play(player, cases, timeout, **env):
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", **env}
    ran = subprocess.run(
        [player, "-j2", "-"], input=tape(cases), env=env, capture_output=True, timeout=timeout
    )
    lines = ran.stdout.decode().splitlines()
    return ran, [line.split()[3] for line in lines if line.startswith("done ")]


def test_the_suite_is_played_and_nothing_is_said(has_kvm, tmp_path):
    player = build(NATIVE, tmp_path / "player")
    every = os.environ.get("MSRWARD_LONG", "0") != "0"
    chosen = choose(CASES, [], [], thorough=False).cases
    cases = [c for c in chosen if is_playable(c) and (every or c.id.startswith(THEMES))]
    assert len(cases) > 100
    ran, ends = play(player, cases, 550)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert len(ends) > 100 and {*ends} == {"ok"}
    assert b"runtime error" not in ran.stdout and b"Sanitizer" not in ran.stdout


@pytest.fixture(scope="module")
def wrong_player(tmp_path_factory):
    """A player that begins a case with what WRONG in its environment names, if anything."""
    there = tmp_path_factory.mktemp("wrong")
    source = shutil.copytree(NATIVE, there / "native")
    text = (source / "player" / "case.c").read_text()
    start = "\ttake_vm(flags);\n"
    assert text.count(start) == 1
    planted = "".join(
        f'\tif (!strcmp(getenv("WRONG"), "{name}")) {{ {does} }}\n' for name, does in WRONG.items()
    )
    (source / "player" / "case.c").write_text(text.replace(start, start + planted))
    return build(source, there / "player")


@pytest.mark.parametrize("wrong", [*WRONG, "nothing"])
def test_what_the_player_does_wrong_is_seen(has_kvm, wrong_player, wrong):
    case = next(case for case in CASES if case.id.startswith("rollback.") and is_playable(case))
    _, ends = play(wrong_player, [case], 60, WRONG=wrong)
    if wrong == "nothing":
        assert {*ends} == {"ok"}
    else:
        assert ends and all(end.startswith(("exited-", "died-")) for end in ends)
