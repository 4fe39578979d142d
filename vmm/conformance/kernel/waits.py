"""How long a script may wait for the kernel, word by word: its case has so much longer."""

from __future__ import annotations

from vmm.conformance.language import script as words
from vmm.conformance.language.script import Action, Script

DEADLINE = 10.0
"""Seconds after which a kernel event is not waited for any more."""
OBEYS_WITHIN, OBEYS_ALONE_WITHIN = 2.0, 3.0
"""Seconds within which a spinning vCPU must be seen to obey (R72): with a CPU of its own, or where
this thread and its own have to take turns, so that the kick waits for the scheduler too.
"""
RETURNS_WITHIN = 2.0
"""Seconds within which an install must return once nothing is in its way.

SRCU looks again for readers at growing intervals, of up to ten jiffies."""
LONGER = 3
"""How many times as long is waited where ``blocked`` or ``never`` is not expected."""

_SECONDS: dict[type[Action], float] = {
    words.BeginInstall: DEADLINE,
    words.Meanwhile: DEADLINE,
    words.Park: DEADLINE,
    words.Release: DEADLINE,
    words.Spin: DEADLINE,
    words.StopSpin: DEADLINE,
    words.Sleep: DEADLINE,
    words.Wake: DEADLINE,
    words.AwaitSipi: OBEYS_ALONE_WITHIN * LONGER,
    words.ResumeInstall: RETURNS_WITHIN * LONGER,
    words.AwaitInstall: RETURNS_WITHIN * LONGER,
    words.AwaitMeanwhile: RETURNS_WITHIN * LONGER,
    words.UntilExits: OBEYS_ALONE_WITHIN * LONGER,
    words.UntilRuns: OBEYS_ALONE_WITHIN * LONGER,
}
"""The words that wait for the kernel, each with the seconds after which it says what it saw."""


def seconds(script: Script) -> float:
    """Return the longest that all waits of a script take together: 0 where it has none.

    A deadline that is shorter would end the case before it can say what it saw, or did not see.
    """
    return sum(_SECONDS.get(type(action), 0.0) for action in script)
