"""The same accesses in every mode of a CPU: 16- and 32-bit code, CPL3, SMM (R59, and all others).

64-bit code above 4 GiB is one of them, as a guest's kernel is: who cuts RIP to 32 bits fails there.

The cases of completion and re-entry, and those of scope that look at MSRs that every CPU has, are
played again in each mode that may access MSRs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vmm.conformance.cases import completion, reentry, scope, stepping
from vmm.conformance.cases.words import (
    BAD_EFER,
    DATA,
    GARBAGE,
    STORAGE,
    TELL,
    A,
    B,
    Row,
    allowed,
    denied,
    done_install,
    play,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.domains import Mode
from vmm.conformance.language.script import (
    REPLY,
    Access,
    Action,
    Begin,
    Rdmsr,
    Wrmsr,
    begin,
    done,
    enable_exits,
    finish,
    get_msr,
    got,
    gp,
    rdmsr,
    returned,
    set_msr,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import READ, WRITE, default_allow, default_deny
from vmm.msr import FILTER, INVAL, Msr

_PRIVILEGED: dict[Mode, str] = {
    "compat": "compat mode",
    "protected": "protected mode",
    "real": "real mode",
    "higher_half": "the higher half",
    "smm": "SMM",
}
_OF_SCOPE = ("scope.denied_", "scope.allowed_msrs", "scope.paravirt_not_denied")
_STAR, _OTHER_STAR = STORAGE[Msr.STAR]
_GS, _OTHER_GS = STORAGE[Msr.KERNEL_GS_BASE]
_FS, _OTHER_FS = STORAGE[Msr.FS_BASE]
_ALL_EXITS: Row = (enable_exits(7), done)


def _in(mode: Mode, action: Action, *, emulated: bool = False) -> Action:
    if isinstance(action, Begin):
        access = replace(action.access, mode=mode, emulated=action.access.emulated or emulated)
        return replace(action, access=access)
    if isinstance(action, Rdmsr | Wrmsr):
        return replace(action, mode=mode, emulated=action.emulated or emulated)
    return action


def _row(mode: Mode, row: Row, *, emulated: bool = False) -> Row:
    return (_in(mode, row[0], emulated=emulated), *row[1:])


def _played_again() -> Iterator[Case]:
    yield from (*completion.CASES, *reentry.CASES)
    yield from (case for case in stepping.CASES if "emulated" not in case.id)
    yield from (case for case in scope.CASES if case.id.startswith(_OF_SCOPE))


def _again(mode: Mode) -> Iterator[Case]:
    for case in _played_again():
        # SMM has an FS and a GS of its own: what userspace sees of them is another MSR.
        if mode == "smm" and case.id.endswith(("_of_fs_base", "_of_gs_base")):
            continue
        yield Case(
            f"modes.{mode}.{case.id}",
            f"In {_PRIVILEGED[mode]}: {case.sentence}",
            case.checks,
            [_in(mode, action) for action in case.script],
            case.trace,
        )


def _each_way(mode: Mode, emulated: bool) -> Iterator[Row]:
    """Yield accesses that exit and some that do not, by default, by range, by type."""
    rows: tuple[Row, ...] = (
        done_install(default_allow().deny(A).deny(Msr.KERNEL_GS_BASE)),
        (set_msr(Msr.KERNEL_GS_BASE, _GS), done),
        denied(A),
        write_denied(A),
        allowed(B),
        write_allowed(B),
        denied(Msr.KERNEL_GS_BASE),
        write_denied(Msr.KERNEL_GS_BASE, _OTHER_GS),
        (get_msr(Msr.KERNEL_GS_BASE), got(_GS)),
        done_install(default_deny().allow(A, Msr.STAR, Msr.KERNEL_GS_BASE)),
        allowed(A),
        write_allowed(A),
        denied(B),
        write_denied(B),
        (rdmsr(Msr.KERNEL_GS_BASE), returned(_GS)),
        (wrmsr(Msr.KERNEL_GS_BASE, _OTHER_GS), wrote),
        (get_msr(Msr.KERNEL_GS_BASE), got(_OTHER_GS)),
        (wrmsr(Msr.STAR, _STAR), wrote),
        (rdmsr(Msr.STAR), returned(_STAR)),
        done_install(default_allow().deny(A, Msr.STAR, access=READ).deny(B, access=WRITE)),
        denied(A),
        write_allowed(A),
        denied(Msr.STAR),
        (wrmsr(Msr.STAR, _OTHER_STAR), wrote),
        (get_msr(Msr.STAR), got(_OTHER_STAR)),
        allowed(B),
        write_denied(B),
    )
    yield from (_row(mode, row, emulated=emulated) for row in rows)


def _native_and_emulated(mode: Mode, where: str) -> Iterator[Case]:
    for way, emulated in {"": False, "emulated_": True}.items():
        how = "KVM's emulator executes" if emulated else "the CPU executes"
        about = "R40 R33" if emulated else "R33"
        yield Case(
            f"modes.{mode}.{way}filtered",
            f"Each access of {where} that {how} is filtered as any other, allowed and denied.",
            f"{about} R17 R18 R22 R28",
            *play(TELL, *_each_way(mode, emulated)),
        )
        yield Case(
            f"modes.{mode}.{way}without_exits",
            f"In {where}, where {how} the access, a denied one without an exit is #GP, and KVM's "
            "own failures are as they are.",
            f"{about} R50 R51",
            *play(
                done_install(default_allow().deny(A)),
                *(
                    _row(mode, row, emulated=emulated)
                    for row in (
                        (rdmsr(A, GARBAGE, GARBAGE), gp),
                        (wrmsr(A, DATA, GARBAGE), gp),
                        (rdmsr(B), gp),
                        _ALL_EXITS,
                        denied(A),
                        allowed(B),
                        (wrmsr(Msr.EFER, BAD_EFER), WrmsrExit(Msr.EFER, INVAL, BAD_EFER), wrote),
                        (enable_exits(FILTER), done),
                        (wrmsr(Msr.EFER, BAD_EFER), gp),
                        (rdmsr(B), gp),
                        write_denied(A),
                    )
                ),
            ),
        )


def _both(mode: Mode, *rows: Row) -> Iterator[Row]:
    for row in rows:
        yield from (_row(mode, row), row, _row(mode, row))


def _in_turns(mode: Mode, where: str) -> Case:
    return Case(
        f"modes.{mode}.in_turns_with_64_bit",
        f"A filter holds for {where} and for 64-bit code in turns, and each new one for both.",
        "R33 R72",
        *play(
            TELL,
            (set_msr(Msr.STAR, _STAR), done),
            done_install(default_allow().deny(Msr.STAR)),
            *_both(mode, denied(Msr.STAR), allowed(A), write_denied(Msr.STAR, 0)),
            done_install(default_deny().allow(A, Msr.STAR)),
            *_both(mode, (rdmsr(Msr.STAR), returned(_STAR)), allowed(A), denied(B)),
            done_install(default_allow().deny(A).deny(Msr.STAR)),
            *_both(mode, denied(Msr.STAR), denied(A), allowed(B)),
            done_install(default_allow()),
            *_both(mode, (rdmsr(Msr.STAR), returned(_STAR)), write_allowed(A)),
        ),
    )


def _user_rows(emulated: bool) -> Iterator[Row]:
    """Yield accesses at CPL3, each with its twin at CPL0 that the filter lets exit or pass."""
    rows: tuple[Row, ...] = (
        done_install(default_allow().deny(A).deny(Msr.FS_BASE)),
        denied(A),
        write_denied(A),
        allowed(B),
        write_allowed(B),
        denied(Msr.FS_BASE),
        write_denied(Msr.FS_BASE, _OTHER_FS),
        (rdmsr(Msr.STAR), returned(_STAR)),
        (wrmsr(Msr.STAR, _STAR), wrote),
        (wrmsr(Msr.EFER, BAD_EFER), WrmsrExit(Msr.EFER, INVAL, BAD_EFER), wrote),
        (rdmsr(Msr.APIC_ID), RdmsrExit(Msr.APIC_ID, INVAL), returned(REPLY)),
        done_install(default_deny().allow(A, Msr.STAR)),
        allowed(A),
        denied(B),
        denied(Msr.FS_BASE),
        (rdmsr(Msr.STAR), returned(_STAR)),
        (wrmsr(Msr.STAR, _STAR), wrote),
    )
    for row in rows:
        yield row
        if isinstance(row[0], Rdmsr | Wrmsr):
            yield (_in("user", row[0], emulated=emulated), gp)


def _user_cases() -> Iterator[Case]:
    for way, emulated in {"": False, "emulated_": True}.items():
        about = "R59 R40" if emulated else "R59"
        yield Case(
            f"modes.user.{way}never_exits",
            "At CPL3 each RDMSR and WRMSR is #GP and never an exit, whatever the filter says of "
            "the MSR and whatever KVM makes of it.",
            about,
            *play(_ALL_EXITS, (set_msr(Msr.STAR, _STAR), done), *_user_rows(emulated)),
        )
        yield Case(
            f"modes.user.{way}changes_nothing",
            "What CPL3 code tries to write stays as it was, and it sees no register change.",
            about,
            *play(
                _ALL_EXITS,
                (set_msr(Msr.KERNEL_GS_BASE, _GS), done),
                *(
                    row
                    for msr_filter in (default_allow(), default_allow().deny(Msr.KERNEL_GS_BASE))
                    for row in (
                        done_install(msr_filter),
                        (_try(Msr.KERNEL_GS_BASE, _OTHER_GS, emulated), gp),
                        (get_msr(Msr.KERNEL_GS_BASE), got(_GS)),
                        (rdmsr(Msr.KERNEL_GS_BASE, GARBAGE, DATA, mode="user"), gp),
                    )
                ),
                denied(Msr.KERNEL_GS_BASE),
            ),
        )
    yield Case(
        "modes.user.beside_a_pending_exit",
        "CPL3 code of one vCPU is #GP while another vCPU is stopped in a denied access.",
        "R59 R45",
        *play(
            TELL,
            done_install(default_allow().deny(A)),
            (begin(rdmsr(A)), RdmsrExit(A, FILTER)),
            (rdmsr(A, mode="user", vcpu=1), gp),
            (wrmsr(A, DATA, mode="user", vcpu=1), gp),
            denied(A, vcpu=1),
            (finish(value(DATA)), returned(DATA)),
            (rdmsr(A, mode="user"), gp),
        ),
    )


def _try(index: int, data: int, emulated: bool) -> Access:
    return wrmsr(index, data, GARBAGE, mode="user", emulated=emulated)


_SMM_CASES = (
    Case(
        "modes.smm.has_a_segment_state_of_its_own",
        "SMM starts with FS and GS of its own, allowed or denied, and RSM brings the others back.",
        "R27 R28 R35",
        *play(
            TELL,
            *((wrmsr(msr, STORAGE[msr][0]), wrote) for msr in (Msr.FS_BASE, Msr.GS_BASE)),
            (rdmsr(Msr.FS_BASE, mode="smm"), returned(0)),
            (wrmsr(Msr.GS_BASE, _FS, mode="smm"), wrote),
            (rdmsr(Msr.GS_BASE, mode="smm"), returned(0)),
            (rdmsr(Msr.FS_BASE), returned(_FS)),
            (rdmsr(Msr.GS_BASE), returned(STORAGE[Msr.GS_BASE][0])),
            done_install(default_deny().allow(A)),
            _row("smm", denied(Msr.FS_BASE)),
            _row("smm", write_denied(Msr.GS_BASE, _OTHER_FS)),
            denied(Msr.FS_BASE),
            done_install(default_allow().deny(A)),
            (rdmsr(Msr.FS_BASE), returned(_FS)),
            (rdmsr(Msr.GS_BASE), returned(STORAGE[Msr.GS_BASE][0])),
            denied(A),
        ),
    ),
)

CASES = (
    *(case for mode in _PRIVILEGED for case in _again(mode)),
    *(case for mode, where in _PRIVILEGED.items() for case in _native_and_emulated(mode, where)),
    *(_in_turns(mode, where) for mode, where in _PRIVILEGED.items()),
    *_user_cases(),
    *_SMM_CASES,
)
