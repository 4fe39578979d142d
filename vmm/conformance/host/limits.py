"""What a host has run out of: that says nothing of its kernel, so it is trouble and no verdict."""

from __future__ import annotations

import errno
import re

LIMITS = {
    errno.EAGAIN: "no more processes or threads: raise ulimit -u or the cgroup's pids.max",
    errno.ENOMEM: "no more memory: raise ulimit -v, ulimit -l, the cgroup's memory.max"
    " or vm.max_map_count",
    errno.EMFILE: "no more descriptors in a process: raise ulimit -n",
    errno.ENFILE: "no more descriptors on this machine: raise fs.file-max",
    errno.ENOSPC: "no more space: free some, or raise the limit of this user or cgroup",
    errno.EDQUOT: "no more quota: raise it for this user or cgroup",
}
"""The errno of each limit, and what to do about it. None is an answer that the contract has."""
_LEAD = re.compile(r"^\[Errno \d+\] ")
"""What Python puts in front of the words for an errno."""


class ExhaustedError(Exception):
    """The host has no more of something; the text is one line: where, what, what to do."""


def exhausted(number: int, where: str) -> ExhaustedError | None:
    """Return the error that says so, if the errno ``number`` of ``where`` means that."""
    limit = LIMITS.get(number)
    return ExhaustedError(f"{where}: {errno.errorcode[number]}, {limit}") if limit else None


def raise_if_exhausted(error: OSError) -> None:
    """Raise ``ExhaustedError`` if that is what ``error`` means; return otherwise."""
    where = str(getattr(error, "ioctl", error.filename or "the host"))
    if limit := exhausted(error.errno or 0, where):
        raise limit from error


def limit_of(error: BaseException) -> str | None:
    """Return one line that names the limit behind ``error``, or None where there is none.

    Python says a thread that cannot start in words alone (RuntimeError), memory that cannot be had
    by a type of its own, and a library that cannot be mapped in the loader's words.
    """
    if isinstance(error, ExhaustedError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"MemoryError, {LIMITS[errno.ENOMEM]}"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return f"{error}: {LIMITS[errno.EAGAIN]}, or ulimit -v for its stack"
    if isinstance(error, ImportError) and "failed to map segment" in str(error):
        return f"{error}: {LIMITS[errno.ENOMEM]}, or mount its file system without noexec"
    if isinstance(error, OSError) and error.errno in LIMITS:
        return f"{_LEAD.sub('', str(error))}: {LIMITS[error.errno]}"
    return None
