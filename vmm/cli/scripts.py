"""``msrward run`` and ``export``: a case that is run, saved, or written as C."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.cli.output import complain, say
from vmm.cli.parser import add_command
from vmm.conformance.records.status import DONE

if TYPE_CHECKING:
    from vmm.conformance.language.case import Case

ONE_CASE = "a case id, or a file that 'msrward export --json' wrote"


def add(commands: Any) -> None:
    """Add the two commands."""
    run = add_command(commands, "run", _run, "run one case, and show all that was seen")
    run.add_argument("case", metavar="CASE", help=ONE_CASE)
    export = add_command(commands, "export", _export, "write a case as one C program, or as JSON")
    export.add_argument("case", metavar="CASE", help=ONE_CASE)
    form = export.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON for 'msrward run', not C")
    text = "a test for the kernel's own tools/testing/selftests/kvm"
    form.add_argument("--selftest", action="store_true", help=text)
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="not to stdout")


def _run(args: argparse.Namespace) -> int:
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.check import check
    from vmm.conformance.judge.recording import Options
    from vmm.conformance.report.view import View

    return check([_one(args.case)], len(CASES), Options(), View(verbose=2, rerun="msrward run"))


def _export(args: argparse.Namespace) -> int:
    from vmm.conformance.c.export import c_source
    from vmm.conformance.c.selftest import selftest_source
    from vmm.conformance.language import codec

    case = _one(args.case)
    to: Path | None = args.output
    write = codec.dump if args.json else selftest_source if args.selftest else c_source
    if write is c_source and to is not None and to.suffix == ".c":
        write = partial(c_source, file=to.name)
    try:
        text = write(case)
    except ValueError as error:
        return complain(str(error))
    if to is not None:
        to.write_text(text)
    else:
        say(text.rstrip("\n"))
    return DONE


def _one(word: str) -> Case:
    """Return the one case that an id or a file names; UnknownCase says why there is none."""
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.selection import UnknownCase, choose, is_file, saved_case

    if not is_file(word) and Path(word).exists():
        return saved_case(Path(word))
    cases = choose(CASES, [word]).cases
    if len(cases) > 1:
        raise UnknownCase(f"{word} is {len(cases)} cases: name one of them")
    return cases[0]
