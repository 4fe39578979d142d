"""``msrward bisect-step``: git bisect run must never see anything but 0, 1 and 125."""

import os
import signal
import subprocess
import sys
import time

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


def test_an_interrupted_step_is_125():
    process = start("R14", "--tree", "/", "--build", "sleep 30")
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 125


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
