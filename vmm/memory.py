"""Memory of this process that a kernel is given."""

from __future__ import annotations

import errno
from typing import Any

from vmm._native import ffi, lib
from vmm.closing import Closing
from vmm.errors import Closed, KvmError

PAGE = 4096
LOW = range(2 << 30, 4 << 30)
"""Where a 32-bit caller can point, and a pointer that is taken for signed leads astray."""
_next_low = LOW[0]
FAILED = 2**64 - 1
"""MAP_FAILED, as an address."""


class Mapping(Closing):
    """Anonymous memory of ``size`` bytes (whole pages), unmapped by ``close``.

    ``low`` places it below 4 GiB, where a 32-bit caller can point, and above 2 GiB if there is
    room. ``KvmError`` names mmap.
    """

    def __init__(self, size: int, *, low: bool = False) -> None:
        """Map the pages, readable, writable and zero."""
        if not isinstance(size, int) or not 0 < size < 1 << 63:
            kind = ValueError if isinstance(size, int) else TypeError
            raise kind(f"size must be a number of bytes from 1 up, not {size!r}")
        self.size = self._mapped = -(-size // PAGE) * PAGE
        self._at = _map_low(self.size) if low else _map(self.size)
        self.address = int(ffi.cast("uintptr_t", self._at))
        if self.address == FAILED:
            self.size = 0
            raise KvmError(ffi.errno, "mmap", f"{size} bytes")
        # The addresses stay taken until nobody can use them: closed memory is zeroes, no SIGSEGV.
        self._at = ffi.gc(self._at, lambda at, size=self.size: lib.munmap(at, size))
        self.buffer: Any = ffi.buffer(self._at, self.size)

    def must_be_open(self, name: str) -> None:
        """Raise ``Closed``, for ``name``, if it is."""
        if not self.size:
            raise Closed(errno.EBADF, name, "this memory is closed: make a new one")

    def forbid(self, offset: int, size: int) -> None:
        """Make ``size`` bytes from ``offset`` (whole pages) inaccessible."""
        self.must_be_open("mprotect")
        if offset % PAGE or size < 1 or not 0 <= offset <= self.size - size:
            raise ValueError(f"forbid: {size} bytes from {offset} are no pages of this memory")
        if lib.mprotect(self._at + offset, size, lib.PROT_NONE) < 0:
            raise KvmError(ffi.errno, "mprotect")

    def close(self) -> None:
        """Unmap; a second call does nothing."""
        is_open, self.size, self.buffer = self.size > 0, 0, b""
        if is_open:
            lib.mw_blank(self._at, self._mapped)


def _map(size: int, hint: int = 0, flags: int = 0) -> Any:
    flags |= lib.MAP_PRIVATE | lib.MAP_ANONYMOUS | lib.MAP_NORESERVE
    at, protection = ffi.cast("void *", hint), lib.PROT_READ | lib.PROT_WRITE
    return lib.mmap(at, size, protection, flags, -1, 0)


def _map_low(size: int) -> Any:
    """Map in the upper half of 4 GiB; where the kernel finds no room there, in the lower one."""
    global _next_low  # noqa: PLW0603 - where the next one is asked for
    hint = _next_low if _next_low + size < LOW[-1] else LOW[0]
    _next_low = hint + size
    at = _map(size, hint)
    address = int(ffi.cast("uintptr_t", at))
    if address == FAILED or address + size <= LOW.stop:
        return at
    lib.munmap(at, size)
    return _map(size, flags=lib.MAP_32BIT)


class GuestMemory(Mapping):
    """Guest RAM at guest-physical ``base``, read and written by guest-physical address."""

    def __init__(self, base: int, size: int) -> None:
        """Map ``size`` bytes for the guest-physical range from ``base``."""
        if not 0 <= base < 1 << 64:
            raise ValueError(f"base must fit 64 bits unsigned, not {base:#x}")
        super().__init__(size)
        self.base = base

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to ``gpa``; IndexError when it does not fit."""
        data = bytes(memoryview(data))
        start = self._offset(gpa, len(data))
        self.buffer[start : start + len(data)] = data

    def read(self, gpa: int, size: int) -> bytes:
        """Return ``size`` bytes from ``gpa``; IndexError when they are not all inside."""
        start = self._offset(gpa, size)
        return bytes(self.buffer[start : start + size])

    def _offset(self, gpa: int, size: int) -> int:
        self.must_be_open("guest memory")
        start = gpa - self.base
        if start < 0 or size < 0 or start + size > self.size:
            raise IndexError(f"{size} bytes at GPA {gpa:#x} are outside the guest's memory")
        return start
