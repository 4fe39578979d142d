"""The ways in which a VM ends: each makes one with a filter in force, and ends it in its own way.

A file that is shut while a thread is inside one of its ioctls lives on until that ioctl returns:
the kernel then frees vCPU, VM and filter from there.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from vmm._native import ffi, lib
from vmm.conformance.host.containers import pidfd_of
from vmm.conformance.kernel.patience import Patience, joined, readable
from vmm.errors import KvmError
from vmm.filter import READ_WRITE, MsrFilter, MsrRange
from vmm.guest import Guest
from vmm.ioctl import KvmFile
from vmm.kicks import KICK
from vmm.kvm import Kvm, Vm
from vmm.memory import PAGE, Mapping
from vmm.msr import FILTER, MAX_NMSRS
from vmm.placed import Missing, PlacedFilter
from vmm.uffd import Userfaultfd
from vmm.vcpu import Vcpu

A = 0x474F_4F00
SLOTS = 16
DEADLINE = 20.0
"""Seconds that anything may take before it counts as stuck."""

THICK = MsrFilter(
    0,
    tuple(
        MsrRange(READ_WRITE, A + n * MAX_NMSRS, MAX_NMSRS, b"\x5a" * 0x600) for n in range(SLOTS)
    ),
)
"""The largest filter there is: 16 bitmaps of 1536 bytes. It denies A."""


class Stuck(Exception):
    """Something did not end within DEADLINE."""


def vm_first(kvm: Kvm, rng: random.Random) -> None:
    """Close the VM, then its vCPUs, one of which has an exit pending."""
    with _stopped_in_an_exit(kvm) as vm:
        _shut(vm)


def vcpus_first(kvm: Kvm, rng: random.Random) -> None:
    """Close the vCPUs, then the VM."""
    with _stopped_in_an_exit(kvm) as vm:
        for vcpu in vm.vcpus.values():
            vcpu.close()


def memory_first(kvm: Kvm, rng: random.Random) -> None:
    """Unmap the guest's memory under the VM, then close VM and vCPUs."""
    with _stopped_in_an_exit(kvm) as vm:
        for memory in vm.memories:
            memory.close()
        _shut(vm)


def unfiltered(kvm: Kvm, rng: random.Random) -> None:
    """Turn filtering off, then close: there is nothing left to free."""
    with _stopped_in_an_exit(kvm) as vm:
        vm.set_msr_filter(MsrFilter.default_allow())


def while_it_runs(kvm: Kvm, rng: random.Random) -> None:
    """Close VM and vCPU while the vCPU is in KVM_RUN."""
    with _made(kvm) as vm, _Spinning(vm.vcpus[0]):
        for file in _shuffled(rng, [vm, vm.vcpus[0]]):
            _shut(file)


def during_an_install(kvm: Kvm, rng: random.Random) -> None:
    """Close the VM at a random moment of an install; an earlier one makes it wait (SRCU)."""
    with (
        _stopped_in_an_exit(kvm) as vm,
        _Installing(vm, PlacedFilter(THICK), may_come_late=True),
    ):
        _spin(rng.random() * 2e-4)
        _shut(vm)
        for vcpu in vm.vcpus.values():
            vcpu.close()


def during_a_stalled_install(kvm: Kvm, rng: random.Random) -> None:
    """Close all while an install waits for one of its bitmaps, then let it go on."""
    with Mapping(PAGE) as page, closing(Userfaultfd()) as uffd:
        uffd.watch(page)
        placed = PlacedFilter(THICK, missing=Missing(rng.randrange(SLOTS), page.address))
        with _stopped_in_an_exit(kvm) as vm, _Installing(vm, placed):
            try:
                _wait(uffd)
                _shut(vm)
                for vcpu in vm.vcpus.values():
                    vcpu.close()
            finally:
                uffd.give(page.address)


def while_all_is_busy(kvm: Kvm, rng: random.Random) -> None:
    """Close all, in any order, while a vCPU runs and an install waits for it."""
    with (
        _made(kvm) as vm,
        _Spinning(vm.vcpus[0]),
        _Installing(vm, PlacedFilter(THICK), may_come_late=True),
    ):
        _spin(rng.random() * 2e-4)
        for file in _shuffled(rng, [vm, *vm.vcpus.values()]):
            _shut(file)


def by_death(kvm: Kvm, rng: random.Random) -> None:
    """Kill the process (SIGKILL) whose vCPU runs while it installs."""
    ready, tell = os.pipe()
    parent, child = os.getpid(), os.fork()
    if not child:
        _live_until_killed(tell, parent)
    os.close(tell)
    reaper = pidfd_of(child)
    try:
        came = readable(ready, Patience(DEADLINE)) and os.read(ready, 1) == b"!"
        _spin(rng.random() * 1e-3)
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        gone = readable(reaper, Patience(DEADLINE))
        os.close(reaper)
        if gone:
            os.waitpid(child, 0)
    if not gone:
        raise Stuck(f"process {child} was killed and is still there after {DEADLINE:.0f} s")
    if not came:
        raise Stuck("a forked process did not get its VM to run")


