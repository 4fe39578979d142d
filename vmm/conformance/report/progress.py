"""Progress on stderr: a live line on a terminal; elsewhere lines that come ever more seldom.

A log that is kept is read for what happened: minutes of work are a dozen lines in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TextIO

from vmm.conformance.records.plain import plain
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.verdict import Verdict

LIVE_SECONDS, HEARTBEAT_SECONDS, SELDOM_SECONDS = 0.1, 5.0, 60.0


class Progress:
    """What is done, failed, skipped and running now.

    ``interval`` is how many seconds it wants to pass at most between two calls of ``tick``.
    """

    def __init__(self, stream: TextIO, total: int) -> None:
        """Show the progress towards ``total`` cases on ``stream``."""
        self.stream, self.total = stream, total
        self.live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.interval = LIVE_SECONDS if self.live else HEARTBEAT_SECONDS
        self.done = self.failed = self.skipped = 0
        self._shown = False
        self._pause = self.interval
        self._last = time.monotonic()

    def case(self, record: CaseRecord) -> None:
        """Count a case that has ended."""
        self.done += 1
        self.failed += record["verdict"].is_bad
        self.skipped += record["verdict"] == Verdict.SKIP

    def tick(self, running: Sequence[str]) -> None:
        """Show where the run is, unless that was done a moment ago."""
        text = f"{self.done}/{self.total} done, {self.failed} failed, {self.skipped} skipped"
        text += f"; running {', '.join(running)}" if running else ""
        self.note(text)

    def note(self, text: str) -> None:
        """Show ``text``, unless something was shown a moment ago."""
        now = time.monotonic()
        if now - self._last >= self._pause:
            self._last = now
            self._show(plain(text))
            if not self.live:
                self._pause = min(2 * self._pause, SELDOM_SECONDS)

    def clear(self) -> None:
        """Take the live line away, so that other output can follow."""
        if self._shown:
            self._write("\r\x1b[K")
        self._shown = False

    def _show(self, text: str) -> None:
        if self.live:
            self._write(f"\r\x1b[K{text[: self._width() - 1]}")
            self._shown = True
        else:
            self._write(f"msrward: {text}\n")

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        except OSError:
            return 80

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            self.live = False  # stderr is gone: the results still count
