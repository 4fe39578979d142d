"""Mistakes in the short ways: accesses that KVM or the hardware finishes without asking the filter.

Each is a Model that asks no filter for some MSRs, where the guest has one APIC or CPUID and not
another (R33; B12 and B13 are real ones).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mutant import mutant
from planting import Where, unasked

from vmm.conformance.cases.passthrough import PASSED_THROUGH
from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.filters import FilterRules
from vmm.conformance.oracle.host import HostRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VcpuState, VmState
from vmm.filter import READ, WRITE
from vmm.msr import FILTER, Msr

DEADLINE_MODE = 1 << 18


def _noting_cpuid(way: Callable[[bool], bool]) -> dict[str, Any]:
    """Return the rules of a kernel whose short way depends on CPUID's TSC_DEADLINE."""

    def set_cpuid(self: HostRules, vm: VmState, action: s.SetCpuid) -> s.Step:
        vars(vm).setdefault("_deadline", {})[action.vcpu] = action.on
        return HostRules.set_cpuid(self, vm, action)

    def is_short(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
        said = vars(vm).get("_deadline", {}).get(access.vcpu)
        return _is_deadline_write(vm, vcpu, access) and said is not None and way(said)

    return {"set_cpuid": set_cpuid, "reason": unasked(is_short)}


def _is_deadline_write(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
    return isinstance(access, s.Wrmsr) and access.index == Msr.IA32_TSC_DEADLINE


def _is_deadline_read(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
    return isinstance(access, s.Rdmsr) and access.index == Msr.IA32_TSC_DEADLINE


def _in_deadline_mode(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
    mode = vcpu.msrs.get(Msr.APIC_LVTT, 0) & DEADLINE_MODE
    return _is_deadline_write(vm, vcpu, access) and mode != 0


def _from_the_second_on(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
    before = vars(vm).setdefault("_writes", {})
    before[access.vcpu] = (
        before.get(access.vcpu, 0) + 1 if _is_deadline_write(vm, vcpu, access) else 0
    )
    return before[access.vcpu] > 2


def _asks_for(kind: int) -> Any:
    def allows(self: FilterRules, filter_: Any, index: int, wanted: int) -> Any:
        is_short = index == Msr.IA32_TSC_DEADLINE and wanted == WRITE
        return FilterRules.allows(self, filter_, index, kind if is_short else wanted)

    return allows


def _default_only(self: FilterRules, filter_: Any, index: int, kind: int) -> Any:
    if index == Msr.IA32_TSC_DEADLINE and kind == WRITE:
        return filter_ is None or filter_.default_allows
    return FilterRules.allows(self, filter_, index, kind)


def _ranges_only(self: FilterRules, filter_: Any, index: int, kind: int) -> Any:
    if index == Msr.IA32_TSC_DEADLINE and kind == WRITE and filter_:
        filter_ = filter_._replace(default_allows=True)
    return FilterRules.allows(self, filter_, index, kind)


def _untold_is_done(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any
) -> s.Step:
    if reason == FILTER and _is_deadline_write(vm, VcpuState(), access) and not vm.mask & FILTER:
        return (s.wrote,)
    return AccessRules.failing(self, model, vm, access, reason)


def _error_ignored(self: Any, access: s.Access, reply: s.Reply) -> s.Event:
    if isinstance(access, s.Wrmsr) and access.index == Msr.IA32_TSC_DEADLINE:
        return s.wrote
    return ExitRules.outcome(self, access, reply)


def _icr_is_asked(self: FilterRules, index: int) -> bool:
    return index != Msr.APIC_ICR and FilterRules.is_exempt(self, index)


def _passed(has_apic: bool) -> Where:
    def way(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
        return vm.has_irqchip == has_apic and access.index in PASSED_THROUGH and access.vcpu == 1

    return way


def _passed_in_x2apic_mode(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
    return vcpu.x2apic is True and access.index in PASSED_THROUGH


def _reopened_by_cpuid(msr: Msr) -> dict[str, Any]:
    """Return the rules of a kernel whose KVM_SET_CPUID2 passes ``msr`` through for a while."""

    def set_cpuid(self: HostRules, vm: VmState, action: s.SetCpuid) -> s.Step:
        vars(vm).setdefault("_open", {})[action.vcpu] = vm.filter
        return HostRules.set_cpuid(self, vm, action)

    def way(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
        opened = vars(vm).get("_open", {})
        return access.index == msr and opened.get(access.vcpu, ()) is vm.filter

    return {"set_cpuid": set_cpuid, "reason": unasked(way)}


FASTPATH = (
    mutant(
        Model,
        "deadline_write_passes",
        "A WRMSR of TSC_DEADLINE is done before the filter is asked (B12, B13).",
        reason=unasked(_is_deadline_write),
    ),
    mutant(
        Model,
        "deadline_read_passes",
        "A RDMSR of TSC_DEADLINE is done before the filter is asked.",
        reason=unasked(_is_deadline_read),
    ),
    mutant(
        Model,
        "deadline_write_passes_with_an_apic",
        "A WRMSR of TSC_DEADLINE is done at once if the VM has an in-kernel APIC.",
        reason=unasked(lambda vm, vcpu, a: vm.has_irqchip and _is_deadline_write(vm, vcpu, a)),
    ),
    mutant(
        Model,
        "deadline_write_passes_without_an_apic",
        "A WRMSR of TSC_DEADLINE is dropped at once if the VM has no in-kernel APIC.",
        reason=unasked(lambda vm, vcpu, a: not vm.has_irqchip and _is_deadline_write(vm, vcpu, a)),
    ),
    mutant(
        Model,
        "deadline_write_passes_in_xapic_mode",
        "A WRMSR of TSC_DEADLINE is done at once if the APIC is not in x2APIC mode.",
        reason=unasked(
            lambda vm, vcpu, a: (
                vm.has_irqchip and vcpu.x2apic is False and _is_deadline_write(vm, vcpu, a)
            )
        ),
    ),
    mutant(
        Model,
        "deadline_write_passes_in_deadline_mode",
        "A WRMSR of TSC_DEADLINE is done at once if the APIC's timer is in TSC-deadline mode.",
        reason=unasked(_in_deadline_mode),
    ),
    mutant(
        Model,
        "deadline_write_passes_with_cpuid",
        "A WRMSR of TSC_DEADLINE is done at once if CPUID has the feature.",
        **_noting_cpuid(lambda on: on),
    ),
    mutant(
        Model,
        "deadline_write_passes_without_cpuid",
        "A WRMSR of TSC_DEADLINE is dropped at once if CPUID has no such feature.",
        **_noting_cpuid(lambda on: not on),
    ),
    mutant(
        Model,
        "deadline_write_of_0_passes",
        "A WRMSR of TSC_DEADLINE that stops the timer is done before the filter is asked.",
        reason=unasked(lambda vm, vcpu, a: _is_deadline_write(vm, vcpu, a) and a.value == 0),  # type: ignore[union-attr]
    ),
    mutant(
        Model,
        "deadline_write_passes_on_reentry",
        "Only the first two of several WRMSR of TSC_DEADLINE in a row ask the filter.",
        reason=unasked(_from_the_second_on),
    ),
    mutant(
        FilterRules,
        "deadline_write_asks_for_read",
        "The short way of TSC_DEADLINE asks whether a RDMSR is allowed.",
        allows=_asks_for(READ),
    ),
    mutant(
        FilterRules,
        "deadline_write_asks_the_default",
        "The short way of TSC_DEADLINE asks the default action alone.",
        allows=_default_only,
    ),
    mutant(
        FilterRules,
        "deadline_write_asks_the_ranges",
        "The short way of TSC_DEADLINE asks the ranges alone.",
        allows=_ranges_only,
    ),
    mutant(
        Model,
        "untold_deadline_write_dropped",
        "A denied WRMSR of TSC_DEADLINE that does not exit is skipped without #GP.",
        failing=_untold_is_done,
    ),
    mutant(
        ExitRules,
        "deadline_write_has_no_error",
        "A denied WRMSR of TSC_DEADLINE that userspace answers with an error is skipped.",
        outcome=_error_ignored,
    ),
    mutant(
        FilterRules,
        "icr_filtered",
        "The ICR's short way asks the filter, which must not govern it.",
        is_exempt=_icr_is_asked,
    ),
    mutant(
        Model,
        "pass_through_with_an_apic",
        "On vCPU 1 the hardware passes MSRs through, denied or not, if there is an APIC.",
        reason=unasked(_passed(True)),
    ),
    mutant(
        Model,
        "pass_through_without_an_apic",
        "On vCPU 1 the hardware passes MSRs through, denied or not, if there is no APIC.",
        reason=unasked(_passed(False)),
    ),
    mutant(
        Model,
        "pass_through_in_x2apic_mode",
        "The switch to x2APIC mode makes a bitmap that knows of no filter.",
        reason=unasked(_passed_in_x2apic_mode),
    ),
    *(
        mutant(
            Model,
            f"cpuid_reopens_{msr.name.lower()}",
            f"KVM_SET_CPUID2 lets {msr.name} pass through that an earlier install took away.",
            **_reopened_by_cpuid(msr),
        )
        for msr in (Msr.IA32_TSC, Msr.IA32_SPEC_CTRL, Msr.STAR, Msr.AMD64_SEV_ES_GHCB)
    ),
)
