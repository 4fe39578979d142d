"""The fourth witness: every case under both executors, which must leave the same trace.

The player does all cases first; then the workers do them in Python, and each trace is held against
the player's. A pair that disagrees is ERROR: one of the two executors lies, and what it says of the
kernel is not to be believed until it is found which.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vmm.conformance.c.tape import is_playable, tape
from vmm.conformance.judge.check import Trouble
from vmm.conformance.judge.judging import Backend, BackendFactory
from vmm.conformance.judge.lines import TraceError
from vmm.conformance.judge.recording import Options
from vmm.conformance.judge.trace import Reading
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import ANY, Script, Step, Trace, matches, steps

PLAYER = "msrward-player"
Seen = Trace | str
"""What the player saw of a case, or in one line why it saw nothing."""


class DisagreementError(Exception):
    """The executors saw different things; the text is one line with both."""


def found_player() -> Path | None:
    """Return ``MSRWARD_PLAYER``, or else the player that came with msrward, or None.

    Trouble if what the variable names cannot be executed.
    """
    if given := os.environ.get("MSRWARD_PLAYER"):
        if not (Path(given).is_file() and os.access(given, os.X_OK)):
            raise Trouble(f"MSRWARD_PLAYER={given} is no program: name a player, or unset it")
        return Path(given)
    beside = Path(sysconfig.get_path("scripts")) / PLAYER
    found = shutil.which(PLAYER)
    return beside if beside.exists() else Path(found) if found else None


def played(cases: Sequence[Case], options: Options) -> dict[Script, Seen]:
    """Return what the player sees of the cases that it can do, by their scripts.

    Trouble if there is no player, or what it writes is no trace.
    """
    player = found_player()
    if player is None:
        raise Trouble(f"no {PLAYER} came with this msrward: build it where there is a static libc")
    todo = [case for case in cases if is_playable(case)]
    reading = Reading(todo, options)
    command = (player, f"-j{min(options.jobs, 16)}", "-")
    data = tape(todo, timeout=options.timeout)
    ran = subprocess.run(command, input=data, capture_output=True, check=False)
    if ran.returncode:
        raise Trouble(ran.stderr.decode(errors="replace").strip() or "the player failed")
    try:
        for line in ran.stdout.decode("latin-1").splitlines():
            for _ in reading.line(line):
                pass
    except TraceError as error:
        raise Trouble(f"the player's trace: {error}") from None
    return {case.actions: reading.seen[case.id] for case in todo if case.id in reading.seen}


class Both:
    """A backend that runs scripts in Python, and holds each trace against the player's."""

    def __init__(self, backend: Backend, seen: Mapping[Script, Seen]) -> None:
        """Compare with ``seen`` what ``backend`` runs."""
        self.backend, self.seen = backend, seen

    def run(self, script: Script, *, expected: Trace | None = None) -> Trace:
        """Return what was seen in Python; DisagreementError where the player saw another thing."""
        trace = self.backend.run(script, expected=expected)
        if (other := self.seen.get(script)) is not None:
            agree(script, expected, trace, other)
        return trace

    def lacks(self, need: str) -> str | None:
        """Return what the backend says."""
        return self.backend.lacks(need)

    def close(self) -> None:
        """Close the backend."""
        self.backend.close()


def both(factory: BackendFactory, seen: Mapping[Script, Seen]) -> BackendFactory:
    """Return what makes a ``Both`` of what ``factory`` makes."""
    return lambda: Both(factory(), seen)


def agree(script: Script, expected: Trace | None, one: Trace, other: Seen) -> None:
    """Raise DisagreementError if the traces are not of the same events.

    Where the expectation leaves a value open, it may differ: the kind of event may not.
    """
    if isinstance(other, str):
        raise DisagreementError(f"the player: {other}")
    wanted = steps(script, expected) if expected is not None else []
    ours, theirs = steps(script, one), steps(script, other)
    for number in range(max(len(ours), len(theirs))):
        here, there = (each[number] if number < len(each) else () for each in (ours, theirs))
        want = wanted[number] if number < len(wanted) else None
        if here != there and not (want and _is_left_open(want, here, there)):
            raise DisagreementError(
                f"the executors disagree: step {number + 1}: Python saw {here!r},"
                f" the player {there!r}"
            )


def _is_left_open(want: Step, here: Step, there: Step) -> bool:
    """Say whether the steps differ in nothing but what the expectation leaves open."""
    if [type(event) for event in here] != [type(event) for event in there]:
        return False
    if matches(want, here) and matches(want, there):
        return True
    if [type(event) for event in want] != [type(event) for event in here]:
        return False
    return all(map(_differ_where_open, want, here, there))


def _differ_where_open(want: Any, here: Any, there: Any) -> bool:
    names = [each.name for each in fields(want) if getattr(want, each.name) is not ANY]
    return all(getattr(here, name) == getattr(there, name) for name in names)
