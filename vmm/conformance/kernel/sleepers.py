"""vCPUs that wait, in ``KVM_RUN``, for what has them run: an INIT, a SIPI, or a signal."""

from __future__ import annotations

import errno
import signal

from vmm.conformance.kernel.flight import Flight, StuckError
from vmm.conformance.kernel.patience import Patience
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.kernel.program import DONE_PORT, Program
from vmm.conformance.kernel.threads import GLANCE, Task
from vmm.conformance.kernel.waits import DEADLINE, OBEYS_WITHIN
from vmm.conformance.language import script as words
from vmm.conformance.language.script import Event, Lost, interrupted, never, started
from vmm.kicks import KICK, allow_kicks
from vmm.memory import PAGE

OUT = 0xE6
"""``OUT imm8, AL``, in code of every width."""


class Sleepers:
    """The vCPUs of one VM that sleep in the kernel, each in a thread of its own."""

    def __init__(self, vm: PooledVm, flight: Flight) -> None:
        """Start with none; their threads are in ``flight``."""
        self.vm, self.flight = vm, flight
        self.asleep: dict[int, Task] = {}

    def sleep(self, action: words.Sleep) -> Event:
        """Enter the vCPU; see that it sleeps."""
        allow_kicks()
        at = words.SIPI_VECTOR * PAGE
        self.vm.memory.write(at, bytes((OUT, DONE_PORT)))
        program = self.vm.program(action.vcpu)
        program.vcpu.kvm_run.kvm_valid_regs = 0
        task = self.asleep[action.vcpu] = self.flight.start(lambda: _slept(program))
        return self.flight.settle(task)

    def wake(self, action: words.Wake) -> Event:
        """Take the vCPU out of ``KVM_RUN``."""
        task = self.asleep.pop(action.vcpu)
        if not self._kicked(action.vcpu, task):
            raise StuckError(f"vCPU {action.vcpu} does not come back from KVM_RUN when kicked")
        return task.event or never

    def await_sipi(self, action: words.AwaitSipi) -> Event:
        """Wait for what ends the sleep; one that does not end goes on."""
        task = self.asleep[action.vcpu]
        came = task.wait(self.flight.within(OBEYS_WITHIN))
        return (task.event or never) if came else never

    def stop(self) -> list[bool]:
        """Wake every sleeper; say of each whether its thread came back."""
        return [self._kicked(vcpu, task) for vcpu, task in self.asleep.items()]

    def move(self, vm: PooledVm) -> None:
        """Go on in another VM."""
        self.vm = vm

    def _kicked(self, vcpu_id: int, task: Task) -> bool:
        kvm_run = self.vm.vcpu(vcpu_id).kvm_run
        patience = Patience(DEADLINE)
        while not task.wait(GLANCE) and patience:
            kvm_run.immediate_exit = 1
            signal.pthread_kill(task.ident, KICK)
        kvm_run.immediate_exit = 0
        return task.wait(0)


def _slept(program: Program) -> Event:
    # EAGAIN: the vCPU had its first INIT, and waits for a SIPI from the next entry on.
    while (result := program.enter()) == -errno.EAGAIN:
        pass
    if result == -errno.EINTR:
        return interrupted
    ended = program.how_ended(result)
    return Lost(ended) if ended else started
