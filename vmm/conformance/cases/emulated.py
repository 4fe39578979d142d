"""The same accesses executed by KVM's emulator, by the forced emulation prefix: R40-R42.

The cases of completion and re-entry, and those of scope that look at MSRs that every CPU has, are
played again with each RDMSR and WRMSR emulated: the filter, the exit and its completion are the
same, and an allowed FS_BASE or GS_BASE is read and written by KVM itself (dad1613e0533, B10).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vmm.conformance.cases import completion, reentry, scope
from vmm.conformance.cases.words import (
    DATA,
    TELL,
    A,
    B,
    Row,
    allowed,
    denied,
    done_install,
    play,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Action, Begin, Rdmsr, Wrmsr
from vmm.filter import default_allow, default_deny

_OF_SCOPE = ("scope.denied_", "scope.allowed_")


def _emulated(action: Action) -> Action:
    if isinstance(action, Begin):
        return replace(action, access=replace(action.access, emulated=True))
    return replace(action, emulated=True) if isinstance(action, Rdmsr | Wrmsr) else action


def _row(row: Row) -> Row:
    return (_emulated(row[0]), *row[1:])


def _native(row: Row) -> Row:
    return row


def _tables() -> Iterator[tuple[str, Case]]:
    yield from (("R40 R41 R42", case) for case in (*completion.CASES, *reentry.CASES))
    yield from (("R40", case) for case in scope.CASES if case.id.startswith(_OF_SCOPE))


CASES = (
    *(
        Case(
            f"emulated.{case.id}",
            f"In the emulator: {case.sentence}",
            f"{requirements} {case.checks}",
            [_emulated(action) for action in case.script],
            case.trace,
        )
        for requirements, case in _tables()
    ),
    Case(
        "emulated.in_turns_with_native",
        "Emulated and native accesses in turns: each exits, is answered and is done once.",
        "R40 R42",
        *play(
            TELL,
            done_install(default_allow().deny(A).deny(B)),
            *(
                made(row)
                for row in (denied(A), write_denied(B, DATA))
                for made in (_row, _native, _row, _row, _native)
            ),
        ),
    ),
    Case(
        "emulated.sees_each_new_filter",
        "The emulator asks the filter that is in force, not one that was.",
        "R40 R71",
        *play(
            TELL,
            done_install(default_allow().deny(A)),
            _row(denied(A)),
            _row(allowed(B)),
            done_install(default_deny().allow(A).deny(B)),
            _row(allowed(A)),
            _row(denied(B)),
            done_install(default_allow().deny(A).deny(B)),
            _row(denied(A)),
            _row(denied(B)),
        ),
    ),
)
