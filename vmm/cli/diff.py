"""``msrward diff`` and ``history``: what changed between runs, of hosts or of the lab."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vmm.cli.output import complain, say
from vmm.cli.parser import add_command
from vmm.conformance.records.status import DONE, Status

DIR_HELP = "a results.jsonl, its directory, or a directory of runs"


def add(commands: Any) -> None:
    """Add the two commands."""
    diff = add_command(commands, "diff", _diff, "compare two runs, of hosts or lab")
    diff.add_argument("runs", nargs="+", type=Path, metavar="DIR", help=f"A and B: {DIR_HELP}")
    text = "compare machine by machine, by cause: the runs in DIR against all the others"
    diff.add_argument("--since", type=Path, metavar="DIR", help=text)
    history = add_command(
        commands, "history", _history, "find the kernels that first showed or lost something"
    )
    history.add_argument("runs", nargs="+", type=Path, metavar="DIR", help=DIR_HELP)
    history.add_argument("--json", action="store_true", help="print one JSON list")


def _diff(args: argparse.Namespace) -> int:
    from vmm.conformance.records.saved import load, load_all

    if args.since:
        from vmm.conformance.report import since

        found = since.changes(load_all([args.since]), load_all(args.runs))
        say("\n".join(since.lines(found)))
        return since.status(found)
    if len(args.runs) != 2:
        return complain("diff compares two runs, A and B; or say --since DIR, and any number")
    from vmm.conformance.report.difference import difference, lines

    first, second = map(load, args.runs)
    say("\n".join(lines(first, second)))
    return Status.of(not difference(first, second).same)


def _history(args: argparse.Namespace) -> int:
    from vmm.conformance.records.saved import load_all
    from vmm.conformance.report import history

    found = history.history(load_all(args.runs))
    say(history.as_json(found) if args.json else "\n".join(history.lines(found)))
    return DONE
