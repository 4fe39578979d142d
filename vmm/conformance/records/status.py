"""The exit statuses of the commands: one table, and the help text that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType


class Status(IntEnum):
    """How a command ended. What a command means by it is in ``MEANINGS``, unless it says else."""

    CONFORMS = 0
    VIOLATES = 1
    TROUBLE = 2
    UNTESTED = 4
    INTERRUPTED = 130

    @classmethod
    def of(cls, is_violated: bool) -> Status:
        """Return VIOLATES or CONFORMS."""
        return cls.VIOLATES if is_violated else cls.CONFORMS


DONE = Status.CONFORMS
"""What a command that judges nothing ends with."""

MEANINGS: Mapping[Status, str] = MappingProxyType(
    {
        Status.CONFORMS: "the kernel conforms, as far as the cases that ran tell",
        Status.VIOLATES: "it does not: a case failed twice, or the kernel log has a splat",
        Status.TROUBLE: "no verdict: usage, harness trouble, or what failed did not repeat",
        Status.UNTESTED: "nothing could be tested: every case was skipped",
        Status.INTERRUPTED: "Ctrl-C, after a summary of what ran",
    }
)


def epilog(meanings: Mapping[Status, str] = MEANINGS) -> str:
    """Return the table as the end of a command's help."""
    lines = [f"  {status:<4d} {meaning}" for status, meaning in meanings.items()]
    return "\n".join(["exit status:", *lines])
