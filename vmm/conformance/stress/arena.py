"""The VMs, filters and threads of one stress, and their end in every case."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, closing
from errno import EINTR, EIO, ENOMEM
from typing import Any

from vmm import x86
from vmm._native import ffi, lib
from vmm.closing import Closing
from vmm.conformance.kernel.patience import Patience, joined
from vmm.conformance.language.script import Access, Rdmsr
from vmm.conformance.stress.plan import OUTCOMES, REPLY, STORED, Plan, groups
from vmm.conformance.stress.violation import (
    Impossible,
    Install,
    Mishap,
    Violation,
    lost,
    wrong_install,
)
from vmm.errors import KvmError
from vmm.filter import MsrFilter
from vmm.guest import Guest
from vmm.kicks import KICK, allow_kicks
from vmm.kvm import Kvm, Vm
from vmm.placed import PlacedFilter
from vmm.vcpu import Vcpu

GRACE = 10.0
"""Seconds that a thread gets to leave by itself, and again once it was kicked."""

SHOWN = 4
"""How many accesses before an impossible one are shown."""


ABANDONED: list[Arena] = []
"""What threads that never came back from the kernel still use: it must stay as it is."""


class Arena(Closing):
    """A context manager; ``start`` lets the threads race, ``stop`` ends them whatever happened."""

    def __init__(self, plan: Plan, vcpus: int, installers: int, vms: int) -> None:
        """Make everything; ``KvmError`` when the host cannot."""
        self.plan, self.n_vcpus, self.n_installers = plan, vcpus, installers
        self.phase = ffi.new("uint32_t *")
        self.vms: list[Vm] = []
        self._late: list[str] = []
        self._stuck: list[str] = []
        self._threads: list[tuple[threading.Thread, list[Vcpu]]] = []
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._make(stack, vms)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Give everything back, but what a thread that never came back still uses."""
        if any(thread.is_alive() for thread, _ in self._threads):
            ABANDONED.append(self)
        else:
            self._stack.close()

    # --- making -----------------------------------------------------------------------------

    def _make(self, stack: ExitStack, n_vms: int) -> None:
        allow_kicks()
        kvm = stack.enter_context(Kvm())
        self._filters = [
            (stack.enter_context(_placed(each)), errno)
            for each, errno in [*((each, 0) for each in self.plan.filters), *self.plan.refused]
        ]
        self._rings = ffi.new("struct mw_ring[]", n_vms * self.n_installers)
        self._races = ffi.new("struct mw_race_vm[]", n_vms)
        self._steps = [self._program_steps(n) for n in range(self.n_vcpus)]
        self._racers = ffi.new("struct mw_racer[]", n_vms * self.n_vcpus)
        for number in range(n_vms):
            vm = stack.enter_context(kvm.create_vm())
            self.vms.append(vm)
            self._make_vm(vm, number)
        self._make_installers(n_vms)

    def _make_vm(self, vm: Vm, number: int) -> None:
        race = self._races[number]
        race.fd, race.n_rings = vm.fd, self.n_installers
        race.rings = self._rings + number * self.n_installers
        vm.enable_msr_exits(self.plan.mask)
        for vcpu_id in range(self.n_vcpus):
            racer = self._racers[vcpu_id * len(self._races) + number]
            self._make_racer(racer, vm, vcpu_id)
            racer.vm = self._races + number

    def _make_racer(self, racer: Any, vm: Vm, vcpu_id: int) -> None:
        guest, accesses = Guest.load("stress"), self.accesses(vcpu_id)
        vcpu = guest.boot(vm, vcpu_id)
        if vcpu.set_msrs(STORED) != len(STORED):
            raise KvmError(EIO, "KVM_SET_MSRS", "this host refuses an architectural MSR")
        program = x86.program_of(vcpu_id)
        handlers = guest.symbols["op_wrmsr"], guest.symbols["op_rdmsr"]
        words = [
            word for each in accesses for word in (handlers[isinstance(each, Rdmsr)], each.index)
        ]
        words += [guest.symbols["op_done"], program]
        memory = vm.memories[0]
        memory.write(program, b"".join(word.to_bytes(8, "little") for word in words))
        racer.phase, racer.run, racer.fd = self.phase, vcpu.kvm_run, vcpu.fd
        racer.marks = ffi.cast("uint8_t *", memory.address + program + lib.MW_MARKS)
        racer.steps, racer.n_steps = self._steps[vcpu_id], len(accesses)
        racer.program, racer.reply = program, REPLY

    def accesses(self, vcpu_id: int) -> tuple[Access, ...]:
        """Return the vCPU's program: the plan's accesses, begun elsewhere for each vCPU."""
        first = vcpu_id * len(self.plan.accesses) // self.n_vcpus
        return self.plan.accesses[first:] + self.plan.accesses[:first]

    def _program_steps(self, vcpu_id: int) -> Any:
        accesses, group = self.accesses(vcpu_id), groups(self.plan.accesses)
        steps = ffi.new("struct mw_step[]", len(accesses))
        for step, access in zip(steps, accesses, strict=True):
            step.index, step.group = access.index, group[access]
            step.is_write = not isinstance(access, Rdmsr)
            step.permits = [self.plan.permits(access, each) for each in range(len(OUTCOMES))]
        return steps

    def _make_installers(self, n_vms: int) -> None:
        self._installers = ffi.new("struct mw_installer[]", self.n_installers)
        self._choices = ffi.new("struct mw_choice[]", self._schedule())
        for ring, installer in enumerate(self._installers):
            installer.phase, installer.vms, installer.n_vms = self.phase, self._races, n_vms
            installer.ring = ring
            installer.choices = self._choices
        first = self._installers[0]
        first.limit, first.n_choices = n_vms, len(self.plan.filters)
        if lib.mw_race_install(self._installers):
            raise KvmError(-first.result, "KVM_X86_SET_MSR_FILTER", "the first filter")
        for ring, installer in enumerate(self._installers):
            installer.turn, installer.limit = n_vms + ring, 2**64 - 1
            installer.n_choices = len(self._choices)

    def _schedule(self) -> list[tuple[int, int, int]]:
        return [
            (self._filters[each][0].address, each, -self._filters[each][1])
            for each in self.plan.schedule
        ]

    # --- racing -----------------------------------------------------------------------------

    def start(self) -> threading.Event:
        """Start all threads; the event is set once one of them has left."""
        over, n_vms = threading.Event(), len(self.vms)
        jobs: list[tuple[Any, tuple[Any, ...], int | None]] = [
            (lib.mw_race_vcpus, (self._racers + number * n_vms, n_vms), number)
            for number in range(self.n_vcpus)
        ]
        jobs += [
            (lib.mw_race_install, (self._installers + number,), None)
            for number in range(self.n_installers)
        ]
        for loop, arguments, number in jobs:
            vcpus = [] if number is None else [vm.vcpus[number] for vm in self.vms]
            name = "an installer" if number is None else f"the thread of the vCPUs {number}"
            thread = threading.Thread(
                target=_run, args=(loop, arguments, over), name=name, daemon=True
            )
            self._threads.append((thread, vcpus))
            thread.start()
        return over

    def stop(self) -> None:
        """End the race: installers first, then each vCPU after one more batch."""
        try:
            for phase, is_mine in ((lib.MW_SETTLE, False), (lib.MW_END, True)):
                self._go_to(phase)
                self._join([each for each in self._threads if bool(each[1]) is is_mine])
        finally:
            self._abort()

    def _go_to(self, phase: int) -> None:
        self.phase[0] = max(self.phase[0], phase)

    def _abort(self) -> None:
        """Get rid of threads that should have gone: kick them out of KVM_RUN."""
        left = [each for each in self._threads if each[0].is_alive()]
        if not left:
            return
        self.phase[0] = lib.MW_ABORT
        for thread, vcpus in left:
            for vcpu in vcpus:
                vcpu.kvm_run.immediate_exit = 1
            if thread.ident and thread.is_alive():
                signal.pthread_kill(thread.ident, KICK)
        self._late = [thread.name for thread, _ in left]
        self._join(left)
        self._stuck = [thread.name for thread, _ in left if thread.is_alive()]

    def _join(self, threads: list[tuple[threading.Thread, list[Vcpu]]]) -> None:
        patience = Patience(GRACE)
        for thread, _ in threads:
            joined(thread, patience)

    # --- what came of it ----------------------------------------------------------------------

    def swaps(self) -> int:
        """Return how many filters were installed."""
        return sum(each.swaps for each in self._installers)

    def refused(self) -> int:
        """Return how many installs failed as they must."""
        return sum(each.refused for each in self._installers)

    def outcomes(self) -> tuple[int, ...]:
        """Return how often each of ``OUTCOMES`` was seen."""
        counts = [list(each.outcomes) for each in self._racers]
        return tuple(sum(column) for column in zip(*counts, strict=True))

    def entries(self) -> int:
        """Return how often a vCPU was entered."""
        return sum(each.runs for each in self._racers)

    def took(self) -> tuple[int, ...]:
        """Return how many KVM_RUNs took 2**n ns and less than twice that, for n from 0 on."""
        columns = zip(*(list(each.took) for each in self._racers), strict=True)
        return tuple(sum(column) for column in columns)

    def loose(self) -> int:
        """Return how many entries saw more installs than the judge keeps."""
        return sum(each.loose for each in self._racers)

    def violation(self) -> Violation | None:
        """Return the first thing that cannot be, or None; ``KvmError`` for want of memory."""
        if self._stuck:
            return Mishap(f"{', '.join(self._stuck)} did not come back from the kernel")
        for number, racer in enumerate(self._racers):
            if racer.is_impossible or racer.is_lost:
                return self._of_racer(racer, *divmod(number, len(self.vms)))
        for number, installer in enumerate(self._installers):
            if installer.is_wrong:
                return self._of_installer(installer, number)
        if self._late:
            return Mishap(f"{', '.join(self._late)} had to be kicked out of the kernel")
        return None

    def _of_racer(self, racer: Any, vcpu_id: int, vm: int) -> Violation:
        if racer.is_lost:
            return lost(vcpu_id, vm, racer.ended_by)
        accesses, window, step = self.accesses(vcpu_id), racer.window, racer.step
        before = range(max(0, step - SHOWN), step)
        seen = [
            Install(each.installer, each.number, each.filter, each.started, each.returned)
            for each in window.installs[0 : window.n]
        ]
        return Impossible(
            vcpu=vcpu_id,
            vm=vm,
            step=step,
            access=accesses[step],
            outcome=racer.outcome,
            in_flight=tuple(seen),
            permitted=self.plan.table[accesses[step]],
            began=window.began,
            ended=window.ended,
            cutoff=racer.used_cutoff,
            before=tuple((accesses[each], racer.batch[each]) for each in before),
        )

    def _of_installer(self, installer: Any, number: int) -> Violation:
        choice = self._choices[(installer.turn - 1) % len(self._choices)]
        if installer.result in (-ENOMEM, -EINTR):
            raise KvmError(-installer.result, "KVM_X86_SET_MSR_FILTER", "during the stress")
        filters = [*self.plan.filters, *(each for each, _ in self.plan.refused)]
        return wrong_install(
            number, repr(filters[choice.filter]), choice.expected, installer.result
        )


def _placed(filter_: MsrFilter) -> Any:
    return closing(PlacedFilter(filter_))


def _run(loop: Any, arguments: tuple[Any, ...], over: threading.Event) -> None:
    try:
        loop(*arguments)
    finally:
        over.set()
