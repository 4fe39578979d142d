"""Mistakes in replacing a filter, in the mask, and in what becomes of an access."""

from __future__ import annotations

from errno import EINVAL
from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.filters import NO_FILTER, FilterRules, Held, Installed
from vmm.conformance.oracle.installs import InstallRules
from vmm.conformance.oracle.masks import MaskRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import U64, Reason, VcpuState, VmState, is_unknown_to_kvm
from vmm.filter import MsrFilter
from vmm.msr import (
    FILTER,
    INVAL,
    KVM_CAP_X86_MSR_FILTER,
    KVM_CAP_X86_USER_SPACE_MSR,
    UNKNOWN,
    MsrExitReason,
)

# --- the swap: kvm_vm_ioctl_set_msr_filter() -----------------------------------------------------


def _good_ranges(model: Model, new: MsrFilter, stop_at_bad: bool) -> tuple[Held, ...]:
    held: list[Held] = []
    for range_ in new.ranges:
        if model.filters.range_errors(range_):
            if stop_at_bad:
                break
        elif range_.nmsrs:
            held.append(model.filters.held(range_))
    return tuple(held)


def _fail_clears(self: InstallRules, model: Model, vm: VmState, new: MsrFilter) -> None:
    vm.filter = NO_FILTER


def _fail_applies_half(self: InstallRules, model: Model, vm: VmState, new: MsrFilter) -> None:
    vm.filter = Installed(new.flags & 1 == 0, _good_ranges(model, new, True))


def _fail_applies_the_rest(self: InstallRules, model: Model, vm: VmState, new: MsrFilter) -> None:
    vm.filter = Installed(new.flags & 1 == 0, _good_ranges(model, new, False))


def _fail_applies_default(self: InstallRules, model: Model, vm: VmState, new: MsrFilter) -> None:
    assert vm.filter
    vm.filter = vm.filter._replace(default_allows=new.flags & 1 == 0)


def _fail_applies_ranges(self: InstallRules, model: Model, vm: VmState, new: MsrFilter) -> None:
    assert vm.filter
    vm.filter = vm.filter._replace(ranges=_good_ranges(model, new, True))


def _fail_drops_ranges(self: InstallRules, model: Model, vm: VmState, new: MsrFilter) -> None:
    assert vm.filter
    vm.filter = vm.filter._replace(ranges=())


def _fail_appends(self: InstallRules, model: Model, vm: VmState, new: MsrFilter) -> None:
    assert vm.filter
    vm.filter = vm.filter._replace(ranges=vm.filter.ranges + _good_ranges(model, new, True))


def _clear_but_refuse(self: InstallRules, vm: VmState, action: s.Install) -> s.Step:
    vm.filter = NO_FILTER
    return InstallRules.unreadable(self, vm, action)


def _accept_another(self: InstallRules, model: Model, vm: VmState, action: s.Install) -> s.Step:
    if action.on == "vm" and action.number != s.KVM_X86_SET_MSR_FILTER:
        return self.accept(model, vm, action.filter)
    return InstallRules.install(self, model, vm, action)


def _accept_anywhere(self: InstallRules, model: Model, vm: VmState, action: s.Install) -> s.Step:
    return (
        self.accept(model, vm, action.filter)
        if action.on != "vm"
        else InstallRules.install(self, model, vm, action)
    )


def _merged(old_first: bool) -> Any:
    def installed(self: FilterRules, old: Installed, new: MsrFilter) -> Installed:
        fresh = FilterRules.installed(self, old, new)
        both = (old.ranges, fresh.ranges) if old_first else (fresh.ranges, old.ranges)
        return fresh._replace(ranges=both[0] + both[1])

    return installed


def _scribble_counts(self: InstallRules, vm: VmState, action: s.ScribbleBitmaps) -> s.Step:
    if vm.filter:
        inverted = [
            held._replace(bits=bytes(byte ^ 0xFF for byte in held.bits))
            for held in vm.filter.ranges
        ]
        vm.filter = vm.filter._replace(ranges=tuple(inverted))
    return (s.done,)


