"""The language: a script is what host and guest do, in order; a trace is what was seen, in order.

Both are tuples of frozen values that print as the code that makes them. An access that goes to
userspace leaves two events, the exit and the outcome; every other action leaves one. Nothing here
runs anything: ``kvm`` and ``model`` give a script its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import MsrFilter, Pointer
from vmm.msr import KVM_CAP_X86_USER_SPACE_MSR, MsrExitReason, msr_code

REPLY = 0x1122_3344_5566_7788
"""What userspace answers a RDMSR exit with unless a case says otherwise: both halves differ."""

KVM_X86_SET_MSR_FILTER = 0x4188AEC6
VECTOR_GP = 13


class _Any:
    """Equal to everything: a value that is the host's business, not the contract's."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANY"


ANY: Any = _Any()


class _Word:
    """Prints as the call that makes it, defaults left out."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = [
            _argument(field.name, getattr(self, field.name), position == 0)
            for position, field in enumerate(fields(self))  # type: ignore[arg-type]
            if field.default is MISSING or getattr(self, field.name) is not field.default
            if getattr(self, field.name) != field.default or field.default is MISSING
        ]
        return f"{WORDS.get(type(self).__name__, type(self).__name__)}({', '.join(shown)})"


def _argument(name: str, value: object, first: bool) -> str:
    if name == "index" and isinstance(value, int):
        text = msr_code(value)
    elif isinstance(value, MsrExitReason):
        text = str(value.name)
    elif isinstance(value, int) and not isinstance(value, bool) and value > 9:
        text = f"{value:#x}"
    else:
        text = repr(value)
    return text if first or name == "value" else f"{name}={text}"


# --- what userspace answers -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Reply(_Word):
    """What userspace writes to ``kvm_run.msr`` before it re-enters: data, and the error byte.

    ``scribble`` also overwrites reason, index and pad, which the kernel must ignore (R63).
    """

    value: int = REPLY
    error: int = 0
    scribble: bool = False


def value(data: int) -> Reply:
    """Return the reply that lets the access succeed with ``data``."""
    return Reply(data)


def fault(error: int = 1) -> Reply:
    """Return the reply that makes the access fail with the non-zero byte ``error``."""
    return Reply(error=error)


# --- actions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Rdmsr(_Word):
    """The guest executes RDMSR with ECX = ``index``.

    ``before`` is EDX:EAX before the access, ``high`` the upper halves RDX:RAX likewise and
    ``rcx_high`` the upper half of RCX: garbage that the access must treat as R53, R60, R62 say.
    """

    index: int
    before: int = 0
    high: int = 0
    rcx_high: int = 0
    reply: Reply = Reply()
    vcpu: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Wrmsr(_Word):
    """The guest executes WRMSR with ECX = ``index`` and EDX:EAX = ``value``; see ``Rdmsr``."""

    index: int
    value: int
    high: int = 0
    rcx_high: int = 0
    reply: Reply = Reply()
    vcpu: int = 0


Access = Rdmsr | Wrmsr


@dataclass(frozen=True, slots=True, repr=False)
class EnableCap(_Word):
    """``KVM_ENABLE_CAP`` on the VM (or vCPU) fd; ``args`` has up to four u64."""

    cap: int
    args: tuple[int, ...] = (0,)
    flags: int = 0
    on: str = "vm"

    def __repr__(self) -> str:
        if (self.cap, self.flags, self.on) == (KVM_CAP_X86_USER_SPACE_MSR, 0, "vm") and len(
            self.args
        ) == 1:
            mask = self.args[0]
            name = str(MsrExitReason(mask).name) if 0 < mask <= 7 else f"{mask:#x}"
            return f"enable_exits({name})"
        return _Word.__repr__(self)


def enable_exits(mask: int) -> EnableCap:
    """Return the action that lets accesses failing for the reasons in ``mask`` exit."""
    return EnableCap(KVM_CAP_X86_USER_SPACE_MSR, (int(mask),))


@dataclass(frozen=True, slots=True, repr=False)
class Install(_Word):
    """``KVM_X86_SET_MSR_FILTER``: well formed, or with another number, fd or argument pointer.

    ``on`` is "vm", "vcpu" or "system"; ``argp`` None means a readable struct that holds ``filter``.
    """

    filter: MsrFilter
    number: int = KVM_X86_SET_MSR_FILTER
    on: str = "vm"
    argp: Pointer | None = None


@dataclass(frozen=True, slots=True, repr=False)
class ScribbleBitmaps(_Word):
    """Overwrite, in user memory, every bitmap of the last install (R29)."""


@dataclass(frozen=True, slots=True, repr=False)
class CheckExtension(_Word):
    """``KVM_CHECK_EXTENSION`` on the "system" or the "vm" fd."""

    cap: int
    on: str = "system"


@dataclass(frozen=True, slots=True, repr=False)
class GetMsr(_Word):
    """``KVM_GET_MSRS`` of one MSR."""

    index: int
    vcpu: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class SetMsr(_Word):
    """``KVM_SET_MSRS`` of one MSR."""

    index: int
    value: int
    vcpu: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class CreateIrqchip(_Word):
    """``KVM_CREATE_IRQCHIP``; only before any vCPU exists."""


@dataclass(frozen=True, slots=True, repr=False)
class CreateVcpu(_Word):
    """``KVM_CREATE_VCPU``. A vCPU that no script creates exists from its first use."""

    vcpu: int


@dataclass(frozen=True, slots=True, repr=False)
class Begin(_Word):
    """Run the vCPU into ``access`` and stop at its exit, nothing answered yet.

    Leaves one event: the exit, or the outcome if there was no exit.
    """

    access: Access


@dataclass(frozen=True, slots=True, repr=False)
class GetRegs(_Word):
    """``KVM_GET_REGS`` of a vCPU that is stopped in or after an access."""

    vcpu: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class SetRegs(_Word):
    """``KVM_SET_REGS`` (or dirty sync regs, ``via="sync"``) between exit and completion (R67).

    ``rax``/``rdx`` None leaves the register; ``rip`` is added to the current RIP, in bytes.
    """

    rax: int | None = None
    rdx: int | None = None
    rip: int = 0
    via: str = "ioctl"
    vcpu: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Complete(_Word):
    """Answer the exit and re-enter only to complete it: with ``by`` "immediate_exit" or "signal".

    ``reply`` None re-enters again without an answer, as for a vCPU that has none pending.
    """

    reply: Reply | None = Reply()
    by: str = "immediate_exit"
    vcpu: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Finish(_Word):
    """Run the vCPU on to the end of its access; with ``reply`` if it is still unanswered."""

    reply: Reply | None = None
    vcpu: int = 0


Action = (
    Rdmsr
    | Wrmsr
    | EnableCap
    | Install
    | ScribbleBitmaps
    | CheckExtension
    | GetMsr
    | SetMsr
    | CreateIrqchip
    | CreateVcpu
    | Begin
    | GetRegs
    | SetRegs
    | Complete
    | Finish
)
Script = tuple[Action, ...]

# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Done(_Word):
    """The ioctl succeeded and has no value."""

    def __repr__(self) -> str:
        return "done"


@dataclass(frozen=True, slots=True, repr=False)
class Rejected(_Word):
    """The ioctl failed with ``errno``."""

    errno: int

    def __repr__(self) -> str:
        return f"rejected({_errno_name(self.errno)})"


@dataclass(frozen=True, slots=True, repr=False)
class Refused(_Word):
    """``KVM_GET_MSRS``/``KVM_SET_MSRS`` processed no entry: this host has no such MSR."""

    def __repr__(self) -> str:
        return "refused"


@dataclass(frozen=True, slots=True, repr=False)
class Got(_Word):
    """The ioctl returned ``value``."""

    value: int


@dataclass(frozen=True, slots=True, repr=False)
class Returned(_Word):
    """RDMSR completed: EDX:EAX is ``value`` and the upper halves RDX:RAX are ``high``."""

    value: int
    high: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Wrote(_Word):
    """WRMSR completed; ``registers`` is (RAX, RDX) if they changed, which R63 forbids."""

    registers: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return _Word.__repr__(self) if self.registers else "wrote"


@dataclass(frozen=True, slots=True, repr=False)
class Fault(_Word):
    """The access raised ``vector`` in the guest.

    ``skew`` is where RIP pointed, in bytes from the instruction; ``registers`` as in ``Wrote``.
    """

    vector: int
    error_code: int = 0
    skew: int = 0
    registers: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return "gp" if self == gp else _Word.__repr__(self)


@dataclass(frozen=True, slots=True, repr=False)
class Regs(_Word):
    """``KVM_GET_REGS``: ``skew`` is RIP in bytes from the instruction (0 at it, 2 after it)."""

    skew: int
    rax: int
    rcx: int
    rdx: int


@dataclass(frozen=True, slots=True, repr=False)
class Interrupted(_Word):
    """``KVM_RUN`` returned EINTR."""

    def __repr__(self) -> str:
        return "interrupted"


@dataclass(frozen=True, slots=True, repr=False)
class Unfiltered(_Word):
    """A pattern: the access was not stopped by a filter; how it ended is the host's business."""

    def __repr__(self) -> str:
        return "unfiltered"


