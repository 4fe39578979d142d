"""Mistakes about the MSR by which a guest of Xen has KVM write a page of its memory."""

from __future__ import annotations

from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import Stage, VcpuState, VmState
from vmm.conformance.oracle.xen import OF_LONG_MODE, OF_OTHERS, WITHOUT_LMA, XenRules
from vmm.msr import UNKNOWN


def _unasked(where: Any) -> Any:
    def reason(
        self: AccessRules, model: Model, vm: VmState, vcpu: VcpuState, access: s.Access
    ) -> Any:
        if model.xen.is_about(access, vm) and where(access):
            return model.xen.failure(vm, access)
        return AccessRules.reason(self, model, vm, vcpu, access)

    return reason


def _page_first(self: AccessRules, model: Model, vm: VmState, access: s.Access) -> s.Step:
    if model.xen.is_about(access, vm):
        model.xen.write(vm, access, model.xen.failure(vm, access))
    return AccessRules.access(self, model, vm, access)


def _on_gp(self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any) -> s.Step:
    if model.xen.is_about(access, vm) and not model.masks.is_told(vm.mask, reason):
        model.xen.write(vm, access, model.xen.failure(vm, access))
    return AccessRules.failing(self, model, vm, access, reason)


def _by_completion(self: Model, vm: VmState, action: s.Complete) -> s.Step:
    vcpu = vm.vcpu(action.vcpu)
    if vcpu.stage is Stage.EXITED and vcpu.access:
        self.xen.write(vm, vcpu.access, None)
    return Model.complete(self, vm, action)


def _taken_all_the_same(self: XenRules, vm: VmState, action: s.XenHvmConfig) -> s.Step:
    events = XenRules.config(self, vm, action)
    vm.xen = action
    return events


def _only_the_first(self: XenRules, vm: VmState, action: s.XenHvmConfig) -> s.Step:
    had = vm.xen
    events = XenRules.config(self, vm, action)
    vm.xen = had or vm.xen
    return events


def _kept(self: Model, vm: VmState) -> s.Step:
    had = vm.xen
    events = Model.fresh_vm(self, vm)
    vm.xen = had
    return events


XEN = (
    mutant(
        AccessRules,
        "xen_first",
        "Xen's MSR is looked at before the filter.",
        reason=_unasked(lambda _: True),
    ),
    mutant(
        AccessRules,
        "xen_first_in_the_emulator",
        "KVM's emulator looks at Xen's MSR before the filter.",
        reason=_unasked(lambda access: access.emulated),
    ),
    mutant(
        AccessRules,
        "xen_page_first",
        "A denied write of Xen's MSR exits, and has its page written all the same.",
        access=_page_first,
    ),
    mutant(
        AccessRules,
        "xen_page_on_gp",
        "A denied write of Xen's MSR of which nobody is told has its page written.",
        failing=_on_gp,
    ),
    mutant(
        Model,
        "xen_page_by_completion",
        "Userspace's answer to a denied write of Xen's MSR has its page written.",
        complete=_by_completion,
    ),
    mutant(
        XenRules,
        "xen_refused_is_unknown",
        "A write of Xen's MSR that KVM refuses exits as if there were no such MSR.",
        invalid=lambda self: UNKNOWN,
    ),
    mutant(
        XenRules,
        "xen_any_page",
        "A page of any number is written, of those that there are not too.",
        pages=lambda self, vm: 0x1000,
    ),
    mutant(
        XenRules,
        "xen_page_of_64_bit_code",
        "The page is that of 64-bit code in every mode.",
        content=lambda self, vm, access: (
            XenRules.content(self, vm, access) & ~OF_OTHERS | OF_LONG_MODE
            if access.mode in WITHOUT_LMA
            else XenRules.content(self, vm, access)
        ),
    ),
    mutant(
        XenRules,
        "xen_refused_config_counts",
        "A configuration that is refused names the MSR all the same.",
        config=_taken_all_the_same,
    ),
    mutant(
        XenRules,
        "xen_first_config_stays",
        "The first MSR that the host names stays Xen's.",
        config=_only_the_first,
    ),
    mutant(
        Model,
        "xen_msr_outlives_its_vm",
        "A new VM has the MSR of the one before.",
        fresh_vm=_kept,
    ),
)
