"""Mistakes with vCPUs that do not run when a filter comes: see ``cases.waits``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mutant import Mutant, mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.filters import Installed
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.sleeping import SleepingRules
from vmm.conformance.oracle.state import Stage, VcpuState, VmState

Is = Callable[[VcpuState], bool]
UNTOLD: dict[str, Is] = {
    "halted": lambda vcpu: vcpu.mp_state == s.HALTED,
    "without_sipi": lambda vcpu: vcpu.mp_state == s.INIT_RECEIVED and not vcpu.in_reset,
    "never_started": lambda vcpu: vcpu.mp_state == s.UNINITIALIZED,
    "reset": lambda vcpu: vcpu.in_reset,
    "asleep": lambda vcpu: vcpu.slept_in is not None,
    "with_its_sipi": lambda vcpu: vcpu.has_sipi,
    "stopped": lambda vcpu: vcpu.stage is Stage.EXITED,
    "stopped_in_smm": lambda vcpu: (
        vcpu.stage is Stage.EXITED and vcpu.access is not None and vcpu.access.mode == "smm"
    ),
}
"""The vCPUs that each mistake leaves without the new filter."""


def _stale(vm: VmState) -> dict[int, Installed | None]:
    return vars(vm).setdefault("_stale", {})  # type: ignore[no-any-return]


def _filter_of(self: Model, vm: VmState, vcpu: int) -> Installed | None:
    return _stale(vm).get(vcpu, vm.filter)


def _installs(is_untold: Is) -> Any:
    def step(self: Model, vm: VmState, action: s.Action) -> s.Step:
        old = {number: self.filter_of(vm, number) for number in vm.vcpus}
        left = Model.step(self, vm, action)
        if isinstance(action, s.Install) and left == (s.done,):
            untold = {n: old[n] for n, vcpu in vm.vcpus.items() if is_untold(vcpu)}
            vars(vm)["_stale"] = untold
        return left

    return step


def _drops(kind: type[s.Action]) -> Any:
    """Return the step of a kernel that forgets what it has to tell a vCPU at a word of ``kind``."""

    def step(self: Model, vm: VmState, action: s.Action) -> s.Step:
        old, left = vm.filter, Model.step(self, vm, action)
        if isinstance(action, s.Install) and left == (s.done,):
            vars(vm)["_stale"], vars(vm)["_due"] = {}, dict.fromkeys(vm.vcpus, old)
        due: dict[int, Installed | None] = vars(vm).get("_due", {})
        if isinstance(action, kind) and action.vcpu in due:  # type: ignore[attr-defined]
            _stale(vm)[action.vcpu] = due[action.vcpu]  # type: ignore[attr-defined]
        if isinstance(action, s.Rdmsr | s.Wrmsr):
            due.pop(action.vcpu, None)
        return left

    return step


def _runs_on(self: SleepingRules, vm: VmState, action: s.SetMpState) -> s.Step:
    return (s.done,)


SLEEPING: tuple[Mutant, ...] = (
    *(
        mutant(
            *(Model, f"untold_{name}", f"A vCPU that is {name} keeps the old filter."),
            step=_installs(is_untold),
            filter_of=_filter_of,
        )
        for name, is_untold in UNTOLD.items()
    ),
    *(
        mutant(
            *(Model, f"{kind.__name__}_drops", f"{kind.__name__} drops what a vCPU is to be told."),
            step=_drops(kind),
            filter_of=_filter_of,
        )
        for kind in (s.SetMpState, s.Wake, s.AwaitSipi, s.Complete)
    ),
    mutant(
        *(SleepingRules, "any_state_is_done", "KVM_SET_MP_STATE takes what x86 has not."),
        set_mp_state=_runs_on,
    ),
)
