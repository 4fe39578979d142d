"""Mistakes in replacing a filter: kvm_vm_ioctl_set_msr_filter()."""

from __future__ import annotations

from errno import EINVAL
from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.filters import NO_FILTER, FilterRules, Held, Installed
from vmm.conformance.oracle.installs import InstallRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VmState
from vmm.filter import MsrFilter


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
