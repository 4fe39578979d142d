"""VMs that end in every order and way, and what the kernel keeps of them (R76, B03, B14)."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vmm._native import ffi, lib
from vmm.closing import Closing
from vmm.conformance.churn.endings import ENDINGS, THICK, Stuck
from vmm.conformance.churn.leak import Slope, measure
from vmm.conformance.churn.result import ChurnResult
from vmm.conformance.host.watch import Watch
from vmm.errors import KvmError
from vmm.kicks import allow_kicks
from vmm.kvm import Kvm, Vm
from vmm.placed import PlacedFilter

ROUNDS = 300
INSTALLS = 100_000
VMS = 2_000
TICK = 0.5
SLICE = 250
"""Installs between two chances for Ctrl-C."""

FILTER_STRUCT = 512.0
"""Bytes of the slab that holds the kernel's struct of a filter."""

ENDS_BADLY = replace(THICK, ranges=(*THICK.ranges[:-1], replace(THICK.ranges[-1], flags=1 << 2)))
"""The largest filter, with an undefined flag in its last range."""

USERFAULTFD = "userfaultfd", "UFFDIO_API"
"""What fails where a process may not stall the kernel's own page faults."""

ROTATED = 4
"""VMs that take an install in turns: one right after another of the same VM waits 4-20 ms."""


def run(
    rounds: int = ROUNDS,
    installs: int = INSTALLS,
    vms: int = VMS,
    seed: int | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> ChurnResult:
    """End ``rounds`` VMs in each way, then measure ``installs`` and ``vms``; 0 leaves one out.

    Ctrl-C ends it earlier, with what was done until then.
    ``on_progress`` gets a line about twice a second. ``KvmError`` when there is no usable KVM.
    """
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    start, ended, skipped = time.monotonic(), dict.fromkeys(ENDINGS, 0), {}
    slopes: list[Slope] = []
    tell = _paced(on_progress)
    failure, interrupted = "", False
    allow_kicks()
    with Watch() as watch, Kvm() as kvm:
        try:
            skipped = _end_all(kvm, random.Random(seed), rounds, ended, tell)
            slopes += _slopes(kvm, installs, vms, tell)
        except Stuck as stuck:
            failure = str(stuck)
        except KeyboardInterrupt:
            interrupted = True
        complaints = watch.complaints()
    seconds = time.monotonic() - start
    return ChurnResult(
        *(seed, seconds, ended, skipped, tuple(slopes), failure, complaints, watch.blind),
        *(tuple(watch.foreign), interrupted),
    )


def _end_all(
    kvm: Kvm,
    rng: random.Random,
    rounds: int,
    ended: dict[str, int],
    tell: Callable[[str], None],
) -> dict[str, str]:
    skipped: dict[str, str] = {}
    for number in range(rounds):
        for name, end in ENDINGS.items():
            if name in skipped:
                continue
            try:
                end(kvm, rng)
            except KvmError as error:
                if error.ioctl not in USERFAULTFD:
                    raise
                skipped[name] = str(error)
                continue
            except Stuck as stuck:
                raise Stuck(f"{name}: {stuck}") from None
            ended[name] += 1
            tell(f"churn: {number + 1} of {rounds} rounds, {sum(ended.values())} VMs ended")
    for name in skipped:
        del ended[name]
    return skipped


def _slopes(kvm: Kvm, installs: int, vms: int, tell: Callable[[str], None]) -> list[Slope]:
    slopes = []
    if installs:
        with Swapper(kvm) as swapper:
            slopes.append(measure("installs", installs, _told(swapper.swap, "installs", tell)))
        with kvm.create_vm() as vm:
            work = _told(lambda count: fail(vm, count), "failed installs", tell)
            slopes.append(measure("failed installs", installs, work))
    if vms:
        work = _told(lambda count: live_and_die(kvm, count), "VMs", tell)
        slopes.append(measure("VMs", vms, work, limit=FILTER_STRUCT))
    return slopes


def live_and_die(kvm: Kvm, count: int) -> None:
    """Make and close ``count`` VMs, each with the largest filter in force at its end."""
    for _ in range(count):
        with kvm.create_vm() as vm:
            vm.set_msr_filter(THICK)


def fail(vm: Vm, count: int) -> None:
    """Have ``count`` installs refused for their last range, when all else is copied already.

    ``KvmError`` when one is not refused with EINVAL.
    """
    placed = PlacedFilter(ENDS_BADLY)
    try:
        for _ in range(count):
            result = lib.mw_ioctl(vm.fd, lib.KVM_X86_SET_MSR_FILTER, placed.address)
            if result != -errno.EINVAL:
                raise KvmError(max(0, -result), "KVM_X86_SET_MSR_FILTER", "EINVAL was expected")
    finally:
        placed.close()


class Swapper(Closing):
    """Installs the largest filter natively, in a few VMs in turns; a context manager."""

    def __init__(self, kvm: Kvm) -> None:
        """Make the VMs."""
        self._placed = PlacedFilter(THICK)
        self._vms: list[Vm] = []
        self._phase = ffi.new("uint32_t *")
        self._races = ffi.new("struct mw_race_vm[]", ROTATED)
        self._rings = ffi.new("struct mw_ring[]", ROTATED)
        self._choice = ffi.new("struct mw_choice *", {"address": self._placed.address})
        self._installer: Any = ffi.new("struct mw_installer *")
        self._installer.phase, self._installer.vms = self._phase, self._races
        self._installer.choices, self._installer.n_choices = self._choice, 1
        self._installer.n_vms = ROTATED
        for number, race in enumerate(self._races):
            self._vms.append(kvm.create_vm())
            race.fd, race.rings, race.n_rings = self._vms[-1].fd, self._rings + number, 1

    def swap(self, count: int) -> None:
        """Install ``count`` times; ``KvmError`` when one is refused."""
        for done in range(0, count, SLICE):
            self._installer.limit = self._installer.calls + min(SLICE, count - done)
            if lib.mw_race_install(self._installer):
                raise KvmError(-self._installer.result, "KVM_X86_SET_MSR_FILTER")

    def close(self) -> None:
        """Close the VMs."""
        for vm in self._vms:
            vm.close()
        self._placed.close()


def _told(
    work: Callable[[int], None], what: str, tell: Callable[[str], None]
) -> Callable[[int], None]:
    done = 0

    def told(count: int) -> None:
        nonlocal done
        work(count)
        done += count
        tell(f"churn: {done} {what} measured")

    return told


def _paced(on_progress: Callable[[str], None] | None) -> Callable[[str], None]:
    last = time.monotonic()

    def tell(line: str) -> None:
        nonlocal last
        if on_progress and time.monotonic() - last >= TICK:
            last = time.monotonic()
            on_progress(line)

    return tell
