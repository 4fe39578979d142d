"""Mistakes that only an access in another mode than 64-bit CPL0 meets (R59; R33 to R66 there)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mutant import mutant
from planting import Where, unasked

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import U32
from vmm.conformance.oracle.state import VcpuState, VmState
from vmm.msr import FILTER, MsrExitReason


def _in_mode(mode: str) -> Where:
    return lambda vm, vcpu, access: access.mode == mode


def _user_exits(self: AccessRules, model: Model, vm: VmState, access: s.Access) -> s.Step:
    if access.mode == "user" and self.reason(model, vm, vm.vcpu(access.vcpu), access) is FILTER:
        return self.failing(model, vm, access, FILTER)
    return AccessRules.access(self, model, vm, access)


def _user_exits_in_emulator(self: AccessRules, access: s.Access) -> bool:
    return access.emulated or AccessRules.is_privileged(self, access)


def _user_writes(self: AccessRules, model: Model, vm: VmState, access: s.Access) -> s.Step:
    if access.mode == "user" and isinstance(access, s.Wrmsr):
        vm.vcpu(access.vcpu).msrs[access.index] = access.value
    return AccessRules.access(self, model, vm, access)


def _user_is_told(self: AccessRules, model: Model, vm: VmState, access: s.Access) -> s.Step:
    reason = self.reason(model, vm, vm.vcpu(access.vcpu), access)
    if access.mode == "user" and isinstance(reason, MsrExitReason) and reason is not FILTER:
        return self.failing(model, vm, access, reason)
    return AccessRules.access(self, model, vm, access)


def _halves_kept(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    outcome = ExitRules.outcome(self, access, reply)
    if access.mode != "long" and isinstance(outcome, s.Returned):
        return replace(outcome, high=access.high)
    return outcome


def _low_half_only(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    narrow = replace(reply, value=reply.value & U32) if access.mode == "real" else reply
    return ExitRules.outcome(self, access, narrow)


def _truncated(self: ExitRules, access: s.Wrmsr) -> int:
    return access.value & (U32 if access.mode in ("real", "smm") else ~0)


def _regs_truncated(self: ExitRules, access: s.Access) -> s.Regs:
    regs = ExitRules.regs_at_exit(self, access)
    if access.mode != "protected":
        return regs
    return replace(regs, rax=regs.rax & U32, rdx=regs.rdx & U32)


def _linear_rip(self: ExitRules, access: s.Access) -> s.Regs:
    regs = ExitRules.regs_at_exit(self, access)
    return replace(regs, skew=0x10000) if access.mode == "real" else regs


def _no_error(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    lenient = replace(reply, error=0) if access.mode == "compat" else reply
    return ExitRules.outcome(self, access, lenient)


def _no_step(self: ExitRules, access: s.Access, event: s.Event) -> s.Event:
    silent = replace(access, single_step=False) if access.mode == "protected" else access
    return ExitRules.done(self, silent, event)


def _is_told(self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any) -> s.Step:
    if access.mode in ("real", "smm"):
        return (s.gp,)
    return AccessRules.failing(self, model, vm, access, reason)


def _in_smm(
    self: AccessRules, model: Model, vcpu: VcpuState, access: s.Access, reason: Any
) -> s.Event:
    return AccessRules.perform(self, model, vcpu, replace(access, mode="long"), reason)


MODES = (
    mutant(
        Model,
        "protected_unfiltered",
        "No filter is asked without paging.",
        reason=unasked(_in_mode("protected")),
    ),
    mutant(
        Model,
        "compat_unfiltered",
        "No filter is asked in 32-bit code of a 64-bit guest.",
        reason=unasked(_in_mode("compat")),
    ),
    mutant(
        Model, "real_unfiltered", "Real mode is emulated unasked.", reason=unasked(_in_mode("real"))
    ),
    mutant(
        Model,
        "higher_half_unfiltered",
        "What is above 4 GiB is the kernel's, which is trusted.",
        reason=unasked(_in_mode("higher_half")),
    ),
    mutant(Model, "smm_unfiltered", "SMM is trusted.", reason=unasked(_in_mode("smm"))),
    mutant(Model, "user_exits", "A denied access at CPL3 exits.", access=_user_exits),
    mutant(Model, "user_is_told", "An unknown MSR at CPL3 exits.", access=_user_is_told),
    mutant(
        Model,
        "user_emulated",
        "The emulator does not look at CPL.",
        is_privileged=_user_exits_in_emulator,
    ),
    mutant(Model, "user_writes", "What CPL3 writes is there after its #GP.", access=_user_writes),
    mutant(Model, "real_does_not_exit", "16-bit code is #GP at once.", failing=_is_told),
    mutant(Model, "smm_shares_fs", "SMM sees the FS from before.", perform=_in_smm),
    mutant(
        ExitRules,
        "halves_kept_in_32_bit",
        "Upper halves stay, as 32-bit code cannot see them.",
        outcome=_halves_kept,
    ),
    mutant(
        ExitRules, "real_low_half", "16-bit code gets one half of the data.", outcome=_low_half_only
    ),
    mutant(ExitRules, "real_writes_low_half", "Userspace sees one half of it.", written=_truncated),
    mutant(
        ExitRules,
        "halves_lost_in_32_bit",
        "An exit without paging shows no upper halves.",
        regs_at_exit=_regs_truncated,
    ),
    mutant(
        ExitRules,
        "real_rip_is_linear",
        "RIP at an exit in real mode has the base of CS in it.",
        regs_at_exit=_linear_rip,
    ),
    mutant(
        ExitRules, "compat_error_ignored", "An error is lost in 32-bit code.", outcome=_no_error
    ),
    mutant(ExitRules, "protected_step_lost", "No #DB follows without paging.", done=_no_step),
)
