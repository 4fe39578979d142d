"""A case that was played elsewhere: its outcome, by a backend that has run it already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmm.conformance.judge.judging import judge
from vmm.conformance.judge.lines import Texts, shown
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Script, Trace
from vmm.conformance.records.schema import CaseOutcome
from vmm.conformance.records.verdict import Verdict


@dataclass
class Played:
    """A case that has begun, what else was said meanwhile, and how it ended."""

    case: Case
    ignoring: bool
    said: list[str] = field(default_factory=list)
    splats: list[list[str]] = field(default_factory=list)
    how: str = "ok"
    ms: float = 0.0
    steps: str = ""
    pid: int | None = None


@dataclass(frozen=True)
class Replay:
    """What the player saw of a case, and of what it asks for alone."""

    script: Script
    trace: Trace
    lacking: Mapping[str, str]
    alone: Mapping[Script, Trace | str]

    def run(self, script: Script, *, expected: Trace | None = None) -> Trace:
        """Return what the player saw; LookupError where it did not see the end of it."""
        seen = self.trace if script == self.script else self.alone.get(script, "it was not asked")
        if isinstance(seen, str):
            raise LookupError(f"what {script[0]!r} does alone is not known: {seen}")
        return seen

    def lacks(self, need: str) -> str | None:
        """Return why the player's machine does not have ``need``."""
        return self.lacking.get(need)

    def close(self) -> None:
        """Have nothing to give back."""


def outcome(
    played: Played,
    texts: Texts,
    lacking: Mapping[str, str],
    alone: Mapping[Script, Trace | str],
    timeout: float,
) -> tuple[Trace | str, CaseOutcome]:
    """Return what the player saw, or why that cannot be told, and the outcome (``judging.judge``).

    ``timeout`` is the deadline of a case, in seconds. Nothing was seen of a case that it skipped.
    """
    if played.how in ("timeout", "stuck"):
        limit = f"killed at its deadline of {timeout:g} s"
        note = "; it is stuck in the kernel" * (played.how == "stuck")
        return "it was killed at its deadline", {
            "verdict": Verdict.TIMEOUT,
            "error": limit + note,
        }
    trace, damage = texts.trace(played.steps, len(played.case.actions))
    if played.how != "ok" or damage:
        error = damage or f"the player's worker {shown(played.how)}"
        said = "; ".join(played.said)
        error = f"{error}: {said}" if said else error
        return error, {"verdict": Verdict.ERROR, "error": error}
    seen = Replay(played.case.actions, trace, lacking, alone)
    return trace, judge(played.case, seen, ignoring=played.ignoring)