class _TwoFilters(VmState):
    """A VM in which some vCPUs have another filter than the VM's newest."""

    present: frozenset[int] = frozenset()
    before: Installed | None = NO_FILTER


def _new_vm(self: Model, script: s.Script) -> VmState:
    vm = _TwoFilters()
    vm.vcpus = Model.new_vm(self, script).vcpus
    return vm


def _publish_once(self: InstallRules, vm: _TwoFilters, installed: Installed) -> None:
    vm.present, vm.before, vm.filter = frozenset(vm.vcpus), vm.filter, installed


def _only(present: bool) -> dict[str, Any]:
    def filter_of(self: Model, vm: _TwoFilters, vcpu: int) -> Installed | None:
        return vm.filter if (vcpu in vm.present) == present else vm.before

    return {"new_vm": _new_vm, "publish": _publish_once, "filter_of": filter_of}


INSTALLING = (
    mutant(
        Model,
        "failed_install_clears",
        "A failed install leaves no filter at all.",
        fail=_fail_clears,
    ),
    mutant(
        Model,
        "failed_install_half_applied",
        "A failed install leaves the ranges before the bad one and its default (B03 c).",
        fail=_fail_applies_half,
    ),
    mutant(
        Model,
        "failed_install_skips_the_bad_range",
        "A failed install leaves all of its good ranges and its default.",
        fail=_fail_applies_the_rest,
    ),
    mutant(
        Model,
        "failed_install_sets_the_default",
        "A failed install leaves the old ranges with its own default action.",
        fail=_fail_applies_default,
    ),
    mutant(
        Model,
        "failed_install_sets_ranges",
        "A failed install leaves the old default action with its own ranges.",
        fail=_fail_applies_ranges,
    ),
    mutant(
        Model,
        "failed_install_drops_ranges",
        "A failed install leaves the old default action and no ranges.",
        fail=_fail_drops_ranges,
    ),
    mutant(
        Model,
        "failed_install_appends",
        "A failed install adds the ranges before the bad one to the old filter.",
        fail=_fail_appends,
    ),
    mutant(
        Model,
        "unreadable_argument_clears",
        "An unreadable argument is EFAULT and ends all filtering.",
        unreadable=_clear_but_refuse,
    ),
    mutant(
        Model,
        "unreadable_argument_einval",
        "An unreadable argument is EINVAL.",
        unreadable=lambda self, vm, action: (s.rejected(EINVAL),),
    ),
    mutant(
        Model,
        "other_sizes_accepted",
        "The ioctl installs whatever size its number names.",
        install=_accept_another,
    ),
    mutant(
        Model,
        "other_sizes_einval",
        "A number of another size is EINVAL instead of ENOTTY.",
        wrong_number=lambda self, action: (s.rejected(EINVAL),),
    ),
    mutant(
        Model,
        "other_fds_accepted",
        "The ioctl installs on any file descriptor of KVM's.",
        install=_accept_anywhere,
    ),
    mutant(
        FilterRules,
        "old_ranges_stay_in_front",
        "An install adds its ranges behind the old ones.",
        installed=_merged(True),
    ),
    mutant(
        FilterRules,
        "old_ranges_stay_behind",
        "An install puts its ranges in front of the old ones.",
        installed=_merged(False),
    ),
    mutant(
        FilterRules,
        "first_default_stays",
        "The default action is set by the first install only.",
        installed=lambda self, old, new: FilterRules.installed(self, old, new)._replace(
            default_allows=old.default_allows if old.ranges else new.flags & 1 == 0
        ),
    ),
    mutant(
        FilterRules,
        "first_install_stays",
        "A second install returns 0 and changes nothing.",
        installed=lambda self, old, new: (
            old if old.ranges else FilterRules.installed(self, old, new)
        ),
    ),
    mutant(
        FilterRules,
        "empty_allow_ignored",
        "An empty filter with DEFAULT_ALLOW is accepted and changes nothing.",
        installed=lambda self, old, new: (
            old if self.is_empty(new) else FilterRules.installed(self, old, new)
        ),
    ),
    mutant(
        FilterRules,
        "empty_allow_keeps_ranges",
        "An empty filter with DEFAULT_ALLOW sets the default action only.",
        installed=lambda self, old, new: (
            old._replace(default_allows=True)
            if self.is_empty(new)
            else FilterRules.installed(self, old, new)
        ),
    ),
    mutant(
        Model,
        "bitmap_not_copied",
        "The bitmap is read from user memory at each access.",
        scribble=_scribble_counts,
    ),
    mutant(
        Model,
        "vcpu_0_only",
        "The filter holds for vCPU 0 alone.",
        filter_of=lambda self, vm, vcpu: vm.filter if vcpu == 0 else NO_FILTER,
    ),
    mutant(
        Model,
        "later_vcpus_unfiltered",
        "A vCPU made after the install has the filter from before it.",
        **_only(present=True),
    ),
    mutant(
        Model,
        "earlier_vcpus_stale",
        "A vCPU made before the install keeps the filter it was made under.",
        **_only(present=False),
    ),
)

