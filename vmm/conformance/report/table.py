"""A matrix of runs as rows and columns: what each kernel does, and where that changes."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from vmm.conformance.contract.requirements import REQUIREMENTS, explain
from vmm.conformance.records.causes import explains
from vmm.conformance.records.results import FILE
from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.status import Status
from vmm.conformance.records.summary import by_requirement
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.text import plural


@dataclass(frozen=True, slots=True)
class Column:
    """One kernel on one vendor's machine; ``saved`` is None where nothing came of it.

    ``note`` tells it from other runs of the same kernel on the same machine; ``lacks`` says why
    nothing came of it, where that is known.
    """

    release: str
    vendor: str
    saved: Saved | None
    note: str = ""
    lacks: str = ""

    @property
    def name(self) -> str:
        """What the column is called: its version, and what tells it from others of that version."""
        return f"{self.version} ({self.note})" if self.note else self.version

    @property
    def version(self) -> str:
        """The upstream version: Debian's 5.10.0-46 says in its build line that it is 5.10.262."""
        host = self.saved.host if self.saved else {}
        packaged = re.search(r"Debian (\d+[.]\d+[.]\d+)", str(host.get("version")))
        return packaged[1] if packaged else self.release.partition("+")[0].partition("-")[0]

    @property
    def cases(self) -> Mapping[str, CaseRecord]:
        """Its case records by id."""
        return self.saved.cases if self.saved else {}

    @property
    def trouble(self) -> str:
        """Why it has no verdict, or ""."""
        return self.saved.trouble if self.saved else self.lacks or "nothing is on record"


def columns(runs: Iterable[Saved]) -> list[Column]:
    """Return a column for each run: machines side by side, the kernels of each in their order.

    Runs of one kernel on one machine are told apart by their release, their directory, or when
    they were started: the first of these by which no two are alike.
    """
    found = [Column(str(saved.host.get("release")), _machine(saved.host), saved) for saved in runs]
    return _told_apart(sorted(found, key=_place))


def _told_apart(columns: Sequence[Column]) -> list[Column]:
    groups: dict[tuple[str, str], list[Column]] = {}
    for column in columns:
        groups.setdefault((column.vendor, column.version), []).append(column)
    notes = {key: iter(_notes(group)) for key, group in groups.items()}
    return [replace(each, note=next(notes[each.vendor, each.version])) for each in columns]


def _notes(group: Sequence[Column]) -> Sequence[str]:
    if len(group) == 1:
        return [""]
    ways = [[way(column) for column in group] for way in (_release, _directory, _path, _started)]
    alone = (notes for notes in ways if all(notes) and max(Counter(notes).values()) == 1)
    return next(alone, [f"run {number}" for number in range(1, len(group) + 1)])


def _release(column: Column) -> str:
    return column.release


def _directory(column: Column) -> str:
    path = column.saved.path if column.saved else None
    return "" if path is None else path.parent.name if path.name == FILE else path.name


def _path(column: Column) -> str:
    return str(column.saved.path.parent if column.saved else "")


def _started(column: Column) -> str:
    seconds = run.get("started") if (run := column.saved and column.saved.run) else None
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) if seconds else ""


def _machine(host: Mapping[str, Any]) -> str:
    if lab := host.get("lab"):
        return f"{lab['vendor']} {lab.get('append', '')}".rstrip()
    vendor, name = host.get("vendor_module") or "kvm", host.get("hostname")
    return f"{vendor} {name}" if name else str(vendor)


def _place(column: Column) -> tuple[str, object, object]:
    return column.vendor, _order(column.version), _order(column.release)


