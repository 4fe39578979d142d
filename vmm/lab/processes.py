"""Work for several processes at once: a pool that leaves nothing running, whatever ends it.

What is judged in such a process boots an emulator, which ends with the process.
"""

from __future__ import annotations

import ctypes
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from typing import TypeVar

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_PATIENCE = 10.0
"""Seconds that a process has to take its emulator away."""


@contextmanager
def pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Return a pool of `jobs` processes, which are told to end what they do if the block fails.

    Give it no more work than it has processes: what waits in its queue would still begin.
    """
    others = active_children()
    executor = ProcessPoolExecutor(jobs, get_context("fork"), _begin)
    try:
        yield executor
    except BaseException:
        ours = [child for child in active_children() if child not in others]
        for child in ours:
            child.terminate()
        executor.shutdown(wait=False, cancel_futures=True)
        _end(ours)
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def interruptibly(call: Callable[[], T]) -> T:
    """Call in a process of the pool: being told to end raises KeyboardInterrupt in `call`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return call()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def die_with_parent() -> None:
    """End this process with its parent; the emulator in turn ends with this process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _begin() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; we are told


def _end(children: list[BaseProcess]) -> None:
    deadline = time.monotonic() + _PATIENCE
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        child.kill()
