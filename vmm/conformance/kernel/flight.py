"""What a script has in flight in the kernel: threads, and the pages that they may wait for.

Nothing here waits for time to pass. A thread is *stalled* when userfaultfd reports that the kernel
wants its page; it is *blocked* when the kernel shows it asleep in its ioctl and whole installs of
another VM, each with a grace period of its own, began and ended meanwhile: what slows one down
slows the others too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vmm.conformance.kernel.patience import Patience
from vmm.conformance.kernel.pool import OFF
from vmm.conformance.kernel.threads import GLANCE, Task
from vmm.conformance.kernel.waits import DEADLINE, LONGER
from vmm.conformance.language.script import Event, blocked, never, stalled
from vmm.kvm import Vm
from vmm.placed import PlacedFilter
from vmm.uffd import Userfaultfd

CONTROLS = 5
"""Whole installs of another VM that a thread must sleep through to be called blocked.

They follow one another without a pause, as grace periods that may not be expedited do
(``srcutree.exp_holdoff``), and go on for at least ``CONTROLLED`` seconds: several times what the
longest of them takes.
"""
CONTROLLED = 0.06
LONGER_CONTROLLED = 20
"""How many times as long is controlled where ``blocked`` is not expected."""


class StuckError(Exception):
    """A thread does not come back from the kernel: this process cannot go on."""


class DisturbedError(Exception):
    """A signal that nobody here sent took a parked vCPU out of the kernel: the race is void."""


class Flight:
    """The threads of one script, and the userfaultfd that their pages lie on.

    ``patient`` says that ``blocked`` or ``never`` would be held against the kernel: it takes a
    longer wait to say one then.
    """

    def __init__(self, control: Callable[[], Vm]) -> None:
        """Start with nothing in flight; ``control`` returns a VM for control installs."""
        self._control, self.patient = control, False
        self._uffd: Userfaultfd | None = None
        self._faults: set[int] = set()
        self._tasks: list[Task] = []

    @property
    def uffd(self) -> Userfaultfd:
        """The userfaultfd of this script."""
        if self._uffd is None:
            self._uffd = Userfaultfd()
        return self._uffd

    def start(self, work: Callable[[], Event]) -> Task:
        """Do ``work`` in a thread."""
        self._tasks.append(Task(work))
        return self._tasks[-1]

    def is_at_work(self, besides: Task | None = None) -> bool:
        """Say whether a thread is still at work, one of them aside."""
        return any(not task.wait(0) for task in self._tasks if task is not besides)

    def fault_at(self, page: int, seconds: float, *others: int) -> bool:
        """Wait for a fault or for another descriptor; say whether ``page`` is wanted by now."""
        self.uffd.wait(seconds, *others)
        while (fault := self.uffd.read()) is not None:
            self._faults.add(fault)
        return page in self._faults

    def settle(self, task: Task | None, page: int = 0) -> Event:
        """Return the task's event once it has ended, ``blocked`` once it is seen to be.

        An install that wants ``page`` is ``stalled``. Whoever sleeps for a page has reported it
        before, so a look after the sleep was seen does not miss it, however slow the machine is.
        """
        if task is None:
            return never
        patience = Patience(DEADLINE)
        while not task.is_asleep_in_an_ioctl() and patience:
            if task.wait(GLANCE):
                return task.event or never
        if page and self.fault_at(page, 0):
            return stalled
        control, off = self._control(), PlacedFilter(OFF)
        times = LONGER_CONTROLLED if self.patient else 1
        done_by, count = time.monotonic() + CONTROLLED * times, 0
        while not task.wait(0) and (count < CONTROLS * times or time.monotonic() < done_by):
            control.set_msr_filter_at(off.address)
            count += 1
        if task.wait(0):
            return task.event or never
        if not task.is_asleep_in_an_ioctl():
            return self.settle(task, page)
        return stalled if page and self.fault_at(page, 0) else blocked

    def within(self, seconds: float) -> float:
        """Return how long is waited where ``seconds`` are enough."""
        return seconds * (LONGER if self.patient else 1)

    def close(self) -> list[bool]:
        """Let go whoever waits for a page; say of every thread whether it came back."""
        if self._uffd:
            self._uffd.close()  # whoever waits for a page goes on with zeroes
        return [task.close(DEADLINE) for task in self._tasks]

    def must_be_undisturbed(self) -> None:
        """Raise ``DisturbedError`` if a signal took a parked vCPU out of the kernel."""
        for task in self._tasks:
            if isinstance(task.failure, DisturbedError):
                raise task.failure