@dataclass(frozen=True, slots=True, repr=False)
class Whatever(_Word):
    """A pattern: one step, whatever it leaves."""

    def __repr__(self) -> str:
        return "whatever"


@dataclass(frozen=True, slots=True, repr=False)
class Lost(_Word):
    """The guest never finished this step; ``why`` is what ended the vCPU instead. No pattern."""

    why: str


Event = (
    RdmsrExit
    | WrmsrExit
    | Done
    | Rejected
    | Refused
    | Got
    | Returned
    | Wrote
    | Fault
    | Regs
    | Interrupted
    | Unfiltered
    | Whatever
    | Lost
)
Trace = tuple[Event, ...]
Step = tuple[Event, ...]

# --- the words a case writes ------------------------------------------------------------------

rdmsr, wrmsr, enable_cap, install = Rdmsr, Wrmsr, EnableCap, Install
scribble_bitmaps, check_extension = ScribbleBitmaps, CheckExtension
get_msr, set_msr, create_irqchip, create_vcpu = GetMsr, SetMsr, CreateIrqchip, CreateVcpu
begin, get_regs, set_regs, complete, finish = Begin, GetRegs, SetRegs, Complete, Finish

done, refused, wrote = Done(), Refused(), Wrote()
interrupted, unfiltered, whatever = Interrupted(), Unfiltered(), Whatever()
gp = Fault(VECTOR_GP)
rejected, got, returned, regs = Rejected, Got, Returned, Regs

