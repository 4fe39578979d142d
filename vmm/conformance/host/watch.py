"""Did the kernel complain while something ran? Its log and its taint, from a moment on."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from vmm.conformance.host.facts import taint_letters
from vmm.conformance.host.klog import KernelLog

TAINTED = Path("/proc/sys/kernel/tainted")


class Watch:
    """A context manager; ``complaints`` tells what came up since it was entered.

    ``blind`` is "" or why the log cannot be watched here.
    """

    def __init__(self, log: str = "/dev/kmsg", tainted: Path = TAINTED) -> None:
        """Start at this moment; never raises."""
        opened = KernelLog.open_or_reason(log)
        self.blind = opened if isinstance(opened, str) else ""
        self._log = None if isinstance(opened, str) else opened
        self._tainted = tainted
        self._before = self._taint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def complaints(self) -> tuple[str, ...]:
        """Return each new splat as the kernel's lines, and one line for new taint bits."""
        splats = self._log.poll() if self._log else []
        new = self._taint() & ~self._before
        tainted = [f"the kernel is tainted now: {taint_letters(new)}"] if new else []
        return (*("\n".join(each.lines) for each in splats), *tainted)

    def close(self) -> None:
        """Close the log."""
        if self._log:
            self._log.close()

    def _taint(self) -> int:
        try:
            return int(self._tainted.read_text())
        except (OSError, ValueError):
            return 0
