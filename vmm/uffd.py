"""userfaultfd: pages that are not there until someone is seen to wait for them."""

from __future__ import annotations

import os
import select

from vmm._native import ffi, lib
from vmm.errors import KvmError
from vmm.ioctl import KvmFile, fits
from vmm.memory import PAGE, Mapping

DEVICE = "/dev/userfaultfd"
USERFAULTFD_IOC_NEW = 0xAA00


class Userfaultfd(KvmFile):
    """Watches mappings whose pages are missing; ``KvmError`` says why it is not permitted.

    Faults of the kernel itself (an ioctl that reads user memory, KVM's fault on guest memory) are
    seen too, which needs CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1 or access to the device.
    """

    def __init__(self) -> None:
        """Open it and agree on the API."""
        self.fd = _open()
        api = ffi.new("struct uffdio_api *", {"api": lib.UFFD_API})
        try:
            self.pointed(lib.UFFDIO_API, api, "UFFDIO_API")
        except KvmError:
            self.close()
            raise

    def watch(self, mapping: Mapping) -> None:
        """Report the first access to every page of ``mapping`` that has none yet."""
        if not isinstance(mapping, Mapping):
            raise TypeError(f"watch: takes a Mapping, not {mapping!r}")
        mapping.must_be_open("UFFDIO_REGISTER")
        span = {"start": mapping.address, "len": mapping.size}
        register = ffi.new(
            "struct uffdio_register *",
            {"range": span, "mode": lib.UFFDIO_REGISTER_MODE_MISSING},
        )
        self.pointed(lib.UFFDIO_REGISTER, register, "UFFDIO_REGISTER")

    def read(self) -> int | None:
        """Return the page of the next fault that is already reported, or None."""
        try:
            message = os.read(self._hold("read"), ffi.sizeof("struct uffd_msg"))
        except BlockingIOError:
            return None
        finally:
            self._let_go()
        at = lib.MW_FAULT_ADDRESS
        return int.from_bytes(message[at : at + 8], "little") // PAGE * PAGE

    def wait(self, seconds: float, *others: int) -> None:
        """Sleep until a fault is reported or one of the descriptors ``others`` is readable."""
        if not 0 <= seconds <= 1e6:
            raise ValueError(f"wait: from 0 to 1e6 seconds, not {seconds}")
        self._must_be_open("poll")
        poll = select.poll()
        for each in (self.fd, *others):
            poll.register(each, select.POLLIN)
        poll.poll(seconds * 1000)

    def give(self, page: int, data: bytes = b"") -> None:
        """Put a page of ``data`` (zeroes behind it) at ``page`` and wake who waits for it."""
        if len(data) > PAGE:
            raise ValueError(f"give: at most {PAGE} bytes, not {len(data)}")
        source = ffi.new("uint8_t[]", data.ljust(PAGE, b"\0"))
        address = int(ffi.cast("uintptr_t", source))
        copy = ffi.new(
            "struct uffdio_copy *", {"dst": fits("page", page, 64), "src": address, "len": PAGE}
        )
        self.pointed(lib.UFFDIO_COPY, copy, "UFFDIO_COPY")

    def wake(self, page: int) -> None:
        """Let who waits for ``page`` try again, with whatever is there now."""
        span = ffi.new("struct uffdio_range *", {"start": fits("page", page, 64), "len": PAGE})
        self.pointed(lib.UFFDIO_WAKE, span, "UFFDIO_WAKE")


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
