"""The causes of a run's failures: which known bug explains which cases, and what none explains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmm.conformance.contract.difference import Difference
from vmm.conformance.contract.history import HISTORY
from vmm.conformance.contract.signature import Signature
from vmm.conformance.contract.signatures import SIGNATURES
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.verdict import Verdict

FAILED = (Verdict.FAIL, Verdict.TIMEOUT, Verdict.ERROR, Verdict.UNSTEADY, Verdict.XFAIL)
_SEEN = {"step", "action", "expected", "seen"}
_GOES_ON = ("get_regs(", "set_regs(", "complete(", "finish(")
_NOT_LAST = ("RdmsrExit(", "WrmsrExit(", "regs(")


@dataclass(frozen=True, slots=True)
class Cause:
    """What makes cases fail: ``entry`` of the history, or "" for one case that nothing explains."""

    entry: str
    cases: tuple[CaseRecord, ...]

    @property
    def first(self) -> CaseRecord:
        """The first case that it makes fail."""
        return self.cases[0]

    @property
    def is_open(self) -> bool:
        """Whether it is a known bug that no kernel has a fix for."""
        return bool(self.entry) and HISTORY[self.entry].is_open

    @property
    def state(self) -> str:
        """Return "open", "fixed in 5.12, lacking here" or "news"."""
        if not self.entry:
            return "news"
        return "open" if self.is_open else f"fixed in {HISTORY[self.entry].fixed_in}, lacking here"

    @property
    def title(self) -> str:
        """Return one line: "B12 (open): 39 cases, the first is ID: TITLE"."""
        if not self.entry:
            return f"news: {self.first['id']}"
        number = len(self.cases)
        count = f"{number} case{'' if number == 1 else 's'}, the first is {self.first['id']}"
        return f"{self.entry} ({self.state}): {count}: {HISTORY[self.entry].title}"


def causes(cases: Iterable[CaseRecord], host: Mapping[str, Any] | None = None) -> list[Cause]:
    """Group the cases that failed: first what nothing explains, then open bugs, then lacking fixes.

    ``host`` has the facts of the run, for records that carry none of their own.
    """
    groups: dict[str, list[CaseRecord]] = {}
    news = []
    for case in (case for case in cases if case["verdict"] in FAILED):
        entry = explains(case, host)
        if entry:
            groups.setdefault(entry, []).append(case)
        else:
            news.append(Cause("", (case,)))
    known = [Cause(entry, tuple(groups[entry])) for entry in sorted(groups)]
    return [*news, *sorted(known, key=lambda cause: not cause.is_open)]


def explains(case: CaseRecord, host: Mapping[str, Any] | None = None) -> str:
    """Return the id of the entry that explains all that is wrong with a case, or "".

    ``host`` has the facts of the run, for a record that carries none of its own.
    """
    if not case.keys() >= _SEEN:
        return ""
    facts = case.get("host") or host or {}
    found = list(_differences(case, str(facts.get("vendor_module") or "")))
    splats = case.get("splats", ())
    return next((entry for entry in _ENTRIES if _is_all(entry, found, splats)), "")


_ENTRIES = tuple(dict.fromkeys(signature.id for signature in SIGNATURES))


def _is_all(entry: str, found: Sequence[Difference], splats: Sequence[Sequence[str]] = ()) -> bool:
    matches: list[Signature] = []
    for difference in found:
        match = _match(entry, difference)
        if match is None:
            return False
        matches.append(match)
        if match.lasts:
            break
    return all(any(match.explains_splat(splat) for match in matches) for splat in splats)


def _match(entry: str, difference: Difference) -> Signature | None:
    rows = (row for row in SIGNATURES if row.id == entry)
    return next((row for row in rows if row.explains(difference)), None)


def _differences(case: CaseRecord, vendor: str) -> Iterator[Difference]:
    """Yield the first difference of a case and, where it has them on record, the ``also``.

    What goes on with an access that began differently is a part of that difference.
    """
    script, seen = case.get("script", ()), _cut(case.get("script", ()), case.get("trace", ()))
    lines = [
        f"{action} -> {', '.join(events)}" for action, events in zip(script, seen, strict=False)
    ]
    began = False
    for each in (case, *case.get("also", ())):
        action, step = each["action"], each["step"]
        if began and action.startswith(_GOES_ON):
            continue
        began = action.startswith("begin(")
        expected, had = (", ".join(each[side]) for side in ("expected", "seen"))
        yield Difference(action, expected, had, lines[: step - 1], vendor)


def _cut(script: Sequence[str], trace: Sequence[str]) -> Iterator[list[str]]:
    """Cut a trace as ``language.script.steps`` does: an access has exits before its outcome."""
    at = 0
    for action in script:
        end = at + 1
        while (
            action.startswith(("rdmsr(", "wrmsr("))
            and end < len(trace)
            and trace[end - 1].startswith(_NOT_LAST)
        ):
            end += 1
        yield list(trace[at:end])
        at = end
