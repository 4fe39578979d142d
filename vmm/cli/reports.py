"""``msrward report``: runs that are on record, in the formats that others read."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.cli.output import say
from vmm.cli.parser import add_command
from vmm.conformance.records.status import DONE

if TYPE_CHECKING:
    from vmm.conformance.records.schema import CaseRecord
    from vmm.conformance.report.formats import Told

FORMAT_HELP = "html, junit, kcidb, lava, lava-results, mail, md, tap or tmt"
Request = tuple[str, Path]


def add(commands: Any) -> None:
    """Add the command."""
    text = "write runs that are on record in a format that others read"
    report = add_command(commands, "report", _report, text)
    report.add_argument(
        "places",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a run's directory, a results.jsonl, or a directory of runs such as a matrix",
    )
    report.add_argument(
        "--format", "-f", required=True, type=_format, metavar="F", help=FORMAT_HELP
    )
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="not to stdout")
    words = "for kcidb: 'origin=NAME git_commit_hash=...', NAME=VALUE words (MSRWARD_KCIDB)"
    report.add_argument("--kcidb", action="append", default=[], metavar="WORDS", help=words)


def requests(parser: argparse.ArgumentParser) -> None:
    """Add the option of a command that leaves records: reports to write when it has ended."""
    text = "write a report as well: junit=FILE, kcidb=FILE...; see 'msrward report --help'"
    parser.add_argument(
        "--report", action="append", type=_request, default=[], metavar="F=FILE", help=text
    )


def then(wanted: Sequence[Request]) -> Callable[[Path], None] | None:
    """Return what writes the reports that ``--report`` asked for, given the path of the records.

    None where nothing was asked for. ResultsError, at once, says what a format lacks.
    """
    if not wanted:
        return None
    from vmm.conformance.report import formats

    told = _told([])
    for word, _ in wanted:
        formats.FORMATS[word].check(told)

    def write(path: Path) -> None:
        from vmm.conformance.records.saved import load

        saved = load(path)
        for word, file in wanted:
            formats.write(word, [saved], told, file)

    return write


def _format(word: str) -> str:
    from vmm.conformance.report.formats import FORMATS

    if word not in FORMATS:
        raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(FORMATS)}")
    return word


def _request(text: str) -> Request:
    word, _, file = text.partition("=")
    path = Path(file)
    _format(word)
    if not file or path.is_dir() or not path.absolute().parent.is_dir():
        why = "is no file in a directory that exists" if file else "names no file"
        raise argparse.ArgumentTypeError(f"{text!r} {why}: say {word}=FILE")
    return word, path


def _report(args: argparse.Namespace) -> int:
    from vmm.conformance.records.saved import load_all
    from vmm.conformance.report import formats

    told = _told(args.kcidb)
    runs = load_all(args.places)
    if args.output:
        formats.write(args.format, runs, told, args.output)
    else:
        say(formats.render(args.format, runs, told).rstrip("\n"))
    return DONE


def _told(given: Sequence[str]) -> Told:
    """Return what the records do not say, of the environment and of the options, which win."""
    from vmm.conformance.report.formats import Told
    from vmm.conformance.report.kcidb import words

    return Told(words(" ".join([os.environ.get("MSRWARD_KCIDB", ""), *given])), _program)


def _program(record: CaseRecord, file: str) -> str:
    from vmm.conformance.c.export import c_source
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.selection import UnknownCase, saved_case

    if "file" in record:
        try:
            return c_source(saved_case(Path(record["file"])), file=file)
        except UnknownCase as error:
            raise ValueError(str(error)) from None
    case = next((each for each in CASES if each.id == record["id"]), None)
    if case is None:
        raise ValueError("this version has no such case")
    return c_source(case, file=file)
