"""Which scripts can be run: nothing goes on with what no action before it began."""

from __future__ import annotations

from vmm.conformance.language.script import (
    Access,
    Begin,
    BeginInstall,
    Complete,
    Finish,
    GetRegs,
    Install,
    ScribbleBitmaps,
    Script,
    SetRegs,
)

INSTALLS = Install | BeginInstall


def is_sound(script: Script) -> bool:
    """Say whether a backend can run the script: nothing in it is without what it goes on with."""
    return first_unsound(script) is None


def first_unsound(script: Script) -> int | None:
    """Return the first action (from 0) that lacks the ``begin`` or the install it goes on with.

    A vCPU that stopped in an access begins no other before it has finished the one.
    """
    begun: set[int] = set()
    for at, action in enumerate(script):
        access = action.access if isinstance(action, Begin) else action
        if isinstance(access, Access):
            is_bad = access.vcpu in begun
        elif isinstance(action, GetRegs | SetRegs | Complete | Finish):
            is_bad = action.vcpu not in begun
        else:
            is_scribble = isinstance(action, ScribbleBitmaps)
            is_bad = is_scribble and not any(isinstance(each, INSTALLS) for each in script[:at])
        if is_bad:
            return at
        if isinstance(action, Begin):
            begun.add(action.access.vcpu)
        if isinstance(action, Finish):
            begun.discard(action.vcpu)
    return None
