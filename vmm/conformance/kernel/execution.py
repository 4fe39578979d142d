"""One script in one VM: every action done on the kernel, and what came of it as an event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import assert_never

from vmm.conformance.host.limits import raise_if_exhausted
from vmm.conformance.kernel.calls import Calls
from vmm.conformance.kernel.effects import run_effect
from vmm.conformance.kernel.halves import Halves
from vmm.conformance.kernel.levels import Levels
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.kernel.races import Race
from vmm.conformance.kernel.single import is_single
from vmm.conformance.kernel.sweeps import run_sweep
from vmm.conformance.kernel.threads import rejected
from vmm.conformance.language import script as words
from vmm.conformance.language.script import (
    Event,
    Lost,
    Script,
    done,
    innermost,
)
from vmm.errors import KvmError
from vmm.kvm import Vm

WAITING = {
    *(words.BeginInstall, words.ResumeInstall, words.AwaitInstall),
    *(words.Meanwhile, words.AwaitMeanwhile, words.UntilExits, words.UntilRuns),
}
"""What may end with one of the events of ``NOT_YET``."""
NOT_YET = (words.blocked, words.never)


class Execution:
    """A script that runs: each action is done by who knows how, one batch after the other."""

    def __init__(
        self,
        vm: PooledVm,
        script: Script,
        control: Callable[[], Vm],
        expected: words.Trace | None = None,
    ) -> None:
        """Remember the MSRs that the script will write, so that ``restore`` can undo it."""
        self.vm, self.script = vm, script
        self.lost = self.left_in_flight = False
        self.calls, self.halves = Calls(vm), Halves(vm)
        self.race, self.levels = Race(vm, control), Levels(vm)
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
            self.race.flight.patient = (
                at < len(self.expected) and self.expected[at][-1] not in NOT_YET
            )
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
        """Release what the script still has in flight (``flight.StuckError``)."""
        self.left_in_flight = self.race.in_flight
        self.race.close()
        self.calls.close()

    def restore(self) -> bool:
        """Undo what the script did to MSRs; False when the VM must not be used again."""
        if self.lost or self.halves.stopped or self.left_in_flight or not self.vm.keep:
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
        self.halves.give_up(action.vcpu)
        if isinstance(action, words.EnterL2):
            return self.levels.enter(action)
        return self.levels.leave(action)

    def fresh_vm(self) -> Event:
        """Go on in another VM, of which the pool knows nothing."""
        old, self.vm = self.vm, self.vm.successor()
        old.close()
        for each in (self.calls, self.halves, self.race, self.levels):
            each.move(self.vm)
        if not words.makes_vcpus(self.script):
            self.vm.create_vcpu(0)
        return done

    def _race(self, action: words.RaceAction) -> Event:
        match action:
            case words.BeginInstall():
                send, install = self.calls.send, action.install
                return self.race.begin_install(action, lambda missing: send(install, missing))
            case words.Meanwhile():
                return self.race.meanwhile(action, lambda: self.do(action.action))
            case _:
                return self.race.do(action)

    def _host(self, action: words.HostAction) -> Event:  # noqa: PLR0911, PLR0912 - one a word
        match action:
            case words.EnableCap():
                return self.calls.enable_cap(action)
            case words.Install():
                return self.calls.send(action, None)
            case words.ScribbleBitmaps():
                return self.calls.scribble_bitmaps()
            case words.CheckExtension():
                return self.calls.check_extension(action)
            case words.CreateIrqchip():
                return self.calls.create_irqchip()
            case words.CreateVcpu():
                return self.calls.create_vcpu(action)
            case words.SetCpuid():
                return self.calls.set_cpuid(action)
            case words.SetCpuidBits():
                return self.calls.set_cpuid_bits(action)
            case words.SendInit():
                return self.calls.send_init(action)
            case words.GetVcpuEvents():
                return self.halves.get_vcpu_events(action)
            case words.Rewrite():
                return self.halves.rewrite(action)
            case words.Inject():
                return self.halves.inject(action)
            case words.GetTaken():
                return self.halves.get_taken(action)
            case words.GetMpState():
                return words.Got(self.vm.vcpu(action.vcpu).get_mp_state())
            case words.SetMpState():
                return self.calls.set_mp_state(action)
            case words.SendSipi():
                return self.calls.send_sipi(action)
            case words.FreshVm():
                return self.fresh_vm()
            case words.WeighBitmaps():
                return self.calls.weigh_bitmaps()
            case words.XenHvmConfig():
                return self.calls.xen_hvm_config(action)
            case words.GetHypercallPage():
                return self.calls.get_hypercall_page()
            case words.Sweep():
                self.halves.give_up(action.vcpu)
                return run_sweep(self.vm.program(action.vcpu), action)
            case words.GetMsr():
                return self.calls.get_msr(action)
            case words.SetMsr():
                return self.calls.set_msr(action)
            case words.Begin():
                return self.halves.begin(action)
            case words.GetRegs():
                return self.halves.get_regs(action)
            case words.SetRegs():
                return self.halves.set_regs(action)
            case words.Complete():
                return self.halves.complete(action)
            case words.Finish():
                return self.halves.finish(action)
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
        self.halves.give_up(batch[0].vcpu)
        self.halves.last[batch[0].vcpu] = batch[-1]
        try:
            if is_single(batch[0]):
                return self.vm.single(batch[0].vcpu).run(batch[0])
            return self.vm.program(batch[0].vcpu).run(batch)
        except KvmError as error:
            raise_if_exhausted(error)
            return [Lost(str(error))]

    def _execute(self, action: words.Execute) -> list[Event]:
        self.halves.give_up(action.vcpu)
        try:
            return run_effect(self.vm.single(action.vcpu), action)
        except KvmError as error:
            raise_if_exhausted(error)
            return [Lost(str(error))]
