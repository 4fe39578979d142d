"""Did the kernel complain while something ran? Its log and its taint, from a moment on."""

from __future__ import annotations

import os
from pathlib import Path

from vmm.closing import Closing
from vmm.conformance.host.facts import taint_letters
from vmm.conformance.host.foreign import Ours, foreign_taint, why_foreign
from vmm.conformance.host.klog import KernelLog
from vmm.conformance.host.splats import Splat

TAINTED = Path("/proc/sys/kernel/tainted")


class Watch(Closing):
    """A context manager; ``complaints`` tells what came up since it was entered.

    ``blind`` is "" or why the log cannot be watched here; ``foreign`` has what came up of other
    processes' doing so far, one text each: it says nothing of the kernel under test.
    """

    def __init__(self, log: str = "/dev/kmsg", tainted: Path = TAINTED) -> None:
        """Start at this moment; never raises."""
        opened = KernelLog.open_or_reason(log)
        self.blind = opened if isinstance(opened, str) else ""
        self._log = None if isinstance(opened, str) else opened
        self.ours = Ours(os.getpid())
        self.foreign: list[str] = []
        self._tainted, self._theirs = tainted, ""
        self._before = self._taint()

    def complaints(self) -> tuple[str, ...]:
        """Return each new splat as the kernel's lines, and one line for new taint bits.

        Every call goes back to the start for the taint. What other processes did goes to
        ``foreign``; the taint that comes with their splats alone is theirs.
        """
        splats = self._log.poll() if self._log else []
        mine = [each for each in splats if not self._is_foreign(each)]
        new = taint_letters(self._taint() & ~self._before)
        theirs = new if splats and not mine else foreign_taint(new)
        fresh = "".join(letter for letter in theirs if letter not in self._theirs)
        self.foreign += _tainted(fresh)
        self._theirs += fresh
        left = "".join(letter for letter in new if letter not in self._theirs)
        return (*("\n".join(each.lines) for each in mine), *_tainted(left))

    def _is_foreign(self, splat: Splat) -> bool:
        why = why_foreign(splat, self.ours)
        if why:
            self.foreign.append(f"{why}: {splat.first}")
        return why is not None

    def close(self) -> None:
        """Close the log."""
        if self._log:
            self._log.close()

    def _taint(self) -> int:
        try:
            return int(self._tainted.read_text())
        except (OSError, ValueError):
            return 0


def _tainted(letters: str) -> list[str]:
    return [f"the kernel is tainted now: {letters}"] if letters else []
