"""Mistakes between an exit and the end of its access: shadows, interrupts, a VMM that looks."""

from __future__ import annotations

from dataclasses import replace

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.host import HostRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.shadows import ShadowRules
from vmm.conformance.oracle.state import Stage, VcpuState, VmState


def _no_db_behind_mov_ss(self: ExitRules, access: s.Access, event: s.Event) -> s.Event:
    silent = access.after == "mov_ss"
    return ExitRules.done(self, replace(access, single_step=False) if silent else access, event)


def _loses_completion(self: ShadowRules, vm: VmState, vcpu: VcpuState, action: s.Rewrite) -> s.Step:
    if action.what == "sregs":
        vcpu.stage, vcpu.outcome = Stage.COMPLETED, s.wrote
    return (s.done,)


def _loses_fault(self: ShadowRules, vm: VmState, vcpu: VcpuState, action: s.Rewrite) -> s.Step:
    if vcpu.stage is Stage.COMPLETED and vcpu.outcome == s.gp and action.what == "vcpu_events":
        vcpu.outcome = s.wrote
    return (s.done,)


def _refuses(self: ShadowRules, vm: VmState, vcpu: VcpuState, action: s.Rewrite) -> s.Step:
    return (s.rejected(22) if vcpu.stage is Stage.EXITED else s.done,)


def _instead(self: ShadowRules, vcpu: VcpuState, outcome: s.Event) -> s.Event:
    injected = vcpu.injected
    event = ShadowRules.finished(self, vcpu, outcome)
    return s.gp if s.NMI in injected else event


def _dropped(self: ShadowRules, vcpu: VcpuState, outcome: s.Event) -> s.Event:
    vcpu.injected = tuple(each for each in vcpu.injected if each != s.INTERRUPT)
    return ShadowRules.finished(self, vcpu, outcome)


def _stays_taken(self: ShadowRules, vcpu: VcpuState, outcome: s.Event) -> s.Event:
    injected = vcpu.injected
    event = ShadowRules.finished(self, vcpu, outcome)
    if not injected and isinstance(outcome, s.Returned):
        vcpu.taken = s.taken(s.NMI, 2)
    return event


def _smi_first(self: ShadowRules, vcpu: VcpuState, outcome: s.Event) -> s.Event:
    was_sent = vcpu.injected == (s.SMI,)
    event = ShadowRules.finished(self, vcpu, outcome)
    if was_sent and vcpu.taken == s.taken(s.SMI, 2):
        vcpu.taken = s.taken(s.SMI, 0)
    return event


def _smi_loses_data(self: ShadowRules, vcpu: VcpuState, outcome: s.Event) -> s.Event:
    was_sent = s.SMI in vcpu.injected
    event = ShadowRules.finished(self, vcpu, outcome)
    return s.returned(0) if was_sent and isinstance(event, s.Returned) else event


def _smi_loses_fault(self: ShadowRules, vcpu: VcpuState, outcome: s.Event) -> s.Event:
    was_sent = s.SMI in vcpu.injected
    event = ShadowRules.finished(self, vcpu, outcome)
    return s.wrote if was_sent and event == s.gp else event


def _smi_dropped(self: ShadowRules, vm: VmState, vcpu: VcpuState, action: s.Rewrite) -> s.Step:
    if action.what == "vcpu_events":
        vcpu.injected = tuple(each for each in vcpu.injected if each != s.SMI)
    return ShadowRules.rewrite(self, vm, vcpu, action)


def _smi_before_completion(self: ExitRules, vcpu: VcpuState, reply: s.Reply | None) -> s.Event:
    if s.SMI in vcpu.injected and vcpu.stage is Stage.EXITED:
        return s.interrupted
    return ExitRules.complete(self, vcpu, reply)


def _busy(self: HostRules, vm: VmState, action: s.GetMpState) -> s.Step:
    vcpu = vm.vcpu(action.vcpu)
    return (s.got(3),) if vcpu.stage is Stage.EXITED else HostRules.get_mp_state(self, vm, action)


def _drops_what_is_pending(
    self: ShadowRules, vm: VmState, vcpu: VcpuState, action: s.Rewrite
) -> s.Step:
    if action.what == "regs" and vcpu.stage is Stage.EXITED:
        vcpu.stage, vcpu.outcome = Stage.COMPLETED, s.wrote
    return (s.done,)


