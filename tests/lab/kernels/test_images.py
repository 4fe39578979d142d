import bz2
import gzip
import lzma
import os
import random
import struct
from contextlib import suppress

import pytest

from vmm.lab.errors import LabError
from vmm.lab.kernels import compressed, images


def elf(note_kind, owner=b"Xen\0"):
    """An ELF file with one program header that holds one note."""
    note = struct.pack("<III", len(owner), 8, note_kind) + owner + bytes(8)
    header = bytearray(64)
    header[:4] = b"\x7fELF"
    struct.pack_into("<Q", header, 0x20, 64)
    struct.pack_into("<HH", header, 0x36, 56, 1)
    program = struct.pack("<IIQQQQQQ", 4, 4, 64 + 56, 0, 0, len(note), len(note), 4)
    return bytes(header) + program + note


@pytest.fixture
def image(tmp_path, bzimage):
    """What makes a bzImage with a payload, as the kernel's build does."""

    def make(payload):
        content = bytearray(bzimage(system=payload + bytes(-len(payload) % 16)))
        struct.pack_into("<II", content, 0x248, 0, len(payload))
        (tmp_path / "bzImage").write_bytes(content)
        return tmp_path / "bzImage"

    return make


def size_appended(content):
    return content + struct.pack("<I", 1)


@pytest.mark.parametrize(
    "pack",
    [
        lambda content: size_appended(gzip.compress(content)),
        lambda content: size_appended(lzma.compress(content, check=lzma.CHECK_CRC32)),
        lambda content: size_appended(lzma.compress(content, lzma.FORMAT_ALONE)),
    ],
)
def test_a_kernel_with_a_pvh_entry_comes_out_whole(tmp_path, image, pack):
    packed = image(pack(elf(18)))
    assert images.pvh(packed, tmp_path).read_bytes() == elf(18)


@pytest.mark.parametrize("other", [elf(17), elf(18, b"GNU\0")])
def test_a_kernel_without_one_boots_as_a_bzimage(tmp_path, image, other):
    packed = image(size_appended(gzip.compress(other)))
    assert images.pvh(packed, tmp_path) is None


@pytest.mark.parametrize("payload", [b"unknown compression", b"\x1f\x8b damaged", b"\xfd7zXZ bad"])
def test_what_cannot_be_unpacked_boots_as_a_bzimage(tmp_path, image, payload):
    assert images.pvh(image(payload), tmp_path) is None


def gzipped(content):
    return size_appended(gzip.compress(content))


def header(table=64, size=56, count=1, offset=120, length=1 << 40):
    """An ELF header, and one program header that says it holds a note."""
    elf = bytearray(64)
    elf[:4] = b"\x7fELF"
    struct.pack_into("<Q", elf, 0x20, table)
    struct.pack_into("<HH", elf, 0x36, size, count)
    return bytes(elf) + struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, length, length, 4)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x7fELF", header()[:60], header(table=1 << 63), header(table=100)),
        *(header(count=60000), header(size=0, count=60000), header(offset=1 << 60)),
        header() + bytes(1 << 20),
    ],
)
def test_a_damaged_kernel_inside_boots_as_a_bzimage(tmp_path, image, content):
    assert images.pvh(image(gzipped(content)), tmp_path) is None


@pytest.mark.parametrize("cut", [12, 20, 40])
def test_what_is_cut_short_boots_as_a_bzimage(tmp_path, image, cut):
    assert images.pvh(image(gzipped(elf(18))[:cut]), tmp_path) is None


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_a_bomb_is_not_unpacked(pack):
    bomb = pack(bytes(8 << 20))
    assert len(compressed.decompress(bomb)) == 8 << 20
    with pytest.raises(compressed.Damaged, match="more than 1 MiB"):
        compressed.decompress(bomb, 1 << 20)


def test_a_bomb_for_a_tool_is_not_unpacked(monkeypatch, tmp_path):
    bomb = b"\x28\xb5\x2f\xfd"
    with pytest.raises(compressed.Damaged):
        compressed.decompress(bomb)
    (tmp_path / "zstd").write_text("#!/bin/sh\nexec cat /dev/zero\n")  # stands for zstd and a bomb
    (tmp_path / "zstd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(compressed.Damaged, match="more than 1 MiB"):
        compressed.decompress(bomb, 1 << 20)


def test_only_what_an_image_counts_is_read(tmp_path, image):
    packed = image(gzipped(elf(18)))
    whole = images.read(packed)
    os.truncate(packed, 10 << 30)
    assert images.read(packed) == whole


@pytest.mark.parametrize(
    ("place", "content", "why"),
    [
        ("/dev/zero", None, "no regular file"),
        ("fifo", None, "no regular file"),
        ("short", b"x", "not an x86 bzImage"),
        ("magic", bytes(0x202) + b"HdrS", "not an x86 bzImage"),
        ("bare", bytes(0x202) + b"HdrS" + bytes(0x80), "cut short"),
        ("huge", bytes(0x1F4) + b"\xff" * 4 + bytes(10) + b"HdrS" + bytes(0x80), "damaged"),
    ],
)
def test_what_is_no_image_is_one_line(tmp_path, place, content, why):
    path = tmp_path / place
    if content:
        path.write_bytes(content)
    elif place == "fifo":
        os.mkfifo(path)
    with pytest.raises(LabError, match=why) as caught:
        images.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(6))
def test_no_damage_to_an_image_gives_a_traceback(tmp_path, image, seed):
    random_ = random.Random(seed)
    packed = image(gzipped(elf(18)))
    good = packed.read_bytes()
    for _ in range(100):
        data = bytearray(good[: random_.choice([len(good), random_.randrange(len(good))])])
        for _ in range(random_.randint(1, 6)):
            at = random_.choice([random_.randrange(len(data)), random_.randrange(0x1F0, 0x260)])
            data[at : at + 1] = random_.randbytes(1)
        packed.write_bytes(data)
        with suppress(LabError):
            images.pvh(packed, tmp_path)
