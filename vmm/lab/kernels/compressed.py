"""What kernels and modules are compressed with, undone within a bound: no bomb fills the memory."""

from __future__ import annotations

import bz2
import lzma
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

MOST = 512 << 20
"""Bytes that come out, at most: no kernel is as large."""
_MEMORY = 512 << 20
_GZIP = 16 + zlib.MAX_WBITS


class Damaged(Exception):
    """It is nothing that can be decompressed; the text says why."""


class NoTool(Damaged):
    """The program that decompresses it is not here."""


def decompress(data: bytes, most: int = MOST) -> bytes:
    """Return the content of gzip, xz, lzma, bzip2, zstd or lz4 data, whatever follows it.

    Damaged where it is none, is cut short, or has more than `most` bytes in it.
    """
    for magic, undo in _FORMATS.items():
        if data.startswith(magic):
            try:
                content = undo(data, most)
            except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
                raise Damaged(str(error)) from None
            if len(content) > most:
                raise Damaged(f"more than {most >> 20} MiB come out of it")
            return content
    raise Damaged("it is compressed in a way that is not known here")


def _gzip(data: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj(_GZIP)
    return _whole(unpacker.decompress(data, most + 1), most, finished=unpacker.eof)


def _bzip2(data: bytes, most: int) -> bytes:
    unpacker = bz2.BZ2Decompressor()
    return _whole(unpacker.decompress(data, most + 1), most, finished=unpacker.eof)


def _xz(data: bytes, most: int, kind: int = lzma.FORMAT_XZ) -> bytes:
    unpacker = lzma.LZMADecompressor(kind, memlimit=_MEMORY)
    return _whole(unpacker.decompress(data, most + 1), most, finished=unpacker.eof)


def _lzma(data: bytes, most: int) -> bytes:
    return _xz(data, most, lzma.FORMAT_ALONE)


def _whole(content: bytes, most: int, *, finished: bool) -> bytes:
    if not finished and len(content) <= most:
        raise Damaged("it is cut short")
    return content


def _by(tool: str) -> Callable[[bytes, int], bytes]:
    def undo(data: bytes, most: int) -> bytes:
        with tempfile.TemporaryFile() as packed:
            packed.write(data)
            packed.seek(0)
            return _output([tool, "-dc"], packed.fileno(), most)

    return undo


def _output(command: list[str], stdin: int, most: int) -> bytes:
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=nothing)
    except FileNotFoundError:
        raise NoTool(f"{command[0]} is not installed") from None
    with process:
        assert process.stdout
        content = process.stdout.read(most + 1)
        if len(content) > most:
            process.kill()
    if len(content) <= most and process.returncode:
        raise Damaged(f"{command[0]} cannot read it")
    return content


_FORMATS: Mapping[bytes, Callable[[bytes, int], bytes]] = MappingProxyType(
    {
        b"\xfd7zXZ": _xz,
        b"\x1f\x8b": _gzip,
        b"BZh": _bzip2,
        b"]\0\0": _lzma,
        b"\x28\xb5\x2f\xfd": _by("zstd"),
        b"\x02\x21\x4c\x18": _by("lz4"),
    }
)
