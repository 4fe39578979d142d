"""Runs of many kernels in their order: which first showed or lost a cause or an observation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vmm.conformance.contract.history import HISTORY
from vmm.conformance.records.causes import causes
from vmm.conformance.records.saved import Saved
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import table
from vmm.conformance.report.table import Column, Row, row_of

SHOWN, ABSENT, UNKNOWN = "shown", "absent", ""
"""What a kernel says of a cause: one of its cases fails; one that fails elsewhere passes; nothing
of it was judged."""
FAILS = (Verdict.FAIL, Verdict.TIMEOUT, Verdict.XFAIL)
"""The verdicts that say something against a kernel."""
_SIGNS = {SHOWN: "#", ABSENT: ".", UNKNOWN: "?"}


@dataclass(frozen=True, slots=True)
class Event:
    """A kernel that says else than the last one before it that said anything; "" for the first."""

    kernel: str
    word: str
    before: str


@dataclass(frozen=True, slots=True)
class Line:
    """One cause or observation on one machine: a word for each kernel, and where it changes."""

    name: str
    title: str
    words: tuple[str, ...]
    events: tuple[Event, ...]

    @property
    def strip(self) -> str:
        """One character a kernel: # shown, . absent, ? not judged, or an observation's letter."""
        return "".join(_SIGNS.get(word, word) for word in self.words)


@dataclass(frozen=True, slots=True)
class Machine:
    """What one vendor's machine says, its kernels from old to new.

    ``troubles`` has, by kernel, why a run is no verdict; ``judged`` is whether any case passed.
    """

    name: str
    kernels: tuple[str, ...]
    causes: tuple[Line, ...]
    observations: tuple[Line, ...]
    troubles: tuple[tuple[str, str], ...] = ()
    judged: bool = True

    @property
    def clean(self) -> str:
        """What is to be said where nothing is wrong: no more than what the runs can tell."""
        if not self.judged:
            return "nothing was judged"
        return f"nothing {'that was judged is' if self.troubles else 'is'} wrong on any kernel"


def history(runs: Sequence[Saved]) -> list[Machine]:
    """Return the history of each machine; where nothing was ever shown, there is no line."""
    columns = table.columns(runs)
    names = dict.fromkeys(column.vendor for column in columns)
    return [_machine(name, [each for each in columns if each.vendor == name]) for name in names]


def rows(columns: Sequence[Column]) -> list[Row]:
    """Return a row for each cause: first what nothing explains, then open bugs, then lacking fixes.

    Its words are SHOWN, ABSENT and UNKNOWN.
    """
    failing = _failing([_found(column) for column in columns])
    return [
        replace(
            row_of(
                entry, _title(entry), [_word(c, entry, failing[entry]) for c in columns], columns
            ),
            cases=tuple(sorted(failing[entry])),
        )
        for entry in failing
    ]


def lines(machines: Sequence[Machine]) -> list[str]:
    """Return the histories for a person to read."""
    out: list[str] = []
    for machine in machines:
        out += ["", f"{machine.name}: {' '.join(machine.kernels)}"]
        out += [f"  {line.strip}  {line.name}: {told(line)}" for line in machine.causes]
        seen = [line for line in machine.observations if len(line.events) > 1]
        out += [f"  {line.strip}  {line.name}: {told(line)}" for line in seen]
        steady = len(machine.observations) - len(seen)
        out += [f"  {steady} observations are the same on every kernel"] if steady else []
        out += [] if machine.causes else [f"  {machine.clean}"]
        out += [f"  {kernel}: no verdict: {why}" for kernel, why in machine.troubles]
    return out[1:]


def as_json(machines: Sequence[Machine]) -> str:
    """Return the histories as one JSON list."""
    return json.dumps([_object(machine) for machine in machines], indent=1)


def told(line: Line) -> str:
    """Return what happened to a cause or an observation, from old to new."""
    return ", ".join(_event(event) for event in line.events)


def _event(event: Event) -> str:
    if event.word == SHOWN:
        how = "shown by" if event.before == UNKNOWN else "first shown by"
        since = ", the first that was judged" if event.before == UNKNOWN else ""
        return f"{how} {event.kernel}{since}"
    if event.word == ABSENT:
        return f"{'not shown' if event.before == UNKNOWN else 'lost'} by {event.kernel}"
    return f"{event.word} from {event.kernel} on"


def _machine(name: str, columns: Sequence[Column]) -> Machine:
    kernels = tuple(column.name for column in columns)
    failing = _failing([_found(column) for column in columns])
    cause_lines = [
        _line(entry, _title(entry), [_word(c, entry, failing[entry]) for c in columns], kernels)
        for entry in failing
    ]
    observed = [
        _line(row.name, row.sentence, row.words, kernels) for row in table.observations(columns)
    ]
    troubles = tuple((column.name, column.trouble) for column in columns if column.trouble)
    verdicts = {case["verdict"] for column in columns for case in column.cases.values()}
    judged = bool(verdicts & {Verdict.PASS, Verdict.XPASS, *FAILS})
    return Machine(name, kernels, tuple(cause_lines), tuple(observed), troubles, judged)


def _found(column: Column) -> Mapping[str, set[str]]:
    """Return by cause the cases that it makes fail; what nothing explains is a cause by itself."""
    host = column.saved.host if column.saved else {}
    bad = [case for case in column.cases.values() if case["verdict"] in FAILS]
    return {
        cause.entry or cause.first["id"]: {case["id"] for case in cause.cases}
        for cause in causes(bad, host)
    }


def _failing(found: Sequence[Mapping[str, set[str]]]) -> dict[str, set[str]]:
    """Return by cause the cases that it makes fail anywhere, in the order of ``causes``."""

    def place(entry: str) -> tuple[bool, bool, str]:
        return entry in HISTORY, entry in HISTORY and not HISTORY[entry].is_open, entry

    entries = sorted({entry for each in found for entry in each}, key=place)
    return {entry: {c for each in found for c in each.get(entry, ())} for entry in entries}


def _word(column: Column, entry: str, failing: set[str]) -> str:
    if entry in _found(column):
        return SHOWN
    verdicts = {column.cases[name]["verdict"] for name in failing if name in column.cases}
    return ABSENT if verdicts & {Verdict.PASS, Verdict.XPASS} else UNKNOWN


def _title(entry: str) -> str:
    return HISTORY[entry].title if entry in HISTORY else "explained by nothing in the history"


def _line(name: str, title: str, words: Sequence[str], kernels: Sequence[str]) -> Line:
    return Line(name, title, tuple(words), tuple(_events(words, kernels)))


def _events(words: Sequence[str], kernels: Sequence[str]) -> Iterator[Event]:
    last = UNKNOWN
    for word, kernel in zip(words, kernels, strict=True):
        if word not in (UNKNOWN, last):
            yield Event(kernel, word, last)
        last = word or last


def _object(machine: Machine) -> dict[str, Any]:
    def rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
        return [
            {
                **{"name": line.name, "title": line.title, "words": list(line.words)},
                "events": [
                    {"kernel": each.kernel, "word": each.word, "before": each.before}
                    for each in line.events
                ],
            }
            for line in lines
        ]

    return {
        **{"machine": machine.name, "kernels": list(machine.kernels)},
        **{"causes": rows(machine.causes), "observations": rows(machine.observations)},
        "troubles": dict(machine.troubles),
    }