def _order(version: str) -> list[tuple[int, str]]:
    """Return what sorts versions as numbers: 5.10 after 5.9, 7.0-rc2 before 7.0."""
    parts = re.findall(r"\d+|rc|[^\d.-]+", version)
    key = [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
    return [*key, (0, "")]


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement or case: a word for each column, and which differ from their neighbour.

    The row of a cause has the ``cases`` that it makes fail.
    """

    name: str
    sentence: str
    words: tuple[str, ...]
    changes: tuple[bool, ...]
    cases: tuple[str, ...] = ()

    @property
    def even(self) -> bool:
        """Whether there is nothing to look at: it passes, or is not tested, wherever it ran."""
        words = set(self.words) - {""}
        return words in ({Verdict.PASS}, {Verdict.SKIP})


def requirements(columns: Sequence[Column]) -> list[Row]:
    """Return a row for each requirement that a case checks (``summary.by_requirement``).

    Its word is "" where the only cases that touch it failed, and are about others.
    """
    judged = [by_requirement(column.cases.values()) for column in columns]
    cases = [case for column in columns for case in column.cases.values()]
    touched = {n for case in cases if "observation" not in case for n in case["requirements"]}
    names = [name for name in REQUIREMENTS if name in touched]
    return [
        row_of(
            name, REQUIREMENTS[name].sentence, [words.get(name, "") for words in judged], columns
        )
        for name in names
    ]


def cases(columns: Sequence[Column]) -> list[Row]:
    """Return a row for each case that passes or fails, in the order of the catalogue."""
    return _case_rows(columns, lambda case: str(case["verdict"]), observed=False)


def observations(columns: Sequence[Column]) -> list[Row]:
    """Return a row for each ``observe`` case; equal letters stand for equal observations."""
    rows = _case_rows(columns, lambda case: str(case.get("observation", "")), observed=True)
    return [_lettered(row) for row in rows]


def explanations(columns: Sequence[Column]) -> list[str]:
    """Return a line for each requirement that fails anywhere: what explains the cases about it."""
    found: dict[str, dict[str, list[str]]] = {}
    for column in columns:
        host = column.saved.host if column.saved else {}
        for case in column.cases.values():
            if "observation" not in case and case["verdict"].is_violation:
                for name in case["requirements"][:1]:
                    entries = found.setdefault(name, {})
                    entries.setdefault(explains(case, host), []).append(case["id"])
    names = sorted(found, key=lambda name: (name not in REQUIREMENTS, name))
    return [_explanation(name, found[name]) for name in names]


def _explanation(name: str, found: Mapping[str, Sequence[str]]) -> str:
    """Return the line for a requirement whose cases failed by these entries, by none if ""."""
    news = tuple(dict.fromkeys(found.get("", ())))  # a case is one, on however many kernels
    count = f"no known kernel bug explains {plural(len(news), 'case')}"
    said = f"{count}, the first is {news[0]}" if news else ""
    return explain(name, sorted(entry for entry in found if entry), said)


def report(columns: Sequence[Column], *, by_case: bool = False) -> list[str]:
    """Return the answer for a person: what is not the same everywhere, and what explains it."""
    title, rows = ("case", cases(columns)) if by_case else ("requirement", requirements(columns))
    shown = [row for row in rows if not row.even]
    lines = ["", *text(columns, shown, title)]
    lines += [f"{len(rows) - len(shown)} of {len(rows)} {title}s pass, or are skipped, everywhere"]
    seen = [row for row in observations(columns) if any(row.changes)]
    lines += ["", *text(columns, seen, "observation")] if seen else []
    lines += ["", *explanations(columns)]
    troubles = [f"{c.name} {c.vendor}: no verdict: {c.trouble}" for c in columns if c.trouble]
    return lines + (["", *troubles] if troubles else [])


def status(columns: Sequence[Column]) -> Status:
    """Return CONFORMS if all do, VIOLATES if one does, TROUBLE if one has no verdict."""
    if not columns or any(column.trouble for column in columns):
        return Status.TROUBLE
    runs = [column.saved for column in columns if column.saved]
    return Status.of(any(run.end and run.end["status"] == Status.VIOLATES for run in runs))


def text(columns: Sequence[Column], rows: Sequence[Row], title: str) -> list[str]:
    """Return the rows as a table; "*" marks what differs from the column before."""
    if not rows:
        return []
    width = max(len(title), *(len(row.name) for row in rows))
    widths = [max(len(column.name), len(column.vendor), 8) for column in columns]
    heads = ([column.vendor for column in columns], [column.name for column in columns])
    lines = [_line("", heads[0], width, widths), _line(title, heads[1], width, widths)]
    return lines + [_line(row.name, _marked(row), width, widths) for row in rows]


def _marked(row: Row) -> list[str]:
    pairs = zip(row.words, row.changes, strict=True)
    return [f"{'*' if changed else ' '}{word or '-'}" for word, changed in pairs]


def _line(name: str, words: Iterable[str], width: int, widths: Sequence[int]) -> str:
    padded = (f"{word:>{size}}" for word, size in zip(words, widths, strict=True))
    return f"{name:{width}}  {'  '.join(padded)}".rstrip()


def _case_rows(
    columns: Sequence[Column], word: Callable[[CaseRecord], str], *, observed: bool
) -> list[Row]:
    records = [column.cases for column in columns]
    named = {name: case for cases in reversed(records) for name, case in cases.items()}
    observes = {name for cases in records for name, c in cases.items() if "observation" in c}
    return [
        row_of(
            name, case["sentence"], [word(r[name]) if name in r else "" for r in records], columns
        )
        for name, case in named.items()
        if (name in observes) is observed
    ]


def row_of(name: str, sentence: str, words: Sequence[str], columns: Sequence[Column]) -> Row:
    """Return a row; what differs from the same machine's column before is a change."""
    changes = [False]
    for number in range(1, len(columns)):
        neighbours = columns[number - 1].vendor == columns[number].vendor
        before, now = words[number - 1], words[number]
        changes.append(neighbours and bool(before and now) and before != now)
    return Row(name, sentence, tuple(words), tuple(changes[: len(columns)]))


def _lettered(row: Row) -> Row:
    seen = list(dict.fromkeys(word for word in row.words if word))
    letters = tuple(ascii_uppercase[seen.index(word) % 26] if word else "" for word in row.words)
    return Row(row.name, row.sentence, letters, row.changes)
