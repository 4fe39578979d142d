"""Writes of a guest that change what it is or what KVM passes through: which are drawn, and when.

None breaks a guest, with the feature or without it (then it is #GP, or nothing). What a kernel does
with the values is its own business: of an access that no filter denies the Model says no more.
"""

from __future__ import annotations

from vmm import x86
from vmm.conformance.language import script as s
from vmm.conformance.oracle.model import Model
from vmm.conformance.random.levels import Levels
from vmm.msr import Msr
from vmm.nested.svm import EFER_SVME

AMX = 1 << 18
"""The one state that XFD can disable: no guest here has it."""

OPENING: dict[int, tuple[int, ...]] = {
    Msr.IA32_DEBUGCTLMSR: (0, 1),
    Msr.IA32_SPEC_CTRL: (0, 1),
    Msr.IA32_XFD: (0, AMX),
    Msr.EFER: (x86.EFER | EFER_SVME, x86.EFER),
    Msr.IA32_TSC_DEADLINE: (0, 1),
}
"""The MSRs, each with what is written to it. Without an APIC in the kernel no deadline comes."""

WITH_PAGING = ("long", "compat")
"""Modes at CPL0 in which EFER is as it is to 64-bit code: elsewhere LME could change."""


def may_come(script: s.Script, access: s.Access, levels: Levels) -> bool:
    """Say whether an access may come after the script; yes, if it is none of the writes.

    No kernel keeps a denied WRMSR of TSC_DEADLINE out (B12, B13): that shows nothing new. Without
    SVME an L1 of SVM is none any more.
    """
    if not isinstance(access, s.Wrmsr) or access.value not in OPENING.get(access.index, ()):
        return True
    if access.index == Msr.IA32_TSC_DEADLINE:
        whole = (*script, access)
        return s.steps(whole, Model().predict(whole))[-1] == (s.unfiltered,)
    if access.index == Msr.EFER:
        keeps = levels != "svm" or access.value & EFER_SVME
        return access.mode in WITH_PAGING and bool(keeps)
    return True
