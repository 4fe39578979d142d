"""How userspace's answer reaches the guest: R60-R64."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.conformance.cases.words import (
    DATA,
    DENY_A,
    GARBAGE,
    LOW,
    TELL,
    A,
    B,
    Row,
    allowed,
    denied,
    done_install,
    play,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    REPLY,
    Reply,
    begin,
    done,
    enable_exits,
    fault,
    finish,
    get_regs,
    gp,
    rdmsr,
    regs,
    returned,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import default_allow
from vmm.msr import FILTER, UNKNOWN

ONES = (1 << 64) - 1
_READ_EXIT, _WRITE_EXIT = RdmsrExit(A, FILTER), WrmsrExit(A, FILTER, GARBAGE)

_VALUES = (0, 1, LOW, 1 << 32, 0x8000_0000, 1 << 63, 0x8000_0000_8000_0000, DATA, ONES)
_ERRORS = (1, 2, 0x7F, 0x80, 0xFF)

_SCRIBBLED = {
    "": Reply(DATA),
    "_scribbled": Reply(DATA, scribble=True),
    "_ones": Reply(ONES, scribble=True),
}

_SAME: dict[str, Row] = {
    "read": (rdmsr(A, reply=value(DATA)), _READ_EXIT, returned(DATA)),
    "write": (wrmsr(A, GARBAGE), _WRITE_EXIT, wrote),
    "failed_read": (rdmsr(A, reply=fault()), _READ_EXIT, gp),
    "failed_write": (wrmsr(A, GARBAGE, reply=fault()), _WRITE_EXIT, gp),
}


def _mixed(count: int) -> Iterable[Row]:
    """Return a run of accesses in which no answer is like its neighbours."""
    for i in range(count):
        answer = REPLY * (2 * i + 1) & ONES
        yield (rdmsr(A, reply=value(answer)), _READ_EXIT, returned(answer))
        yield (wrmsr(A, GARBAGE, reply=fault(i + 1)), _WRITE_EXIT, gp)
        yield (rdmsr(A, reply=fault(255 - i)), _READ_EXIT, gp)
        yield (wrmsr(A, GARBAGE), _WRITE_EXIT, wrote)


CASES = (
    *(
        Case(
            f"completion.read_{data:#x}",
            f"RDMSR answered with {data:#x} puts its halves in EAX and EDX and clears the upper "
            "halves of RAX and RDX.",
            "R60",
            *play(
                TELL,
                DENY_A,
                (rdmsr(A, reply=value(data)), _READ_EXIT, returned(data)),
                (rdmsr(A, before=~data & ONES, reply=value(data)), _READ_EXIT, returned(data)),
                (rdmsr(A, high=ONES, reply=value(data)), _READ_EXIT, returned(data, high=0)),
                (rdmsr(B, high=DATA, reply=value(data)), RdmsrExit(B, UNKNOWN), returned(data)),
            ),
        )
        for data in _VALUES
    ),
    *(
        Case(
            f"completion.error_{error:#x}",
            f"The error byte {error:#x} makes the access #GP(0) at the instruction, read or write, "
            "and no register changes.",
            "R61 R62 R63",
            *play(
                TELL,
                DENY_A,
                (rdmsr(A, before=GARBAGE, high=DATA, reply=fault(error)), _READ_EXIT, gp),
                (wrmsr(A, GARBAGE, high=DATA, reply=fault(error)), _WRITE_EXIT, gp),
                (rdmsr(B, reply=fault(error)), RdmsrExit(B, UNKNOWN), gp),
            ),
        )
        for error in _ERRORS
    ),
    *(
        Case(
            f"completion.error_with_data_{data:#x}",
            f"A read that userspace fails delivers none of its data ({data:#x}).",
            "R62 R61",
            *play(
                TELL,
                DENY_A,
                (rdmsr(A, reply=Reply(data, error=1)), _READ_EXIT, gp),
                (rdmsr(A, before=GARBAGE, high=DATA, reply=Reply(data, 1)), _READ_EXIT, gp),
                (rdmsr(A, before=ONES, high=ONES, reply=Reply(data, 1)), _READ_EXIT, gp),
            ),
        )
        for data in (0, DATA, ONES)
    ),
    *(
        Case(
            f"completion.write{name}",
            "A WRMSR that userspace lets pass changes no register, whatever is left in kvm_run "
            f"({reply!r}).",
            "R63",
            *play(
                TELL,
                DENY_A,
                (wrmsr(A, GARBAGE, reply=reply), _WRITE_EXIT, wrote),
                (wrmsr(A, GARBAGE, high=DATA, rcx_high=LOW, reply=reply), _WRITE_EXIT, wrote),
                (wrmsr(A, GARBAGE, high=ONES, reply=reply), _WRITE_EXIT, wrote),
            ),
        )
        for name, reply in _SCRIBBLED.items()
    ),
    Case(
        "completion.scribbled_fields_ignored",
        "Only data and error are the answer: exit_reason, reason, index and pad that userspace "
        "wrote do not count.",
        "R63 R60 R61",
        *play(
            TELL,
            DENY_A,
            (rdmsr(A, reply=Reply(DATA, scribble=True)), _READ_EXIT, returned(DATA)),
            (rdmsr(A, before=ONES, reply=Reply(0, 1, scribble=True)), _READ_EXIT, gp),
            (wrmsr(A, GARBAGE, reply=Reply(0, 1, scribble=True)), _WRITE_EXIT, gp),
            denied(A),
        ),
    ),
    *(
        Case(
            f"completion.one_instruction_{name}",
            f"Completing a {name.replace('_', ' ')} ends one instruction, once: the next "
            "access is the next exit.",
            "R64",
            *play(TELL, DENY_A, row, row, row, denied(A), row),
        )
        for name, row in _SAME.items()
    ),
    Case(
        "completion.each_answer_to_its_access",
        "In a run of accesses each gets its own answer, value or #GP.",
        "R64 R60 R61",
        *play(TELL, DENY_A, *_mixed(16)),
    ),
    Case(
        "completion.answer_stands_when_the_filter_changes",
        "An answer is delivered though the filter allows the MSR by then, and is not asked again.",
        "R64 R60 R44",
        *play(
            TELL,
            DENY_A,
            (begin(rdmsr(A, before=GARBAGE, high=DATA)), _READ_EXIT),
            done_install(default_allow().deny(B)),
            (enable_exits(FILTER), done),
            (finish(value(DATA)), returned(DATA)),
            (rdmsr(A), gp),
            denied(B),
        ),
    ),
    Case(
        "completion.answer_stands_when_the_mask_changes",
        "An answer is delivered though by then nobody is told of such an access any more.",
        "R60 R44 R64",
        *play(
            TELL,
            DENY_A,
            (begin(rdmsr(A, before=GARBAGE, high=DATA)), _READ_EXIT),
            (enable_exits(0), done),
            (finish(value(DATA)), returned(DATA)),
            (rdmsr(A), gp),
            (enable_exits(FILTER), done),
            (begin(wrmsr(A, GARBAGE, high=DATA)), _WRITE_EXIT),
            (enable_exits(UNKNOWN), done),
            (finish(value(DATA)), wrote),
            (wrmsr(A, 0), gp),
            (enable_exits(FILTER), done),
            denied(A),
        ),
    ),
    Case(
        "completion.fault_stands_when_the_mask_changes",
        "A fault is delivered though the mask is 0 by then, and the next denied access is #GP too.",
        "R61 R44",
        *play(
            TELL,
            DENY_A,
            (begin(wrmsr(A, GARBAGE, high=DATA)), _WRITE_EXIT),
            (enable_exits(0), done),
            (finish(fault()), gp),
            (rdmsr(A), gp),
            (enable_exits(FILTER), done),
            denied(A),
        ),
    ),
    Case(
        "completion.two_vcpus_two_answers",
        "Two vCPUs stopped at exits at the same time each get their own answer.",
        "R60 R61 R64 R71",
        *play(
            TELL,
            DENY_A,
            (begin(rdmsr(A, vcpu=0)), _READ_EXIT),
            (begin(rdmsr(A, vcpu=1)), _READ_EXIT),
            (get_regs(vcpu=0), regs(0, 0, A, 0)),
            (finish(value(DATA), vcpu=1), returned(DATA)),
            (finish(value(REPLY), vcpu=0), returned(REPLY)),
            (begin(rdmsr(A, vcpu=1)), _READ_EXIT),
            (begin(wrmsr(A, GARBAGE, vcpu=0)), _WRITE_EXIT),
            (finish(value(0), vcpu=0), wrote),
            (finish(fault(), vcpu=1), gp),
            allowed(B, vcpu=1),
        ),
    ),
)
