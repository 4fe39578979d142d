"""Whether this host gives us the page faults of its kernel, without which no race is decided."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vmm.conformance.host import containers
from vmm.conformance.host.diagnosis import Diagnosis, Health

SYS_USERFAULTFD, USERFAULTFD_IOC_NEW = 323, 0xAA00  # asm/unistd_64.h; linux/userfaultfd.h
UFFD_SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")


def userfaultfd() -> Diagnosis:
    """Make a userfaultfd that reports faults of the kernel."""
    tries = {"the system call": _uffd_by_syscall, "/dev/userfaultfd": _uffd_by_device}
    answers = {name: _attempt(way) for name, way in tries.items()}
    shown = "; ".join(f"{name}: {why or 'allowed'}" for name, why in answers.items())
    if "" in answers.values():
        return Diagnosis(Health.PASS, f"{shown}; {_uffd_sysctl()}")
    remedy = "run as root, give access to /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1"
    remedy = remedy if os.geteuid() else containers.USERFAULTFD
    return Diagnosis(Health.WARN, f"races are not tested: {shown}; {_uffd_sysctl()}", remedy)


def _uffd_by_syscall() -> int:
    import ctypes

    flags = os.O_CLOEXEC | os.O_NONBLOCK  # without UFFD_USER_MODE_ONLY: the kernel itself faults
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(ctypes.c_long(SYS_USERFAULTFD), ctypes.c_int(flags))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def _uffd_by_device() -> int:
    import fcntl

    device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(device)


def _attempt(way: Callable[[], int]) -> str:
    try:
        os.close(way())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _uffd_sysctl() -> str:
    try:
        return f"vm.unprivileged_userfaultfd is {UFFD_SYSCTL.read_text().strip()}"
    except OSError as error:
        return f"vm.unprivileged_userfaultfd: {error.strerror}"
