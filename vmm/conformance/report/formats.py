"""The formats that runs can be written in, whoever reads them: one table, one renderer each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, assert_never, get_args

from vmm.conformance.records.results import ResultsError
from vmm.conformance.records.saved import Saved

if TYPE_CHECKING:
    from vmm.conformance.report.mail import Program

Format = Literal["html", "junit", "kcidb", "lava", "lava-results", "mail", "md", "tap", "tmt"]
FORMATS: tuple[Format, ...] = get_args(Format)

SAYS: Mapping[Format, str] = MappingProxyType(
    {
        "html": "one page for any number of runs, to look at",
        "junit": "XML, one suite a theme: Jenkins, GitLab, GitHub's reporters",
        "kcidb": "KernelCI's database, 5.3; --kcidb has what records cannot know",
        "lava": "LAVA's signals, a line each",
        "lava-results": "name and result, a line each, for send-to-lava.sh",
        "mail": "plain text of 72 columns, with the first cases' C programs",
        "md": "Markdown for a ticket",
        "tap": "TAP 13",
        "tmt": "results.yaml of a custom result",
    }
)


def _none(_: object) -> str:
    raise ValueError("this report was made without them")


@dataclass(frozen=True, slots=True)
class Told:
    """What records do not say: words for KCIDB (``kcidb.words``), and the C program of a case."""

    kcidb: Mapping[str, str] = field(default_factory=dict)
    program: Program = _none


def render(format_: Format, runs: Sequence[Saved], told: Told) -> str:
    """Return the runs in a format; ResultsError says what it lacks."""
    match format_:
        case "html":
            from vmm.conformance.report import html, table

            text = html.page(table.columns(runs))
        case "junit":
            from vmm.conformance.report import junit

            text = junit.render(runs)
        case "kcidb":
            from vmm.conformance.report import kcidb

            text = kcidb.render(runs, told.kcidb)
        case "lava":
            from vmm.conformance.report import lava

            text = lava.signals(runs)
        case "lava-results":
            from vmm.conformance.report import lava

            text = lava.results(runs)
        case "mail":
            from vmm.conformance.report import mail

            text = mail.render(runs, told.program)
        case "md":
            from vmm.conformance.report import markdown

            text = markdown.render(runs)
        case "tap":
            from vmm.conformance.report import tap

            text = tap.render(runs)
        case "tmt":
            from vmm.conformance.report import tmt

            text = tmt.render(runs)
        case _:
            assert_never(format_)
    return text


def write(format_: Format, runs: Sequence[Saved], told: Told, file: Path) -> None:
    """Write the runs to a file; ResultsError says why it cannot be."""
    text = render(format_, runs, told)
    try:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ResultsError(f"cannot write {file}: {error.strerror}") from None