# --- the mask: KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR) ----------------------------------------


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

# --- the access: kvm_emulate_rdmsr(), kvm_emulate_wrmsr() ----------------------------------------


def _only_exits(kind: type, vcpu: int | None = None) -> Any:
    def failing(
        self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
    ) -> s.Step:
        if isinstance(access, kind) and vcpu in (None, access.vcpu):
            return AccessRules.failing(self, model, vm, access, reason)
        return (s.gp,)

    return failing


def _untold_is_skipped(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any
) -> s.Step:
    if model.masks.is_told(vm.mask, reason):
        return AccessRules.failing(self, model, vm, access, reason)
    return (s.wrote if isinstance(access, s.Wrmsr) else s.returned(0),)


def _untold_is_done(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any
) -> s.Step:
    vcpu = vm.vcpu(access.vcpu)
    if reason != FILTER or model.masks.is_told(vm.mask, reason):
        return AccessRules.failing(self, model, vm, access, reason)
    return (self.perform(model, vcpu, access, self.failure(model, vcpu, access)),)


def _write_happens(told: bool | None) -> Any:
    def failing(
        self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
    ) -> s.Step:
        if told in (None, model.masks.is_told(vm.mask, reason)) and isinstance(access, s.Wrmsr):
            vm.vcpu(access.vcpu).msrs[access.index] = access.value
        return AccessRules.failing(self, model, vm, access, reason)

    return failing


def _reply_is_kept(kind: type) -> Any:
    def failing(
        self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
    ) -> s.Step:
        if model.masks.is_told(vm.mask, reason) and isinstance(access, kind):
            vm.vcpu(access.vcpu).msrs[access.index] = access.reply.value
        return AccessRules.failing(self, model, vm, access, reason)

    return failing


def _read_for_real(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
) -> s.Step:
    events = AccessRules.failing(self, model, vm, access, reason)
    known = vm.vcpu(access.vcpu).msrs
    if isinstance(events[-1], s.Returned) and access.index in known:
        return (*events[:-1], s.returned(known[access.index]))
    return events


def _ignore_unknown(
    self: AccessRules, model: Model, vcpu: VcpuState, access: s.Access, reason: Reason
) -> s.Event:
    if is_unknown_to_kvm(access.index):
        return s.wrote if isinstance(access, s.Wrmsr) else s.returned(0)
    return AccessRules.perform(self, model, vcpu, access, reason)


def _never_unknown(self: AccessRules, model: Model, vcpu: VcpuState, access: s.Access) -> Reason:
    return (
        None if is_unknown_to_kvm(access.index) else AccessRules.failure(self, model, vcpu, access)
    )


def _write_dropped(
    self: AccessRules, model: Model, vcpu: VcpuState, access: s.Access, reason: Reason
) -> s.Event:
    kept = dict(vcpu.msrs)
    event = AccessRules.perform(self, model, vcpu, access, reason)
    vcpu.msrs = kept
    return event


