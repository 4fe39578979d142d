"""Signals: SIGTERM is as Ctrl-C, and none is kept off by whoever has started us."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import NoReturn


def take_signals() -> None:
    """Undo what a process inherits: signals that are blocked, and SIGCHLD that is ignored.

    No kick gets through the one, and a child leaves no status under the other (ECHILD). Other
    signals that are ignored stay so: ``nohup`` means it.
    """
    if current_thread() is not main_thread():
        return
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


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


def was_told() -> bool:
    """Say, within :func:`terminable`, whether SIGTERM has come: what it raised may be caught."""
    return signal.getsignal(signal.SIGTERM) is _again


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, _again)
    raise KeyboardInterrupt


def _again(*_: object) -> None:
    """Do nothing; and unlike SIG_IGN, that is not what commands inherit which take things away."""
