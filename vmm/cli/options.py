"""Options that more than one command has, and what their values must be."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.conformance.judge.selection import Chosen
    from vmm.conformance.records.baseline import Baseline
    from vmm.conformance.report.view import View

GLOB_HELP = (
    "a case id or requirement, wildcards allowed: 'matching.*', R14; or a saved case: FILE.json"
    " (default: every case but the long ones)"
)


def choice(parser: argparse.ArgumentParser) -> None:
    """Add what chooses cases."""
    parser.add_argument("globs", nargs="*", metavar="GLOB", help=GLOB_HELP)
    parser.add_argument(
        "-x",
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave out what GLOB matches",
    )
    text = "of these, part I of N: which a case is in, its name decides (msrward merge joins them)"
    parser.add_argument("--shard", type=shard, metavar="I/N", help=text)
    text = "without a GLOB: the long cases too, such as a sweep of every MSR in every condition"
    parser.add_argument("--thorough", action="store_true", help=text)


def judging(parser: argparse.ArgumentParser, *, jobs: str, timeout: float) -> None:
    """Add what every command that judges one kernel has; ``jobs`` is the default in words."""
    choice(parser)
    add = parser.add_argument
    add("-j", "--jobs", type=count, metavar="N", help=f"worker processes (default: {jobs})")
    limit = f"seconds a case may take beside its waits for the kernel ({timeout:g})"
    add("--timeout", type=deadline, default=timeout, metavar="S", help=limit)
    add("-l", "--list", action="store_true", help="list the chosen cases only")
    add("--resume", action="store_true", help="go on with the results in DIR")
    viewing(parser)


def viewing(parser: argparse.ArgumentParser) -> None:
    """Add what says how verdicts are shown and kept, and which failures are none."""
    add = parser.add_argument
    add("--xfail", action="append", default=[], metavar="GLOB", help="known failures: no status 1")
    text = "what these entries of the history explain is no failure: 'open', or B12,B13"
    add("--known", type=known, default=(), metavar="IDS", help=text)
    text = "judge by what changed since the run in DIR: what failed there as well is no failure"
    add("--baseline", type=Path, metavar="DIR", help=text)
    add("-o", "--output", type=Path, metavar="DIR", help="keep results.jsonl in DIR")
    add("--json", metavar="FILE", help="JSON lines to FILE; bare --json: to stdout, as only output")
    add("--tap", action="store_true", help="TAP 13 on stdout, as its only output")
    add("-v", "--verbose", action="count", default=0, help="show every case; -vv traces as well")
    add(
        "-q",
        "--quiet",
        action="store_true",
        help="show only causes, what none explains, the verdict",
    )


def clash(args: argparse.Namespace) -> str:
    """Return why what is to be shown cannot be, in one line, or ""."""
    both = args.tap and args.json == "-"
    return "--tap and --json both want stdout: give --json=FILE" if both else ""


def chosen(args: argparse.Namespace) -> Chosen:
    """Return the cases that are chosen; UnknownCase says what is not known."""
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.selection import choose

    how = {"thorough": args.thorough, "shard": args.shard}
    return choose(CASES, args.globs, args.exclude, args.xfail, **how)


def view(
    args: argparse.Namespace, chosen: Chosen, then: Callable[[Path], None] | None = None
) -> View:
    """Return what is to be shown of the cases; ``then`` gets the records when all is filed."""
    from vmm.conformance.report.view import View

    shown = (args.json, args.tap, args.verbose, args.quiet)
    return View(*shown, then=then, baseline=_baseline(args, chosen), known=args.known)


def _baseline(args: argparse.Namespace, chosen: Chosen) -> Baseline | None:
    """Return the run that ``--baseline`` names; ResultsError says why it is none for the cases."""
    if args.baseline is None:
        return None
    from vmm.conformance.records.baseline import Baseline
    from vmm.conformance.records.results import ResultsError
    from vmm.conformance.records.saved import load

    saved = load(args.baseline)
    if not set(chosen.ids) & set(saved.cases):
        raise ResultsError(f"{saved.path} has none of the chosen cases: it is no baseline for them")
    return Baseline.of(saved)


def executor(parser: argparse.ArgumentParser) -> None:
    """Add what says who does the cases in a guest of the lab."""
    text = "who does the cases in the guest (auto: the player, where it can do them all)"
    choices = ("auto", "player", "python")
    parser.add_argument("--executor", choices=choices, default="auto", help=text)


def append(parser: argparse.ArgumentParser) -> None:
    """Add what adds to the command line of a kernel in the lab."""
    text = "add to the kernel's command line: 'kvm.ignore_msrs=1 kvm_intel.preemption_timer=0'"
    parser.add_argument("--append", type=_line, default="", metavar="WORDS", help=text)


def on(parser: argparse.ArgumentParser) -> None:
    """Add what names the cluster that does the work."""
    text = "have the workers of this Dask scheduler do it (docs/fleet.md; needs msrward[fleet])"
    parser.add_argument("--on", metavar="ADDRESS", help=text)


def repeat(parser: argparse.ArgumentParser) -> None:
    """Add how often each case is judged."""
    text = "judge each case N times (1): what fails and passes is flaky, and UNSTEADY"
    parser.add_argument("--repeat", type=count, default=1, metavar="N", help=text)


def cpu(parser: argparse.ArgumentParser) -> None:
    """Add what chooses an emulator's CPU model."""
    text = "another CPU model of the emulator: 'broadwell_ult' of Bochs, 'EPYC' of QEMU"
    parser.add_argument("--cpu", type=_model, default="", metavar="MODEL", help=text)


def machines(parser: argparse.ArgumentParser) -> None:
    """Add what spreads the cases of a kernel over several guests."""
    text = "guests side by side, each with its part of the cases (default: by CPUs and cases)"
    parser.add_argument("--machines", type=count, metavar="N", help=text)


def _model(text: str) -> str:
    if not text or re.fullmatch(r"\w[\w.,=+-]*", text, re.ASCII):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no name of a CPU model")


def _line(text: str) -> str:
    from vmm.lab.append import normal
    from vmm.lab.errors import LabError

    try:
        return normal(text)
    except LabError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def known(text: str) -> tuple[str, ...]:
    """Return ids of the history: those given, and of "open" all that no kernel has a fix for."""
    from vmm.conformance.contract.history import HISTORY, OPEN

    ids: list[str] = []
    for word in text.split(","):
        if word != "open" and word not in HISTORY:
            every = f"{min(HISTORY)} to {max(HISTORY)}"
            raise argparse.ArgumentTypeError(f"{word!r} is neither 'open' nor one of {every}")
        ids += OPEN if word == "open" else [word]
    return tuple(ids)


def shard(text: str) -> Any:
    """Return the part of a run (``judge.selection.Shard``) that "2/5" names."""
    from vmm.conformance.judge.selection import Shard

    number, slash, total = text.partition("/")
    if not (slash and number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 2/5")
    return Shard(int(number), int(total))


def count(text: str) -> int:
    """Return a whole number from 1 up."""
    return int(_positive(text, int, "a whole number from 1 up"))


def seconds(text: str) -> float:
    """Return a number of seconds above 0."""
    return float(_positive(text, float, "a number of seconds above 0"))


def deadline(text: str) -> float:
    """Return how long a case may take; a shorter time than any is judged in is no wish."""
    if (number := seconds(text)) < 0.1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 up")
    return number


def _positive(text: str, kind: type[int] | type[float], what: str) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = 0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number
