"""What planted mistakes are made of: what a mutant remembers, what another filter would say."""

from __future__ import annotations

from typing import Any

from vmm.conformance.language import script as s
from vmm.conformance.oracle.filters import Installed
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.races import RaceRules
from vmm.conformance.oracle.state import VmState


def notes(vm: VmState, name: str) -> dict[Any, Any]:
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
    stale = notes(vm, "stale")
    if access.vcpu in stale:
        return said_under(model, vm, access, stale[access.vcpu])
    return RaceRules.allowed(self, model, vm, access)
