"""What a container withholds even from its root, and what to pass it."""

from __future__ import annotations

USERFAULTFD = (
    "this root is a container's: pass it /dev/userfaultfd, a seccomp profile that allows"
    " userfaultfd, or CAP_SYS_PTRACE"
)
KMSG = "pass this container the device /dev/kmsg"
