"""Which scripts leave behind what no reset of a VM takes away: they get a VM of their own."""

from __future__ import annotations

from vmm.conformance.language import script as words
from vmm.conformance.language.script import Script, innermost, makes_vcpus
from vmm.msr import Msr

LASTING = (
    *(words.Park, words.Spin, words.CloseVm, words.CloseVcpu, words.SetCpuid, words.SetCpuidBits),
    *(words.SendInit, words.SendSipi, words.Sleep, words.XenHvmConfig, words.EnterL2),
    *(words.LeaveL2, words.SaveNested, words.RestoreNested, words.LeaveNested, words.FreshVm),
)
"""What no reset undoes, or what would make it dear: ``KVM_RUN`` in another thread than the last
one waits for an RCU grace period."""
OPENING = {Msr.IA32_SPEC_CTRL, Msr.IA32_DEBUGCTLMSR, Msr.IA32_XFD, Msr.IA32_RTIT_CTL}
"""MSRs whose write makes KVM pass others through, and which no reset takes back whole."""


def needs_its_own_vm(script: Script) -> bool:
    """Say whether the script leaves behind what no reset can take away."""
    return makes_vcpus(script) or any(map(_lasts, map(innermost, script)))


def _lasts(action: words.Action) -> bool:
    if isinstance(action, words.Sweep):
        return action.access == "wrmsr"
    if isinstance(action, words.EnableCap):
        return action.cap == words.KVM_CAP_X86_DISABLE_EXITS
    if isinstance(action, words.Wrmsr | words.SetMsr):
        return action.index in OPENING
    return isinstance(action, LASTING)