def _scratches(self: ExitRules, vcpu: VcpuState, access: s.Access, reply: s.Reply) -> s.Regs:
    return replace(ExitRules.regs_at_end(self, vcpu, access, reply), changed=True)


def _tells_no_debugger(self: Model, vm: VmState, action: s.Complete) -> s.Step:
    step = Model.complete(self, vm, action)
    return (s.Lost("no KVM_EXIT_DEBUG"),) if action.by == "debugger" else step


SHADOWS = (
    mutant(
        ShadowRules,
        "smi_before_the_access",
        "An SMI is taken at the access that is being completed, and not behind it.",
        finished=_smi_first,
    ),
    mutant(
        ShadowRules,
        "smi_loses_the_answer",
        "RSM brings back the registers from before the access, without userspace's answer.",
        finished=_smi_loses_data,
    ),
    mutant(
        ShadowRules,
        "smi_loses_the_fault",
        "An SMI takes the #GP away that userspace has asked for.",
        finished=_smi_loses_fault,
    ),
    mutant(
        ShadowRules,
        "smi_dropped_by_its_events",
        "KVM_SET_VCPU_EVENTS drops an SMI that is pending.",
        rewrite=_smi_dropped,
    ),
    mutant(
        ExitRules,
        "smi_comes_before_the_completion",
        "While an SMI waits immediate_exit completes nothing.",
        complete=_smi_before_completion,
    ),
    mutant(
        ShadowRules,
        "set_regs_loses_completion",
        "KVM_SET_REGS between exit and completion takes what is pending for stale.",
        rewrite=_drops_what_is_pending,
    ),
    mutant(
        ExitRules,
        "completion_scratches",
        "A completed access changes flags, or a register that is none of its own.",
        regs_at_end=_scratches,
    ),
    mutant(
        Model,
        "debugger_is_not_told",
        "A host that single-steps the guest is not told of an access that it completes.",
        complete=_tells_no_debugger,
    ),
    mutant(
        ShadowRules,
        "shadow_stays",
        "Completing an access leaves the shadow of STI.",
        is_shadowed_after=lambda self, access: access.after == "sti",
    ),
    mutant(
        ShadowRules,
        "emulated_shadow_stays",
        "Completing an emulated access leaves the shadow.",
        is_shadowed_after=lambda self, access: access.emulated and access.after != "nothing",
    ),
    mutant(
        ShadowRules,
        "shadow_lost_at_exit",
        "The exit forgets the shadow of MOV SS.",
        is_shadowed=lambda self, access: access.after == "sti",
    ),
    mutant(
        ShadowRules,
        "shadow_everywhere",
        "Each exit has a shadow.",
        is_shadowed=lambda self, access: True,
    ),
    mutant(
        ShadowRules,
        "nmi_before_the_access",
        "An interrupt comes at the instruction, which is executed again.",
        interrupted_at=lambda self, outcome: 0,
    ),
    mutant(
        ShadowRules, "nmi_instead", "An NMI takes the place of the completion.", finished=_instead
    ),
    mutant(ShadowRules, "interrupt_dropped", "Completing drops an interrupt.", finished=_dropped),
    mutant(
        ShadowRules, "nmi_twice", "The NMI comes again at the next access.", finished=_stays_taken
    ),
    mutant(
        ShadowRules,
        "sregs_lose_completion",
        "KVM_SET_SREGS drops what is pending.",
        rewrite=_loses_completion,
    ),
    mutant(
        ShadowRules,
        "events_lose_fault",
        "KVM_SET_VCPU_EVENTS drops the #GP that is queued.",
        rewrite=_loses_fault,
    ),
    mutant(ShadowRules, "state_is_refused", "No state can be set at an exit.", rewrite=_refuses),
    mutant(
        ShadowRules,
        "fault_not_queued",
        "The #GP of a failed access is in no state.",
        queued=lambda self, outcome: None,
    ),
    mutant(
        ExitRules, "mov_ss_loses_db", "MOV SS takes the #DB of a step.", done=_no_db_behind_mov_ss
    ),
    mutant(Model, "mp_state_at_exit", "A vCPU at an exit is halted.", get_mp_state=_busy),
)
