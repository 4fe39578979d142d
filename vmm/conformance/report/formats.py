"""The formats that runs can be written in, whoever reads them: one table, a row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from vmm.conformance.records.results import ResultsError
from vmm.conformance.records.saved import Saved, must_not_be_of
from vmm.conformance.report import html, junit, kcidb, lava, mail, markdown, table, tap, tmt


def _none(_: object, file: str) -> str:
    raise ValueError("this report was made without them")


@dataclass(frozen=True, slots=True)
class Told:
    """What records do not say: words for KCIDB (``kcidb.words``), and the C program of a case."""

    kcidb: Mapping[str, str] = field(default_factory=dict)
    program: mail.Program = _none


def _nothing(_: Told) -> None:
    """Lack nothing."""


@dataclass(frozen=True, slots=True)
class Format:
    """How runs are written: ``write`` returns the text; ResultsError says what it lacks.

    ``check`` says that as well, before there are runs.
    """

    write: Callable[[Sequence[Saved], Told], str]
    check: Callable[[Told], None] = _nothing


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "html": Format(lambda runs, _: html.page(table.columns(runs))),
        "junit": Format(lambda runs, _: junit.render(runs)),
        "kcidb": Format(
            lambda runs, told: kcidb.render(runs, told.kcidb),
            check=lambda told: kcidb.check(told.kcidb),
        ),
        "lava": Format(lambda runs, _: lava.signals(runs)),
        "lava-results": Format(lambda runs, _: lava.results(runs)),
        "mail": Format(lambda runs, told: mail.render(runs, told.program)),
        "md": Format(lambda runs, _: markdown.render(runs)),
        "tap": Format(lambda runs, _: tap.render(runs)),
        "tmt": Format(lambda runs, _: tmt.render(runs)),
    }
)
"""By the word of ``--format``; docs/reports.md says of each who reads it."""


def render(word: str, runs: Sequence[Saved], told: Told) -> str:
    """Return the runs in the format; ResultsError says what it lacks."""
    return FORMATS[word].write(runs, told)


def write(word: str, runs: Sequence[Saved], told: Told, file: Path) -> None:
    """Write the runs to a file in the format; ResultsError says why it cannot be."""
    must_not_be_of(file, runs)
    text = render(word, runs, told)
    try:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ResultsError(f"cannot write {file}: {error.strerror}") from None
