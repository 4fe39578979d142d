"""Mistakes that only very many accesses show: one MSR among thousands that is treated otherwise."""

from __future__ import annotations

from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VcpuState, VmState
from vmm.conformance.oracle.sweeps import SweepRules


def _bypassed(kind: type, *indices: int) -> Any:
    """Return the rule of a kernel that asks no filter for these MSRs."""

    def reason(
        self: AccessRules, model: Model, vm: VmState, vcpu: VcpuState, access: s.Access
    ) -> Any:
        if isinstance(access, kind) and access.index in indices:
            return self.failure(model, vcpu, access)
        return AccessRules.reason(self, model, vm, vcpu, access)

    return reason


SWEEPING = (
    *(
        mutant(
            Model,
            f"{name}_of_{index:x}_bypasses",
            f"A fast path handles a {name.upper()} of {index:#x} and asks no filter.",
            reason=_bypassed(kind, index),
        )
        for name, kind, index in (
            ("wrmsr", s.Wrmsr, 0x1B00),
            ("wrmsr", s.Wrmsr, 0x6A0),  # U_CET
            ("rdmsr", s.Rdmsr, 0xE8),  # APERF
            ("rdmsr", s.Rdmsr, 0x4C1),  # a PMU counter
            ("wrmsr", s.Wrmsr, 0xC001_1FFF),
            ("rdmsr", s.Rdmsr, 0xC000_0300),
            ("wrmsr", s.Wrmsr, 0x4B56_4D08),
            ("rdmsr", s.Rdmsr, 0x4000_0118),
        )
    ),
    mutant(
        SweepRules,
        "odd_msrs_share_a_bit",
        "Of two neighbours in a bitmap both obey the first one's bit.",
        accesses=lambda self, action: [
            type(each)(each.index & ~1, *([0] * isinstance(each, s.Wrmsr)), vcpu=each.vcpu)
            for each in SweepRules.accesses(self, action)
        ],
    ),
    mutant(
        SweepRules,
        "only_the_first_is_denied",
        "Of many denied accesses in a row the first alone exits.",
        ended=lambda self, model, vm, vcpu, access: (
            SweepRules.ended(self, model, vm, vcpu, access) if access.index % 0x2000 == 0 else "GP"
        ),
    ),
)
