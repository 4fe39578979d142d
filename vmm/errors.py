"""What goes wrong at the KVM border, as exceptions that carry their data."""

from __future__ import annotations

import os


class KvmError(OSError):
    """An ioctl (or the KVM device) refused; ``errno`` is the kernel's, ``ioctl`` its name."""

    def __init__(self, errno: int, ioctl: str, detail: str = "") -> None:
        """Describe the refusal of ``ioctl`` with the positive ``errno``."""
        super().__init__(errno, os.strerror(errno))
        self.ioctl = ioctl
        self.detail = detail

    def __reduce__(self) -> tuple[type[KvmError], tuple[int, str, str]]:
        """Survive pickle: ``OSError`` would forget the ioctl."""
        return type(self), (self.errno or 0, self.ioctl, self.detail)

    def __str__(self) -> str:
        """Return one line: what failed, why, and the detail where there is one."""
        text = f"{self.ioctl}: {os.strerror(self.errno or 0)}"
        return f"{text} ({self.detail})" if self.detail else text


class Closed(KvmError):
    """What it was asked of is closed (``EBADF``): make a new one."""


class Busy(KvmError):
    """Another thread is in this vCPU (``EBUSY``): kick it, or wait until it has left."""
