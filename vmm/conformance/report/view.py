"""What the user of a run wants to see of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm.conformance.records.baseline import Baseline
from vmm.conformance.report import rerun


@dataclass(frozen=True, slots=True)
class View:
    """What the user wants to see; ``json`` is None, "-" (stdout) or a path.

    ``verbose`` 1 shows every case as it ends and all observations, 2 traces and tracebacks too.
    ``rerun`` is the command that takes a case's id to run it again. ``then`` gets the path of the
    records when the last is filed. ``baseline`` is the run by whose changes this one is judged,
    ``known`` the entries of the history whose failures are known.
    """

    json: str | None = None
    tap: bool = False
    verbose: int = 0
    quiet: bool = False
    rerun: str = rerun.HERE
    then: Callable[[Path], None] | None = None
    baseline: Baseline | None = None
    known: Sequence[str] = ()

    @property
    def stdout(self) -> str:
        """What stdout is for: "text" for a person, "tap", or "json" lines (``live.LIVE``)."""
        return "tap" if self.tap else "json" if self.json == "-" else "text"

    @property
    def is_text(self) -> bool:
        """Whether stdout is for a person."""
        return self.stdout == "text"
