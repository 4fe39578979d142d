"""Whether an emulator still lives: one that uses no CPU, and has not been stopped, never will."""

from __future__ import annotations

from pathlib import Path

from vmm.conformance.kernel.patience import Patience

FROZEN = 120.0
"""Seconds without any CPU time after which nothing more is to come: a guest that idles has its
timers, and each costs its emulator some."""

_STATE, _USER, _SYSTEM = 0, 11, 12
"""The fields of /proc/PID/stat after the name (proc_pid_stat(5) counts from the pid: 3, 14, 15)."""


class Pulse:
    """The CPU time of one process, looked at again and again."""

    def __init__(self, pid: int) -> None:
        """Start now."""
        self._path = Path(f"/proc/{pid}/stat")
        self._used = 0
        self._patience = Patience(FROZEN)

    def is_frozen(self) -> bool:
        """Return whether it has used no CPU for ``FROZEN`` seconds, without having been stopped."""
        try:
            fields = self._path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended, which others notice
            return False
        used = int(fields[_USER]) + int(fields[_SYSTEM])
        if used != self._used or fields[_STATE] in ("T", "t"):  # a debugger may hold it for hours
            self._used, self._patience = used, Patience(FROZEN)
        return not self._patience
