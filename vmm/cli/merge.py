"""``msrward merge``: the shards of one run, put together."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vmm.cli.parser import add_command


def add(commands: Any) -> None:
    """Add the command to the command line."""
    text = "make one run of the parts of one (--shard), and name what is twice or missing"
    merge = add_command(commands, "merge", _merge, text)
    merge.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="the records of a part")
    words = {"required": True, "metavar": "DIR", "help": "keep the whole in DIR"}
    merge.add_argument("-o", "--output", type=Path, **words)
    merge.add_argument("-q", "--quiet", action="store_true", help="show only the verdict")


def _merge(args: argparse.Namespace) -> int:
    from vmm.conformance.records.merge import merge
    from vmm.conformance.records.results import FILE, Results
    from vmm.conformance.records.saved import load_all, must_not_be_of
    from vmm.conformance.records.schema import without
    from vmm.conformance.report.desk import Desk
    from vmm.conformance.report.view import View

    runs = load_all(args.runs)
    must_not_be_of(args.output / FILE, runs)
    whole = merge(runs)
    with Results(args.output, whole.host) as results:
        desk = Desk(results, whole.host, list(whole.cases), View(quiet=args.quiet), None)
        desk.start(whole.run)
        for record in whole.cases.values():
            desk.case(without(record, ENVELOPE))
        desk.finish(whole.run, whole.end)
    for note in whole.notes:
        print(f"msrward: {note}", file=sys.stderr)
    return int(whole.end["status"])


ENVELOPE = ("schema", "host")
"""What the records of a file all repeat, and the desk adds anew."""
