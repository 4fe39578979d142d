"""The events of a trace: what was seen. Some are patterns, which only an expectation has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vmm.bits import Bits, u8, u32, u64
from vmm.conformance.language.domains import Text
from vmm.conformance.language.word import Word, errno_name
from vmm.exits import RdmsrExit, WrmsrExit

VECTOR_GP = 13

Skew = Annotated[int, Bits(64, signed=True)]
"""Where RIP points, in bytes from the instruction."""


@dataclass(frozen=True, slots=True, repr=False)
class Done(Word):
    """The ioctl succeeded and has no value."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Rejected(Word):
    """The ioctl failed with ``errno``."""

    errno: Annotated[int, Bits(12, of="errno")]

    def __repr__(self) -> str:
        return f"rejected({errno_name(self.errno)})"


@dataclass(frozen=True, slots=True, repr=False)
class Refused(Word):
    """``KVM_GET_MSRS``/``KVM_SET_MSRS`` processed no entry: this host has no such MSR."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Got(Word):
    """The ioctl returned ``value``."""

    value: u64


@dataclass(frozen=True, slots=True, repr=False)
class Returned(Word):
    """RDMSR completed: EDX:EAX is ``value`` and the upper halves RDX:RAX are ``high``."""

    value: u64
    high: u64 = 0


@dataclass(frozen=True, slots=True, repr=False)
class Wrote(Word):
    """WRMSR completed; ``registers`` is (RAX, RDX) if they changed, which R63 forbids."""

    registers: tuple[u64, u64] | None = None

    def __repr__(self) -> str:
        return Word.__repr__(self) if self.registers else "wrote"


@dataclass(frozen=True, slots=True, repr=False)
class Fault(Word):
    """The access raised ``vector`` in the guest.

    ``skew`` is where RIP pointed, in bytes from the instruction; ``registers`` as in ``Wrote``.
    """

    vector: u8
    error_code: u32 = 0
    skew: Skew = 0
    registers: tuple[u64, u64] | None = None

    def __repr__(self) -> str:
        return "gp" if self == gp else Word.__repr__(self)


@dataclass(frozen=True, slots=True, repr=False)
class Regs(Word):
    """``KVM_GET_REGS``: ``skew`` is RIP in bytes from the instruction (0 at it, 2 after it).

    ``changed``: a flag, or a register other than these, is not what it was at the access's exit.
    """

    skew: Skew
    rax: u64
    rcx: u64
    rdx: u64
    changed: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Interrupted(Word):
    """``KVM_RUN`` returned EINTR; KVM_EXIT_DEBUG to a debugger."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Unfiltered(Word):
    """A pattern: the access was not stopped by a filter; how it ended is the host's business."""

    bare = True


Ending = RdmsrExit | WrmsrExit | Returned | Wrote | Fault | Unfiltered


@dataclass(frozen=True, slots=True, repr=False)
class Either(Word):
    """A pattern: the access ended as under the ``old`` filter or as under the ``new``.

    So it is between a filter's publication and its reaching the vCPU (R70).
    """

    positional = 2
    old: tuple[Ending, ...]
    new: tuple[Ending, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Whatever(Word):
    """A pattern: one step, whatever it leaves."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Lost(Word):
    """The guest never finished this step; ``why`` is what ended the vCPU instead. No pattern."""

    why: Annotated[str, Text("(?s).*")]


done, refused, wrote = Done(), Refused(), Wrote()
interrupted, unfiltered, whatever = Interrupted(), Unfiltered(), Whatever()
gp = Fault(VECTOR_GP)
rejected, got, returned, regs, either = Rejected, Got, Returned, Regs, Either
