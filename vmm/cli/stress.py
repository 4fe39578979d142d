"""``msrward stress``: races that are sampled."""

from __future__ import annotations

import argparse
from typing import Any

from vmm.cli import kept
from vmm.cli.options import count, seconds
from vmm.cli.output import complain
from vmm.cli.parser import add_command
from vmm.conformance.records.status import Status

POINTS = 240
"""What is kept of the rates of a stress, at most."""
TEXT = "swap filters under running vCPUs, judge all seen"


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "stress", _stress, TEXT)
    options(parser)
    kept.as_json(parser)


def options(parser: argparse.ArgumentParser) -> None:
    """Add what a stress has, wherever it runs."""
    parser.add_argument("--seconds", type=seconds, default=10.0, metavar="S", help="how long (10)")
    parser.add_argument(
        "--vcpus", type=count, metavar="N", help="threads, each a vCPU in every VM (one a core)"
    )
    parser.add_argument("--installers", type=count, default=2, metavar="N", help="threads (2)")
    kept.seeded(parser)


def _stress(args: argparse.Namespace) -> int:
    from vmm.conformance.stress import stress
    from vmm.errors import KvmError

    samples: list[stress.Tally] = []
    telling = kept.Telling(as_json=args.json)

    def sampled(tally: stress.Tally) -> None:
        samples.append(tally)
        telling.live(tally.line())

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
    kept.leave(args, telling, [case], result.progress.seconds, result, report)
    if result.interrupted:
        return Status.INTERRUPTED
    if result.conforms:
        return Status.CONFORMS
    is_violated = result.violation or result.complaints
    return Status.VIOLATES if is_violated else Status.UNTESTED
