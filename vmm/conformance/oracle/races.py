"""What the contract says of races: installs in flight, and what goes on meanwhile.

One rule is one small method, as in ``filters``. ``RaceRules`` holds no state of its own and
knows nothing of filters and exits: for those it asks the ``Rest`` of the Model.
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import EBADF, EFAULT
from typing import Protocol, assert_never

from vmm.conformance.language import script as s
from vmm.conformance.oracle import running
from vmm.conformance.oracle.filters import NO_ERRORS, QUIRK, Errors, Installed
from vmm.conformance.oracle.installs import InstallRules
from vmm.conformance.oracle.msrs import U32, is_unknown_to_kvm
from vmm.conformance.oracle.running import RunningRules
from vmm.conformance.oracle.state import Stage, Stall, VmState, Wait
from vmm.filter import READ, WRITE, MsrFilter, MsrRange

MEANWHILE = "meanwhile "
"""In front of the names of ``meanwhile``, which are not those of installs."""


class Rest(running.Rest, Protocol):
    """What races ask of the rest of the Model: steps, filters, and what is in force."""

    @property
    def installs(self) -> InstallRules:
        """Who installs what."""

    @property
    def running(self) -> RunningRules:
        """What vCPUs in threads of their own do."""

    def step(self, vm: VmState, action: s.Action) -> s.Step:
        """Return what an action leaves."""


class RaceRules:
    """R03-R05, R70-R75, R77: who may install, what overtakes what, and which filter is in force."""

    def step(self, model: Rest, vm: VmState, action: s.RaceAction) -> s.Step:  # noqa: PLR0911, PLR0912
        """Return what a race's action leaves: one rule a word."""
        match action:
            case s.BeginInstall():
                return self.begin_install(model, vm, action)
            case s.ResumeInstall():
                return self.resume_install(model, vm, action)
            case s.AwaitInstall():
                return self.await_install(model, vm, action)
            case s.Meanwhile():
                return self.meanwhile(model, vm, action)
            case s.AwaitMeanwhile():
                return self.await_meanwhile(model, vm, action)
            case s.Park():
                return model.running.park(model, vm, action)
            case s.Release():
                return model.running.release(model, vm, action)
            case s.Spin():
                return model.running.spin(model, vm, action)
            case s.UntilExits():
                return model.running.until_exits(model, vm, action)
            case s.UntilRuns():
                return model.running.until_runs(model, vm, action)
            case s.StopSpin():
                return model.running.stop_spin(model, vm, action)
            case s.Sleep():
                return model.sleeping.sleep(vm, action)
            case s.Wake():
                return model.sleeping.wake(vm, action)
            case s.AwaitSipi():
                return model.sleeping.await_sipi(vm, action)
            case s.CloseVm():
                return self.close_vm(model, vm, action)
            case s.CloseVcpu():
                return self.close_vcpu(model, vm, action)
            case _:
                assert_never(action)

    # --- descriptors ---------------------------------------------------------------------------

    def is_gone(self, vm: VmState, action: s.Action) -> bool:
        """Say whether ``action`` needs the VM's descriptor, and it is closed."""
        if vm.is_open:
            return False
        if isinstance(action, s.EnableCap | s.Install | s.CheckExtension):
            return action.on == "vm"
        return isinstance(action, ASKS)

    def close_vm(self, model: Rest, vm: VmState, action: s.CloseVm) -> s.Step:
        """Close the descriptor only: vCPUs and ioctls in flight hold the VM, and so its filter."""
        vm.is_open = False
        return (s.done,)

    def close_vcpu(self, model: Rest, vm: VmState, action: s.CloseVcpu) -> s.Step:
        """Close a descriptor; the VM remembers the vCPU."""
        vm.vcpu(action.vcpu).stage = Stage.AWAY
        return (s.done,)

    # --- an install that stalls ----------------------------------------------------------------

    def begin_install(self, model: Rest, vm: VmState, action: s.BeginInstall) -> s.Step:
        """R13: what comes before the stalled bitmap is judged at once, the rest later."""
        if self.is_in_flight(vm, action.name):
            return self.mixed_up(vm)
        plain = action.install
        new = model.installs.argument(plain)
        if action.stall_at is None or model.installs.is_foreign(plain):
            return self.in_thread(model, vm, action.name, plain)
        if not self.stalls(model, new, action.stall_at):
            return self.in_thread(model, vm, action.name, plain)
        early = self.errors(model, new.ranges[: action.stall_at])
        if early - {QUIRK}:
            return model.installs.refuse(model, vm, new, early)
        own = self.errors(model, new.ranges[action.stall_at : action.stall_at + 1])
        vm.stalls[action.name] = Stall(new, action.stall_at, is_sure=not early | own)
        self.stall(model, vm, vm.stalls[action.name])
        return (s.stalled if not early | own else s.whatever,)

    def is_in_flight(self, vm: VmState, name: str) -> bool:
        """Say whether a thread has this name already."""
        return name in vm.stalls or name in vm.waits

    def mixed_up(self, vm: VmState) -> s.Step:
        """Two threads with one name: nobody knows any more which of them is meant."""
        vm.filter = None
        return (s.whatever,)

    def stalls(self, model: Rest, new: MsrFilter, slot: int) -> bool:
        """R11, R12: the kernel comes to the bitmap of a slot unless it skips it or fails before."""
        if model.filters.filter_errors(new) or slot >= len(new.ranges):
            return False
        return not model.filters.is_skipped(new.ranges[slot])

    def errors(self, model: Rest, ranges: Iterable[MsrRange]) -> Errors:
        """R13: every errno that ``ranges`` could be refused with."""
        return NO_ERRORS.union(*[model.filters.range_errors(each) for each in ranges])

    def stall(self, model: Rest, vm: VmState, stall: Stall) -> None:
        """R70: the filter in force is the old one, whole, as long as the new one is not."""

    def resume_install(self, model: Rest, vm: VmState, action: s.ResumeInstall) -> s.Step:
        """R14, R77: the new filter whole, in place of whatever is in force by now, or nothing."""
        stall = vm.stalls.pop(action.name, None)
        if stall is None or not stall.is_sure:
            return self.resume_of_what(model, vm, stall, action)
        late = self.errors(model, stall.new.ranges[stall.slot + 1 :])
        errors = frozenset({EFAULT}) if action.fails else late
        if errors:
            return model.installs.refuse(model, vm, stall.new, errors)
        return self.land(vm, action.name, vm.filter, model.installs.accept(model, vm, stall.new))

    def resume_of_what(
        self, model: Rest, vm: VmState, stall: Stall | None, action: s.ResumeInstall
    ) -> s.Step:
        """R10, R13: an install that kernels refuse earlier, later or (R10) not at all."""
        if stall and not action.fails and not self.errors(model, stall.new.ranges) - {QUIRK}:
            vm.filter = None
        return (s.whatever,)

    # --- an install that waits for readers -----------------------------------------------------

    def in_thread(self, model: Rest, vm: VmState, name: str, action: s.Action) -> s.Step:
        """Do ``action`` in a thread, which may be left blocked."""
        return self.land(vm, name, vm.filter, model.step(vm, action))

    def land(self, vm: VmState, name: str, old: Installed | None, events: s.Step) -> s.Step:
        """R74: remember what a thread that is ``blocked`` waits for."""
        if events == (s.blocked,):
            readers = frozenset(vm.parked.values())
            vm.waits[name] = Wait(readers, old, is_queued=bool(vm.rivals))
        return events

    def await_install(self, model: Rest, vm: VmState, action: s.AwaitInstall) -> s.Step:
        """R74."""
        return self.returns(model, vm, action.name)

    def await_meanwhile(self, model: Rest, vm: VmState, action: s.AwaitMeanwhile) -> s.Step:
        """R74."""
        return self.returns(model, vm, MEANWHILE + action.name)

    def returns(self, model: Rest, vm: VmState, name: str) -> s.Step:
        """R74: as soon as the readers are gone; nobody promises anything of later readers."""
        wait = vm.waits.get(name)
        if wait is None or not wait.is_sure:
            return (s.whatever,)
        if model.installs.is_held(vm, wait):
            return (s.blocked,)
        if vm.parked:
            wait.is_sure = False
            return (s.whatever,)
        del vm.waits[name]
        if wait.is_queued and len(vm.rivals) == 1:
            vm.rivals = ()
        return (s.done,)

    def allowed(self, model: Rest, vm: VmState, access: s.Access) -> bool | None:
        """R71, R72: what the filter in force says to ``access``; None: one of two may be.

        Hardware may let an MSR pass under the old filter until the install has returned; only of
        an MSR that no KVM knows is it certain that each access asks the new one.
        """
        index, kind = access.index & U32, WRITE if isinstance(access, s.Wrmsr) else READ
        rules, in_force = model.filters, model.filter_of(vm, access.vcpu)
        if not vm.rivals and not vm.waits:
            return rules.allows(in_force, index, kind)
        said = {rules.allows(each, index, kind) for each in {in_force, *vm.rivals}}
        if vm.waits and said == {False} and not is_unknown_to_kvm(index):
            said |= {rules.allows(wait.old, index, kind) for wait in vm.waits.values()}
        return said.pop() if len(said) == 1 else None

    # --- what else goes on meanwhile -----------------------------------------------------------

    def meanwhile(self, model: Rest, vm: VmState, action: s.Meanwhile) -> s.Step:
        """R73: what the action leaves alone."""
        if self.is_in_flight(vm, MEANWHILE + action.name):
            return self.mixed_up(vm)
        return self.in_thread(model, vm, MEANWHILE + action.name, action.action)

    def may_wait(self, vm: VmState, action: s.Action, events: s.Step) -> s.Step:
        """R73, B17: nothing waits for a stalled install; what needs kvm->lock may for a blocked."""
        if isinstance(action, s.CreateVcpu | s.CreateIrqchip | s.XenHvmConfig) and vm.waits:
            return (s.whatever,)
        return events


ASKS = s.BeginInstall, s.CreateIrqchip, s.CreateVcpu, s.XenHvmConfig, s.CloseVm, s.SendSipi
"""What asks the VM's descriptor, beside calls that name one."""
CLOSED: s.Step = (s.rejected(EBADF),)
