"""Who does calls of module-level functions: processes here, or the workers of a cluster.

Either way a call is a future, has a process of its own, and ends with whoever asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

from vmm.lab import alone, processes
from vmm.lab.cluster import cluster

T = TypeVar("T")


class Workers(Protocol):
    """An executor, and how to wait for what it does."""

    @property
    def jobs(self) -> int:
        """How many calls at once now."""

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        """Have ``fn(*args)`` called."""

    def first_of(self, running: Collection[Future[T]]) -> Collection[Future[T]]:
        """Wait until one or more are done; alone.Unreachable if nobody is there who could."""

    def result(self, done: Future[T]) -> T:
        """Return what a call returned; alone.Died if who did it ended without an answer."""


class _Here:
    """Processes of this machine, in one pool until one of them dies, which ends the others."""

    def __init__(self, jobs: int, stack: ExitStack) -> None:
        self.jobs = jobs
        self._stack = stack
        self._pool: Executor | None = None

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        if self._pool is None:
            self._pool = self._stack.enter_context(processes.pool(self.jobs))
        return self._pool.submit(_interruptibly, fn, args)

    def first_of(self, running: Collection[Future[T]]) -> Collection[Future[T]]:
        return wait(running, return_when=FIRST_COMPLETED).done

    def result(self, done: Future[T]) -> T:
        try:
            return done.result()
        except BrokenProcessPool:
            if self._pool:
                self._pool.shutdown()  # its thread would run beside the fork of the next
            self._pool = None
            raise alone.Died("the process that judged it died") from None


def _interruptibly(fn: Callable[..., T], args: tuple[Any, ...]) -> T:
    return processes.interruptibly(lambda: fn(*args))


@contextmanager
def here(jobs: int) -> Iterator[Workers]:
    """Open so many processes; what is not done when the block fails is ended.

    Give them no more than `jobs` calls at once.
    """
    with ExitStack() as stack:
        yield _Here(jobs, stack)


@contextmanager
def of(address: str | None, jobs: int) -> Iterator[Workers]:
    """Open the workers of the cluster at `address`, or without one `jobs` processes here."""
    with here(jobs) if address is None else cluster(address) as found:
        yield found
