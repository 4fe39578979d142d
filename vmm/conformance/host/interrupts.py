"""SIGTERM as Ctrl-C: what ends us lets us take away what we have started."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import NoReturn


@contextmanager
def terminable() -> Iterator[None]:
    """Within: SIGTERM raises KeyboardInterrupt in the main thread, as Ctrl-C does.

    It counts once: timeout(1) sends it to a process and to its group, and the second must not stop
    us from taking things away. Where somebody ignores or handles it already, that stays so.
    """
    is_ours = current_thread() is main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, _again)
    raise KeyboardInterrupt


def _again(*_: object) -> None:
    """Do nothing; and unlike SIG_IGN, that is not what commands inherit which take things away."""
