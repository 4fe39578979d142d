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
GOOD, BAD, UNTESTABLE = Status.CONFORMS, Status.VIOLATES, 125
"""What ``git bisect run`` takes the statuses of a step for."""

MEANINGS: Mapping[int, str] = MappingProxyType(
    {
        Status.CONFORMS: "the kernel conforms, as far as the cases that ran tell",
        Status.VIOLATES: "it does not: a case failed twice, or the kernel log has a splat",
        Status.TROUBLE: "no verdict: usage, harness trouble, or what failed did not repeat",
        Status.UNTESTED: "nothing could be tested: every case was skipped",
        Status.INTERRUPTED: "Ctrl-C, after a summary of what ran",
    }
)

_ENDED: Mapping[int, str] = MappingProxyType(
    {
        DONE: "done",
        Status.TROUBLE: "not done: usage, or trouble that one line on stderr names",
        Status.INTERRUPTED: "Ctrl-C",
    }
)
_SAMPLED: Mapping[int, str] = MappingProxyType(
    {
        Status.CONFORMS: "nothing impossible was seen",
        Status.VIOLATES: "something was, or the kernel complained",
        Status.TROUBLE: "no verdict: usage, or harness trouble",
        Status.UNTESTED: "nothing was observed",
        Status.INTERRUPTED: "Ctrl-C",
    }
)
_FUZZED: Mapping[int, str] = MappingProxyType(
    {
        **_SAMPLED,
        Status.CONFORMS: "the kernel did what the Model predicted",
        Status.VIOLATES: "it did not, or it complained",
        Status.UNTESTED: "nothing could be compared here",
    }
)
_OF: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        **dict.fromkeys(("", "check", "judge", "merge", "run", "lab run"), MEANINGS),
        **dict.fromkeys(("stress", "churn", "lab stress", "lab churn"), _SAMPLED),
        **dict.fromkeys(("fuzz", "lab fuzz"), _FUZZED),
        "lab matrix": {
            **_ENDED,
            Status.CONFORMS: "all conform",
            Status.VIOLATES: "one or more do not",
            Status.TROUBLE: "one or more have no verdict, or usage",
        },
        "diff": {
            **_ENDED,
            Status.CONFORMS: "the same behaviour; with --since, nothing new fails",
            Status.VIOLATES: "different behaviour; with --since, something new fails",
            Status.TROUBLE: f"{_ENDED[Status.TROUBLE]}; with --since, a machine has no verdict now",
        },
        "doctor": {**_ENDED, Status.CONFORMS: "no check is FAIL", Status.VIOLATES: "a check is"},
        "bisect": {
            **_ENDED,
            DONE: "found: the finding is shown",
            Status.TROUBLE: "not found: usage, or trouble that one line on stderr names",
            Status.INTERRUPTED: "Ctrl-C; the same command goes on",
        },
        "bisect-step": {GOOD: "good", BAD: "bad", UNTESTABLE: "cannot be tested, whatever it is"},
    }
)
"""What the statuses of a command mean that is called so, where they are not those of ``_ENDED``."""


def statuses(command: str) -> Mapping[int, str]:
    """Return what each exit status of a command means: of "check", "lab run", or "" for all."""
    return _OF.get(command, _ENDED)


def epilog(meanings: Mapping[int, str] = MEANINGS) -> str:
    """Return the table as the end of a command's help."""
    lines = [f"  {status:<4d} {meaning}" for status, meaning in sorted(meanings.items())]
    return "\n".join(["exit status:", *lines])
