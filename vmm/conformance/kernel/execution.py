"""One script in one VM: every action done on the kernel, and what came of it as an event."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, assert_never

from vmm._native import lib
from vmm.conformance.host.limits import raise_if_exhausted
from vmm.conformance.host.memory_cgroup import charges_bitmaps
from vmm.conformance.kernel.effects import run_effect
from vmm.conformance.kernel.levels import Levels
from vmm.conformance.kernel.platform import change, cpuid_with, no_descriptor
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.kernel.races import Race
from vmm.conformance.kernel.single import answer, is_single
from vmm.conformance.kernel.sweeps import run_sweep
from vmm.conformance.kernel.threads import rejected
from vmm.conformance.kernel.wire import variant
from vmm.conformance.language import script as words
from vmm.conformance.language.script import (
    KVM_X86_SET_MSR_FILTER,
    KVM_X86_SET_MSR_FILTER_COMPAT,
    Event,
    Lost,
    Script,
    done,
    innermost,
    interrupted,
    refused,
)
from vmm.errors import KvmError
from vmm.exits import Exit, InternalErrorExit, IoExit, OtherExit, RdmsrExit, WrmsrExit
from vmm.kvm import Vm
from vmm.placed import COMPAT, NATIVE, Missing, PlacedFilter, bad_address
from vmm.vcpu import Vcpu

WAITING = {
    *(words.BeginInstall, words.ResumeInstall, words.AwaitInstall),
    *(words.Meanwhile, words.AwaitMeanwhile, words.UntilExits, words.UntilRuns),
}
"""What may end with one of the events of ``NOT_YET``."""
NOT_YET = (words.blocked, words.never)


class Execution:
    """The state of a script that runs: accesses stopped in the middle, filters placed, the race."""

    def __init__(
        self,
        vm: PooledVm,
        script: Script,
        control: Callable[[], Vm],
        expected: words.Trace | None = None,
    ) -> None:
        """Remember the MSRs that the script will write, so that ``restore`` can undo it."""
        self.vm, self.script = vm, script
        self.stopped: dict[int, words.Access] = {}
        self.last: dict[int, words.Access] = {}
        self.ended: dict[int, Event] = {}
        self.left_l2: dict[int, Event] = {}
        """How a stopped access that L1 got ended L2."""
        self.placed: list[PlacedFilter] = []
        self.lost = self.left_in_flight = False
        self.cpuid: dict[int, Any] = {}
        self.race = Race(vm, control)
        self.levels = Levels(vm)
        # Without any waiting in it, a script needs no look at what is expected.
        waits = any(type(each) in WAITING for each in script)
        self.expected = words.steps(script, expected) if waits and expected is not None else []
        written = {
            (each.vcpu, each.index)
            for each in map(innermost, script)
            if vm.keep and isinstance(each, (words.Wrmsr, words.SetMsr))
        }
        self.before = {(vcpu, index): vm.get_msr(vcpu, index) for vcpu, index in written}

    def events(self) -> Iterator[Event]:
        """Yield the events of all actions, consecutive accesses of a vCPU as one batch."""
        at = 0
        while at < len(self.script) and not self.lost:
            action = self.script[at]
            batch = self._batch(at)
            self.race.patient = at < len(self.expected) and self.expected[at][-1] not in NOT_YET
            if isinstance(action, words.Access):
                seen = self._accesses(batch)
            elif isinstance(action, words.Execute):
                seen = self._execute(action)
            else:
                seen = [self.do(action)]
            for event in seen:
                self.lost = self.lost or isinstance(event, words.ENDS)
                yield event
            at += len(batch) or 1

    def close(self) -> None:
        """Release what the script still has in flight (``races.StuckError``)."""
        self.left_in_flight = self.race.in_flight
        self.race.close()
        for each in self.placed:
            each.close()

    def restore(self) -> bool:
        """Undo what the script did to MSRs; False when the VM must not be used again."""
        if self.lost or self.stopped or self.left_in_flight or not self.vm.keep:
            return False
        return all(
            self.vm.vcpu(vcpu).set_msrs({index: old}) == 1
            for (vcpu, index), old in self.before.items()
            if old is not None
        )

    def do(self, action: words.HostAction | words.RaceAction | words.LevelAction) -> Event:
        """Return the event of one action other than an access.

        ``ExhaustedError`` where the host had not enough of something for it.
        """
        try:
            if isinstance(action, words.RaceAction):
                return self._race(action)
            if isinstance(action, words.LevelAction):
                return self._level(action)
            return self._host(action)
        except KvmError as error:
            return rejected(error)

    def _level(self, action: words.LevelAction) -> Event:
        if isinstance(action, words.SaveNested):
            return self.levels.save(action)
        if isinstance(action, words.RestoreNested):
            return self.levels.restore(action)
        if isinstance(action, words.LeaveNested):
            return self.levels.take_out(action)
        self.stopped.pop(action.vcpu, None)
        if isinstance(action, words.EnterL2):
            return self.levels.enter(action)
        return self.levels.leave(action)

    def fresh_vm(self) -> Event:
        """Go on in another VM, of which the pool knows nothing."""
        old, self.vm = self.vm, self.vm.successor()
        old.close()
        self.race.move(self.vm)
        self.levels.move(self.vm)
        if not words.makes_vcpus(self.script):
            self.vm.create_vcpu(0)
        self.cpuid.clear()
        return done

    def _race(self, action: words.RaceAction) -> Event:
        match action:
            case words.BeginInstall():
                return self.begin_install(action)
            case words.Meanwhile():
                return self.race.meanwhile(action, lambda: self.do(action.action))
            case _:
                return self.race.do(action)

    def _host(self, action: words.HostAction) -> Event:  # noqa: PLR0911, PLR0912 - one a word
        match action:
            case words.EnableCap():
                return self.enable_cap(action)
            case words.Install():
                return self.send(action, None)
            case words.ScribbleBitmaps():
                return self.scribble_bitmaps()
            case words.CheckExtension():
                return words.Got(self._file(action.on).check_extension(action.cap))
            case words.CreateIrqchip():
                return self.create_irqchip()
            case words.CreateVcpu():
                return self.create_vcpu(action)
            case words.SetCpuid():
                return self.set_cpuid(action)
            case words.SetCpuidBits():
                return self.set_cpuid_bits(action)
            case words.SendInit():
                return self.send_init(action)
            case words.GetVcpuEvents():
                return self.get_vcpu_events(action)
            case words.Rewrite():
                return self.rewrite(action)
            case words.Inject():
                return self.inject(action)
            case words.GetTaken():
                return self.get_taken(action)
            case words.GetMpState():
                return words.Got(self.vm.vcpu(action.vcpu).get_mp_state())
            case words.FreshVm():
                return self.fresh_vm()
            case words.WeighBitmaps():
                return self.weigh_bitmaps()
            case words.Sweep():
                self.stopped.pop(action.vcpu, None)
                return run_sweep(self.vm.program(action.vcpu), action)
            case words.GetMsr():
                return self.get_msr(action)
            case words.SetMsr():
                return self.set_msr(action)
            case words.Begin():
                return self.begin(action)
            case words.GetRegs():
                return self.get_regs(action)
            case words.SetRegs():
                return self.set_regs(action)
            case words.Complete():
                return self.complete(action)
            case words.Finish():
                return self.finish(action)
            case _:
                assert_never(action)

    def _batch(self, at: int) -> list[words.Access]:
        batch: list[words.Access] = []
        while at < len(self.script):
            each = self.script[at]
            if not isinstance(each, (words.Rdmsr, words.Wrmsr)):
                break
            if batch and (each.vcpu != batch[0].vcpu or is_single(each)):
                break
            batch.append(each)
            at += 1
            if is_single(each):
                break
        return batch

    def _accesses(self, batch: list[words.Access]) -> list[Event]:
        self.stopped.pop(batch[0].vcpu, None)
        self.last[batch[0].vcpu] = batch[-1]
        try:
            if is_single(batch[0]):
                return self.vm.single(batch[0].vcpu).run(batch[0])
            return self.vm.program(batch[0].vcpu).run(batch)
        except KvmError as error:
            raise_if_exhausted(error)
            return [Lost(str(error))]

    def _execute(self, action: words.Execute) -> list[Event]:
        self.stopped.pop(action.vcpu, None)
        try:
            return run_effect(self.vm.single(action.vcpu), action)
        except KvmError as error:
            raise_if_exhausted(error)
            return [Lost(str(error))]

    # --- the VM -----------------------------------------------------------------------------

    def enable_cap(self, action: words.EnableCap) -> Event:
        self._file(action.on).enable_cap(action.cap, *action.args, flags=action.flags)
        return done

    def send(self, action: words.Install, missing: Missing | None) -> Event:
        """Place the filter as the ioctl's number says and send it as the caller does."""
        layout = COMPAT if action.number == KVM_X86_SET_MSR_FILTER_COMPAT else NATIVE
        low = action.caller == "compat" or layout is COMPAT
        placed = PlacedFilter(action.filter, layout, low=low, missing=missing)
        self.placed.append(placed)
        self.vm.filtered = True
        address = placed.address if action.argp is None else bad_address(action.argp)
        SEND[action.caller](self._file(action.on), action.number, address)
        return done

    def begin_install(self, action: words.BeginInstall) -> Event:
        is_compat = action.caller == "compat"
        number = KVM_X86_SET_MSR_FILTER_COMPAT if is_compat else KVM_X86_SET_MSR_FILTER
        install = words.Install(action.filter, number, caller=action.caller)
        return self.race.begin_install(action, lambda missing: self.send(install, missing))

    def scribble_bitmaps(self) -> Event:
        for placed in self.placed[-1:]:
            placed.scribble()
        return done

    def create_irqchip(self) -> Event:
        self.vm.create_irqchip()
        return done

    def create_vcpu(self, action: words.CreateVcpu) -> Event:
        if not action.no_fd:
            self.vm.create_vcpu(action.vcpu)
            return done
        try:
            with no_descriptor():
                self.vm.create_vcpu(action.vcpu)
        except KvmError as error:  # the limit is the script's own
            return words.Rejected(error.errno or 0)
        return done

    def set_cpuid(self, action: words.SetCpuid) -> Event:
        cpuid = cpuid_with(self.vm.vm.kvm, action.feature, action.on)
        self.vm.vcpu(action.vcpu).set_cpuid2(cpuid)
        self.cpuid[action.vcpu] = cpuid
        return done

    def set_cpuid_bits(self, action: words.SetCpuidBits) -> Event:
        cpuid = self.cpuid.get(action.vcpu) or self.vm.vm.kvm.get_supported_cpuid()
        change(cpuid, action)
        self.vm.vcpu(action.vcpu).set_cpuid2(cpuid)
        self.cpuid[action.vcpu] = cpuid
        return done

    def weigh_bitmaps(self) -> Event:
        charged = charges_bitmaps(self.vm.vm.kvm)
        if charged is None:
            return words.Lost("the memory cgroup is not at rest")
        return words.Got(int(charged))

    def send_init(self, action: words.SendInit) -> Event:
        self.vm.vcpu(action.vcpu).set_lapic(self.vm.vcpu(action.vcpu).get_lapic())
        self.vm.vm.signal_msi(MSI_BASE | action.vcpu << 12, MSI_INIT)
        return done

    def _file(self, on: str) -> Any:
        if on == "vcpu":
            return self.vm.vcpu(0)
        return self.vm.vm if on == "vm" else self.vm.vm.kvm

    # --- a vCPU -----------------------------------------------------------------------------

    def get_msr(self, action: words.GetMsr) -> Event:
        if action.by == "one_reg":
            return self._one_reg(lambda vcpu: vcpu.get_msr_by_one_reg(action.index), action.vcpu)
        value = self.vm.get_msr(action.vcpu, action.index)
        return refused if value is None else words.Got(value)

    def set_msr(self, action: words.SetMsr) -> Event:
        index, value = action.index, action.value
        if action.by == "one_reg":
            return self._one_reg(lambda vcpu: vcpu.set_msr_by_one_reg(index, value), action.vcpu)
        count = self.vm.vcpu(action.vcpu).set_msrs({index: value})
        return done if count else refused

    def _one_reg(self, work: Callable[[Vcpu], int | None], vcpu: int) -> Event:
        try:
            value = work(self.vm.vcpu(vcpu))
        except KvmError as error:
            if error.errno == errno.EINVAL:
                return refused
            raise
        return done if value is None else words.Got(value)

    def begin(self, action: words.Begin) -> Event:
        access = action.access
        program = self.vm.program(access.vcpu)
        if not is_single(access):
            program.load([access])
        elif lost := self.vm.single(access.vcpu).load(access):
            return lost
        self.left_l2.pop(access.vcpu, None)
        self.stopped[access.vcpu] = self.last[access.vcpu] = access
        # A run that copies no registers out: the other path beside the batches'.
        program.vcpu.kvm_run.kvm_valid_regs = 0
        return self._run(access.vcpu)

    def get_regs(self, action: words.GetRegs) -> Event:
        program = self.vm.program(action.vcpu)
        regs = program.vcpu.get_regs()
        last = self.last.get(action.vcpu, words.Rdmsr(0))
        if is_single(last):
            at = self.vm.single(action.vcpu).at(last)
        else:
            at = program.instructions[variant(last)]
        return words.Regs(regs.rip - at, regs.rax, regs.rcx, regs.rdx)

    def set_regs(self, action: words.SetRegs) -> Event:
        vcpu = self.vm.vcpu(action.vcpu)
        regs = vcpu.get_regs()
        regs.rip += action.rip
        regs.rax = regs.rax if action.rax is None else action.rax
        regs.rdx = regs.rdx if action.rdx is None else action.rdx
        regs.rcx = regs.rcx if action.rcx is None else action.rcx
        if action.via == "sync":
            vcpu.sync_regs()[0] = regs[0]
            vcpu.kvm_run.kvm_dirty_regs = lib.KVM_SYNC_X86_REGS
        else:
            vcpu.set_regs(regs)
        return done

    def get_vcpu_events(self, action: words.GetVcpuEvents) -> Event:
        events = self.vm.vcpu(action.vcpu).get_vcpu_events()
        exception = events.exception
        queued = exception.injected or exception.pending
        return words.VcpuEvents(bool(events.interrupt.shadow), exception.nr if queued else None)

    def get_taken(self, action: words.GetTaken) -> Event:
        last = self.last.get(action.vcpu, words.Rdmsr(0))
        return self.vm.single(action.vcpu).taken if is_single(last) else words.Taken(None)

    def rewrite(self, action: words.Rewrite) -> Event:
        vcpu = self.vm.vcpu(action.vcpu)
        getattr(vcpu, f"set_{action.what}")(getattr(vcpu, f"get_{action.what}")())
        return done

    def inject(self, action: words.Inject) -> Event:
        if action.vcpu in self.stopped:  # else nothing of the guest is there to take it
            self.vm.single(action.vcpu).inject(action.kind)
        return done

    def complete(self, action: words.Complete) -> Event:
        vcpu = self.vm.vcpu(action.vcpu)
        if action.reply:
            answer(vcpu, action.reply)
        with INTERRUPT[action.by](vcpu):
            return self._run(action.vcpu, asked=True)

    def finish(self, action: words.Finish) -> Event:
        if action.reply:
            answer(self.vm.vcpu(action.vcpu), action.reply)
        return self._run(action.vcpu)

    def _run(self, vcpu_id: int, *, asked: bool = False) -> Event:  # noqa: PLR0911 - one an end
        """Enter the guest, and again after an EINTR that was not ``asked`` for: it is another's."""
        program = self.vm.program(vcpu_id)
        while True:
            try:
                seen = program.vcpu.run()
                break
            except KvmError as error:
                raise_if_exhausted(error)
                if error.errno != errno.EINTR:
                    return Lost(str(error))
                if asked:
                    return interrupted
        if isinstance(seen, RdmsrExit | WrmsrExit):
            return seen
        access = self.last[vcpu_id]
        if left := program.left(program.vcpu.kvm_run.exit_reason):
            self.left_l2[vcpu_id] = left
        if left := self.left_l2.get(vcpu_id):
            self.stopped.pop(vcpu_id, None)
            return left
        if is_single(access):
            if self.stopped.pop(vcpu_id, None):
                self.ended[vcpu_id] = self.vm.single(vcpu_id).outcome(access, seen)
            return self.ended[vcpu_id]
        if isinstance(seen, IoExit) and (outcome := program.outcome(access)):
            self.stopped.pop(vcpu_id, None)
            return outcome
        return foreign(seen)


