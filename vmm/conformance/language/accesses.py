"""Accesses: what the guest does, and what userspace answers, at once or in steps of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vmm.bits import Bits, MsrIndex, u8, u32, u64
from vmm.conformance.language.domains import After, Interrupter, Mode, ReadForm, VcpuId, WriteForm
from vmm.conformance.language.word import Word

REPLY = 0x1122_3344_5566_7788
"""What userspace answers a RDMSR exit with unless a case says otherwise: both halves differ."""


@dataclass(frozen=True, slots=True, repr=False)
class Reply(Word):
    """What userspace writes to ``kvm_run.msr`` before it re-enters: data, and the error byte.

    ``scribble`` also overwrites reason, index and pad, and has ``exit_reason`` name the other
    access: all that the kernel must ignore (R63).
    """

    value: u64 = REPLY
    error: u8 = 0
    scribble: bool = False


def value(data: u64) -> Reply:
    """Return the reply that lets the access succeed with ``data``."""
    return Reply(data)


def fault(error: u8 = 1) -> Reply:
    """Return the reply that makes the access fail with the non-zero byte ``error``."""
    return Reply(error=error)


@dataclass(frozen=True, slots=True, repr=False)
class Rdmsr(Word):
    """The guest executes RDMSR with ECX = ``index``.

    ``before`` is EDX:EAX before the access, ``high`` the upper halves RDX:RAX likewise and
    ``rcx_high`` the upper half of RCX: garbage that the access must treat as R53, R60, R62 say.
    ``emulated`` has KVM's emulator execute it, by the forced emulation prefix (R40);
    ``single_step`` has RFLAGS.TF set, so that a #DB comes right after it (R66); ``mode`` is what
    the CPU is in: 64-bit CPL0 if it is "long"; ``after`` is what the guest executes right before.
    ``form`` "immediate" has the MSR in the instruction, all 64 bits in RAX and ``high`` in RDX.
    """

    index: MsrIndex
    before: u64 = 0
    high: u64 = 0
    rcx_high: u32 = 0
    reply: Reply = Reply()
    vcpu: VcpuId = 0
    emulated: bool = False
    single_step: bool = False
    mode: Mode = "long"
    after: After = "nothing"
    form: ReadForm = "register"

    def __post_init__(self) -> None:
        """Refuse a form where it is not."""
        _must_have_form(self)


@dataclass(frozen=True, slots=True, repr=False)
class Wrmsr(Word):
    """The guest executes WRMSR with ECX = ``index`` and EDX:EAX = ``value``; see ``Rdmsr``.

    ``form`` "wrmsrns" is WRMSRNS, which does not serialize, and so is "immediate".
    """

    positional = 2
    index: MsrIndex
    value: u64
    high: u64 = 0
    rcx_high: u32 = 0
    reply: Reply = Reply()
    vcpu: VcpuId = 0
    emulated: bool = False
    single_step: bool = False
    mode: Mode = "long"
    after: After = "nothing"
    form: WriteForm = "register"

    def __post_init__(self) -> None:
        """Refuse a form where it is not."""
        _must_have_form(self)


Access = Rdmsr | Wrmsr


def _must_have_form(access: Access) -> None:
    if access.form == "register":
        return
    plain = access.mode == "long" and access.after == "nothing"
    if not plain or access.rcx_high or (access.emulated and access.form != "rex"):
        raise ValueError(f"form {access.form!r} is plain 64-bit code, and has no rcx_high")


@dataclass(frozen=True, slots=True, repr=False)
class Begin(Word):
    """Run the vCPU into ``access`` and stop at its exit, nothing answered yet.

    Leaves one event: the exit, or the outcome if there was no exit.
    """

    access: Access


@dataclass(frozen=True, slots=True, repr=False)
class GetRegs(Word):
    """``KVM_GET_REGS`` of a vCPU that is stopped in or after an access."""

    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class SetRegs(Word):
    """``KVM_SET_REGS`` (or dirty sync regs, ``via="sync"``) between exit and completion (R67).

    ``rax``/``rdx``/``rcx`` None leaves the register; ``rip`` is added to the current RIP, in bytes.
    """

    rax: u64 | None = None
    rdx: u64 | None = None
    rip: Annotated[int, Bits(32, signed=True)] = 0
    via: Literal["ioctl", "sync"] = "ioctl"
    vcpu: VcpuId = 0
    rcx: u64 | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Complete(Word):
    """Answer the exit and re-enter only to complete it, which ``by`` ends right behind it.

    ``reply`` None re-enters again without an answer, as for a vCPU that has none pending.
    """

    reply: Reply | None = Reply()
    by: Interrupter = "immediate_exit"
    vcpu: VcpuId = 0


@dataclass(frozen=True, slots=True, repr=False)
class Finish(Word):
    """Run the vCPU on to the end of its access; with ``reply`` if it is still unanswered."""

    reply: Reply | None = None
    vcpu: VcpuId = 0


rdmsr, wrmsr = Rdmsr, Wrmsr
begin, get_regs, set_regs, complete, finish = Begin, GetRegs, SetRegs, Complete, Finish
