import gzip
import lzma
import struct

import pytest

from vmm.lab.kernels import images


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
