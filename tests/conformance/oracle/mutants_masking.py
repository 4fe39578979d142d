"""Mistakes in the mask: KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)."""

from __future__ import annotations

from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.masks import MaskRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import U64
from vmm.conformance.oracle.state import VmState
from vmm.msr import (
    FILTER,
    KVM_CAP_X86_MSR_FILTER,
    KVM_CAP_X86_USER_SPACE_MSR,
)


def _invalid_mask_clears(self: MaskRules, vm: VmState, action: s.EnableCap) -> s.Step:
    events = MaskRules.enable_cap(self, vm, action)
    vm.mask = 0 if isinstance(events[0], s.Rejected) else vm.mask
    return events


def _invalid_mask_counts(self: MaskRules, vm: VmState, action: s.EnableCap) -> s.Step:
    events = MaskRules.enable_cap(self, vm, action)
    vm.mask = self.mask_argument(action) & 7 if events[0] != s.done else vm.mask
    return events


def _bits_accepted(bits: int) -> Any:
    return lambda self, mask: mask & ~7 & ~bits != 0


def _starts_with(mask: int) -> Any:
    def new_vm(self: Model, script: s.Script) -> VmState:
        vm = Model.new_vm(self, script)
        vm.mask = mask
        return vm

    return new_vm


MASKING = (
    mutant(
        Model,
        "caps_missing",
        "KVM_CHECK_EXTENSION does not know KVM_CAP_X86_MSR_FILTER.",
        check_extension=lambda self, vm, action: (
            s.got(int(action.cap == KVM_CAP_X86_USER_SPACE_MSR)),
        ),
    ),
    mutant(
        Model,
        "caps_missing_on_the_vm",
        "KVM_CHECK_EXTENSION answers 0 on the VM.",
        check_extension=lambda self, vm, action: (s.got(int(action.on == "system")),),
    ),
    mutant(
        Model,
        "caps_as_version",
        "KVM_CHECK_EXTENSION returns the mask's valid bits instead of 1.",
        check_extension=lambda self, vm, action: (s.got(7),),
    ),
    mutant(
        Model,
        "mask_ored",
        "Enabling exits adds to those enabled before.",
        new_mask=lambda self, old, new: old | new,
    ),
    mutant(
        Model,
        "mask_never_cleared",
        "A mask of 0 changes nothing.",
        new_mask=lambda self, old, new: new or old,
    ),
    mutant(
        Model,
        "mask_set_once",
        "A second mask is accepted and ignored.",
        new_mask=lambda self, old, new: old or new,
    ),
    mutant(
        Model,
        "mask_unchecked",
        "Undefined bits of the mask are accepted (before cf5029d5dd7c).",
        mask_is_invalid=_bits_accepted(U64),
    ),
    mutant(
        Model,
        "mask_checked_in_32_bits",
        "Bits 32..63 of the mask are accepted.",
        mask_is_invalid=_bits_accepted(0xFFFF_FFFF_0000_0000),
    ),
    mutant(
        Model,
        "mask_bit_3_accepted",
        "Bit 3 of the mask is accepted.",
        mask_is_invalid=_bits_accepted(8),
    ),
    mutant(
        Model,
        "invalid_mask_clears",
        "A refused mask disables all exits.",
        enable_cap=_invalid_mask_clears,
    ),
    mutant(
        Model,
        "invalid_mask_counts",
        "A refused mask is stored all the same.",
        enable_cap=_invalid_mask_counts,
    ),
    mutant(
        Model,
        "all_arguments_checked",
        "args[1..3] must be zero.",
        cap_is_invalid=lambda self, action: (
            MaskRules.cap_is_invalid(self, action) or any(action.args[1:])
        ),
    ),
    mutant(
        Model,
        "all_arguments_count",
        "The mask is made of all four args.",
        mask_argument=lambda self, action: sum({*action.args}) & 7,
    ),
    mutant(
        Model,
        "cap_flags_ignored",
        "KVM_ENABLE_CAP with flags is accepted.",
        cap_is_invalid=lambda self, action: (
            action.cap == KVM_CAP_X86_MSR_FILTER or action.on != "vm"
        ),
    ),
    mutant(
        Model,
        "cap_of_a_vcpu",
        "KVM_ENABLE_CAP is accepted on a vCPU.",
        cap_is_invalid=lambda self, action: (
            action.cap == KVM_CAP_X86_MSR_FILTER or action.flags != 0
        ),
    ),
    mutant(
        Model,
        "filter_cap_enabled",
        "KVM_CAP_X86_MSR_FILTER can be enabled.",
        cap_is_invalid=lambda self, action: action.flags != 0 or action.on != "vm",
    ),
    mutant(
        Model,
        "filter_exits_from_the_start",
        "Denied accesses exit before any mask is set.",
        new_vm=_starts_with(4),
    ),
    mutant(
        Model,
        "all_exits_from_the_start",
        "All failing accesses exit before any mask is set.",
        new_vm=_starts_with(7),
    ),
    mutant(
        Model,
        "exits_without_mask",
        "Every failing access exits, whatever the mask.",
        is_told=lambda self, mask, reason: True,
    ),
    mutant(
        Model,
        "any_mask_will_do",
        "Every failing access exits once the mask is not 0.",
        is_told=lambda self, mask, reason: mask != 0,
    ),
    mutant(
        Model,
        "mask_compared",
        "An access exits only if the mask is its reason and nothing else.",
        is_told=lambda self, mask, reason: mask == reason,
    ),
    mutant(
        Model,
        "filter_needs_unknown",
        "Denied accesses exit only if UNKNOWN is enabled too.",
        is_told=lambda self, mask, reason: mask & reason != 0 and (reason != FILTER or mask & 2),
    ),
    mutant(
        Model,
        "mask_shifted",
        "The mask's bits are taken one place too low.",
        is_told=lambda self, mask, reason: mask << 1 & reason != 0,
    ),
)
