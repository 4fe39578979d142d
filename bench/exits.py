"""One exit: as a user of the API answers it, as the shim alone does, and by the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from bench.bare import BareC, read_forever
from bench.line import Line, take_turns
from vmm._native import ffi, lib
from vmm.conformance.kernel.wire import EXIT
from vmm.decode import MSR, RDMSR
from vmm.exits import RdmsrExit
from vmm.filter import default_allow
from vmm.guest import Guest
from vmm.kvm import Kvm
from vmm.msr import FILTER
from vmm.vcpu import Vcpu

DENIED, ANSWER = 0x474F4F00, 0x1122334455667788


def boot_spin(kvm: Kvm) -> Vcpu:
    """Return a vCPU that reads a denied MSR for ever."""
    vm = kvm.create_vm()
    vm.enable_msr_exits(FILTER)
    vm.set_msr_filter(default_allow().deny(DENIED))
    return Guest.load("spin").boot(vm, rcx=DENIED, rip=read_forever())


def run_and_reply(vcpu: Vcpu, count: int) -> int:
    """Make ``count`` round trips as a user of the API makes them; return how many were exits."""
    exits = 0
    for _ in range(count):
        match vcpu.run():
            case RdmsrExit():
                vcpu.reply(ANSWER)
                exits += 1
    return exits


def run_with_reply(vcpu: Vcpu, count: int) -> int:
    """Make the same round trips with one call each; an exit must be pending already."""
    exits = 0
    for _ in range(count):
        match vcpu.run(reply=ANSWER):
            case RdmsrExit():
                exits += 1
    return exits


def enter_only(vcpu: Vcpu, count: int) -> int:
    """Cross the border as all other calls do, and do nothing else: nothing is checked or made."""
    enter, fd, run = lib.mw_run, vcpu.fd, vcpu.kvm_run
    for _ in range(count):
        enter(fd, run)
    return count


class Drained:
    """The same through ``drain``: the log of a batch is compared with what it must be."""

    def __init__(self, vcpu: Vcpu, count: int) -> None:
        """Make room for ``count`` exits, of which the last is left in ``kvm_run`` by each batch."""
        self.vcpu, self.batch = vcpu, ffi.new("struct mw_batch *")
        self._log = ffi.new("struct mw_exit[]", count)
        self._reply = ffi.new("struct mw_reply *", {"data": ANSWER})
        self.batch.fd, self.batch.run, self.batch.log = vcpu.fd, vcpu.kvm_run, self._log
        self.batch.replies, self.batch.n_replies = self._reply, 1
        self.batch.log_size, self.batch.program = count - 1, vcpu.get_regs().rsp
        low, high = ANSWER & 0xFFFFFFFF, ANSWER >> 32
        exit_ = (RDMSR, 0, 0, FILTER, DENIED, 0, read_forever(), low, DENIED, high)
        self._expected = EXIT.pack(*exit_) * (count - 1)
        self._last = MSR.pack(0, FILTER, DENIED, 0)
        self._seen = ffi.buffer(self._log, len(self._expected))

    def run(self) -> int:
        """Run a batch; return how many exits were as expected in every field: all, or an error."""
        self.vcpu.reply(ANSWER)
        reason = lib.mw_drain(self.batch)
        last = ffi.buffer(ffi.addressof(self.vcpu.kvm_run, "msr"), MSR.size)
        if reason != RDMSR or self._seen != self._expected or last != self._last:
            raise RuntimeError("an exit of the benchmark's guest is not as expected")
        return int(self.batch.n_exits) + 1


def measure_exits(kvm: Kvm, c: BareC, lines: Sequence[Line], rounds: int, count: int) -> None:
    """Fill the lines: one call, two calls, cffi alone, ``drain``; all use the same vCPU."""
    vcpu = boot_spin(kvm)
    run_and_reply(vcpu, 2)
    vcpu.run()
    drained = Drained(vcpu, count)
    bare = functools.partial(c.ask, f"exits {count}")
    each_exit = (run_with_reply, run_and_reply, enter_only)
    sides: list[Callable[[], int]] = [functools.partial(side, vcpu, count) for side in each_exit]
    for number in range(rounds):
        for line, side in zip(lines, [*sides, drained.run], strict=True):
            vcpu.kvm_run.kvm_valid_regs = 0  # drain asks for the registers at each exit
            take_turns(line, number, bare, side, count)
