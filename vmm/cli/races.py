"""``msrward stress`` and ``msrward churn``: races that are sampled, and VMs that end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmm.cli.kept import Telling, recorded
from vmm.cli.options import count, seconds
from vmm.cli.output import complain
from vmm.cli.parser import add_command
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.status import Status

POINTS = 240
"""What is kept of the rates of a stress, at most."""

STRESS = "swap filters under running vCPUs, judge all seen"
CHURN = "end VMs in every order, measure what installs leak"


def add(commands: Any) -> None:
    """Add the two commands."""
    stress = add_command(commands, "stress", _stress, STRESS)
    stress_options(stress)
    churn = add_command(commands, "churn", _churn, CHURN)
    churn_options(churn)
    for parser in (stress, churn):
        as_json(parser)


def stress_options(parser: argparse.ArgumentParser) -> None:
    """Add what a stress has, wherever it runs."""
    parser.add_argument("--seconds", type=seconds, default=10.0, metavar="S", help="how long (10)")
    parser.add_argument(
        "--vcpus", type=count, metavar="N", help="threads, each a vCPU in every VM (one a core)"
    )
    parser.add_argument("--installers", type=count, default=2, metavar="N", help="threads (2)")
    _seed(parser)


def churn_options(parser: argparse.ArgumentParser) -> None:
    """Add what a churn has, wherever it runs."""
    parser.add_argument("--rounds", type=count, default=300, metavar="N", help="VMs a way (300)")
    parser.add_argument(
        "--installs", type=count, default=100_000, metavar="N", help="to measure over (100000)"
    )
    parser.add_argument(
        "--vms", type=count, default=2000, metavar="N", help="to measure over (2000)"
    )
    _seed(parser)


def as_json(parser: argparse.ArgumentParser) -> None:
    """Add what has the records on stdout."""
    text = "JSON lines to stdout, as the only output"
    parser.add_argument("--json", action="store_true", help=text)


def _seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, metavar="N", help="repeat the run that printed N")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="keep results.jsonl in DIR"
    )


def _stress(args: argparse.Namespace) -> int:
    from vmm.conformance.stress import stress
    from vmm.errors import KvmError

    samples: list[stress.Progress] = []
    telling = Telling(as_json=args.json)

    def sampled(progress: stress.Progress) -> None:
        samples.append(progress)
        telling.live(progress.line())

    try:
        result = stress.run(
            args.seconds,
            args.vcpus or 0,
            args.installers,
            args.seed,
            sampled,
        )
    except (KvmError, ValueError) as error:
        return complain(str(error))
    report = stress.render(result)
    telling.report(f"{report}\n  again: msrward stress {' '.join(stress.words_of(result))}")
    every = samples[:: len(samples) // POINTS + 1]
    case = stress.as_case(result, [*every, result.progress])
    _keep(args, telling, [case], result.progress.seconds, result, report)
    if result.conforms:
        return Status.CONFORMS
    is_violated = result.violation or result.complaints
    return Status.VIOLATES if is_violated else Status.UNTESTED


def _churn(args: argparse.Namespace) -> int:
    from vmm.conformance.churn import churn
    from vmm.conformance.churn.result import as_cases, render
    from vmm.errors import KvmError

    telling = Telling(as_json=args.json)
    try:
        result = churn.run(args.rounds, args.installs, args.vms, args.seed, telling.live)
    except (KvmError, ValueError) as error:
        return complain(str(error))
    report = render(result)
    telling.report(report)
    _keep(args, telling, as_cases(result), result.seconds, result, report)
    return Status.of(not result.conforms)


def _keep(  # noqa: PLR0917 - what a run of either kind leaves
    args: argparse.Namespace,
    telling: Telling,
    cases: Sequence[CaseRecord],
    seconds: float,
    of: Any,
    report: str,
) -> None:
    if args.output or args.json:
        told = {"complaints": of.complaints, "foreign": of.foreign, "blind": of.blind}
        telling.end(recorded(cases, seconds, report=report, **told), args.output)
