"""``msrward tape`` and ``msrward judge``: cases for the player, and what it saw of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vmm.cli import options
from vmm.cli.output import complain
from vmm.cli.parser import add_command
from vmm.conformance.records.status import DONE


def add(commands: Any) -> None:
    """Add the commands to the command line."""
    made = add_command(commands, "tape", _tape, "write cases as a tape for msrward-player")
    made.add_argument("-o", "--output", type=Path, metavar="FILE", help="not to stdout")
    judged = add_command(commands, "judge", _judge, "judge by what msrward-player wrote")
    judged.add_argument("trace", metavar="TRACE", help="what it wrote; - for stdin")
    options.viewing(judged)
    for each in (made, judged):
        options.choice(each)
        limit = "seconds a case may take (10); the same for tape and judge"
        each.add_argument("--timeout", type=options.deadline, default=10.0, metavar="S", help=limit)


def _tape(args: argparse.Namespace) -> int:
    from vmm.conformance.c.tape import is_playable, tape
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.selection import choose

    chosen = choose(CASES, args.globs, args.exclude, thorough=args.thorough, shard=args.shard)
    cases = [case for case in chosen.cases if is_playable(case)]
    if left := [case.id for case in chosen.cases if case not in cases]:
        print(
            f"msrward: no form in C yet, left out: {len(left)} of {len(chosen.cases)} cases,"
            f" the first is {left[0]}",
            file=sys.stderr,
        )
    data = tape(cases, timeout=args.timeout)
    if args.output:
        args.output.write_bytes(data)
    elif sys.stdout.isatty():
        return complain("a tape is no text: give -o FILE, or send it to a file")
    else:
        sys.stdout.buffer.write(data)
    return DONE


def _judge(args: argparse.Namespace) -> int:
    if why := options.clash(args):
        return complain(why)
    from vmm.conformance.c.tape import is_playable
    from vmm.conformance.judge.played import judge_trace
    from vmm.conformance.judge.recording import Options

    chosen = options.chosen(args)
    cases = [case for case in chosen.cases if is_playable(case)]
    how = Options(1, args.timeout, tuple(args.xfail), args.known, shard=str(args.shard or ""))
    what = (cases, chosen.of, how, options.view(args, chosen))
    if args.trace == "-":
        return judge_trace(sys.stdin.buffer, *what, directory=args.output)
    with Path(args.trace).open("rb") as stream:
        return judge_trace(stream, *what, directory=args.output)
