"""A case: one sentence of contract, what it checks, a script, and the expected trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vmm.conformance.language.needs import needs_of
from vmm.conformance.language.script import Action, Event, Script, Trace


@dataclass(frozen=True, slots=True)
class Observation:
    """In place of a trace: this case records what is seen and never fails (a quirk, "Q")."""


OBSERVE = Observation()


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the catalogue.

    ``id`` is ``theme.name`` in ``[a-z0-9_.]``; ``checks`` names requirements ("R23 R24");
    ``trace`` is what a human expects, or OBSERVE; ``needs`` names what the host must have beyond
    what the words of the script say (``all_needs``), without which the case is SKIP with that word.
    ``thorough`` says that it takes too long for every run: it is judged where it is asked for.
    """

    id: str
    sentence: str
    checks: str
    script: Sequence[Action]
    trace: Sequence[Event] | Observation
    needs: tuple[str, ...] = ()
    thorough: bool = False
    file: str = field(default="", compare=False)
    """The JSON that it was read from, if it is none of the catalogue."""

    @property
    def requirements(self) -> tuple[str, ...]:
        """Return the requirement ids, in the order the case names them."""
        return tuple(self.checks.split())

    @property
    def all_needs(self) -> tuple[str, ...]:
        """Return all that the host must have: what the script's words say, then ``needs``."""
        return tuple(dict.fromkeys((*needs_of(self.actions), *self.needs)))

    @property
    def observes(self) -> bool:
        """Say whether this case records a quirk instead of passing or failing."""
        return isinstance(self.trace, Observation)

    @property
    def actions(self) -> Script:
        """Return the script as a tuple."""
        return tuple(self.script)

    @property
    def expected(self) -> Trace:
        """Return the expected trace as a tuple; an ``observe`` case has none (ValueError)."""
        if isinstance(self.trace, Observation):
            raise ValueError(f"{self.id} observes: it expects no trace")
        return tuple(self.trace)
