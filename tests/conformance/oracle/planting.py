"""What planted mistakes are made of: what a mutant remembers, what another filter would say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.filters import Installed
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.races import RaceRules
from vmm.conformance.oracle.state import VcpuState, VmState
from vmm.msr import X2APIC_FIRST, X2APIC_LAST

Where = Callable[[VmState, VcpuState, s.Access], bool]


def unasked(where: Where) -> Any:
    """Return the rule of a kernel that asks no filter for the accesses ``where`` says so."""

    def reason(
        self: AccessRules, model: Model, vm: VmState, vcpu: VcpuState, access: s.Access
    ) -> Any:
        if where(vm, vcpu, access):
            return self.failure(model, vcpu, access)
        return AccessRules.reason(self, model, vm, vcpu, access)

    return reason


def window_filtered(where: Where) -> Any:
    """Return the rule of a kernel whose default action denies x2APIC MSRs too, ``where`` says."""

    def reason(
        self: AccessRules, model: Model, vm: VmState, vcpu: VcpuState, access: s.Access
    ) -> Any:
        inside = X2APIC_FIRST <= access.index <= X2APIC_LAST
        is_denied = vm.filter is not None and not vm.filter.default_allows
        if where(vm, vcpu, access) and inside and is_denied:
            return self.denied(model, access)
        return AccessRules.reason(self, model, vm, vcpu, access)

    return reason


def notes_of(vm: VmState, name: str = "notes") -> dict[Any, Any]:
    """Return what a mutant remembers of ``vm`` that a kernel without its mistake has no use for."""
    kept: dict[Any, Any] = vars(vm).setdefault(f"_{name}", {})
    return kept


def said_under(
    model: Model, vm: VmState, access: s.Access, filter_: Installed | None
) -> bool | None:
    """Return what ``filter_`` says, were it the VM's."""
    in_force, vm.filter = vm.filter, filter_
    allowed = RaceRules().allowed(model, vm, access)
    vm.filter = in_force
    return allowed


def of_the_stale(self: RaceRules, model: Model, vm: VmState, access: s.Access) -> bool | None:
    """Return what the filter says that a vCPU keeps, where it is said to be stale."""
    stale = notes_of(vm, "stale")
    if access.vcpu in stale:
        return said_under(model, vm, access, stale[access.vcpu])
    return RaceRules.allowed(self, model, vm, access)