MSI_BASE, MSI_INIT = 0xFEE0_0000, 5 << 8
"""The address of a message to an APIC (its ID in bits 12 to 19), and the data of an INIT."""


def foreign(seen: Exit) -> Event:
    """Return the event of an exit that is no end of an access."""
    match seen:
        case InternalErrorExit():
            return words.InternalError(seen.suberror)
        case OtherExit():
            return words.OtherExit(seen.exit_reason)
        case _:
            return Lost(str(seen))


def from_child(file: Any, number: int, address: int) -> None:
    """Send the ioctl from a forked child, whose memory is not the VM's (R03)."""
    ended = lib.mw_ioctl_in_child(file.fd, number, address, False)
    if ended < 0:
        raise KvmError(-ended, "fork")
    if ended:
        raise KvmError(os.waitstatus_to_exitcode(ended), "ioctl", "in a child")


SEND: dict[str, Callable[[Any, int, int], object]] = {
    "self": lambda file, number, address: file.ioctl(number, address),
    "compat": lambda file, number, address: file.compat_ioctl(number, address),
    "child": from_child,
}


@contextmanager
def _immediate(vcpu: Vcpu) -> Iterator[None]:
    """Within: ``KVM_RUN`` completes what is pending and returns EINTR at once."""
    vcpu.kvm_run.immediate_exit = 1
    try:
        yield
    finally:
        vcpu.kvm_run.immediate_exit = 0


@contextmanager
def _signalled(vcpu: Vcpu) -> Iterator[None]:
    """Within: a signal is pending that only ``KVM_RUN`` does not block, so it ends with EINTR."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    vcpu.set_signal_mask(())
    signal.raise_signal(signal.SIGUSR2)
    try:
        yield
    finally:
        signal.sigtimedwait({signal.SIGUSR2}, 0)
        vcpu.set_signal_mask(None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


INTERRUPT = {"immediate_exit": _immediate, "signal": _signalled}
