"""Mistakes that only very many accesses show: one MSR among thousands that is treated otherwise."""

from __future__ import annotations

from mutant import mutant
from planting import Where, unasked

from vmm.conformance.language import script as s
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.sweeps import SweepRules


def _is(kind: type, index: int) -> Where:
    return lambda vm, vcpu, access: isinstance(access, kind) and access.index == index


SWEEPING = (
    *(
        mutant(
            Model,
            f"{name}_of_{index:x}_bypasses",
            f"A fast path handles a {name.upper()} of {index:#x} and asks no filter.",
            reason=unasked(_is(kind, index)),
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