ENDINGS: dict[str, Callable[[Kvm, random.Random], None]] = {
    "VM first": vm_first,
    "vCPUs first": vcpus_first,
    "memory first": memory_first,
    "with its filter off": unfiltered,
    "in KVM_RUN": while_it_runs,
    "during an install": during_an_install,
    "during a stalled install": during_a_stalled_install,
    "during an install, in KVM_RUN": while_all_is_busy,
    "by SIGKILL": by_death,
}


# --- what they are made of --------------------------------------------------------------------


def _made(kvm: Kvm) -> Vm:
    """Return a VM with the largest filter and two vCPUs; vCPU 0 reads A, which it denies."""
    vm = kvm.create_vm()
    try:
        vm.enable_msr_exits(FILTER)
        vm.set_msr_filter(THICK)
        guest = Guest.load("spin")
        for vcpu_id in range(2):
            guest.boot(vm, vcpu_id, rcx=A, rip=guest.symbols["read_forever"])
    except BaseException:
        vm.close()
        raise
    return vm


def _stopped_in_an_exit(kvm: Kvm) -> Vm:
    vm = _made(kvm)
    try:
        vm.vcpus[0].run()
    except BaseException:
        vm.close()
        raise
    return vm


def _shut(file: KvmFile) -> None:
    """Close the file, but keep its number: a thread that comes late must not find another file."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, file.fd, inheritable=False)
    os.close(null)


def _shuffled(rng: random.Random, files: list[Any]) -> list[Any]:
    rng.shuffle(files)
    return files


def _spin(seconds: float) -> None:
    """Let a random moment pass: a teardown must be right at any."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class _Spinning:
    """Within: a thread has the vCPU in KVM_RUN, again and again; entered once it had an exit."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        fields = {"fd": vcpu.fd, "run": vcpu.kvm_run}
        self._spin: Any = ffi.new("struct mw_spin *", fields)
        self._thread = threading.Thread(target=lib.mw_spin, args=(self._spin,), daemon=True)

    def __enter__(self) -> None:
        self._thread.start()
        patience = Patience(DEADLINE)
        while not self._spin.exits and patience:
            _spin(1e-5)

    def __exit__(self, *_: object) -> None:
        self._spin.stop = 1
        self._vcpu.kvm_run.immediate_exit = 1
        if self._thread.ident and self._thread.is_alive():
            with suppress(ProcessLookupError):
                signal.pthread_kill(self._thread.ident, KICK)
        if not joined(self._thread, Patience(DEADLINE)):
            raise Stuck(f"KVM_RUN did not return within {DEADLINE:.0f} s")
        if not self._spin.exits:
            raise Stuck("a vCPU never left the guest")


class _Installing:
    """Within: a thread is in (or before, or after) one install; at the end it must have done it.

    ``may_come_late``: the VM may be gone before the thread gets there; then it finds /dev/null.
    """

    def __init__(self, vm: Vm, placed: PlacedFilter, *, may_come_late: bool = False) -> None:
        self._fd, self._placed, self._may_come_late = vm.fd, placed, may_come_late
        self._result = 1
        self._thread = threading.Thread(target=self._install, daemon=True)

    def _install(self) -> None:
        number = lib.KVM_X86_SET_MSR_FILTER
        self._result = lib.mw_ioctl(self._fd, number, self._placed.address)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        if not joined(self._thread, Patience(DEADLINE)):
            raise Stuck(f"an install did not return within {DEADLINE:.0f} s")
        self._placed.close()
        late = (-errno.ENOTTY, -errno.EBADF) if self._may_come_late else ()
        if self._result not in (0, *late):
            raise KvmError(-self._result, "KVM_X86_SET_MSR_FILTER", "while its VM went away")


def _wait(uffd: Userfaultfd) -> None:
    patience = Patience(DEADLINE)
    while uffd.read() is None:
        if not patience:
            raise Stuck("an install never reached its missing bitmap")
        uffd.wait(patience.slice())


def _live_until_killed(tell: int, parent: int) -> None:
    """Be the child: never return, and end without a parent, whom Ctrl-C may have ended first."""
    try:
        with Kvm() as kvm:
            vm = _made(kvm)
            placed = PlacedFilter(THICK)
            with _Spinning(vm.vcpus[0]):
                vm.set_msr_filter_at(placed.address)
                os.write(tell, b"!")
                while os.getppid() == parent:
                    vm.set_msr_filter_at(placed.address)
    finally:
        os._exit(1)
