"""Several machines at once, each in a thread, and one thread that is told what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event

from vmm.conformance.host import cpus
from vmm.conformance.host.processes import memory_available
from vmm.lab.machines.emulation import Listener
from vmm.lab.machines.machine import GUEST_BYTES, LabResult

Boot = Callable[[Listener], LabResult]
_TICK = 0.1


class _Ended(Exception):
    """Ends the boot in whose thread it is raised."""


def abreast(boots: Sequence[Boot], listeners: Sequence[Listener]) -> list[LabResult]:
    """Have all ``boots`` done at once, and tell the listener of each here, in this thread.

    ``tick`` of the first listener stands for all. Whatever ends this early (Ctrl-C, what a listener
    or one of the boots raises) ends every machine before it is raised.
    """
    if len(boots) == 1:
        return [boots[0](listeners[0])]
    told: SimpleQueue[Callable[[], None]] = SimpleQueue()
    over = Event()
    with ThreadPoolExecutor(len(boots)) as pool:
        futures = [
            pool.submit(boot, _relay(listener, told, over))
            for boot, listener in zip(boots, listeners, strict=True)
        ]
        try:
            _tell(told, futures, listeners[0].tick)
        finally:
            over.set()
        return [future.result() for future in futures]


def _relay(listener: Listener, told: SimpleQueue[Callable[[], None]], over: Event) -> Listener:
    def tick() -> None:
        if over.is_set():
            raise _Ended

    return Listener(
        lambda text: told.put(partial(listener.line, text)),
        lambda seconds: told.put(partial(listener.start, seconds)),
        tick,
    )


def _tell(
    told: SimpleQueue[Callable[[], None]],
    futures: Sequence[Future[LabResult]],
    tick: Callable[[], None],
) -> None:
    """Pass on what is told until all boots are over, or one of them failed."""
    ticked = time.monotonic()
    while not all(future.done() for future in futures):
        with suppress(Empty):
            told.get(timeout=_TICK)()
        if time.monotonic() - ticked >= _TICK:
            tick()
            ticked = time.monotonic()
        for future in futures:
            if future.done():
                future.result()
    with suppress(Empty):
        while True:
            told.get_nowait()()


def carried() -> int:
    """Return how many guests this machine can carry at once: by its CPUs and free memory."""
    return max(1, min(cpus.default_jobs(), memory_available() // GUEST_BYTES))
