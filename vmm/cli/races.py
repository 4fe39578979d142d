"""``msrward stress`` and ``msrward churn``: races that are sampled, and VMs that end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmm.cli import kept
from vmm.cli.options import count, seconds
from vmm.cli.output import complain, say
from vmm.cli.parser import add_command
from vmm.conformance.records.schema import Record
from vmm.conformance.records.status import MEANINGS, Status, epilog

POINTS = 240
"""What is kept of the rates of a stress, at most."""

STATUSES = epilog(
    {
        **MEANINGS,
        Status.CONFORMS: "nothing impossible was seen",
        Status.VIOLATES: "something was, or the kernel complained",
        Status.UNTESTED: "nothing was observed",
    }
)


def add(commands: Any) -> None:
    """Add the two commands."""
    stress = add_command(
        commands, "stress", _stress, "swap filters under running vCPUs, judge all seen", STATUSES
    )
    stress.add_argument("--seconds", type=seconds, default=10.0, metavar="S", help="how long (10)")
    stress.add_argument(
        "--vcpus", type=count, metavar="N", help="threads, each a vCPU in every VM (one a core)"
    )
    stress.add_argument("--installers", type=count, default=2, metavar="N", help="threads (2)")
    _seed(stress)
    churn = add_command(
        commands, "churn", _churn, "end VMs in every order, measure what installs leak", STATUSES
    )
    churn.add_argument("--rounds", type=count, default=300, metavar="N", help="VMs a way (300)")
    churn.add_argument(
        "--installs", type=count, default=100_000, metavar="N", help="to measure over (100000)"
    )
    churn.add_argument(
        "--vms", type=count, default=2000, metavar="N", help="to measure over (2000)"
    )
    _seed(churn)


def _seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, metavar="N", help="repeat the run that printed N")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="keep results.jsonl in DIR"
    )


def _stress(args: argparse.Namespace) -> int:
    from vmm.conformance.stress import stress
    from vmm.errors import KvmError

    samples: list[stress.Progress] = []

    def sampled(progress: stress.Progress) -> None:
        samples.append(progress)
        _live(progress.line())

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
    _live_ends()
    say(stress.render(result))
    if args.output:
        every = samples[:: len(samples) // POINTS + 1]
        case = stress.as_case(result, [*every, result.progress])
        _keep(args, [case], result.progress.seconds, result)
    if result.conforms:
        return Status.CONFORMS
    is_violated = result.violation or result.complaints
    return Status.VIOLATES if is_violated else Status.UNTESTED


def _churn(args: argparse.Namespace) -> int:
    from vmm.conformance.churn import churn
    from vmm.errors import KvmError

    try:
        result = churn.run(args.rounds, args.installs, args.vms, args.seed, _live)
    except (KvmError, ValueError) as error:
        return complain(str(error))
    _live_ends()
    say(churn.render(result))
    if args.output:
        cases = churn.as_cases(result)
        _keep(args, cases, result.seconds, result)
    return Status.of(not result.conforms)


def _keep(args: argparse.Namespace, cases: Sequence[Record], seconds: float, of: Any) -> None:
    told = {"complaints": of.complaints, "foreign": of.foreign}
    kept.keep(args.output, cases, seconds, blind=of.blind, **told)


def _live(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line[:150]}", end="", file=sys.stderr, flush=True)


def _live_ends() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
