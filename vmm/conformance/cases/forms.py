"""The other forms of RDMSR and WRMSR: WRMSRNS, and the MSR in the instruction itself (R58).

And the plain ones with a REX prefix, which are three bytes long: who skips two of them, fails here.

An immediate form moves all 64 bits of one register, and ECX has nothing to do with it. No machine
of the lab executes one as Intel's manual has it: Bochs 3.0 lets a guest's exit say RDMSR, of ECX.
"""

from __future__ import annotations

from dataclasses import replace

from vmm.conformance.cases.words import (
    DATA,
    GARBAGE,
    STORAGE,
    TELL,
    TELL_FILTER,
    A,
    B,
    Row,
    denied,
    done_install,
    play,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import ReadForm, WriteForm
from vmm.conformance.language.script import (
    REPLY,
    Access,
    Event,
    Fault,
    Rdmsr,
    Wrmsr,
    begin,
    complete,
    done,
    enable_exits,
    fault,
    finish,
    get_msr,
    get_regs,
    got,
    gp,
    interrupted,
    rdmsr,
    regs,
    returned,
    unfiltered,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import READ, WRITE, default_allow, default_deny
from vmm.msr import FILTER, UNKNOWN, Msr, MsrExitReason

LENGTH: dict[WriteForm, int] = {"wrmsrns": 3, "immediate": 9, "rex": 3}
"""The bytes of each form."""
RCX: dict[WriteForm, int] = {"wrmsrns": A, "immediate": A ^ 0xFFFFFFFF, "rex": A}
"""What is in RCX: where no MSR is looked for there, another's index."""
NAMES: dict[WriteForm, str] = {
    "wrmsrns": "WRMSRNS",
    "immediate": "RDMSR and WRMSRNS with an MSR",
    "rex": "RDMSR and WRMSR with a REX prefix",
}
_DEADLINE = Msr.IA32_TSC_DEADLINE
DB = 1


def reads(index: int, form: ReadForm = "immediate") -> Access:
    """Return the read of that form."""
    return rdmsr(index, form=form)


def exits(access: Access, reason: MsrExitReason, end: Event | None = None) -> Row:
    """Return the row of an access that exits, and is answered with success unless ``end`` says."""
    if isinstance(access, Wrmsr):
        return (access, WrmsrExit(access.index, reason, access.value), end or wrote)
    return (access, RdmsrExit(access.index, reason), end or returned(access.reply.value))


def accesses(form: WriteForm, index: int, data: int = DATA) -> tuple[Access, ...]:
    """Return an access of each kind that the form has."""
    write = wrmsr(index, data, form=form)
    return (write,) if form == "wrmsrns" else (reads(index, form), write)


def each(
    form: WriteForm, index: int, reason: MsrExitReason = FILTER, data: int = DATA
) -> tuple[Row, ...]:
    """Return those accesses, each of which exits for ``reason``."""
    return tuple(exits(access, reason) for access in accesses(form, index, data))


def held(form: WriteForm, msr: Msr, one: int, two: int) -> tuple[Row, ...]:
    """Return writes and reads of an MSR that holds both values."""
    read = rdmsr(msr) if form == "wrmsrns" else reads(msr, form)
    return tuple(
        row
        for data in (one, two)
        for row in (
            *((wrmsr(msr, data, form=form), wrote), (read, returned(data))),
            (get_msr(msr), got(data)),
        )
    )


def _faults(form: WriteForm) -> tuple[Row, ...]:
    return tuple(
        exits(replace(access, reply=fault(error)), FILTER, gp)
        for error in (1, 0x80)
        for access in accesses(form, A, GARBAGE)
    )


def _stepped(form: WriteForm) -> tuple[Row, ...]:
    length = LENGTH[form]
    write = wrmsr(A, 5, single_step=True, form=form)
    stepped = exits(write, FILTER, Fault(DB, skew=length))
    if form == "wrmsrns":
        return (stepped,)
    read = rdmsr(A, reply=value(7), single_step=True, form=form)
    return (stepped, exits(read, FILTER, Fault(DB, skew=length, registers=(7, 0))))


def _in_steps(form: WriteForm) -> tuple[Row, ...]:
    rcx, length = RCX[form], LENGTH[form]
    return (
        (begin(wrmsr(A, 5, form=form)), WrmsrExit(A, FILTER, 5)),
        (get_regs(), regs(0, rax=5, rcx=rcx, rdx=0)),
        (complete(value(0)), interrupted),
        (get_regs(), regs(length, rax=5, rcx=rcx, rdx=0)),
        *((finish(), wrote), denied(A)),
    )


def _of(form: WriteForm) -> tuple[Case, ...]:
    name, deny = NAMES[form], done_install(default_allow().deny(A))
    gps = tuple((access, gp) for access in accesses(form, A))
    kind = {READ: UNKNOWN, WRITE: FILTER}
    rows: dict[str, tuple[str, str, tuple[Row, ...]]] = {
        "denied": (
            "R58 R53 R54",
            f"{name} exit as FILTER where denied, by the index and with all 64 bits.",
            (
                *(
                    TELL,
                    *each(form, A, UNKNOWN),
                    deny,
                    *each(form, A),
                    *each(form, A, data=1 << 63),
                ),
                *(*each(form, B, UNKNOWN), done_install(default_deny().allow(B))),
                *(*each(form, A), denied(A), *each(form, B, UNKNOWN)),
            ),
        ),
        "faults": (
            "R58 R61 R63",
            f"{name} are #GP where userspace fails them, and change no register.",
            (TELL_FILTER, deny, *_faults(form)),
        ),
        "untold": (
            "R58 R50",
            f"{name} are #GP where denied while no reason is told of.",
            ((enable_exits(0), done), deny, *gps, (enable_exits(UNKNOWN), done), *gps),
        ),
        "kinds": (
            "R58 R22",
            f"To a filter {name} are reads and writes as RDMSR and WRMSR are.",
            (
                *(TELL, done_install(default_allow().deny(A, access=WRITE))),
                *(
                    exits(a, kind[WRITE if isinstance(a, Wrmsr) else READ])
                    for a in accesses(form, A)
                ),
                done_install(default_allow().deny(A, access=READ)),
                *(
                    exits(a, kind[READ if isinstance(a, Wrmsr) else WRITE])
                    for a in accesses(form, A)
                ),
            ),
        ),
        "in_steps": (
            "R58 R57 R64 R65",
            f"{name} can be completed in steps: each is skipped by its own length.",
            (TELL_FILTER, deny, *_in_steps(form)),
        ),
        "stepped": (
            "R58 R66",
            f"{name} are followed by their #DB in a guest that single-steps.",
            (TELL_FILTER, deny, *_stepped(form)),
        ),
        "x2apic_window": (
            "R58 R30",
            f"{name} are stopped by no filter in the x2APIC window.",
            (
                *(TELL_FILTER, done_install(default_deny().allow(A))),
                *((a, unfiltered) for at in (0x83F, 0x8FF) for a in accesses(form, at, 0)),
                *(row for edge in (0x7FF, 0x900) for row in each(form, edge, data=0)),
            ),
        ),
        "tsc_deadline": (
            "R33 R58",
            f"{name} that set the TSC deadline ask the filter on their fast path too.",
            (
                *(TELL_FILTER, done_install(default_allow().deny(_DEADLINE))),
                *(exits(wrmsr(_DEADLINE, 0, form=form), FILTER), denied(_DEADLINE)),
            ),
        ),
    }
    return tuple(
        Case(f"forms.{form}_{what}", sentence, _checks(form, checks), *play(*script))
        for what, (checks, sentence, script) in rows.items()
        if (form, what) != ("rex", "tsc_deadline")  # fastpath.* has it
    )


def _checks(form: WriteForm, checks: str) -> str:
    """R58 is of the new forms only: another length is a matter of R64."""
    if form != "rex":
        return checks
    return " ".join(dict.fromkeys(checks.replace("R58", "R64").split()))


def _passed(form: WriteForm, msr: Msr, one: int, two: int) -> Case:
    return Case(
        f"forms.{form}_of_{msr.name.lower()}",
        f"{NAMES[form]} of {msr.name}, which hardware passes, obey each filter.",
        _checks(form, "R58 R72 R28"),
        *play(
            *(TELL_FILTER, *held(form, msr, one, two)),
            *(done_install(default_allow().deny(msr)), *each(form, msr, data=one)),
            *((get_msr(msr), got(two)), done_install(default_deny().allow(msr))),
            *held(form, msr, two, one),
            *(done_install(default_deny().allow(A)), *each(form, msr, data=two)),
        ),
    )


EMULATED = (
    rdmsr(A, form="rex", emulated=True),
    wrmsr(A, REPLY, form="rex", emulated=True),
)


def _emulated_in_steps(access: Access) -> tuple[Row, ...]:
    is_read = isinstance(access, Rdmsr)
    low, high = REPLY & 0xFFFFFFFF, REPLY >> 32
    before = (0, 0) if is_read else (low, high)
    return (
        (begin(access), RdmsrExit(A, FILTER) if is_read else WrmsrExit(A, FILTER, REPLY)),
        (get_regs(), regs(0, rax=before[0], rcx=A, rdx=before[1])),
        (complete(value(REPLY)), interrupted),
        (get_regs(), regs(3, rax=low, rcx=A, rdx=high)),
        (finish(), returned(REPLY) if is_read else wrote),
    )


FORMS: tuple[WriteForm, ...] = ("wrmsrns", "immediate", "rex")

CASES = (
    *(case for form in FORMS for case in _of(form)),
    *(_passed(form, msr, *values) for form in FORMS for msr, values in STORAGE.items()),
    Case(
        "forms.registers_of_a_read",
        "A read with an immediate is answered with all of RAX, and leaves RDX.",
        "R58 R60 R62",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(A))),
            *(
                (
                    rdmsr(A, DATA, GARBAGE, reply=value(data), form="immediate"),
                    *(RdmsrExit(A, FILTER), returned(data)),
                )
                for data in (REPLY, 1 << 63, 0)
            ),
        ),
    ),
    *(
        Case(
            f"forms.registers_of_{form}",
            f"The upper halves of registers do not count to a write of the form {form}.",
            _checks(form, "R58 R54 R63"),
            *play(
                *(TELL_FILTER, done_install(default_allow().deny(A))),
                *(exits(wrmsr(A, data, GARBAGE, form=form), FILTER) for data in (DATA, 1, 1 << 32)),
            ),
        )
        for form in FORMS
    ),
    Case(
        "forms.rex_emulated_in_steps",
        "An emulated access is skipped by its own length, not by that of what brought it to KVM.",
        "R42 R64 R40",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(A))),
            *(row for access in EMULATED for row in _emulated_in_steps(access)),
            *(exits(replace(access, reply=fault()), FILTER, gp) for access in EMULATED),
            exits(replace(EMULATED[1], single_step=True), FILTER, Fault(DB, skew=3)),
            denied(A),
        ),
    ),
    Case(
        "forms.read_in_steps",
        "A read with an immediate can be completed in steps: it is nine bytes, and RAX alone.",
        "R58 R57 R64 R65",
        *play(
            *(TELL_FILTER, done_install(default_allow().deny(A))),
            (begin(reads(A)), RdmsrExit(A, FILTER)),
            (get_regs(), regs(0, rax=0, rcx=A ^ 0xFFFFFFFF, rdx=0)),
            (complete(value(7 << 32 | 5)), interrupted),
            (get_regs(), regs(9, rax=7 << 32 | 5, rcx=A ^ 0xFFFFFFFF, rdx=0)),
            *((finish(), returned(7 << 32 | 5)), denied(A)),
        ),
    ),
)
