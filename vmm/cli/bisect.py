"""``msrward bisect`` and ``bisect-step``: find the kernel, or the commit, that changed a case."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from vmm.cli import options
from vmm.cli.guarded import in_one_line
from vmm.cli.output import say
from vmm.cli.parser import add_command

STEP = "bisect-step"
STATUSES = "exit status: 0 good, 1 bad, 125 cannot be tested; never anything else"
LOST = ("good", "bad", "skip")
UNTESTABLE = 125


def add(commands: Any) -> None:
    """Add both commands."""
    bisect = add_command(commands, "bisect", in_one_line(_bisect), "find the kernel that changed")
    for end in ("good", "bad"):
        text = f"a {end} packaged kernel"
        bisect.add_argument(f"--{end}", required=True, metavar="K", help=text)
    bisect.add_argument("--tree", type=Path, metavar="DIR", help="then bisect this git tree")
    where = "keep the records here, and use those that are here (bisect-CASE)"
    bisect.add_argument("-o", "--output", type=Path, metavar="DIR", help=where)
    _question(bisect)
    step = add_command(commands, STEP, in_one_line(_step), "one step for git bisect run", STATUSES)
    step.add_argument("--tree", type=Path, default=Path(), metavar="DIR", help="the tree (.)")
    step.add_argument("--build", metavar="CMD", help="how to build it (default: a minimal kernel)")
    step.add_argument("--kernel", metavar="K", help="judge this kernel, and build nothing")
    _question(step)


def _question(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("case", nargs="?", metavar="CASE", help="good where it passes")
    add("--observe", metavar="CASE=VALUE", help="good where CASE observes VALUE")
    add("--vendor", choices=options.VENDORS, default="svm", help="what to emulate (svm)")
    add("--repeat", type=options.count, default=1, metavar="N", help="boots a kernel, for races")
    lost = "what a kernel is that panics, hangs, or has a splat (skip)"
    add("--lost-status", choices=LOST, default="skip", help=lost)
    add("--limit", type=options.seconds, default=600.0, metavar="S", help="seconds a guest (600)")


def status(argv: list[str], ended: int) -> int:
    """Return the exit status: for git, everything but good and bad is "cannot be tested"."""
    return ended if argv[:1] != [STEP] or ended in (0, 1) else UNTESTABLE


def _asked(args: argparse.Namespace) -> Any:
    from vmm.conformance.check import Trouble
    from vmm.lab.verdict import Question, Step

    name, equals, value = (args.observe or "").partition("=")
    if args.observe and not equals:
        raise Trouble("--observe takes CASE=VALUE; VALUE is what `msrward check -v CASE` shows")
    if not (args.case or name):
        raise Trouble("name a CASE, or an observation with --observe CASE=VALUE")
    return Question(args.case or name, value if equals else None, Step[args.lost_status.upper()])


def _step(args: argparse.Namespace) -> int:
    import tempfile

    from vmm.lab import bisect, tree

    def answer() -> Any:
        question = _asked(args)
        kernel = tree.kernel(args.tree, args.build, args.kernel)
        with tempfile.TemporaryDirectory() as scratch:
            place = bisect.Place(args.vendor, Path(scratch), args.limit)
            return bisect.step(place, question, kernel, repeat=args.repeat)

    return bisect.step_status(answer, lambda line: print(f"msrward: {line}", file=sys.stderr))


def _bisect(args: argparse.Namespace) -> int:
    from vmm.lab import bisect, finding, kernels

    question = _asked(args)
    directory = args.output or Path(f"bisect-{question.case.replace('*', '_')}-{args.vendor}")
    place = bisect.Place(args.vendor, directory, args.limit)

    def ask(name: str) -> Any:
        return bisect.step(place, question, kernels.resolve(name), repeat=args.repeat)

    def tell(name: str, evidence: Any) -> None:
        say(f"{evidence.step.name.lower():4} {name}: {evidence.line}")

    commands, commit = [shlex.join(["msrward", *sys.argv[1:]])], ""
    found = bisect.search(bisect.between(args.good, args.bad), ask, tell)
    for name in (found.last_good, found.first_bad):
        commands.append(f"msrward lab run --kernel {name} --vendor {args.vendor} {question.case}")
    if args.tree:
        command = bisect.step_command(question, args.vendor, args.repeat)
        good = bisect.revision(args.tree, found.last_good)
        bad = bisect.revision(args.tree, found.first_bad)
        commit = bisect.in_git(args.tree, good, bad, command, say)
        commands.append(f"git bisect start {bad} {good}; git bisect run {shlex.join(command)}")
    text = finding.page(found, question, commands, commit)
    (directory / "finding.txt").write_text(text)
    say(f"\n{text}\nthis page: {directory / 'finding.txt'}")
    return 0
