"""Mistakes that one step of a VM's life makes with what another has set: see ``cases.orders``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mutant import Mutant, mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.filters import NO_FILTER
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VcpuState, VmState
from vmm.msr import Msr

Is = Callable[[s.Action], bool]
LATER: dict[str, Is] = {
    "cpuid": lambda action: isinstance(action, s.SetCpuid),
    "disable_exits": lambda action: (
        isinstance(action, s.EnableCap) and action.cap == s.KVM_CAP_X86_DISABLE_EXITS
    ),
    "mask": lambda action: isinstance(action, s.EnableCap) and action.cap != 143,
    "install": lambda action: isinstance(action, s.Install),
    "init": lambda action: isinstance(action, s.GetMpState),
    "vcpu": lambda action: isinstance(action, s.CreateVcpu) and action.vcpu == 2,
    "opening": lambda action: isinstance(action, s.Wrmsr) and action.index in OPENING,
    "entry": lambda action: isinstance(action, s.EnterL2),
    "restore": lambda action: isinstance(action, s.RestoreNested),
}
"""What comes later, and must leave alone what is there."""
OPENING = (Msr.IA32_DEBUGCTLMSR, Msr.IA32_SPEC_CTRL)
LOSES = {"filter": ("filter", NO_FILTER), "mask": ("mask", 0)}


def _loses(is_later: Is, what: str, value: Any) -> Any:
    def step(self: Model, vm: VmState, action: s.Action) -> s.Step:
        left = Model.step(self, vm, action)
        if is_later(action):
            setattr(vm, what, value)
        return left

    return step


def _passes_star(is_later: Is) -> dict[str, Any]:
    """Return the rules of a kernel that passes a denied MSR through from some step on (R72)."""

    def step(self: Model, vm: VmState, action: s.Action) -> s.Step:
        left = Model.step(self, vm, action)
        if isinstance(action, s.Install | s.FreshVm):
            vars(vm)["_passes"] = False
        if is_later(action):
            vars(vm)["_passes"] = True
        return left

    def reason(
        self: AccessRules, model: Model, vm: VmState, vcpu: VcpuState, access: s.Access
    ) -> Any:
        if vars(vm).get("_passes") and access.index == Msr.STAR:
            return self.failure(model, vcpu, access)
        return AccessRules.reason(self, model, vm, vcpu, access)

    return {"step": step, "reason": reason}


def _mutants() -> tuple[Mutant, ...]:
    losing = [
        mutant(
            *(
                Model,
                f"{later}_loses_{what}",
                f"After {later} the {what} from before is lost.",
            ),
            step=_loses(is_later, *LOSES[what]),
        )
        for later, is_later in LATER.items()
        for what in LOSES
        if (later, what) not in (("mask", "mask"), ("install", "filter"))
    ]
    passing = [
        mutant(
            *(
                Model,
                f"{later}_passes_star",
                f"After {later} hardware passes STAR, denied or not.",
            ),
            **_passes_star(is_later),
        )
        for later, is_later in LATER.items()
        if later != "install"
    ]
    return (*losing, *passing)


ORDERS = _mutants()
