"""Processes that leave nothing running, whatever ends us: a pool of them, and commands.

What is judged in a process of the pool boots an emulator, which ends with the process. Threads
have their commands of `Commands`, for what ends us is told to the main thread alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from threading import Lock, current_thread, main_thread
from typing import Any, TypeVar

from vmm.conformance.host.interrupts import terminable, was_told
from vmm.conformance.records.status import Status
from vmm.lab.errors import LabError

T = TypeVar("T")
Words = Sequence[str | os.PathLike[str]]

_PR_SET_PDEATHSIG = 1
_PATIENCE = 10.0
"""Seconds that a process has to take its emulator away."""
_A_COMPILERS = 5.0
"""Seconds that a command has to take away what it has half written: who waits for us waits longer.
"""


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
        try:
            for child in ours:
                child.terminate()
            executor.shutdown(wait=False, cancel_futures=True)
            _end(ours)
        finally:  # told again while they end: now they are killed, or who waits for them hangs
            for child in ours:
                child.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def interruptibly(call: Callable[[], T]) -> T:
    """Call in a process of the pool: being told to end raises KeyboardInterrupt in `call`.

    Then the process ends, whatever `call` made of it. The pool would take that for an answer, and
    the process would wait for more work while a pool that breaks (from Python 3.12 on) waits for
    its end.
    """
    try:
        with terminable():
            try:
                return call()
            finally:
                if was_told():
                    os._exit(Status.INTERRUPTED)
    except KeyboardInterrupt:
        os._exit(Status.INTERRUPTED)


def die_with_parent() -> None:
    """End this process with its parent; the emulator in turn ends with this process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run(command: Words, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, ``started`` as below, and return its status and what it said, as text."""
    with started(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}) as ran:
        said, complained = ran.communicate()
    return subprocess.CompletedProcess(command, ran.returncode, said or "", complained or "")


@contextmanager
def started(
    command: Words,
    *,
    patience: float = _A_COMPILERS,
    **how: Any,
) -> Iterator[subprocess.Popen[str]]:
    """Start a command that leads a group of its own: make, say, and the compilers under it.

    What ends the block ends all of that group: it is told, and killed where it takes too long.
    ``how`` goes to ``subprocess.Popen``.
    """
    plain = {"stdin": subprocess.DEVNULL, "text": True, "errors": "replace", "process_group": 0}
    with _told_later() as tell_now, subprocess.Popen(command, **{**plain, **how}) as process:
        try:
            tell_now()
            yield process
        except BaseException:
            tell(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
            tell(process, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # Popen itself waits a quarter of a second
                process.wait(_PATIENCE)
            raise


def first_error(stderr: str) -> str:
    """Return the first error of what make and its compilers said, or what they said first."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error:|not found|\*\*\*", line)]
    return (errors or lines or ["make said nothing"])[0][:200]


@contextmanager
def _told_later() -> Iterator[Callable[[], None]]:
    """Within: Ctrl-C and SIGTERM wait until the function that is returned is called.

    Between a fork and the block that takes the child away with it, they would leave it behind.
    """
    told: list[int] = []
    handlers: dict[int, Any] = {}

    def tell_now() -> None:
        while handlers:
            signal.signal(*handlers.popitem())
        while told:
            signal.raise_signal(told.pop())

    try:
        if current_thread() is main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    handlers[number] = handler
                    signal.signal(number, lambda number, _: told.append(number))
        yield tell_now
    finally:
        tell_now()


class Commands:
    """What threads have started and what has not ended yet; each has `patience` seconds to end."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._guard = Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    @contextmanager
    def started(self, command: Words, **how: Any) -> Iterator[subprocess.Popen[str]]:
        """Start a command as ``started`` does; :class:`LabError` once all have been ended."""
        running = ExitStack()
        with self._guard:
            if self._ended:
                raise LabError("interrupted")
            process = running.enter_context(started(command, patience=self._patience, **how))
            self._running.add(process)
        try:
            with running:
                yield process
        finally:
            self._running.discard(process)

    def end(self) -> None:
        """Tell all that run to end, and kill what does not; no other begins."""
        with self._guard:
            self._ended = True
            left = list(self._running)
        for process in left:
            tell(process, signal.SIGTERM)  # a shell's & ignores SIGINT
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._patience)
            tell(process, signal.SIGKILL)


@contextmanager
def threads(
    number: int, patience: float = _A_COMPILERS
) -> Iterator[tuple[ThreadPoolExecutor, Commands]]:
    """Return so many threads, and what they start commands by, which end if the block fails."""
    commands = Commands(patience)
    with ThreadPoolExecutor(number) as executor:
        try:
            yield executor, commands
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            commands.end()
            raise


def tell(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to the group that a process leads, if there still is one."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _begin() -> None:
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; we are told


def _end(children: list[BaseProcess]) -> None:
    deadline = time.monotonic() + _PATIENCE
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
