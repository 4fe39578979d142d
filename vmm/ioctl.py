"""An open KVM file descriptor: the one place where an ioctl is sent and its refusal raised."""

from __future__ import annotations

import errno
import operator
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

from vmm._native import ffi, lib
from vmm.closing import Closing
from vmm.errors import Closed, KvmError

GATE = threading.RLock()
"""Held for the lines that begin or end a use of a descriptor, never while the kernel works."""

os.register_at_fork(before=GATE.acquire, after_in_parent=GATE.release, after_in_child=GATE.release)


NOT_THE_KERNELS = (errno.EBADF, errno.ENOTTY, errno.EINTR)
"""What a call gets because its file was closed meanwhile: no KVM file any more, or a kick."""


class KvmFile(Closing):
    """An open KVM file descriptor: ``fd`` is -1 once closed, and all else then is ``Closed``.

    ``close`` may come from any thread: an ioctl that is under way ends as the kernel says, and
    its number names no other file before that.
    """

    fd = -1
    _spare, _users, _pid = -1, 0, 0

    def ioctl(self, number: int, arg: int = 0, name: str = "") -> int:
        """Send any ioctl with any argument; return the kernel's value or raise ``KvmError``."""
        return self._send(lib.mw_ioctl, number, arg, name)

    def pointed(self, number: int, struct: Any, name: str) -> int:
        """Send an ioctl whose argument is the address of ``struct`` (a cffi struct)."""
        if not isinstance(struct, ffi.CData) or ffi.typeof(struct).kind not in ("pointer", "array"):
            raise TypeError(f"{name}: takes a cffi pointer to its struct, not {struct!r}")
        return self.ioctl(number, int(ffi.cast("uintptr_t", struct)), name)

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """Enable ``cap`` with up to four u64 ``args`` (``KVM_ENABLE_CAP``, api.rst 4.37)."""
        if len(args) > 4:
            raise ValueError(f"KVM_ENABLE_CAP: takes four arguments, not {len(args)}")
        request = ffi.new("struct kvm_enable_cap *")
        request.cap, request.flags = fits("cap", cap, 32), fits("flags", flags, 32)
        for position, arg in enumerate(args):
            request.args[position] = fits("an argument", arg, 64)
        self.pointed(lib.KVM_ENABLE_CAP, request, "KVM_ENABLE_CAP")

    def close(self) -> None:
        """Close the descriptor, from any thread; a second call does nothing."""
        with GATE:
            if self.fd < 0:
                return
            self._spare, self.fd = self.fd, -1
            others = self._retire()
            self._users = others + 1
        if others:
            self._interrupt()
        self._let_go()

    def __del__(self) -> None:
        """Close what nobody closed, and say so."""
        if self.fd >= 0:
            message = f"unclosed {type(self).__name__} (fd {self.fd}): use with, or close it"
            warnings.warn(message, ResourceWarning, source=self, stacklevel=2)
            KvmFile.close(self)

    def _send(self, send: Callable[..., int], number: int, arg: int, name: str) -> int:
        number, arg = fits("an ioctl's number", number, 64), fits("an argument", arg, 64)
        name = name or f"ioctl {number:#x}"
        fd = self._hold(name)
        try:
            result = int(send(fd, number, arg))
        finally:
            self._let_go()
        if result < 0:
            raise self._refusal(-result, name)
        return result

    def _hold(self, name: str) -> int:
        with GATE:
            self._must_be_open(name)
            self._users += 1
            return self.fd

    def _let_go(self) -> None:
        with GATE:
            self._users -= 1
            last = self._users == 0 and self._spare >= 0
            spare, self._spare = self._spare, -1 if last else self._spare
        if last:
            os.close(spare)

    def _retire(self) -> int:
        """Return how many threads still use the descriptor."""
        return self._users

    def _interrupt(self) -> None:
        # The file goes now, its number when the last thread has left: who comes late must not
        # find what was opened meanwhile.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, self._spare, inheritable=False)
        os.close(null)

    def _must_be_open(self, name: str) -> None:
        if self.fd < 0:
            raise self._closed(name)

    def _closed(self, name: str) -> Closed:
        return Closed(errno.EBADF, name, f"this {type(self).__name__} is closed: make a new one")

    def _refusal(self, number: int, name: str) -> KvmError:
        if self.fd < 0 and number in NOT_THE_KERNELS:
            return self._closed(name)
        forked = number == errno.EIO and self._pid not in (0, os.getpid())
        return KvmError(number, name, "a fork cannot use its parent's VM: make one" * forked)


def fits(what: str, number: int, width: int) -> int:
    """Return ``number``; ``ValueError`` if it is not one of ``width`` bits, unsigned."""
    number = operator.index(number)
    if number < 0 or number >> width:
        raise ValueError(f"{what} must fit {width} bits unsigned, not {number:#x}")
    return number


def struct_of(kind: str, value: Any, name: str) -> Any:
    """Return ``value``; ``TypeError`` if it is not a ``kind *`` that leads somewhere."""
    if isinstance(value, ffi.CData) and ffi.typeof(value) is ffi.typeof(f"{kind} *") and value:
        return value
    raise TypeError(f"{name}: takes a {kind} * (ffi.new makes one), not {value!r}")
