"""The oracle: what every script leaves on a kernel that keeps the contract (docs/contract.md).

The Model knows no kernel. One rule is one small method, named by the requirements it states, so
that a mistake can be planted by replacing one of them (``tests/conformance/oracle/mutants.py``).
"""

from __future__ import annotations

from errno import EEXIST, EFAULT, EINVAL, EMFILE, ENOTTY
from typing import assert_never

from vmm.conformance.language import script as s
from vmm.conformance.oracle.effects import EffectRules
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.filters import QUIRK, Errors, FilterRules, Installed
from vmm.conformance.oracle.levels import LevelRules
from vmm.conformance.oracle.races import CLOSED, FOREIGN, RaceRules
from vmm.conformance.oracle.shadows import ShadowRules
from vmm.conformance.oracle.state import (
    APIC_BASES,
    EFER_RESERVED,
    IDLE,
    LBR_MSRS,
    NO_REGS,
    SMM_OWN,
    U32,
    U64,
    Reason,
    Stage,
    Unsure,
    VcpuState,
    VmState,
    is_unknown_to_kvm,
)
from vmm.conformance.oracle.sweeps import SweepRules
from vmm.filter import READ, WRITE, MsrFilter
from vmm.msr import (
    FILTER,
    INVAL,
    KVM_CAP_X86_MSR_FILTER,
    KVM_CAP_X86_USER_SPACE_MSR,
    UNKNOWN,
    Msr,
    MsrExitReason,
)

CAPS = (KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_X86_MSR_FILTER)

REPORTED: dict[Errors, int] = {
    frozenset({EINVAL}): EINVAL,
    frozenset({EFAULT}): EFAULT,
    frozenset({EFAULT, QUIRK}): EFAULT,
}
"""The errno of an install by all it could fail with; which of different ones is R13's quirk."""

SIZE_BITS = 0x3FFF_0000
"""The bits of an ioctl number that hold the size of its argument."""

RUNNABLE, INIT_RECEIVED = 0, 2
"""``KVM_MP_STATE_*``: every vCPU here starts runnable; after an INIT all but the first wait."""

AFTER_INIT = s.Regs(s.ANY, 0, 0, s.ANY)
"""Registers after an INIT: RDX says which CPU it is, and RIP is far from every instruction."""

MAX_SAFE_VCPU = 254
"""The highest vCPU number that every host accepts: an xAPIC has no more."""


