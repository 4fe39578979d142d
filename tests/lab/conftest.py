import struct

import pytest


@pytest.fixture
def cache_root(tmp_path, monkeypatch):
    """An empty cache of this test alone."""
    monkeypatch.setenv("MSRWARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bzimage():
    """What makes the smallest file that has the header of a bzImage."""

    def make(release="6.6.6-test", system=b"s" * 64):
        image = bytearray(1024 * 2 + len(system))
        image[0x1F1] = 3
        struct.pack_into("<I", image, 0x1F4, len(system) // 16)
        image[0x202:0x206] = b"HdrS"
        struct.pack_into("<H", image, 0x20E, 0x100)
        image[0x300 : 0x300 + len(release) + 1] = release.encode() + b"\0"
        image[2048:] = system
        return bytes(image)

    return make
