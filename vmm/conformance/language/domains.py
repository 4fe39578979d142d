"""What a field of a word may hold, as its declaration says it; codec, printer, generators ask here.

A field is a number of so many ``Bits``, a text of some shape, one of a few literals, an enum, a
flag, bytes, another word, or a tuple or union of these. Nothing else is a domain.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from vmm.bits import Bits

WHOLE = (bool, bytes, NoneType)
"""Types of which every value belongs to the domain."""


@dataclass(frozen=True, slots=True)
class Text:
    """The domain of a text that matches ``pattern`` from end to end."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Most:
    """The domain of a tuple of at most ``count`` elements."""

    count: int


Cap = Annotated[int, Bits(32, of="cap")]
VcpuId = Annotated[int, Bits(4, of="vcpu")]
ThreadName = Annotated[str, Text("[a-z0-9_]{1,16}")]
File = Literal["vm", "vcpu", "system"]
Caller = Literal["self", "child", "compat"]
Mode = Literal["long", "compat", "user", "protected", "real", "higher_half", "smm"]
"""64-bit code at CPL0; 32-bit code under it; 64-bit at CPL3; 32-bit without paging; 16-bit; 64-bit
where a kernel has its text, at 0xffffffff80000000; SMM."""
After = Literal["nothing", "sti", "mov_ss", "sti_nop"]
"""What comes right before an access: "sti_nop" lets interrupts in, and leaves no shadow."""
ReadForm = Literal["register", "immediate", "rex"]
WriteForm = Literal["register", "wrmsrns", "immediate", "rex"]
"""Where the MSR is named: in ECX (by WRMSRNS too), or in the instruction, for one register.

"rex" is the plain instruction with a prefix that makes it a byte longer and nothing else."""
Instruction = Literal[
    "rdtsc",
    "rdtscp",
    "rdpid",
    "rdpmc",
    "cpuid",
    "syscall",
    "sysretq",
    "sysenter",
    "sysexit",
    "swapgs",
    "rdfsbase",
    "rdgsbase",
    "wrfsbase",
    "wrgsbase",
    "xsaves",
    "xrstors",
    "rsm",
]
"""What uses MSRs without being RDMSR or WRMSR, as the assembler calls it."""
VcpuPart = Literal[
    "sregs", "vcpu_events", "mp_state", "debugregs", "xcrs", "regs", "xsave", "fpu", "lapic"
]
Interrupter = Literal["immediate_exit", "signal", "debugger"]
"""A debugger has the guest single-step: ``KVM_RUN`` ends with KVM_EXIT_DEBUG behind the access."""


@functools.cache
def domains(maker: Any) -> dict[str, Any]:
    """Return the domain of each field of a word, or each parameter of what makes one."""
    return get_type_hints(maker, include_extras=True)


def choices(kind: type, field: str) -> tuple[Any, ...]:
    """Return the literals that a field is one of; () if it is none of a few."""
    domain = domains(kind)[field]
    return get_args(domain) if get_origin(domain) is Literal else ()


def members(domain: Any) -> tuple[Any, ...]:
    """Return what a union is made of; of any other domain, itself."""
    return get_args(domain) if get_origin(domain) in (Union, UnionType) else (domain,)


def split(domain: Any) -> tuple[Any, Any]:
    """Return a domain's type and the mark that narrows it, or None."""
    if get_origin(domain) is not Annotated:
        return domain, None
    kind, mark = get_args(domain)
    return kind, mark


def bits_of(domain: Any) -> Bits | None:
    """Return the width of a number, also of one that may be None."""
    marks = [split(each)[1] for each in members(domain)]
    return next((mark for mark in marks if isinstance(mark, Bits)), None)


def is_domain(hint: Any) -> bool:
    """Say whether a type says what belongs to it, down to its elements."""
    kind, mark = split(hint)
    if kind in (int, str):
        return isinstance(mark, Bits if kind is int else Text)
    if get_origin(kind) is Literal:
        return True
    if get_origin(kind) is tuple:
        return all(is_domain(each) for each in get_args(kind) if each is not Ellipsis)
    if len(members(kind)) > 1:
        return all(map(is_domain, members(kind)))
    return (
        kind in WHOLE or is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, Enum))
    )
