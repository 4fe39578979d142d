"""The oracle: what every script leaves on a kernel that keeps the contract (docs/contract.md).

The Model knows no kernel. One rule is one small method, named by the requirements it states, so
that a mistake can be planted by replacing one of them (``tests/conformance/oracle/mutants.py``).
"""

from __future__ import annotations

from typing import assert_never

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.effects import EffectRules
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.filters import FilterRules, Installed
from vmm.conformance.oracle.host import HostRules
from vmm.conformance.oracle.installs import InstallRules
from vmm.conformance.oracle.levels import LevelRules
from vmm.conformance.oracle.masks import MaskRules
from vmm.conformance.oracle.races import CLOSED, RaceRules
from vmm.conformance.oracle.running import RunningRules
from vmm.conformance.oracle.shadows import ShadowRules
from vmm.conformance.oracle.sleeping import SleepingRules
from vmm.conformance.oracle.state import Stage, VmState
from vmm.conformance.oracle.sweeps import SweepRules
from vmm.conformance.oracle.xen import XenRules


class Model:
    """Predicts traces from the contract alone; ``predict`` keeps nothing between calls.

    ``ignore_msrs`` is what the host's KVM module parameter of that name says (R56); ``has_lbr``
    that a guest there can turn the last branch records on, and then has them to itself.
    Where the contract leaves a value to the host, the trace has ANY; where it only says that no
    filter stopped the access, ``unfiltered``; where it is silent or names a quirk, ``whatever``.
    """

    filters = FilterRules()
    masks = MaskRules()
    installs = InstallRules()
    accesses = AccessRules()
    exits = ExitRules()
    host = HostRules()
    races = RaceRules()
    running = RunningRules()
    sweeps = SweepRules()
    levels = LevelRules()
    effects = EffectRules()
    shadows = ShadowRules()
    xen = XenRules()
    sleeping = SleepingRules()

    def __init__(self, *, ignore_msrs: bool = False, has_lbr: bool = False) -> None:
        self.ignore_msrs, self.has_lbr = ignore_msrs, has_lbr

    def predict(self, script: s.Script) -> s.Trace:
        """Return the trace (a pattern, for ``first_difference``) that ``script`` must leave."""
        vm = self.new_vm(script)
        trace: list[s.Event] = []
        for action in script:
            trace += self.step(vm, action)
        return tuple(trace)

    def step(self, vm: VmState, action: s.Action) -> s.Step:
        """R73: no action waits for what another thread does."""
        if self.races.is_gone(vm, action):
            return CLOSED
        if isinstance(action, s.RaceAction):
            return self.races.step(self, vm, action)
        if isinstance(action, s.LevelAction):
            return self.levels.step(self, vm, action)
        return self.races.may_wait(vm, action, self.alone(vm, action))

    def alone(self, vm: VmState, action: s.Access | s.Execute | s.HostAction) -> s.Step:  # noqa: PLR0911, PLR0912
        """Return what an action leaves in a VM in which nothing is in flight: one rule a word."""
        match action:
            case s.Rdmsr() | s.Wrmsr():
                return self.accesses.access(self, vm, action)
            case s.Execute():
                return self.accesses.execute(self, vm, action)
            case s.EnableCap():
                return self.masks.enable_cap(vm, action)
            case s.Install():
                return self.installs.install(self, vm, action)
            case s.ScribbleBitmaps():
                return self.installs.scribble(vm, action)
            case s.CheckExtension():
                return self.masks.check_extension(vm, action)
            case s.GetMsr():
                return self.host.get_msr(self, vm, action)
            case s.SetMsr():
                return self.host.set_msr(self, vm, action)
            case s.CreateIrqchip():
                return self.host.create_irqchip(vm, action)
            case s.CreateVcpu():
                return self.host.create_vcpu(vm, action)
            case s.SetCpuid():
                return self.host.set_cpuid(vm, action)
            case s.SetCpuidBits():
                return self.host.set_cpuid(vm, action)
            case s.SendInit():
                return self.host.send_init(vm, action)
            case s.GetVcpuEvents():
                return self.shadows.events(vm.vcpu(action.vcpu))
            case s.Rewrite():
                return self.shadows.rewrite(vm, vm.vcpu(action.vcpu), action)
            case s.Inject():
                return self.shadows.inject(vm, vm.vcpu(action.vcpu), action)
            case s.GetTaken():
                return (vm.vcpu(action.vcpu).taken,)
            case s.GetMpState():
                return self.host.get_mp_state(vm, action)
            case s.SetMpState():
                return self.sleeping.set_mp_state(vm, action)
            case s.SendSipi():
                return self.sleeping.send_sipi(vm, action)
            case s.FreshVm():
                return self.fresh_vm(vm)
            case s.WeighBitmaps():
                return (s.whatever,)  # B38: no sentence of the contract says who pays
            case s.XenHvmConfig():
                return self.xen.config(vm, action)
            case s.GetHypercallPage():
                return self.xen.get_page(vm)
            case s.Sweep():
                return self.sweeps.step(self, vm, action)
            case s.Begin():
                return self.begin(vm, action)
            case s.GetRegs():
                return self.get_regs(vm, action)
            case s.SetRegs():
                return self.set_regs(vm, action)
            case s.Complete():
                return self.complete(vm, action)
            case s.Finish():
                return self.finish(vm, action)
            case _:
                assert_never(action)

    def new_vm(self, script: s.Script) -> VmState:
        """R26 R47: no filter, mask 0; vCPU 0 exists unless the script itself makes vCPUs."""
        vm = VmState(makes_vcpus=s.makes_vcpus(script))
        if not vm.makes_vcpus:
            vm.vcpu(0)
        return vm

    def fresh_vm(self, vm: VmState) -> s.Step:
        """R26, R45, R47: filter and mask are a VM's own; what the host has saved stays with it."""
        fresh = VmState(saved=vm.saved, page=vm.page, makes_vcpus=vm.makes_vcpus)
        for name in VmState.__dataclass_fields__:
            setattr(vm, name, getattr(fresh, name))
        if not vm.makes_vcpus:
            vm.vcpu(0)
        return (s.done,)

    def allowed(self, vm: VmState, access: s.Access) -> bool | None:
        """R37: what the filter in force says to an access; None: one of two may be."""
        return self.races.allowed(self, vm, access)

    def filter_of(self, vm: VmState, vcpu: int) -> Installed | None:
        """R71, R75: the VM's filter, whichever vCPU asks."""
        return vm.filter

    # --- stopping in the middle ----------------------------------------------------------------

    def begin(self, vm: VmState, action: s.Begin) -> s.Step:
        """R57."""
        events = self.accesses.access(self, vm, action.access)
        vcpu = vm.vcpu(action.access.vcpu)
        vcpu.injected, vcpu.taken = (), s.whatever
        return (self.exits.begin(vcpu, action.access, events, vm.mask),)

    def get_regs(self, vm: VmState, action: s.GetRegs) -> s.Step:
        """R57, R65: what the access has done so far."""
        return (vm.vcpu(action.vcpu).regs,)

    def set_regs(self, vm: VmState, action: s.SetRegs) -> s.Step:
        """R67."""
        return (self.exits.set_regs(vm.vcpu(action.vcpu), action),)

    def complete(self, vm: VmState, action: s.Complete) -> s.Step:
        """R65; R66: a debugger is told right behind an access that ends well."""
        vcpu = vm.vcpu(action.vcpu)
        if action.by == "debugger" and not self.exits.is_stepped(vcpu, action.reply):
            vcpu.stage = Stage.UNSURE
            return (s.whatever,)
        event = self.exits.complete(vcpu, action.reply)
        if action.by == "signal":
            self.shadows.signalled(vcpu)
        return (event,)

    def finish(self, vm: VmState, action: s.Finish) -> s.Step:
        """R64."""
        vcpu = vm.vcpu(action.vcpu)
        event = self.exits.finish(vcpu, action.reply)
        return (self.shadows.finished(vcpu, event),)
