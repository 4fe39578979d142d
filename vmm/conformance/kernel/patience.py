"""Deadlines in the time that this process had: stopped, it waits for nobody."""

from __future__ import annotations

import select
import threading
import time

SLICE = 0.1
"""Seconds of one wait, after which the clock is looked at again."""

MOST = 5 * SLICE
"""What two looks count as at most: more passed only because nobody here could run.

SIGSTOP, Ctrl-Z, the freezer, a paused VM and a cgroup without quota stop the guest, and so the
event that is waited for, with the waiting.
"""


class Patience:
    """So many seconds, of which those do not count in which the process was stopped."""

    def __init__(self, seconds: float) -> None:
        """Start now."""
        self.left = seconds
        self._last = time.monotonic()

    def __bool__(self) -> bool:
        """Say whether some of it is left."""
        now = time.monotonic()
        self.left -= min(now - self._last, MOST)
        self._last = now
        return self.left > 0

    def slice(self) -> float:
        """Return the seconds to wait before the next look: 0 when nothing is left."""
        return max(0.0, min(self.left, SLICE))


def joined(thread: threading.Thread, patience: Patience) -> bool:
    """Wait for a thread as long as the patience lasts, and say whether it ended."""
    while thread.is_alive() and patience:
        thread.join(patience.slice())
    return not thread.is_alive()


def readable(descriptor: int, patience: Patience) -> bool:
    """Wait for a descriptor as long as the patience lasts, and say whether it can be read."""
    while patience:
        if select.select([descriptor], [], [], patience.slice())[0]:
            return True
    return False
