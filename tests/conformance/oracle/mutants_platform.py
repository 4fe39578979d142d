"""Mistakes in what makes KVM pass more through, in an INIT, and while a filter is on its way."""

from __future__ import annotations

from mutant import mutant
from planting import unasked

from vmm.conformance.cases.words import HELD
from vmm.conformance.language import script as s
from vmm.conformance.oracle.host import HostRules
from vmm.conformance.oracle.masks import MaskRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VcpuState, VmState


def _noting_exits(self: MaskRules, vm: VmState, action: s.EnableCap) -> s.Step:
    if action.cap == s.KVM_CAP_X86_DISABLE_EXITS:
        vars(vm)["_disabled"] = action.args[0]
    return MaskRules.enable_cap(self, vm, action)


def _noting_cpuid(self: HostRules, vm: VmState, action: s.SetCpuid | s.SetCpuidBits) -> s.Step:
    is_bare = isinstance(action, s.SetCpuid) and action.feature == "everything" and not action.on
    vars(vm)["_bare"] = is_bare
    return HostRules.set_cpuid(self, vm, action)


def _noting_shstk(self: HostRules, vm: VmState, action: s.SetCpuid | s.SetCpuidBits) -> s.Step:
    vars(vm)["_shstk"] = isinstance(action, s.SetCpuidBits) and action.leaf == 7
    return HostRules.set_cpuid(self, vm, action)


def _only_pending(self: HostRules, vcpu: VcpuState) -> None:
    stage = vcpu.stage
    HostRules.reset(self, vcpu)
    vcpu.stage = stage


def _exists_all_the_same(self: HostRules, vm: VmState, action: s.CreateVcpu) -> s.Step:
    events = HostRules.create_vcpu(self, vm, action)
    vm.vcpu(action.vcpu)
    return events


def _noting_reset(self: HostRules, vm: VmState, action: s.GetMpState) -> s.Step:
    vars(vm)["_was_reset"] = vm.vcpu(action.vcpu).has_init
    return HostRules.get_mp_state(self, vm, action)


PLATFORM = (
    mutant(
        Model,
        "cstate_residency_unfiltered",
        "Residency counters are passed through with CSTATE exits disabled, whatever the filter.",
        enable_cap=_noting_exits,
        reason=unasked(
            lambda vm, _, access: (
                vars(vm).get("_disabled", 0) & 8 != 0 and access.index in range(0x3FC, 0x3FF)
            )
        ),
    ),
    mutant(
        Model,
        "aperf_unfiltered",
        "APERF and MPERF are passed through with their exits disabled, whatever the filter.",
        enable_cap=_noting_exits,
        reason=unasked(
            lambda vm, _, access: (
                vars(vm).get("_disabled", 0) & 16 != 0 and access.index in (0xE7, 0xE8)
            )
        ),
    ),
    mutant(
        Model,
        "not_in_cpuid_is_not_denied",
        "The filter is not asked for MSRs of features that CPUID has not.",
        set_cpuid=_noting_cpuid,
        reason=unasked(
            lambda vm, _, access: vars(vm).get("_bare", False) and access.index == 0x10A
        ),
    ),
    mutant(
        Model,
        "cet_unfiltered",
        "CPUID with SHSTK passes the shadow stack pointers through, whatever the filter.",
        set_cpuid=_noting_shstk,
        reason=unasked(
            lambda vm, _, access: (
                vars(vm).get("_shstk", False) and access.index in range(0x6A4, 0x6A8)
            )
        ),
    ),
    mutant(
        Model,
        "records_that_are_on_are_not_denied",
        "Branch records that are on obey no filter (B34).",
        reason=unasked(lambda _, vcpu, access: vcpu.has_lbr_on and 0x1DB <= access.index < 0x1DF),
    ),
    mutant(
        Model,
        "records_are_forgotten",
        "Branch records that came on while they were denied are unknown later (B34).",
        is_lbr=lambda self, model, vcpu, index: False,
    ),
    mutant(
        Model,
        "init_keeps_the_completion",
        "What an INIT cut off is completed all the same (B37).",
        reset=_only_pending,
    ),
    mutant(
        Model,
        "init_forgets_the_filter",
        "An INIT passes through what the vCPU was denied.",
        get_mp_state=_noting_reset,
        reason=unasked(
            lambda vm, _, access: vars(vm).get("_was_reset", False) and access.index in HELD
        ),
    ),
    mutant(
        Model,
        "init_is_ignored",
        "KVM_GET_MP_STATE does not look for an INIT.",
        get_mp_state=lambda self, vm, action: (s.got(0),),
    ),
    mutant(
        Model,
        "neither_old_nor_new",
        "An access that a filter on its way denies may end in any way that is no exit (B10).",
        between=lambda self, model, vm, vcpu, access: s.unfiltered,
    ),
    mutant(
        Model,
        "vcpu_without_a_descriptor_exists",
        "A vCPU whose creation failed at its descriptor keeps its number.",
        create_vcpu=_exists_all_the_same,
    ),
)
