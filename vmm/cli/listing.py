"""What ``msrward list`` and ``--list`` print: the chosen cases, and no verdict."""

from __future__ import annotations

import argparse

from vmm.cli.output import say
from vmm.conformance.records.status import DONE


def listed(args: argparse.Namespace) -> int:
    """Print the chosen cases and return the exit status."""
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.selection import choose
    from vmm.conformance.report.listing import by_requirement, listing

    chosen = choose(CASES, args.globs, args.exclude, thorough=args.thorough, shard=args.shard).cases
    if getattr(args, "by_requirement", False):
        lines = by_requirement(chosen, whole=len(chosen) == len(CASES))
    else:
        lines = listing(chosen)
    say("\n".join(lines))
    return DONE
