"""Mistakes with WRMSRNS, and with the forms of RDMSR and WRMSRNS that have the MSR in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mutant import mutant
from planting import Where, unasked, window_filtered

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import U32
from vmm.conformance.oracle.state import VcpuState, VmState, regs_before
from vmm.msr import Msr


def _is(form: str, kind: Any = (s.Rdmsr, s.Wrmsr)) -> Where:
    return lambda vm, vcpu, access: access.form == form and isinstance(access, kind)


def _is_other(vm: VmState, vcpu: VcpuState, access: s.Access) -> bool:
    return access.form != "register"


def _asks_of(other: Callable[[s.Access], s.Access]) -> Any:
    """Return the rule of a kernel that asks the filter of another access."""

    def allowed(self: Model, vm: VmState, access: s.Access) -> bool | None:
        return Model.allowed(self, vm, access if access.form == "register" else other(access))

    return allowed


def _other_kind(access: s.Access) -> s.Access:
    if isinstance(access, s.Rdmsr):
        return s.wrmsr(access.index, 0, vcpu=access.vcpu)
    return s.rdmsr(access.index, vcpu=access.vcpu)


def _of_rcx(access: s.Access) -> s.Access:
    is_immediate = access.form == "immediate"
    return replace(access, index=access.index ^ U32) if is_immediate else access


def _tells(self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any) -> s.Step:
    if access.form == "register":
        return AccessRules.failing(self, model, vm, access, reason)
    return (model.exits.exit(access, reason), model.exits.outcome(access, access.reply))


def _writes(self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: Any) -> s.Step:
    if access.form != "register" and isinstance(access, s.Wrmsr):
        vm.vcpu(access.vcpu).msrs[access.index] = access.value
    return AccessRules.failing(self, model, vm, access, reason)


def _lengths(**lengths: int) -> Any:
    def length(self: ExitRules, access: s.Access) -> int:
        return lengths.get(access.form, ExitRules.length(self, access))

    return length


def _index_of_rcx(self: ExitRules, access: s.Access) -> int:
    return regs_before(access).rcx & U32


def _low_half(self: ExitRules, access: s.Wrmsr) -> int:
    return access.value & U32 if access.form == "immediate" else ExitRules.written(self, access)


def _low_read(self: ExitRules, access: s.Access, event: s.Event) -> s.Event:
    left = ExitRules.done(self, access, event)
    if access.form == "immediate" and isinstance(left, s.Returned) and left.value is not s.ANY:
        return s.returned(left.value & U32)
    return left


def _touches_rdx(self: ExitRules, access: s.Access, event: s.Event) -> s.Event:
    left = ExitRules.done(self, access, event)
    if access.form == "immediate" and isinstance(left, s.Returned):
        return replace(left, high=(1 << 64) - 1)
    return left


def _in_halves(self: ExitRules, vcpu: VcpuState, access: s.Access, reply: s.Reply) -> s.Regs:
    regs = ExitRules.regs_at_end(self, vcpu, access, reply)
    if access.form != "immediate" or isinstance(access, s.Wrmsr):
        return regs
    return replace(regs, rax=reply.value & U32, rdx=reply.value >> 32)


def _never_faults(self: ExitRules, access: s.Access, reply: s.Reply) -> s.Event:
    if access.form == "register":
        return ExitRules.faulted(self, access, reply)
    return s.wrote if isinstance(access, s.Wrmsr) else s.returned(self.delivered(reply))


FORMS = (
    mutant(Model, "wrmsrns_unasked", "No WRMSRNS is filtered.", reason=unasked(_is("wrmsrns"))),
    mutant(
        *(Model, "immediate_reads_unasked", "No RDMSR with an immediate is filtered."),
        reason=unasked(_is("immediate", s.Rdmsr)),
    ),
    mutant(
        *(Model, "immediate_writes_unasked", "No WRMSRNS with an immediate is filtered."),
        reason=unasked(_is("immediate", s.Wrmsr)),
    ),
    *(
        mutant(
            *(Model, f"deadline_{form}_unasked", f"A fast path for {form} asks no filter (B12)."),
            reason=unasked(
                lambda vm, vcpu, access, form=form: (  # type: ignore[misc]
                    access.form == form and access.index == Msr.IA32_TSC_DEADLINE
                )
            ),
        )
        for form in ("wrmsrns", "immediate")
    ),
    *(
        mutant(
            *(Model, f"forms_of_{msr.name.lower()}_unasked", f"{msr.name} has a form unfiltered."),
            reason=unasked(
                lambda vm, vcpu, access, msr=msr: access.form != "register" and access.index == msr  # type: ignore[misc]
            ),
        )
        for msr in (Msr.STAR, Msr.FS_BASE, Msr.KERNEL_GS_BASE)
    ),
    mutant(
        Model, "forms_window", "Other forms' x2APIC is filtered.", reason=window_filtered(_is_other)
    ),
    mutant(Model, "forms_swapped", "A form's kind is the other.", allowed=_asks_of(_other_kind)),
    mutant(Model, "filter_sees_rcx", "The filter is asked of RCX.", allowed=_asks_of(_of_rcx)),
    mutant(Model, "forms_tell", "Other forms exit, told or not.", failing=_tells),
    mutant(Model, "forms_write", "Other forms write though denied.", failing=_writes),
    mutant(ExitRules, "exit_of_rcx", "An exit has RCX for its index.", index=_index_of_rcx),
    mutant(ExitRules, "written_low", "Half of an immediate's data exits.", written=_low_half),
    mutant(ExitRules, "read_low", "Half of an immediate's answer arrives.", done=_low_read),
    mutant(ExitRules, "read_touches_rdx", "An immediate read has RDX too.", done=_touches_rdx),
    mutant(ExitRules, "read_in_halves", "RAX is half of it in between.", regs_at_end=_in_halves),
    mutant(ExitRules, "forms_never_fault", "Other forms never fail.", faulted=_never_faults),
    mutant(ExitRules, "wrmsrns_is_2", "WRMSRNS has two bytes.", length=_lengths(wrmsrns=2)),
    mutant(ExitRules, "immediate_is_2", "An immediate has two.", length=_lengths(immediate=2)),
    mutant(ExitRules, "immediate_is_5", "An immediate has five.", length=_lengths(immediate=5)),
)
