import shutil
import subprocess

import pytest

from vmm.lab.initramfs import cpio

needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio on this machine")

MEMBERS = [
    cpio.file("init", b"#!/bin/sh\n", executable=True),
    cpio.link("bin/sh", "busybox"),
    cpio.file("a/b/c", b"odd"),
    cpio.directory("dev"),
]


def unpack(archive, directory):
    subprocess.run(["cpio", "-idm", "--quiet"], input=archive, cwd=directory, check=True)


@needs_cpio
def test_cpio_unpacks_what_we_packed(tmp_path):
    unpack(cpio.pack(MEMBERS), tmp_path)
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin/sh").readlink().name == "busybox"
    assert (tmp_path / "a/b/c").read_bytes() == b"odd"
    assert (tmp_path / "dev").is_dir()


@needs_cpio
def test_device_node_has_its_numbers():
    archive = cpio.pack([cpio.character_device("dev/console", 5, 1)])
    listed = subprocess.run(["cpio", "-itv", "--quiet"], input=archive, capture_output=True)
    assert b"crw-------" in listed.stdout
    assert b"5,   1" in listed.stdout


def test_parents_come_first_and_once():
    archive = cpio.pack([cpio.file("x/one", b""), cpio.file("x/two", b"")])
    assert archive.count(b"x\0") == 1
    assert archive.index(b"x\0") < archive.index(b"x/one\0") < archive.index(b"x/two\0")


def test_records_are_aligned_and_concatenate():
    first = cpio.pack([cpio.file("a", b"1")])
    assert len(first) % 4 == 0
    assert first.endswith(b"TRAILER!!!\0\0\0\0")
