"""The race words on the kernel: installs that stop inside it, vCPUs that are parked there.

Nothing here waits for time to pass. An install is *stalled* when userfaultfd reports that the
kernel wants its bitmap, a vCPU is *parked* when userfaultfd reports its page; a thread is *blocked*
when the kernel shows it asleep in its ioctl and whole installs of another VM, each with a grace
period of its own, began and ended meanwhile: what slows one down slows the others too.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import assert_never

from vmm import x86
from vmm.conformance.kernel.patience import Patience
from vmm.conformance.kernel.pool import OFF, PooledVm
from vmm.conformance.kernel.program import Program
from vmm.conformance.kernel.threads import GLANCE, Spinner, Task
from vmm.conformance.kernel.waits import (
    DEADLINE,
    LONGER,
    OBEYS_ALONE_WITHIN,
    OBEYS_WITHIN,
    RETURNS_WITHIN,
)
from vmm.conformance.language import script as words
from vmm.conformance.language.script import (
    REPLY,
    Event,
    Lost,
    blocked,
    done,
    never,
    parked,
    ran,
    released,
    spinning,
    stalled,
    stopped,
)
from vmm.filter import bitmap_bytes
from vmm.ioctl import KvmFile
from vmm.kvm import Vm
from vmm.memory import PAGE, GuestMemory, Mapping
from vmm.placed import Missing, PlacedFilter
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
PARK_PAGES = 16


InFlight = (
    words.ResumeInstall
    | words.AwaitInstall
    | words.AwaitMeanwhile
    | words.Park
    | words.Release
    | words.Spin
    | words.UntilExits
    | words.UntilRuns
    | words.StopSpin
    | words.CloseVm
    | words.CloseVcpu
)


class StuckError(Exception):
    """A thread does not come back from the kernel: this process cannot go on."""


class DisturbedError(Exception):
    """A signal that nobody here sent took a parked vCPU out of the kernel: the race is void."""


class Stall:
    """An install in flight: its thread, and the page that its bitmap is to lie on."""

    def __init__(self, bitmap: bytes, *, low: bool) -> None:
        """Map the page, still missing."""
        self.page, self.bitmap = Mapping(PAGE, low=low), bitmap
        self.task: Task | None = None


class Race:
    """What a script has in flight in one VM; ``close`` releases all of it, whatever happened."""

    def __init__(self, vm: PooledVm, control: Callable[[], Vm]) -> None:
        """Start with nothing in flight; ``control`` returns a VM for control installs.

        ``patient`` says that ``blocked`` or ``never`` would be held against the kernel: it takes a
        longer wait to say one then.
        """
        self.vm, self._control, self.patient = vm, control, False
        self._uffd: Userfaultfd | None = None
        self._faults: set[int] = set()
        self._tasks: list[Task] = []
        self._bitmaps: list[Mapping] = []
        self._stalls: dict[str, Stall] = {}
        self._meanwhile: dict[str, Task] = {}
        self._parked: dict[int, tuple[int, Task]] = {}
        self._park_area: GuestMemory | None = None
        self._pages = 0
        self._spinners: dict[int, Spinner] = {}

    @property
    def uffd(self) -> Userfaultfd:
        """The userfaultfd of this race."""
        if self._uffd is None:
            self._uffd = Userfaultfd()
        return self._uffd

    def do(self, action: InFlight) -> Event:  # noqa: PLR0911 - one a word
        """Return the event of an action on what the script has in flight, or of a new vCPU there.

        ``begin_install`` and ``meanwhile`` are told what to do in their thread.
        """
        match action:
            case words.ResumeInstall():
                return self.resume_install(action)
            case words.AwaitInstall():
                return self._patiently(self._stalls[action.name].task)
            case words.AwaitMeanwhile():
                return self._patiently(self._meanwhile[action.name])
            case words.Park():
                return self.park(action)
            case words.Release():
                return self.release(action)
            case words.Spin():
                return self.spin(action)
            case words.UntilExits():
                return self.until_exits(action)
            case words.UntilRuns():
                return self.until_runs(action)
            case words.StopSpin():
                return self.stop_spin(action)
            case words.CloseVm():
                KvmFile.close(self.vm.vm)  # the descriptor only: the vCPUs go on
                return done
            case words.CloseVcpu():
                self.vm.vcpu(action.vcpu).close()
                return done
            case _:
                assert_never(action)

    # --- installs ---------------------------------------------------------------------------

    def begin_install(
        self, action: words.BeginInstall, send: Callable[[Missing | None], Event]
    ) -> Event:
        """Start ``send`` in a thread; wait until it is stalled, blocked or back."""
        slot = action.stall_at
        absent = slot is None or slot >= len(action.filter.ranges)
        bits = b"" if absent else bitmap_bytes(action.filter.ranges[slot or 0])
        stall = self._stalls[action.name] = Stall(bits, low=action.caller == "compat")
        self._bitmaps.append(stall.page)
        if absent:
            stall.task = self._start(lambda: send(None))
            return self._settle(stall.task)
        self.uffd.watch(stall.page)
        missing = Missing(slot or 0, stall.page.address)
        stall.task = self._start(lambda: send(missing))
        return self._settle(stall.task, stall.page.address)

    def resume_install(self, action: words.ResumeInstall) -> Event:
        """Give the bitmap, or take its page away for good; wait for the install."""
        stall = self._stalls[action.name]
        if action.fails:
            stall.page.forbid(0, PAGE)
            self.uffd.wake(stall.page.address)
        else:
            self.uffd.give(stall.page.address, stall.bitmap)
        return self._patiently(stall.task)

    def meanwhile(self, action: words.Meanwhile, work: Callable[[], Event]) -> Event:
        """Do ``work`` in a thread; its event, or blocked."""
        self._meanwhile[action.name] = self._start(work)
        return self._settle(self._meanwhile[action.name])

    # --- vCPUs ------------------------------------------------------------------------------

    def park(self, action: words.Park) -> Event:
        """Run the vCPU into a page that is not there."""
        page = x86.LATER + PAGE * self._pages
        self._pages += 1
        program = self.vm.program(action.vcpu)
        program.load_touch(page)
        at = self._area().address + page - x86.LATER
        task = self._start(lambda: _ran_to_its_end(program))
        self._parked[action.vcpu] = at, task
        patience = Patience(DEADLINE)
        while patience and not task.wait(0):
            if self._fault_at(at, patience.slice(), task.ended):
                return parked
        return task.event or never

    def release(self, action: words.Release) -> Event:
        """Give the page; wait until the guest went on to its program's end."""
        at, task = self._parked.pop(action.vcpu)
        self.uffd.give(at)
        if not task.wait(DEADLINE):
            raise StuckError(f"vCPU {action.vcpu} has its page and does not come back from KVM_RUN")
        return task.event or never

    def spin(self, action: words.Spin) -> Event:
        """Start the guest's loop and wait until it went round."""
        program = self.vm.program(action.access.vcpu)
        program.load_loop(action.access)
        spinner = Spinner(program.vcpu, program.rounds, REPLY)
        self._spinners[action.access.vcpu] = spinner
        return spinning if spinner.until(lambda: program.rounds() > 0, DEADLINE) else never

    def until_exits(self, action: words.UntilExits) -> Event:
        """R72: wait for an exit that is newer than this call."""
        spinner = self._spinners[action.vcpu]
        enough = spinner.exits() + 2  # the first may have left the guest before this call
        seen = spinner.until(lambda: spinner.exits() >= enough, self._within(obeys_within()))
        return spinner.last_exit() if seen else never

    def until_runs(self, action: words.UntilRuns) -> Event:
        """R72: wait until the loop goes round several times without an exit.

        The guest goes on between two looks, so the exits are read outside of the rounds: before
        the first look at these, after the last.
        """
        spinner = self._spinners[action.vcpu]
        window = [spinner.exits(), spinner.rounds()]

        def runs() -> bool:
            rounds = spinner.rounds()
            if spinner.exits() != window[0]:
                window[:] = spinner.exits(), spinner.rounds()
                return False
            return rounds >= window[1] + 4

        return ran if spinner.until(runs, self._within(obeys_within())) else never

    def stop_spin(self, action: words.StopSpin) -> Event:
        """End the guest's loop."""
        if not self._spinners.pop(action.vcpu).stop(DEADLINE):
            raise StuckError(f"vCPU {action.vcpu} does not come back from KVM_RUN when kicked")
        return stopped

    # --- the end ----------------------------------------------------------------------------

    @property
    def in_flight(self) -> bool:
        """Whether a thread of the script is still at work."""
        return bool(self._spinners) or not all(task.wait(0) for task in self._tasks)

    def close(self) -> None:
        """Release whoever waits and wait for every thread; ``StuckError`` if one does not come."""
        came = [spinner.stop(DEADLINE) for spinner in self._spinners.values()]
        if self._uffd:
            self._uffd.close()  # whoever waits for a page goes on with zeroes
        came += [task.close(DEADLINE) for task in self._tasks]
        if not all(came):
            raise StuckError(f"{came.count(False)} thread(s) do not come back from the kernel")
        for page in self._bitmaps:
            page.close()

    def must_be_undisturbed(self) -> None:
        """Raise ``DisturbedError`` if a signal took a parked vCPU out of the kernel."""
        for task in self._tasks:
            if isinstance(task.failure, DisturbedError):
                raise task.failure

    # --- inside -----------------------------------------------------------------------------

    def _start(self, work: Callable[[], Event]) -> Task:
        self._tasks.append(Task(work))
        return self._tasks[-1]

    def _fault_at(self, page: int, seconds: float, *others: int) -> bool:
        self.uffd.wait(seconds, *others)
        while (fault := self.uffd.read()) is not None:
            self._faults.add(fault)
        return page in self._faults

    def _settle(self, task: Task | None, page: int = 0) -> Event:
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
        if page and self._fault_at(page, 0):
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
            return self._settle(task, page)
        return stalled if page and self._fault_at(page, 0) else blocked

    def _patiently(self, task: Task | None) -> Event:
        """Return the event of a task; where nothing else is in flight, nothing may block it."""
        others = self._parked or any(not each.wait(0) for each in self._tasks if each is not task)
        if task is None or others:
            return self._settle(task)
        came = task.wait(self._within(RETURNS_WITHIN))
        return (task.event or never) if came else blocked

    def _within(self, seconds: float) -> float:
        return seconds * (LONGER if self.patient else 1)

    def move(self, vm: PooledVm) -> None:
        """Go on in another VM, where no page is watched yet."""
        self.vm, self._park_area = vm, None

    def _area(self) -> GuestMemory:
        if self._park_area is None:
            self._park_area = self.vm.vm.add_memory(x86.LATER, PARK_PAGES * PAGE)
            self.uffd.watch(self._park_area)
        return self._park_area


def obeys_within() -> float:
    """Return the seconds within which a spinning vCPU must be seen to obey, on this host."""
    return OBEYS_WITHIN if len(os.sched_getaffinity(0)) > 1 else OBEYS_ALONE_WITHIN


def _ran_to_its_end(program: Program) -> Event:
    program.vcpu.kvm_run.kvm_valid_regs = 0
    result = program.enter()
    if result == -errno.EINTR:
        raise DisturbedError("KVM_RUN of a parked vCPU: EINTR")
    ended = program.how_ended(result)
    return Lost(ended) if ended else released