def _unknown_first(self: AccessRules, model: Model, access: s.Access) -> MsrExitReason:
    return UNKNOWN if is_unknown_to_kvm(access.index) else FILTER


def _invalid_first(self: AccessRules, model: Model, access: s.Access) -> MsrExitReason:
    reason = AccessRules.failure(self, model, VcpuState(), access)
    return INVAL if reason == INVAL else FILTER


ACCESSING = (
    mutant(
        Model,
        "denied_is_invalid",
        "A denied access has the reason INVAL.",
        denied=lambda self, model, access: INVAL,
    ),
    mutant(
        Model,
        "denied_is_unknown",
        "A denied access has the reason UNKNOWN.",
        denied=lambda self, model, access: UNKNOWN,
    ),
    mutant(
        Model,
        "unknown_before_filter",
        "A denied access of an MSR that KVM does not know has the reason UNKNOWN.",
        denied=_unknown_first,
    ),
    mutant(
        Model,
        "invalid_before_filter",
        "A denied access that would be invalid has the reason INVAL.",
        denied=_invalid_first,
    ),
    mutant(
        Model,
        "reasons_added",
        "A denied access of an unknown MSR has both reasons.",
        denied=lambda self, model, access: _unknown_first(self, model, access) | FILTER,
    ),
    mutant(
        Model,
        "unknown_is_invalid",
        "An unknown MSR has the reason INVAL (before the first release).",
        unknown=lambda self: INVAL,
    ),
    mutant(
        Model,
        "unknown_is_filter",
        "An unknown MSR has the reason FILTER.",
        unknown=lambda self: FILTER,
    ),
    mutant(
        Model,
        "invalid_is_unknown",
        "An invalid access has the reason UNKNOWN.",
        invalid=lambda self: UNKNOWN,
    ),
    mutant(
        Model,
        "invalid_is_filter",
        "An invalid access has the reason FILTER.",
        invalid=lambda self: FILTER,
    ),
    mutant(
        Model,
        "unknown_ignored",
        "Unknown MSRs read as zero, as with ignore_msrs.",
        failure=_never_unknown,
        perform=_ignore_unknown,
    ),
    mutant(Model, "reads_only_exit", "A WRMSR never exits.", failing=_only_exits(s.Rdmsr)),
    mutant(Model, "writes_only_exit", "A RDMSR never exits.", failing=_only_exits(s.Wrmsr)),
    mutant(
        Model,
        "mask_of_vcpu_0",
        "The mask holds for vCPU 0 alone.",
        failing=_only_exits(object, 0),
    ),
    mutant(
        Model,
        "untold_access_skipped",
        "A failing access that does not exit is skipped without #GP.",
        failing=_untold_is_skipped,
    ),
    mutant(
        Model,
        "untold_denial_ignored",
        "The filter denies nothing unless FILTER exits are enabled.",
        failing=_untold_is_done,
    ),
    mutant(
        Model,
        "denied_write_happens",
        "A denied WRMSR reaches the MSR.",
        failing=_write_happens(None),
    ),
    mutant(
        Model,
        "denied_write_happens_untold",
        "A denied WRMSR that does not exit is #GP and reaches the MSR.",
        failing=_write_happens(False),
    ),
    mutant(
        Model,
        "denied_write_happens_at_completion",
        "A denied WRMSR reaches the MSR when userspace has answered.",
        failing=_write_happens(True),
    ),
    mutant(
        Model,
        "read_reply_stored",
        "What userspace answers a denied RDMSR is stored in the MSR.",
        failing=_reply_is_kept(s.Rdmsr),
    ),
    mutant(
        Model,
        "write_reply_stored",
        "What userspace leaves as data of a denied WRMSR is stored in the MSR.",
        failing=_reply_is_kept(s.Wrmsr),
    ),
    mutant(
        Model,
        "denied_read_is_real",
        "A denied RDMSR returns the MSR's own value, whatever userspace answers.",
        failing=_read_for_real,
    ),
    mutant(
        Model,
        "allowed_write_dropped",
        "An allowed WRMSR does not reach the MSR.",
        perform=_write_dropped,
    ),
)
