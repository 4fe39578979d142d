"""The kernel log, watched for splats: the records of /dev/kmsg."""

import errno
import os
import re
import stat
import time
from collections.abc import Iterator

from vmm.closing import Closing
from vmm.conformance.host import containers
from vmm.conformance.host.splats import Splat, find_splats

SETTLE_SECONDS = 0.05  # the kernel prints a splat line by line: time for the rest of it
_CHUNK = 16384  # one read of /dev/kmsg is one whole record of at most 8 KiB, else EINVAL
ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_MAX_READS = 100_000  # of one poll: a log that floods must not hold the run


def kernel_message(record: str) -> tuple[int, str] | None:
    """Parse one /dev/kmsg record "prio,seq,usec,flags[,..];text" to sequence number and text.

    None for a continuation line " KEY=value" and for what is not a record. The text is "" unless
    the kernel itself wrote it (facility 0), which nobody who writes to /dev/kmsg can claim.
    """
    header, separator, text = record.partition(";")
    match header.split(","):
        case [prio, seq, *_] if separator and prio.isdecimal() and seq.isdecimal():
            return int(seq), unescaped(text) if int(prio) >> 3 == 0 else ""
    return None


class KernelLog(Closing):
    """The kernel log from the moment of opening on; a context manager.

    `lost` counts the records that the kernel overwrote before they were read: at least that many.
    """

    def __init__(self, path: str = "/dev/kmsg", *, from_start: bool = False) -> None:
        """Open `path`, or raise OSError; what was logged before counts with `from_start` only."""
        self.lost = 0
        self._next_seq: int | None = None
        self._partial = b""
        self._messages: list[str] = []
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.lseek(self._fd, 0, os.SEEK_SET if from_start else os.SEEK_END)
        except OSError as error:
            if error.errno != errno.ESPIPE:  # a pipe has no position: it begins here
                self.close()
                raise

    @classmethod
    def open_or_reason(cls, path: str = "/dev/kmsg") -> "KernelLog | str":
        """Return the open log, or a short reason why this process cannot watch it."""
        log = None
        try:
            log = cls(path)
            _refuse_other_files(log._fd)
            log._fill()
        except OSError as error:
            if log is not None:
                log.close()
            return f"{path}: {error.strerror}{_HINTS.get(error.errno or 0, '')}"
        return log

    def close(self) -> None:
        """Close the log; harmless when closed already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def poll(self) -> list[Splat]:
        """Return the splats since the last call or since opening; takes 50 ms if there is one."""
        self._fill()
        if find_splats(self._messages):
            time.sleep(SETTLE_SECONDS)
            self._fill()
        messages, self._messages = self._messages, []
        return find_splats(messages)

    def _fill(self) -> None:
        for chunk in self._chunks():
            *records, self._partial = (self._partial + chunk).split(b"\n")
            for record in records:
                self._take(record.decode(errors="replace"))

    def _chunks(self) -> Iterator[bytes]:
        for _ in range(_MAX_READS):
            try:
                chunk = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                # EPIPE: overwritten; EINVAL: longer than the buffer. Both skip the record, and
                # the gap in the sequence numbers tells how many, once there is a number.
                if error.errno not in (errno.EPIPE, errno.EINVAL):
                    raise
                self.lost += self._next_seq is None
                continue
            if not chunk:
                return
            yield chunk

    def _take(self, record: str) -> None:
        message = kernel_message(record)
        if message is None:
            return
        seq, text = message
        if self._next_seq is not None:
            self.lost += max(0, seq - self._next_seq)
        self._next_seq = seq + 1
        self._messages.append(text)


def unescaped(text: str) -> str:
    r"""Return the characters that ``\xNN`` stand for, as /dev/kmsg and traces write them."""
    return ESCAPED.sub(lambda m: chr(int(m[1], 16)), text)


_CONTAINER = f" ({containers.KMSG})"
_HINTS = {
    errno.EPERM: " (kernel.dmesg_restrict: needs root)",
    errno.ENOENT: _CONTAINER,
    errno.ENODEV: _CONTAINER,
}


def _refuse_other_files(fd: int) -> None:
    """Raise OSError where a container has put /dev/null or a console in the place of kmsg."""
    status = os.fstat(fd)
    kmsg = stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 11)
    if not (kmsg or stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
        raise OSError(errno.ENODEV, "not the kernel log")
