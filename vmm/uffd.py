"""userfaultfd: pages that are not there until someone is seen to wait for them."""

from __future__ import annotations

import os
import select
from typing import Any

from vmm._native import ffi, lib
from vmm.errors import KvmError
from vmm.memory import PAGE, Mapping

DEVICE = "/dev/userfaultfd"
USERFAULTFD_IOC_NEW = 0xAA00


class Userfaultfd:
    """Watches mappings whose pages are missing; ``KvmError`` says why it is not permitted.

    Faults of the kernel itself (an ioctl that reads user memory, KVM's fault on guest memory) are
    seen too, which needs CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1 or access to the device.
    """

    def __init__(self) -> None:
        """Open it and agree on the API."""
        self.fd = _open()
        api = ffi.new("struct uffdio_api *", {"api": lib.UFFD_API})
        try:
            self._ioctl(lib.UFFDIO_API, api, "UFFDIO_API")
        except KvmError:
            self.close()
            raise

    def watch(self, mapping: Mapping) -> None:
        """Report the first access to every page of ``mapping`` that has none yet."""
        span = {"start": mapping.address, "len": mapping.size}
        register = ffi.new(
            "struct uffdio_register *",
            {"range": span, "mode": lib.UFFDIO_REGISTER_MODE_MISSING},
        )
        self._ioctl(lib.UFFDIO_REGISTER, register, "UFFDIO_REGISTER")

    def read(self) -> int | None:
        """Return the page of the next fault that is already reported, or None."""
        try:
            message = os.read(self.fd, ffi.sizeof("struct uffd_msg"))
        except BlockingIOError:
            return None
        at = lib.MW_FAULT_ADDRESS
        return int.from_bytes(message[at : at + 8], "little") // PAGE * PAGE

    def wait(self, seconds: float, *others: int) -> None:
        """Sleep until a fault is reported or one of the descriptors ``others`` is readable."""
        poll = select.poll()
        for each in (self.fd, *others):
            poll.register(each, select.POLLIN)
        poll.poll(seconds * 1000)

    def give(self, page: int, data: bytes = b"") -> None:
        """Put a page of ``data`` (zeroes behind it) at ``page`` and wake who waits for it."""
        source = ffi.new("uint8_t[]", data.ljust(PAGE, b"\0"))
        address = int(ffi.cast("uintptr_t", source))
        copy = ffi.new("struct uffdio_copy *", {"dst": page, "src": address, "len": PAGE})
        self._ioctl(lib.UFFDIO_COPY, copy, "UFFDIO_COPY")

    def wake(self, page: int) -> None:
        """Let who waits for ``page`` try again, with whatever is there now."""
        span = ffi.new("struct uffdio_range *", {"start": page, "len": PAGE})
        self._ioctl(lib.UFFDIO_WAKE, span, "UFFDIO_WAKE")

    def close(self) -> None:
        """Stop watching; who still waits goes on with a page of zeroes."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def _ioctl(self, number: int, struct: Any, name: str) -> None:
        result = lib.mw_ioctl(self.fd, number, int(ffi.cast("uintptr_t", struct)))
        if result < 0:
            raise KvmError(-result, name)


def _open() -> int:
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    fd = int(lib.mw_userfaultfd(flags))
    if fd < 0 and os.access(DEVICE, os.R_OK | os.W_OK):
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        fd = int(lib.mw_ioctl(device, USERFAULTFD_IOC_NEW, flags))
        os.close(device)
    if fd < 0:
        raise KvmError(-fd, "userfaultfd")
    return fd
