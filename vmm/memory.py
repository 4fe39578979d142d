"""Memory of this process that a kernel is given."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from vmm._native import ffi, lib
from vmm.errors import KvmError

PAGE = 4096


class Mapping:
    """Anonymous memory of ``size`` bytes (whole pages), unmapped by ``close``.

    ``low`` places it below 4 GiB, where a 32-bit caller can point. ``KvmError`` names mmap.
    """

    def __init__(self, size: int, *, low: bool = False) -> None:
        """Map the pages, readable, writable and zero."""
        self.size = -(-size // PAGE) * PAGE
        flags = lib.MAP_PRIVATE | lib.MAP_ANONYMOUS | lib.MAP_NORESERVE
        self._at = lib.mmap(
            ffi.NULL,
            self.size,
            lib.PROT_READ | lib.PROT_WRITE,
            flags | (lib.MAP_32BIT if low else 0),
            -1,
            0,
        )
        self.address = int(ffi.cast("uintptr_t", self._at))
        if self.address == 2**64 - 1:
            self.size = 0
            raise KvmError(ffi.errno, "mmap", f"{size} bytes")
        self.buffer: Any = ffi.buffer(self._at, self.size)

    def forbid(self, offset: int, size: int) -> None:
        """Make ``size`` bytes from ``offset`` (whole pages) inaccessible."""
        if lib.mprotect(self._at + offset, size, lib.PROT_NONE) < 0:
            raise KvmError(ffi.errno, "mprotect")

    def close(self) -> None:
        """Unmap; a second call does nothing."""
        if self.size:
            lib.munmap(self._at, self.size)
        self.size, self.buffer = 0, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


class GuestMemory(Mapping):
    """Guest RAM at guest-physical ``base``, read and written by guest-physical address."""

    def __init__(self, base: int, size: int) -> None:
        """Map ``size`` bytes for the guest-physical range from ``base``."""
        super().__init__(size)
        self.base = base

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to ``gpa``; IndexError when it does not fit."""
        start = self._offset(gpa, len(data))
        self.buffer[start : start + len(data)] = data

    def read(self, gpa: int, size: int) -> bytes:
        """Return ``size`` bytes from ``gpa``; IndexError when they are not all inside."""
        start = self._offset(gpa, size)
        return bytes(self.buffer[start : start + size])

    def _offset(self, gpa: int, size: int) -> int:
        start = gpa - self.base
        if start < 0 or start + size > self.size:
            raise IndexError(f"{size} bytes at GPA {gpa:#x} are outside the guest's memory")
        return start