class Model:
    """Predicts traces from the contract alone; ``predict`` keeps nothing between calls.

    ``ignore_msrs`` is what the host's KVM module parameter of that name says (R56); ``has_lbr``
    that a guest there can turn the last branch records on, and then has them to itself.
    Where the contract leaves a value to the host, the trace has ANY; where it only says that no
    filter stopped the access, ``unfiltered``; where it is silent or names a quirk, ``whatever``.
    """

    filters = FilterRules()
    exits = ExitRules()
    races = RaceRules()
    sweeps = SweepRules()
    levels = LevelRules()
    effects = EffectRules()
    shadows = ShadowRules()

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
                return self.access(vm, action)
            case s.Execute():
                return self.execute(vm, action)
            case s.EnableCap():
                return self.enable_cap(vm, action)
            case s.Install():
                return self.install(vm, action)
            case s.ScribbleBitmaps():
                return self.scribble(vm, action)
            case s.CheckExtension():
                return self.check_extension(vm, action)
            case s.GetMsr():
                return self.get_msr(vm, action)
            case s.SetMsr():
                return self.set_msr(vm, action)
            case s.CreateIrqchip():
                return self.create_irqchip(vm, action)
            case s.CreateVcpu():
                return self.create_vcpu(vm, action)
            case s.SetCpuid():
                return self.set_cpuid(vm, action)
            case s.SetCpuidBits():
                return self.set_cpuid(vm, action)
            case s.SendInit():
                return self.send_init(vm, action)
            case s.GetVcpuEvents():
                return self.shadows.events(vm.vcpu(action.vcpu))
            case s.Rewrite():
                return self.shadows.rewrite(vm.vcpu(action.vcpu), action)
            case s.Inject():
                return self.shadows.inject(vm, vm.vcpu(action.vcpu), action)
            case s.GetTaken():
                return (vm.vcpu(action.vcpu).taken,)
            case s.GetMpState():
                return self.get_mp_state(vm, action)
            case s.FreshVm():
                return self.fresh_vm(vm)
            case s.WeighBitmaps():
                return (s.whatever,)  # B38: no sentence of the contract says who pays
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

    # --- capabilities --------------------------------------------------------------------------

    def check_extension(self, vm: VmState, action: s.CheckExtension) -> s.Step:
        """R01."""
        return (s.got(1 if action.cap in CAPS else s.ANY),)

    def enable_cap(self, vm: VmState, action: s.EnableCap) -> s.Step:
        """R43-R47: one mask for the VM, not changed at all by a call that fails."""
        if action.cap == s.KVM_CAP_X86_DISABLE_EXITS and not vm.vcpus and action.on == "vm":
            known = sum(s.DISABLE_EXITS.values())
            return (s.whatever if self.mask_argument(action) & ~known else s.done,)
        if action.cap not in CAPS:
            return (s.whatever,)
        mask = self.mask_argument(action)
        if self.cap_is_invalid(action) or self.mask_is_invalid(mask):
            return (s.rejected(EINVAL),)
        vm.mask = self.new_mask(vm.mask, mask)
        return (s.done,)

    def cap_is_invalid(self, action: s.EnableCap) -> bool:
        """R01, R43: the second capability is only there to be checked."""
        return action.cap == KVM_CAP_X86_MSR_FILTER or action.flags != 0 or action.on != "vm"

    def mask_argument(self, action: s.EnableCap) -> int:
        """R43: args[1..3] are ignored."""
        return action.args[0] if action.args else 0

    def mask_is_invalid(self, mask: int) -> bool:
        """R43: bits 3..63."""
        return mask & ~0b111 != 0

    def new_mask(self, old: int, new: int) -> int:
        """R44: replaced, not OR-ed."""
        return new

    # --- installing a filter -------------------------------------------------------------------

    def install(self, vm: VmState, action: s.Install) -> s.Step:
        """R02, R03, R13: the caller, the ioctl, its argument, and then the filter."""
        if self.races.is_foreign(action):
            return FOREIGN
        if action.on != "vm":
            return self.wrong_fd(action)
        if action.number not in self.races.numbers(action.caller):
            return self.wrong_number(action)
        if action.argp is not None:
            return self.unreadable(vm, action)
        new = self.races.argument(action)
        errors = self.filters.errors(new)
        return self.refuse(vm, new, errors) if errors else self.accept(vm, new)

    def wrong_fd(self, action: s.Install) -> s.Step:
        """R03: a vCPU and /dev/kvm answer EINVAL to a number that they do not know."""
        return (s.rejected(EINVAL) if _has_our_number(action) else s.whatever,)

    def wrong_number(self, action: s.Install) -> s.Step:
        """R03, R05: another size, the compat one too; any other number is another ioctl."""
        return (s.rejected(ENOTTY) if _has_our_number(action) else s.whatever,)

    def unreadable(self, vm: VmState, action: s.Install) -> s.Step:
        """R02."""
        return (s.rejected(EFAULT),)

    def accept(self, vm: VmState, new: MsrFilter) -> s.Step:
        """R16, R74: in force at once, also if the ioctl has to wait before it returns."""
        old = vm.filter
        self.publish(vm, self.filters.installed(old, new))
        return (self.races.published(vm, old),)

    def publish(self, vm: VmState, installed: Installed) -> None:
        """R71, R75: one filter for all vCPUs, there now or made later."""
        vm.filter = installed

    def refuse(self, vm: VmState, new: MsrFilter, errors: Errors) -> s.Step:
        """R10: where a kernel may refuse or accept, nobody knows the filter from there on."""
        if errors == {QUIRK}:
            vm.filter = None
            return (s.whatever,)
        self.fail(vm, new)
        return (s.rejected(REPORTED.get(errors, s.ANY)),)

    def fail(self, vm: VmState, new: MsrFilter) -> None:
        """R14: nothing changes."""

    def scribble(self, vm: VmState, action: s.ScribbleBitmaps) -> s.Step:
        """R29: the kernel has a copy of its own."""
        return (s.done,)

    # --- accesses ------------------------------------------------------------------------------

    def access(self, vm: VmState, access: s.Access) -> s.Step:
        """R27, R50: an access succeeds or fails, and a failing one exits or is #GP."""
        vcpu = vm.vcpu(access.vcpu)
        vcpu.has_run, vcpu.taken = True, s.whatever
        if (vcpu.stage is not IDLE and self.is_stuck(vcpu)) or self.shadows.is_early(access):
            vcpu.forget(access.index & U32)
            return (s.whatever,)
        if (left := self.levels.left_by(self, vm, access)) is not None:
            return left
        if not self.is_privileged(access):
            return (s.gp,)
        reason = self.reason(vm, vcpu, access)
        if isinstance(reason, MsrExitReason):
            return self.failing(vm, access, reason)
        if reason is Unsure.WHATEVER and self.is_between(vm, access):
            return (self.between(vm, vcpu, access),)
        return (self.perform(vcpu, access, reason),)

    def is_between(self, vm: VmState, access: s.Access) -> bool:
        """R70: a filter is published and on its way to the vCPU, and the one before is known."""
        is_known = bool(vm.waits) and not vm.rivals and vm.filter is not None
        return is_known and vm.vcpu(access.vcpu).l2 is None

    def between(self, vm: VmState, vcpu: VcpuState, access: s.Access) -> s.Event:
        """R70: as under the old filter or as under the new, whichever of them denies it."""
        kind = WRITE if isinstance(access, s.Wrmsr) else READ
        denied = _endings(self.failing(vm, access, self.denied(access)))
        failure = self.failure(vcpu, access)
        if isinstance(failure, MsrExitReason):
            allowed = _endings(self.failing(vm, access, failure))
        else:
            allowed = _endings((self.perform(vcpu, access, failure),))
        if kind == WRITE:
            vcpu.forget(access.index & U32)
        is_now = self.filters.allows(self.filter_of(vm, access.vcpu), access.index & U32, kind)
        return s.either(denied, allowed) if is_now else s.either(allowed, denied)

    def is_privileged(self, access: s.Access) -> bool:
        """R59: at CPL3 the CPU itself raises #GP, whatever MSR it is, and nobody is asked."""
        return access.mode != "user"

    def is_stuck(self, vcpu: VcpuState) -> bool:
        """Say whether the vCPU cannot start an access: the one before is pending or lost."""
        if vcpu.stage is Stage.COMPLETED and not vcpu.moved:
            vcpu.stage, vcpu.regs = IDLE, NO_REGS
            return False
        vcpu.stage = Stage.UNSURE
        return True

    def reason(self, vm: VmState, vcpu: VcpuState, access: s.Access) -> Reason:
        """R51: the filter decides first, and then KVM (R27)."""
        allowed = self.allowed(vm, access)
        if allowed is None:
            return Unsure.WHATEVER
        return self.failure(vcpu, access) if allowed else self.denied(access)

    def allowed(self, vm: VmState, access: s.Access) -> bool | None:
        """R37: what the filter in force says to an access; None: one of two may be."""
        return self.races.allowed(self, vm, access)

    def filter_of(self, vm: VmState, vcpu: int) -> Installed | None:
        """R71, R75: the VM's filter, whichever vCPU asks."""
        return vm.filter

    def denied(self, access: s.Access) -> MsrExitReason:
        """R51: exactly FILTER."""
        return FILTER

    def failure(self, vcpu: VcpuState, access: s.Access) -> Reason:
        """R52: why KVM itself fails the access, where that is unmistakable."""
        index = access.index & U32
        if is_unknown_to_kvm(index):
            return None if self.is_ignored(index) else self.unknown()
        if isinstance(access, s.Wrmsr):
            is_bad = index == Msr.EFER and access.value & EFER_RESERVED != 0
            is_sure = vcpu.can_hold(index, access.value & U64) or self.is_lbr(vcpu, index)
        else:
            is_bad = index == Msr.APIC_ID and vcpu.x2apic is False
            is_sure = vcpu.can_read(index) or self.is_lbr(vcpu, index)
        return self.invalid() if is_bad else None if is_sure else Unsure.UNFILTERED

    def is_lbr(self, vcpu: VcpuState, index: int) -> bool:
        """R27: records that are on can be read and written, and change by themselves."""
        return self.has_lbr and vcpu.has_lbr_on and index in LBR_MSRS

    def is_ignored(self, index: int) -> bool:
        """R56: ignore_msrs silences UNKNOWN, and nothing else."""
        return self.ignore_msrs and is_unknown_to_kvm(index)

    def unknown(self) -> MsrExitReason:
        """R52: KVM has no such MSR."""
        return UNKNOWN

    def invalid(self) -> MsrExitReason:
        """R52: KVM has it, and not for this value or in this mode."""
        return INVAL

    def failing(self, vm: VmState, access: s.Access, reason: MsrExitReason) -> s.Step:
        """R50, R28: no side effect either way."""
        if not self.is_told(vm.mask, reason):
            return (s.gp,)
        return (self.exits.exit(access, reason), self.exits.outcome(access, access.reply))

    def is_told(self, mask: int, reason: MsrExitReason) -> bool:
        """R50."""
        return mask & int(reason) != 0

    def perform(self, vcpu: VcpuState, access: s.Access, reason: Reason) -> s.Event:
        """R27: what an allowed access does to the MSR and returns, as far as it is certain."""
        index = access.index & U32
        if self.is_ignored(index) and reason is None:
            return self.exits.done(access, self.ignored(vcpu, access))
        if access.mode == "smm" and index in SMM_OWN and reason is None:
            return self.exits.done(access, self.set_aside(access))
        if isinstance(access, s.Wrmsr):
            if index == Msr.IA32_DEBUGCTLMSR:
                vcpu.has_lbr_on = access.value & 1 != 0
            if reason is None:
                if index not in LBR_MSRS:
                    vcpu.msrs[index] = access.value & U64
                return self.exits.done(access, s.wrote)
            vcpu.forget(index)
        elif reason is None:
            return self.exits.done(access, s.returned(vcpu.msrs.get(index, s.ANY)))
        return s.whatever if reason is Unsure.WHATEVER else s.unfiltered

    def set_aside(self, access: s.Access) -> s.Event:
        """R27: SMM starts with a segment state of its own, and RSM brings back what was before."""
        return s.wrote if isinstance(access, s.Wrmsr) else s.returned(0)

    def ignored(self, vcpu: VcpuState, access: s.Access) -> s.Event:
        """R56: a read returns 0, and a write is dropped."""
        return s.wrote if isinstance(access, s.Wrmsr) else s.returned(0)

    def execute(self, vm: VmState, action: s.Execute) -> s.Step:
        """R35: no filter is asked, no MSR is another one afterwards, and nothing exits."""
        vcpu = vm.vcpu(action.vcpu)
        vcpu.has_run = True
        if vcpu.stage is not IDLE and self.is_stuck(vcpu):
            return (s.whatever,)
        return self.effects.executed(vm, action)

    # --- stopping in the middle ----------------------------------------------------------------

    def begin(self, vm: VmState, action: s.Begin) -> s.Step:
        """R57."""
        events = self.access(vm, action.access)
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
        """R65."""
        return (self.exits.complete(vm.vcpu(action.vcpu), action.reply),)

    def finish(self, vm: VmState, action: s.Finish) -> s.Step:
        """R64."""
        vcpu = vm.vcpu(action.vcpu)
        event = self.exits.finish(vcpu, action.reply)
        return (self.shadows.finished(vcpu, event),)

    # --- the host ------------------------------------------------------------------------------

    def get_msr(self, vm: VmState, action: s.GetMsr) -> s.Step:
        """R34, R28: never filtered; what was written last."""
        vcpu = vm.vcpu(action.vcpu)
        if is_unknown_to_kvm(action.index):
            return (self.host_unknown(),)
        is_sure = vcpu.can_read(action.index)
        return (s.got(vcpu.msrs.get(action.index, s.ANY)) if is_sure else s.whatever,)

    def set_msr(self, vm: VmState, action: s.SetMsr) -> s.Step:
        """R34: never filtered."""
        vcpu, index, value = vm.vcpu(action.vcpu), action.index, action.value & U64
        if is_unknown_to_kvm(index):
            return (self.host_unknown(),)
        if vcpu.can_hold(index, value):
            vcpu.msrs[index] = value
        elif index == Msr.IA32_APICBASE and value in APIC_BASES and vm.has_irqchip:
            vcpu.place_apic(action.vcpu, value)
        else:
            vcpu.forget(index)
            return (s.whatever,)
        return (s.done,)

    def host_unknown(self) -> s.Event:
        """R56 speaks of the guest's accesses only."""
        return s.whatever if self.ignore_msrs else s.refused

    def create_irqchip(self, vm: VmState, action: s.CreateIrqchip) -> s.Step:
        """Return EEXIST for a second one and EINVAL once there is a vCPU, as the kernel does."""
        if vm.has_irqchip or vm.vcpus:
            return (s.rejected(EEXIST if vm.has_irqchip else EINVAL),)
        vm.has_irqchip = True
        return (s.done,)

    def create_vcpu(self, vm: VmState, action: s.CreateVcpu) -> s.Step:
        """Return EEXIST for a number that is taken; a vCPU without a descriptor is none (R75)."""
        if action.vcpu in vm.vcpus:
            return (s.rejected(EEXIST),)
        if action.no_fd:
            return (s.rejected(EMFILE),)
        if not 0 <= action.vcpu <= MAX_SAFE_VCPU:
            return (s.whatever,)
        vm.vcpu(action.vcpu)
        return (s.done,)

    def fresh_vm(self, vm: VmState) -> s.Step:
        """R26, R45, R47: filter and mask are a VM's own; what the host has saved stays with it."""
        fresh = VmState(saved=vm.saved, makes_vcpus=vm.makes_vcpus)
        for name in VmState.__dataclass_fields__:
            setattr(vm, name, getattr(fresh, name))
        if not vm.makes_vcpus:
            vm.vcpu(0)
        return (s.done,)

    def send_init(self, vm: VmState, action: s.SendInit) -> s.Step:
        """Return EINVAL where no APIC is there to take it."""
        vcpu = vm.vcpu(action.vcpu)
        if not vm.has_irqchip:
            return (s.rejected(EINVAL),)
        vcpu.has_init = True
        return (s.done,)

    def get_mp_state(self, vm: VmState, action: s.GetMpState) -> s.Step:
        """R64, R68: an INIT that is pending resets the vCPU, and what it had begun is gone."""
        vcpu = vm.vcpu(action.vcpu)
        if not vcpu.has_init:
            is_known = vcpu.stage not in (Stage.UNSURE, Stage.AWAY)
            return (s.got(RUNNABLE) if is_known else s.whatever,)
        self.reset(vcpu)
        return (s.got(INIT_RECEIVED if action.vcpu else RUNNABLE),)

    def reset(self, vcpu: VcpuState) -> None:
        """R64, R68: nothing completes later what was begun before."""
        vcpu.has_init, vcpu.stage, vcpu.regs = False, Stage.UNSURE, AFTER_INIT

    def set_cpuid(self, vm: VmState, action: s.SetCpuid | s.SetCpuidBits) -> s.Step:
        """R33: no filter asks what a guest's CPUID says; only before the vCPU first runs."""
        vcpu = vm.vcpu(action.vcpu)
        return (s.whatever if vcpu.has_run or vcpu.stage is not IDLE else s.done,)


def _endings(step: s.Step) -> tuple[s.Ending, ...]:
    return tuple(each for each in step if isinstance(each, s.Ending))


def _has_our_number(action: s.Install) -> bool:
    """Say whether the ioctl number is SET_MSR_FILTER's, whatever the size of the argument."""
    return action.number & ~SIZE_BITS == s.KVM_X86_SET_MSR_FILTER & ~SIZE_BITS
