"""Mistakes in closing descriptors."""

from __future__ import annotations

from errno import EFAULT
from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.filters import NO_FILTER
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.races import RaceRules
from vmm.conformance.oracle.state import VmState


def _close_leaving(**left: Any) -> Any:
    def close_vm(self: RaceRules, model: Model, vm: VmState, action: s.CloseVm) -> s.Step:
        vars(vm).update(left)
        return RaceRules.close_vm(self, model, vm, action)

    return close_vm


def _close_kills(self: RaceRules, model: Model, vm: VmState, action: s.ResumeInstall) -> s.Step:
    if vm.is_open:
        return RaceRules.resume_install(self, model, vm, action)
    del vm.stalls[action.name]
    return (s.rejected(EFAULT),)


CLOSING = (
    mutant(
        RaceRules,
        "closed_vm_loses_its_filter",
        "Closing the VM's descriptor ends all filtering of its vCPUs.",
        close_vm=_close_leaving(filter=NO_FILTER),
    ),
    mutant(
        RaceRules,
        "closed_vm_loses_its_mask",
        "Closing the VM's descriptor clears the mask.",
        close_vm=_close_leaving(mask=0),
    ),
    mutant(
        RaceRules,
        "closed_vm_cancels_installs",
        "Closing the VM's descriptor makes an install in flight fail.",
        resume_install=_close_kills,
    ),
)
