"""vCPUs that threads run: parked inside the kernel on a page, or spinning in a loop of accesses.

A vCPU is *parked* when userfaultfd reports its page.
"""

from __future__ import annotations

import errno
import os

from vmm import x86
from vmm.conformance.kernel.flight import DisturbedError, Flight, StuckError
from vmm.conformance.kernel.patience import Patience
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.kernel.program import Program
from vmm.conformance.kernel.threads import Spinner, Task
from vmm.conformance.kernel.waits import DEADLINE, OBEYS_ALONE_WITHIN, OBEYS_WITHIN
from vmm.conformance.language import script as words
from vmm.conformance.language.script import (
    REPLY,
    Event,
    Lost,
    never,
    parked,
    ran,
    released,
    spinning,
    stopped,
)
from vmm.memory import PAGE, GuestMemory

PARK_PAGES = 16


class Vcpus:
    """The vCPUs of one VM that are in flight: by number, where each is parked, and who spins."""

    def __init__(self, vm: PooledVm, flight: Flight) -> None:
        """Start with none; their threads are in ``flight``."""
        self.vm, self.flight = vm, flight
        self.parked: dict[int, tuple[int, Task]] = {}
        self.spinners: dict[int, Spinner] = {}
        self._park_area: GuestMemory | None = None
        self._pages = 0

    def park(self, action: words.Park) -> Event:
        """Run the vCPU into a page that is not there."""
        page = x86.LATER + PAGE * self._pages
        self._pages += 1
        program = self.vm.program(action.vcpu)
        program.load_touch(page)
        at = self._area().address + page - x86.LATER
        task = self.flight.start(lambda: _ran_to_its_end(program))
        self.parked[action.vcpu] = at, task
        patience = Patience(DEADLINE)
        while patience and not task.wait(0):
            if self.flight.fault_at(at, patience.slice(), task.ended):
                return parked
        return task.event or never

    def release(self, action: words.Release) -> Event:
        """Give the page; wait until the guest went on to its program's end."""
        at, task = self.parked.pop(action.vcpu)
        self.flight.uffd.give(at)
        if not task.wait(DEADLINE):
            raise StuckError(f"vCPU {action.vcpu} has its page and does not come back from KVM_RUN")
        return task.event or never

    def spin(self, action: words.Spin) -> Event:
        """Start the guest's loop and wait until it went round."""
        program = self.vm.program(action.access.vcpu)
        program.load_loop(action.access)
        spinner = Spinner(program.vcpu, program.rounds, REPLY)
        self.spinners[action.access.vcpu] = spinner
        return spinning if spinner.until(lambda: program.rounds() > 0, DEADLINE) else never

    def until_exits(self, action: words.UntilExits) -> Event:
        """R72: wait for an exit that is newer than this call."""
        spinner = self.spinners[action.vcpu]
        enough = spinner.exits() + 2  # the first may have left the guest before this call
        seen = spinner.until(lambda: spinner.exits() >= enough, self.flight.within(obeys_within()))
        return spinner.last_exit() if seen else never

    def until_runs(self, action: words.UntilRuns) -> Event:
        """R72: wait until the loop goes round several times without an exit.

        The guest goes on between two looks, so the exits are read outside of the rounds: before
        the first look at these, after the last.
        """
        spinner = self.spinners[action.vcpu]
        window = [spinner.exits(), spinner.rounds()]

        def runs() -> bool:
            rounds = spinner.rounds()
            if spinner.exits() != window[0]:
                window[:] = spinner.exits(), spinner.rounds()
                return False
            return rounds >= window[1] + 4

        return ran if spinner.until(runs, self.flight.within(obeys_within())) else never

    def stop_spin(self, action: words.StopSpin) -> Event:
        """End the guest's loop."""
        if not self.spinners.pop(action.vcpu).stop(DEADLINE):
            raise StuckError(f"vCPU {action.vcpu} does not come back from KVM_RUN when kicked")
        # The #GP of the last round may have been on its way, and is not the next access's.
        vcpu = self.vm.vcpu(action.vcpu)
        events = vcpu.get_vcpu_events()
        events.exception.injected = events.exception.pending = 0
        vcpu.set_vcpu_events(events)
        return stopped

    def stop(self) -> list[bool]:
        """End every loop; say of each whether its thread came back."""
        return [spinner.stop(DEADLINE) for spinner in self.spinners.values()]

    def move(self, vm: PooledVm) -> None:
        """Go on in another VM, where no page is watched yet."""
        self.vm, self._park_area = vm, None

    def _area(self) -> GuestMemory:
        if self._park_area is None:
            self._park_area = self.vm.vm.add_memory(x86.LATER, PARK_PAGES * PAGE)
            self.flight.uffd.watch(self._park_area)
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
