"""``msrward churn``: VMs that end."""

from __future__ import annotations

import argparse
from typing import Any

from vmm.cli import kept
from vmm.cli.options import count
from vmm.cli.output import complain
from vmm.cli.parser import add_command
from vmm.conformance.records.status import Status

TEXT = "end VMs in every order, measure what installs leak"


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "churn", _churn, TEXT)
    options(parser)
    kept.as_json(parser)


def options(parser: argparse.ArgumentParser) -> None:
    """Add what a churn has, wherever it runs."""
    parser.add_argument("--rounds", type=count, default=300, metavar="N", help="VMs a way (300)")
    parser.add_argument(
        "--installs", type=count, default=100_000, metavar="N", help="to measure over (100000)"
    )
    parser.add_argument(
        "--vms", type=count, default=2000, metavar="N", help="to measure over (2000)"
    )
    kept.seeded(parser)


def _churn(args: argparse.Namespace) -> int:
    from vmm.conformance.churn import churn
    from vmm.conformance.churn.result import as_cases, render
    from vmm.errors import KvmError

    telling = kept.Telling(as_json=args.json)
    try:
        result = churn.run(args.rounds, args.installs, args.vms, args.seed, telling.live)
    except (KvmError, ValueError) as error:
        return complain(str(error))
    report = render(result)
    telling.report(report)
    kept.leave(args, telling, as_cases(result), result.seconds, result, report)
    return Status.INTERRUPTED if result.interrupted else Status.of(not result.conforms)
