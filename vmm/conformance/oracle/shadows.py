"""What the contract says of a vCPU between an exit and the end of its access (R42, R66, R68)."""

from __future__ import annotations

from errno import EINVAL

from vmm.conformance.language import script as s
from vmm.conformance.oracle.state import NO_REGS, Stage, VcpuState, VmState

AFTER = 2
"""RDMSR and WRMSR are two bytes: there an interrupt finds a guest whose access is done."""
VECTORS = {"nmi": s.NMI, "interrupt": s.INTERRUPT, "smi": s.SMI}
SHADOWS = ("sti", "mov_ss")
IF = ("sti", "sti_nop")


class ShadowRules:
    """One rule is one small method. Holds no state of its own."""

    def events(self, vcpu: VcpuState) -> s.Step:
        """R66, R68: the shadow is there at the exit, and gone when the access is completed."""
        access = vcpu.access
        if access is None or vcpu.injected or vcpu.touched or vcpu.moved:
            return (s.whatever,)
        match vcpu.stage:
            case Stage.EXITED:
                return (s.vcpu_events(self.is_shadowed(access)),)
            case Stage.COMPLETED if access.single_step:
                return (s.whatever,)
            case Stage.COMPLETED if isinstance(vcpu.outcome, s.Fault):
                return (s.vcpu_events(s.ANY, self.queued(vcpu.outcome)),)
            case Stage.COMPLETED:
                return (s.vcpu_events(self.is_shadowed_after(access)),)
            case _:
                return (s.whatever,)

    def is_early(self, access: s.Access) -> bool:
        """R66 says nothing of a step that begins at STI, nor of STI at CPL3: they come before."""
        return access.after in IF and (access.single_step or access.mode == "user")

    def is_shadowed(self, access: s.Access) -> bool:
        """R66: one instruction long."""
        return access.after in SHADOWS

    def is_shadowed_after(self, access: s.Access) -> bool:
        """R66, R42."""
        return False

    def queued(self, outcome: s.Fault) -> int | None:
        """R61, R68: what the error byte asks for is in the vCPU's state."""
        return outcome.vector

    def rewrite(self, vm: VmState, vcpu: VcpuState, action: s.Rewrite) -> s.Step:
        """R67, R68: what was so stays so; but KVM_SET_REGS drops an exception that is queued."""
        if action.what == "regs" and vcpu.stage is Stage.COMPLETED:
            vcpu.stage = Stage.UNSURE
        lacks_apic = action.what == "lapic" and not vm.has_irqchip
        return (s.rejected(EINVAL) if lacks_apic else s.done,)

    def inject(self, vm: VmState, vcpu: VcpuState, action: s.Inject) -> s.Step:
        """R66: what cannot be taken is nobody's promise, nor the order of two."""
        vcpu.injected = (*vcpu.injected, VECTORS[action.kind])
        access = vcpu.access
        if vcpu.stage not in (Stage.EXITED, Stage.COMPLETED) or access is None:
            vcpu.stage = Stage.UNSURE
            return (s.whatever,)
        if action.kind == "interrupt":
            in_shadow = vcpu.stage is Stage.EXITED and access.after == "sti"
            if vm.has_irqchip or access.after not in IF or in_shadow:
                vcpu.stage = Stage.UNSURE
                return (s.whatever,)
        return (s.done,)

    def signalled(self, vcpu: VcpuState) -> None:
        """R65 says when the access is completed; an SMI may be taken before the signal is seen."""
        if s.SMI in vcpu.injected:
            vcpu.regs = NO_REGS

    def finished(self, vcpu: VcpuState, outcome: s.Event) -> s.Event:
        """R64, R66: the access ends as without an interrupt, which comes after it."""
        access, injected = vcpu.access, vcpu.injected
        vcpu.injected, vcpu.taken = (), s.taken(None)
        if access is None or outcome == s.whatever or (injected and access.single_step):
            vcpu.taken = s.whatever
        elif len(injected) > 1:
            vcpu.taken = s.taken(s.ANY, s.ANY)
        elif injected:
            vcpu.taken = s.taken(injected[0], self.interrupted_at(outcome))
        return s.whatever if injected and access and access.single_step else outcome

    def interrupted_at(self, outcome: s.Event) -> int:
        """R66: behind the access; where its #GP is first, in that one's handler."""
        return s.ANY if isinstance(outcome, s.Fault) else AFTER
