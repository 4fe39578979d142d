"""What stress, churn and fuzz tell: a person as they go, and records as ``check`` leaves them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmm.cli.output import say
from vmm.conformance.records.schema import CaseRecord, Record, run_of

LIVE_SECONDS = 2.0
"""Seconds from one live line to the next in JSON: a guest of the lab sends them byte by byte."""

Run = tuple[Mapping[str, Any], list[Record]]
"""The facts of the host, and the records of a run that has ended."""


def as_json(parser: argparse.ArgumentParser) -> None:
    """Add what has the records on stdout."""
    text = "JSON lines to stdout, as the only output"
    parser.add_argument("--json", action="store_true", help=text)


def seeded(parser: argparse.ArgumentParser) -> None:
    """Add what repeats a run, and where its records go."""
    parser.add_argument("--seed", type=int, metavar="N", help="repeat the run that printed N")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="keep results.jsonl in DIR"
    )


class Telling:
    """Where all goes that a run says: to a person, or under ``--json`` to a program."""

    def __init__(self, *, as_json: bool) -> None:
        """Say to stdout what is to be said, and nothing else."""
        self.as_json, self._last = as_json, 0.0
        self.last = ""

    def live(self, line: str) -> None:
        """Show a line that the next one replaces."""
        if self.as_json:
            if time.monotonic() - self._last >= LIVE_SECONDS:
                self._last = time.monotonic()
                self.say(line)
        elif sys.stderr.isatty():
            print(f"\r\x1b[K{line[:150]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the live line away."""
        if not self.as_json and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Say a text that stays, and is ``last`` from then on; a program gets its first line."""
        from vmm.conformance.records.jsonl import live

        self.last = text
        if self.as_json:
            say(live(text.partition("\n")[0]).rstrip("\n"))
        else:
            self.clear()
            say(text)

    def report(self, text: str) -> None:
        """Say what came of it; a program gets it with the records."""
        if not self.as_json:
            self.say(text)

    def end(self, run: Run, directory: Path | None) -> None:
        """Keep the records of a run in the directory, if one is given; a program gets them here."""
        from vmm.conformance.records.jsonl import encoder

        host, records = run
        if directory:
            keep(directory, run)
        line = encoder(host)
        for record in records if self.as_json else ():
            say(line(record).rstrip("\n"))


def recorded(
    cases: Sequence[CaseRecord],
    seconds: float,
    *,
    complaints: Sequence[str] = (),
    foreign: Sequence[str] = (),
    blind: str = "",
    report: str = "",
    interrupted: bool = False,
) -> Run:
    """Return a run of ``cases`` that has just ended, after ``seconds``.

    ``complaints`` are the kernel's, and splats of the run; ``blind`` is why its log was not
    watched; ``report`` is what a person read; ``interrupted`` that Ctrl-C ended it.
    """
    from vmm.conformance.cases import CASES
    from vmm.conformance.host.facts import facts
    from vmm.conformance.judge.check import kvm_capabilities
    from vmm.conformance.records.summary import end_record

    here = {"hostname": os.uname().nodename, "capabilities": kvm_capabilities()}
    counts = (len(cases), len(cases) + len(CASES))
    run = run_of(*counts, kernel_log=blind or "watched")
    run |= {"started": round(time.time() - seconds, 3), "jobs": 1}
    splats = [text.splitlines() for text in complaints]
    end = end_record(cases, seconds, splats=splats, foreign=foreign, interrupted=interrupted)
    end["report"] = report.splitlines()
    return {**facts(), **here}, [run, *cases, end]


def leave(  # noqa: PLR0917 - what a run of either kind leaves
    args: argparse.Namespace,
    telling: Telling,
    cases: Sequence[CaseRecord],
    seconds: float,
    of: Any,
    report: str,
) -> None:
    """Keep the records of a stress or a churn, and tell them, as the words of the command say."""
    if args.output or args.json:
        run = recorded(
            *(cases, seconds),
            complaints=of.complaints,
            foreign=of.foreign,
            blind=of.blind,
            report=report,
            interrupted=of.interrupted,
        )
        telling.end(run, args.output)


def keep(directory: Path, run: Run) -> None:
    """Write the records of a run to a directory; ResultsError says why that cannot be."""
    from vmm.conformance.records.results import Results

    host, records = run
    with Results(directory, host) as results:
        for record in records:
            results.write(record)
