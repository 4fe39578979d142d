"""The race words on the kernel: installs that stop inside it, vCPUs that are parked there."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from vmm.conformance.kernel.flight import Flight, StuckError
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.kernel.sleepers import Sleepers
from vmm.conformance.kernel.threads import Task
from vmm.conformance.kernel.vcpus import Vcpus
from vmm.conformance.kernel.waits import RETURNS_WITHIN
from vmm.conformance.language import script as words
from vmm.conformance.language.script import Event, blocked, done, never
from vmm.filter import bitmap_bytes
from vmm.ioctl import KvmFile
from vmm.kvm import Vm
from vmm.memory import PAGE, Mapping
from vmm.placed import Missing

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
    | words.Sleep
    | words.Wake
    | words.AwaitSipi
    | words.CloseVm
    | words.CloseVcpu
)


class StalledInstall:
    """An install in flight: its thread, and the page that its bitmap is to lie on."""

    def __init__(self, bitmap: bytes, *, low: bool) -> None:
        """Map the page, still missing."""
        self.page, self.bitmap = Mapping(PAGE, low=low), bitmap
        self.task: Task | None = None


class Race:
    """What a script has in flight in one VM; ``close`` releases all of it, whatever happened."""

    def __init__(self, vm: PooledVm, control: Callable[[], Vm]) -> None:
        """Start with nothing in flight; ``control`` returns a VM for control installs."""
        self.vm, self.flight = vm, Flight(control)
        self.vcpus, self.sleepers = Vcpus(vm, self.flight), Sleepers(vm, self.flight)
        self._bitmaps: list[Mapping] = []
        self._stalls: dict[str, StalledInstall] = {}
        self._meanwhile: dict[str, Task] = {}

    def do(self, action: InFlight) -> Event:  # noqa: PLR0911, PLR0912 - one a word
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
                return self.vcpus.park(action)
            case words.Release():
                return self.vcpus.release(action)
            case words.Spin():
                return self.vcpus.spin(action)
            case words.UntilExits():
                return self.vcpus.until_exits(action)
            case words.UntilRuns():
                return self.vcpus.until_runs(action)
            case words.StopSpin():
                return self.vcpus.stop_spin(action)
            case words.Sleep():
                return self.sleepers.sleep(action)
            case words.Wake():
                return self.sleepers.wake(action)
            case words.AwaitSipi():
                return self.sleepers.await_sipi(action)
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
        stall = self._stalls[action.name] = StalledInstall(bits, low=action.caller == "compat")
        self._bitmaps.append(stall.page)
        if absent:
            stall.task = self.flight.start(lambda: send(None))
            return self.flight.settle(stall.task)
        self.flight.uffd.watch(stall.page)
        missing = Missing(slot or 0, stall.page.address)
        stall.task = self.flight.start(lambda: send(missing))
        return self.flight.settle(stall.task, stall.page.address)

    def resume_install(self, action: words.ResumeInstall) -> Event:
        """Give the bitmap, or take its page away for good; wait for the install."""
        stall = self._stalls[action.name]
        if action.fails:
            stall.page.forbid(0, PAGE)
            self.flight.uffd.wake(stall.page.address)
        else:
            self.flight.uffd.give(stall.page.address, stall.bitmap)
        return self._patiently(stall.task)

    def meanwhile(self, action: words.Meanwhile, work: Callable[[], Event]) -> Event:
        """Do ``work`` in a thread; its event, or blocked."""
        self._meanwhile[action.name] = self.flight.start(work)
        return self.flight.settle(self._meanwhile[action.name])

    def _patiently(self, task: Task | None) -> Event:
        """Return the event of a task; where nothing else is in flight, nothing may block it."""
        if task is None or self.vcpus.parked or self.flight.is_at_work(besides=task):
            return self.flight.settle(task)
        came = task.wait(self.flight.within(RETURNS_WITHIN))
        return (task.event or never) if came else blocked

    # --- the end ----------------------------------------------------------------------------

    def move(self, vm: PooledVm) -> None:
        """Go on in another VM."""
        self.vm = vm
        self.vcpus.move(vm)
        self.sleepers.move(vm)

    @property
    def in_flight(self) -> bool:
        """Whether a thread of the script is still at work."""
        return bool(self.vcpus.spinners) or self.flight.is_at_work()

    def close(self) -> None:
        """Release whoever waits and wait for every thread; ``StuckError`` if one does not come."""
        came = [*self.vcpus.stop(), *self.sleepers.stop(), *self.flight.close()]
        if not all(came):
            raise StuckError(f"{came.count(False)} thread(s) do not come back from the kernel")
        for page in self._bitmaps:
            page.close()
