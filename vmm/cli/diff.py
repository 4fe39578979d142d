"""``msrward diff``: compare two runs, of hosts or of the lab."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vmm.cli.output import say
from vmm.cli.parser import add_command
from vmm.conformance.records.status import MEANINGS, Status, epilog

STATUSES = epilog(
    {
        Status.CONFORMS: "the same behaviour",
        Status.VIOLATES: "different behaviour",
        Status.TROUBLE: MEANINGS[Status.TROUBLE],
    }
)


def add(commands: Any) -> None:
    """Add the command."""
    diff = add_command(commands, "diff", _diff, "compare two runs, of hosts or lab", STATUSES)
    for name in ("first", "second"):
        diff.add_argument(
            name,
            type=Path,
            metavar={"first": "A", "second": "B"}[name],
            help="a results.jsonl, or its directory",
        )


def _diff(args: argparse.Namespace) -> int:
    from vmm.conformance.records.saved import load
    from vmm.conformance.report.difference import difference, lines

    first, second = load(args.first), load(args.second)
    say("\n".join(lines(first, second)))
    return Status.of(not difference(first, second).same)
