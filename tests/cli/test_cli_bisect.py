"""``msrward bisect-step``: git bisect run must never see anything but 0, 1 and 125."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def start(*args, **env):
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "vmm", "bisect-step", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def step(*args, **env):
    process = start(*args, **env)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "name a CASE"),
        (("no.such.case", "--tree", "/"), "no case matches 'no.such.case'"),
        (("--no-such-option",), "unrecognized"),
        (("x", "--repeat", "0"), "--repeat"),
        (("--observe", "quirks.x"), "CASE=VALUE"),
        (("R14", "--kernel", "/etc/hostname"), "bzImage"),
        (("R14", "--tree", "/nonexistent"), "no kernel source tree"),
        (("R14", "--tree", "/", "--build", "echo broken >&2; false"), "failed: broken"),
    ],
)
def test_what_cannot_be_tested_is_125_and_one_line(args, said):
    status, err = step(*args)
    *progress, last = err.splitlines()
    assert (status, said in last) == (125, True), err
    assert all(line.startswith("msrward: building ") for line in progress)


def test_a_misspelt_case_is_125(tmp_path, bzimage_file):
    status, err = step("no.such.case", "--kernel", bzimage_file, MSRWARD_CACHE=str(tmp_path))
    assert (status, "no case matches" in err) == (125, True)


@pytest.mark.parametrize("args", [(), ("--build", "touch built")])
def test_of_a_misspelt_case_nothing_is_built(tree, args):
    """What is so of every commit is told before minutes go into the first."""
    status, err = step("matching.frist", "--tree", tree, *args)
    assert (status, "building" in err, (tree / "built").exists()) == (125, False, False)
    assert "did you mean" in err and "end git bisect run with Ctrl-C" in err
    ends = ("--tree", tree, "--good", "HEAD", "--bad", "HEAD")
    status, out, err = bisect(*ends, *args, "matching.frist")
    assert (status, out, err.count("\n")) == (2, "", 1) and "did you mean" in err


@pytest.fixture
def bzimage_file(tmp_path):
    import struct

    image = bytearray(2048 + 64)
    image[0x1F1] = 3
    struct.pack_into("<I", image, 0x1F4, 4)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)
    image[0x300:0x306] = b"6.6.6\0"
    file = tmp_path / "bzImage"
    file.write_bytes(bytes(image))
    return file


def bisect(*args, **env):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vmm", "bisect", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def tree(tmp_path):
    made = tmp_path / "tree"
    made.mkdir()
    (made / "Kconfig").touch()
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    for words in (["init", "-q"], ["add", "."], *[["commit", "-qm", "x", "--allow-empty"]] * 3):
        subprocess.run(["git", "-C", made, *identity, *words], check=True)
    return made


def test_commits_are_built_in_worktrees_by_the_command_given(tree, tmp_path):
    build = f"pwd >> {tmp_path}/where; echo broken >&2; false"
    words = ("--tree", tree, "--good", "HEAD~2", "--bad", "HEAD", "-j", "2", "--build", build)
    cache = tmp_path / "cache"
    status, _, err = bisect(*words, "R14", "-o", tmp_path / "out", MSRWARD_CACHE=str(cache))
    assert status == 2 and "should be good" in err and "failed: broken" in err
    assert len(err.splitlines()) == 1
    where = (tmp_path / "where").read_text().split()
    assert len({*where}) == 2 and all(cache in Path(each).parents for each in where)
    assert not [each for each in where if Path(each).exists()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tree", ".", "--good", "a", "--bad", "b"), "--on is for packaged kernels"),
        (("--good", "debian:6.1", "--bad", "debian:6.12"), "--on"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_line(words, said, tmp_path):
    on = ("--on", "tcp://127.0.0.1:1", "-o", tmp_path)
    status, out, err = bisect(*words, *on, "R14", MSRWARD_CACHE=str(tmp_path))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
