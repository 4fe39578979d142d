"""An open KVM file descriptor: the one place where an ioctl is sent and its refusal raised."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

from vmm._native import ffi, lib
from vmm.errors import KvmError


class KvmFile:
    """An open KVM file descriptor: ``fd`` is -1 once closed."""

    fd = -1

    def ioctl(self, number: int, arg: int = 0, name: str = "ioctl") -> int:
        """Send any ioctl with any argument; return the kernel's value or raise ``KvmError``."""
        result = int(lib.mw_ioctl(self.fd, number, arg))
        if result < 0:
            raise KvmError(-result, name)
        return result

    def pointed(self, number: int, struct: Any, name: str) -> int:
        """Send an ioctl whose argument is the address of ``struct`` (a cffi struct)."""
        return self.ioctl(number, int(ffi.cast("uintptr_t", struct)), name)

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """Enable ``cap`` with up to four u64 ``args`` (``KVM_ENABLE_CAP``, api.rst 4.37)."""
        request = ffi.new("struct kvm_enable_cap *")
        request.cap, request.flags = cap, flags
        for position, arg in enumerate(args):
            request.args[position] = arg
        self.pointed(lib.KVM_ENABLE_CAP, request, "KVM_ENABLE_CAP")

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()
