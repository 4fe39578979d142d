"""The workers of a Dask cluster, as an executor: what ``--on ADDRESS`` names.

Dask has the work of a worker that died done again; here it is seen to that both sides run the same
msrward, and that what goes wrong is one line.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from vmm.lab import alone
from vmm.lab.errors import LabError

T = TypeVar("T")

_CONNECT = 10.0
_SETTINGS = {
    "distributed.admin.large-graph-warning-threshold": "1GiB",  # a kernel's image goes along
    "distributed.comm.timeouts.connect": f"{_CONNECT}s",
}
_FAREWELL = 1.0
"""Seconds that a scheduler that has gone is looked for, to end what its workers do for us."""
_LOGS = ("distributed", "distributed.client")  # Dask gives each a level of its own
_TICK = 2.0
_WORKERLESS = 60.0
"""Seconds without any worker that end a run: a worker that is started again takes less."""
_WHO = "__import__('vmm.lab.alone', fromlist=['']).identity()"
_STOP = "__import__('vmm.lab.alone', fromlist=['']).stop({!r})"


class Cluster(Executor):
    """Does calls of module-level functions on the workers, each in a process of its own there."""

    def __init__(self, address: str, client: Any) -> None:
        """Take a client that is connected to the scheduler at `address`."""
        self.address = address
        self._client = client
        self._inner = client.get_executor(pure=False)
        self._run = uuid.uuid4().hex

    @property
    def jobs(self) -> int:
        """How many calls the workers do at once now: one for each of their threads."""
        return sum(self._reached(self._client.nthreads).values())

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have ``fn(*args)`` called by a worker."""
        assert not kwargs, "only positional arguments go to a worker"
        ours = (alone.identity(), self._run, fn, args)
        submitted: Future[T] = self._reached(lambda: self._inner.submit(alone.call, *ours))
        return submitted

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; with `cancel_futures` what runs is told to end."""
        if cancel_futures:
            self.stop()
        self._inner.shutdown(wait=wait and not cancel_futures)

    def stop(self) -> None:
        """Take back what waits, and have the workers end what they do for us."""
        with suppress(Exception):  # a scheduler that is gone has nothing of ours any more
            self._client.rpc.timeout = _FAREWELL
            self._inner.shutdown(wait=False)
            self._client.run(eval, _STOP.format(self._run), on_error="ignore")

    def first_of(self, running: Collection[Future[T]]) -> set[Future[T]]:
        """Wait until one or more are done; Unreachable if nobody is there who could."""
        seen = time.monotonic()
        while not (done := wait(running, _TICK, return_when=FIRST_COMPLETED).done):
            if self.jobs:
                seen = time.monotonic()
            elif time.monotonic() - seen > _WORKERLESS:
                raise alone.Unreachable(
                    f"{self.address} has had no worker for {_WORKERLESS:.0f} s: start one with"
                    f" `dask worker {self.address}`; --resume goes on"
                )
        return done

    def result(self, done: Future[T]) -> T:
        """Return what a call returned; alone.Died if its workers died again and again."""
        try:
            return done.result()
        except CancelledError:
            raise self._gone() from None
        except LabError:
            raise
        except Exception as error:
            if type(error).__name__ == "KilledWorker":
                raise alone.Died("the workers that judged it died, one after the other") from None
            raise LabError(f"{self.address}: {_line(error)}") from None

    def require_same(self) -> None:
        """LabError unless there are workers, all with this very msrward."""
        told = self._reached(lambda: self._client.run(eval, _WHO, on_error="return"))
        if not told:
            start = f"start one with `dask worker {self.address}`"
            raise LabError(f"the scheduler {self.address} has no worker: {start}")
        for worker, theirs in told.items():
            if theirs != alone.identity():
                has = theirs if isinstance(theirs, str) else f"missing ({_line(theirs)})"
                raise alone.Differs(
                    f"msrward is {has} at the worker {worker} and {alone.identity()} here:"
                    " install the same on both"
                )

    def _reached(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (OSError, TimeoutError, RuntimeError, CancelledError):
            raise self._gone() from None

    def _gone(self) -> LabError:
        return alone.Unreachable(f"the scheduler {self.address} went away; --resume goes on")


@contextmanager
def cluster(address: str) -> Iterator[Cluster]:
    """Connect to a scheduler; what is not done when the block fails is ended.

    LabError says why it cannot be: no ``distributed`` here, nobody there, another msrward.
    """
    with _connected(address) as client:
        found = Cluster(address, client)
        try:
            found.require_same()
            yield found
        except BaseException:
            found.stop()
            raise


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    try:
        import dask
        import distributed
    except ImportError as error:
        mend = "pip install 'msrward[fleet]' here and where the workers are"
        raise LabError(f"--on needs distributed, which is not here ({error}): {mend}") from None
    for log in _LOGS:  # what matters is said in one line
        logging.getLogger(log).setLevel(logging.CRITICAL)
    with dask.config.set(_SETTINGS):
        try:
            client = distributed.Client(address, timeout=_CONNECT, set_as_default=False)
        except (OSError, ValueError, TimeoutError, RuntimeError) as error:
            example = "--on takes one such as tcp://127.0.0.1:8786, and `dask scheduler` starts one"
            raise LabError(f"no scheduler at {address} ({_line(error)}): {example}") from None
        try:
            yield client
        finally:
            with suppress(Exception):  # one that went away closes badly, and that was said
                client.close(timeout=_CONNECT)


def _line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
