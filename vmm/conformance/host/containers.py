"""What a container withholds even from its root, and what to pass it."""

from __future__ import annotations

import os

USERFAULTFD = (
    "this root is a container's: pass it /dev/userfaultfd, a seccomp profile that allows"
    " userfaultfd, or CAP_SYS_PTRACE"
)
KMSG = "pass this container the device /dev/kmsg"
PIDFD = "pidfd_open is refused: pass this container a seccomp profile that allows it"


def pidfd_of(pid: int) -> int:
    """Return ``os.pidfd_open(pid)``; what older profiles of containers refuse is named."""
    try:
        return os.pidfd_open(pid)
    except PermissionError as error:
        raise PermissionError(error.errno, PIDFD) from None