WORDS = {
    "Rdmsr": "rdmsr",
    "Wrmsr": "wrmsr",
    "EnableCap": "enable_cap",
    "Install": "install",
    "ScribbleBitmaps": "scribble_bitmaps",
    "CheckExtension": "check_extension",
    "GetMsr": "get_msr",
    "SetMsr": "set_msr",
    "CreateIrqchip": "create_irqchip",
    "CreateVcpu": "create_vcpu",
    "Begin": "begin",
    "GetRegs": "get_regs",
    "SetRegs": "set_regs",
    "Complete": "complete",
    "Finish": "finish",
    "Got": "got",
    "Returned": "returned",
    "Regs": "regs",
}


def steps(script: Sequence[Action], trace: Iterable[Event]) -> list[Step]:
    """Return the trace cut into one tuple of events for each action it has events for.

    An access takes its exits (and the registers at an exit, noted only when they are not as the
    access left them: R57) and the outcome after them; every other action takes one event.
    Events beyond the script's end make a last, surplus step.
    """
    rest, cut = list(trace), []
    for action in script:
        if not rest:
            break
        size = 1
        if isinstance(action, Rdmsr | Wrmsr):
            while size < len(rest) and isinstance(rest[size - 1], RdmsrExit | WrmsrExit | Regs):
                size += 1
        cut.append(tuple(rest[:size]))
        del rest[:size]
    return [*cut, tuple(rest)] if rest else cut


def matches(expected: Step, seen: Step) -> bool:
    """Say whether one step's events are as expected; ANY and the patterns match what they say."""
    if expected == (whatever,):
        return bool(seen) and not isinstance(seen[-1], Lost)
    if expected == (unfiltered,):
        return _is_unfiltered(seen)
    return expected == seen


def first_difference(script: Sequence[Action], expected: Trace, seen: Trace) -> int | None:
    """Return the number of the first step (from 0) that is not as expected, or None."""
    want, have = steps(script, expected), steps(script, seen)
    for number in range(max(len(want), len(have))):
        if number >= min(len(want), len(have)) or not matches(want[number], have[number]):
            return number
    return None


def _is_unfiltered(seen: Step) -> bool:
    if not seen or not isinstance(seen[-1], Returned | Wrote | Fault):
        return False
    exits = [event for event in seen[:-1] if isinstance(event, RdmsrExit | WrmsrExit)]
    return len(exits) == len(seen) - 1 and not any(
        event.reason & MsrExitReason.FILTER for event in exits
    )


def _errno_name(number: int) -> str:
    import errno as names

    return names.errorcode.get(number, str(number)) if isinstance(number, int) else repr(number)
