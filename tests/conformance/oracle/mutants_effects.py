"""Mistakes about instructions that use MSRs as a side effect (R35; B06 is real)."""

from __future__ import annotations

from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.effects import EffectRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VmState
from vmm.exits import RdmsrExit
from vmm.msr import FILTER, Msr

USED: dict[str, int] = {
    "rdpid": Msr.TSC_AUX,
    "rdtscp": Msr.TSC_AUX,
    "rdtsc": Msr.IA32_TSC,
    "cpuid": 0x140,
    "syscall": Msr.STAR,
    "sysenter": Msr.IA32_SYSENTER_CS,
    "swapgs": Msr.KERNEL_GS_BASE,
    "rdfsbase": Msr.FS_BASE,
    "wrgsbase": Msr.GS_BASE,
    "xsaves": Msr.IA32_XSS,
    "rsm": Msr.EFER,
}


UD: s.Step = (s.Fault(6),)


def _filtered(*names: str, emulated: bool = False, ends: s.Step = UD, masked: bool = False) -> Any:
    """Return the rule that an instruction fails where its MSR is denied."""

    def execute(self: AccessRules, model: Model, vm: VmState, action: s.Execute) -> s.Step:
        right = AccessRules.execute(self, model, vm, action)
        access = s.rdmsr(USED.get(action.instruction, 0), vcpu=action.vcpu)
        if action.instruction not in names or action.emulated != emulated:
            return right
        if model.allowed(vm, access) or (masked and not vm.mask):
            return right
        return tuple(ends)

    return execute


def _stale(self: AccessRules, model: Model, vm: VmState, action: s.Execute) -> s.Step:
    right = AccessRules.execute(self, model, vm, action)
    return right if vm.filter is None or not vm.mask else (*right[:-1], s.executed(0))


def _no_value(self: EffectRules, action: s.Execute) -> int:
    return 0 if action.emulated else action.value


def _changes_star(self: AccessRules, model: Model, vm: VmState, action: s.Execute) -> s.Step:
    if action.instruction == "syscall":
        vm.vcpu(action.vcpu).msrs[Msr.STAR] = action.value << 32
    return AccessRules.execute(self, model, vm, action)


EFFECTS = (
    mutant(
        Model,
        "emulated_rdpid_filtered",
        "The emulator has no TSC_AUX for RDPID where it is denied.",
        execute=_filtered("rdpid", emulated=True),
    ),
    mutant(
        Model,
        "emulated_sysenter_filtered",
        "The emulator cannot read SYSENTER_CS where it is denied.",
        execute=_filtered("sysenter", emulated=True, ends=(s.gp,)),
    ),
    mutant(
        Model,
        "emulated_rdtsc_filtered",
        "The emulator reads a TSC of 0 where it is denied.",
        execute=_filtered("rdtsc", emulated=True, ends=(s.executed(0),)),
    ),
    mutant(
        Model,
        "emulated_cpuid_exits",
        "The emulator's CPUID exits for MISC_FEATURES_ENABLES.",
        execute=_filtered(
            "cpuid",
            emulated=True,
            ends=(RdmsrExit(0x140, FILTER), s.executed(0x4000_0000)),
            masked=True,
        ),
    ),
    mutant(
        Model,
        "rdtscp_filtered",
        "RDTSCP is #UD where TSC_AUX is denied.",
        execute=_filtered("rdtscp"),
    ),
    mutant(
        Model,
        "syscall_filtered",
        "SYSCALL is #GP where STAR is denied.",
        execute=_filtered("syscall", ends=(s.gp,)),
    ),
    mutant(
        Model,
        "swapgs_filtered",
        "SWAPGS is #GP where KERNEL_GS_BASE is denied.",
        execute=_filtered("swapgs", ends=(s.gp,)),
    ),
    mutant(
        Model,
        "rdfsbase_exits",
        "RDFSBASE exits where FS_BASE is denied and somebody is told.",
        execute=_filtered(
            "rdfsbase", ends=(RdmsrExit(Msr.FS_BASE, FILTER), s.executed(s.REPLY)), masked=True
        ),
    ),
    mutant(
        Model,
        "xsaves_filtered",
        "XSAVES is #GP where XSS is denied.",
        execute=_filtered("xsaves", ends=(s.gp,)),
    ),
    mutant(
        Model,
        "rsm_shuts_down",
        "RSM cannot set EFER where it is denied.",
        execute=_filtered("rsm", ends=(s.Lost("KVM_EXIT_SHUTDOWN"),)),
    ),
    mutant(Model, "effect_is_lost", "A filter makes all of them read 0.", execute=_stale),
    mutant(EffectRules, "emulator_reads_nothing", "The emulator's MSRs are 0.", value=_no_value),
    mutant(Model, "syscall_leaves_star", "What was set for SYSCALL stays.", execute=_changes_star),
)
