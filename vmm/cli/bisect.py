"""``msrward bisect`` and ``bisect-step``: find the kernel, or the commit, that changed a case."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from vmm.cli import options
from vmm.cli.guarded import in_one_line
from vmm.cli.output import complain, say
from vmm.cli.parser import add_command
from vmm.conformance.records.status import BAD, DONE, GOOD, UNTESTABLE
from vmm.lab.vendors import VENDORS

STEP = "bisect-step"
LOST = ("good", "bad", "skip")


def add(commands: Any) -> None:
    """Add both commands."""
    bisect = add_command(commands, "bisect", in_one_line(_bisect), "find the kernel that changed")
    for end in ("good", "bad"):
        text = f"a packaged kernel, or with --tree a revision, that is {end}"
        bisect.add_argument(f"--{end}", required=True, metavar="K", help=text)
    bisect.add_argument("--tree", type=Path, metavar="DIR", help="bisect this git tree as well")
    where = "keep the records here, and use those that are here (bisect-CASE)"
    bisect.add_argument("-o", "--output", type=Path, metavar="DIR", help=where)
    at_once = "ask N kernels at once: packaged ones, or commits, each in a worktree of its own (1)"
    bisect.add_argument("-j", "--jobs", type=options.count, metavar="N", help=at_once)
    options.on(bisect)
    _question(bisect)
    step = add_command(commands, STEP, in_one_line(_step), "one step for git bisect run")
    step.add_argument("--tree", type=Path, default=Path(), metavar="DIR", help="the tree (.)")
    step.add_argument("--kernel", metavar="K", help="judge this kernel, and build nothing")
    kept = "keep each commit's records here, and use those that are here"
    step.add_argument("-o", "--output", type=Path, metavar="DIR", help=kept)
    _question(step)


def _question(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("case", nargs="?", metavar="CASE", help="good where it passes: an id, or FILE.json")
    add("--observe", metavar="CASE=VALUE", help="good where CASE observes VALUE")
    add("--vendor", choices=VENDORS, default="svm", help="what to emulate (svm)")
    add("--repeat", type=options.count, default=1, metavar="N", help="boots a kernel, for races")
    add("--build", metavar="CMD", help="how to build a tree (default: a minimal kernel)")
    debug = "build a kernel that checks itself: KASAN, lockdep, RCU, kmemleak"
    add("--debug", action="store_true", help=debug)
    options.append(parser)
    lost = "what a kernel is that panics, hangs, or has a splat (skip)"
    add("--lost-status", choices=LOST, default="skip", help=lost)
    add("--limit", type=options.seconds, default=600.0, metavar="S", help="seconds a guest (600)")


def status(argv: list[str], ended: int) -> int:
    """Return the exit status: for git, everything but good and bad is "cannot be tested"."""
    return ended if argv[:1] != [STEP] or ended in (GOOD, BAD) else UNTESTABLE


def _asked(args: argparse.Namespace) -> Any:
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.check import Trouble
    from vmm.conformance.judge.selection import choose, is_file
    from vmm.lab.search.verdict import Question, Step

    name, equals, value = (args.observe or "").partition("=")
    if args.observe and not equals:
        raise Trouble("--observe takes CASE=VALUE; VALUE is what `msrward check -v CASE` shows")
    if not (args.case or name):
        raise Trouble("name a CASE, or an observation with --observe CASE=VALUE")
    case = args.case or name
    if is_file(case):  # git runs the steps in the tree
        case = str(Path(case).absolute())
    choose(CASES, [case])  # what is misspelt is said before a kernel is built for it
    return Question(case, value if equals else None, Step[args.lost_status.upper()])


def _step(args: argparse.Namespace) -> int:
    import tempfile
    from contextlib import ExitStack
    from functools import cache

    from vmm.conformance.judge.check import Trouble
    from vmm.conformance.judge.selection import UnknownCase
    from vmm.lab.kernels import kernels, tree
    from vmm.lab.search import bisect, git

    @cache
    def kernel() -> Any:
        if not args.kernel:
            _tell(f"building {args.tree.absolute()}")
        built = (
            kernels.resolve(args.kernel)
            if args.kernel
            else tree.kernel(args.tree, args.build, debug=args.debug)
        )
        _tell(f"booting {built.release} ({args.vendor})")
        return built

    def answer() -> Any:
        try:
            question = _asked(args)
        except (Trouble, UnknownCase) as error:
            every = "no commit can be tested: end git bisect run with Ctrl-C"
            raise Trouble(f"{error} ({every})") from None
        with ExitStack() as stack:
            name = None if args.kernel else git.checked_out(args.tree)
            scratch = stack.enter_context(tempfile.TemporaryDirectory())
            directory = args.output if args.output and name else Path(scratch)
            place = bisect.Place(args.vendor, directory, args.limit, args.debug, args.append)
            return bisect.step(place, question, name or "kernel", kernel, repeat=args.repeat)

    return bisect.step_status(answer, _tell)


def _tell(line: str) -> None:
    print(f"msrward: {line}", file=sys.stderr, flush=True)


def _bisect(args: argparse.Namespace) -> int:
    from vmm.conformance.records import places
    from vmm.conformance.report.rerun import in_the_lab
    from vmm.lab.kernels import packaged
    from vmm.lab.runs import matrix
    from vmm.lab.search import bisect, finding

    question = _asked(args)
    good, bad = (matrix.named(end) for end in (args.good, args.bad))
    fetched = [packaged.is_packaged(end) for end in (good, bad)]
    if any(fetched) != all(fetched) or not (fetched[0] or args.tree):
        return complain("give two packaged kernels (debian:6.1), or --tree and two revisions of it")
    if args.on and not fetched[0]:
        return complain("--on is for packaged kernels: commits are built here, N at once with -j N")
    directory = args.output or Path(f"bisect-{_stem(question.case)}-{args.vendor}")
    place = bisect.Place(args.vendor, directory, args.limit, args.debug, args.append)
    commands, stages = [shlex.join(["msrward", *sys.argv[1:]])], []
    if fetched[0]:
        stages.append(_among_packages(args, question, place, good, bad))
        good, bad = stages[0].last_good, stages[0].first_bad
        again = [in_the_lab(name, args.vendor, args.append) for name in (good, bad)]
        commands += [f"{each} {shlex.quote(question.case)}" for each in again]
    if args.tree:
        found, repeat = _among_commits(args, question, place, (good, bad))
        stages.append(found)
        commands += repeat
    text = finding.page(stages, question, commands)
    places.write_new(directory / "finding.txt", text)
    say(f"\n{text}\nthis page: {directory / 'finding.txt'}")
    return DONE


def _stem(case: str) -> str:
    return Path(case).name.removesuffix(".json").replace("*", "_")


def _among_packages(
    args: argparse.Namespace, question: Any, place: Any, good: str, bad: str
) -> Any:
    from vmm.lab.kernels import kernels
    from vmm.lab.runs import away
    from vmm.lab.search import bisect, together

    with away.judge(args.on) as (judge, threads):
        names = bisect.between(good, bad)

        def ask(name: str) -> Any:
            how = {"repeat": args.repeat, "by": judge}
            key = name.replace(":", "-")
            return bisect.step(place, question, key, lambda: kernels.resolve(name), **how)

        def tell(name: str, evidence: Any) -> None:
            say(f"{evidence.step.name.lower():4} {name}: {evidence.line}")

        jobs = args.jobs or threads or 1
        at_once = together.elsewhere(jobs) if threads else together.side_by_side(jobs)
        several = at_once if jobs > 1 else None
        found = bisect.search(names, ask, tell, jobs=jobs, together=several)
    if jobs > 1:
        _say_saving("kernels", found, len(names))
    return found


def _say_saving(what: str, found: Any, number: int) -> None:
    alone = 2 + max(1, number - 2).bit_length()
    say(f"{len(found.asked)} {what} in {found.rounds} rounds; one by one: about {alone}")


def _among_commits(
    args: argparse.Namespace, question: Any, place: Any, between: tuple[str, str]
) -> tuple[Any, list[str]]:
    from vmm.lab.kernels import packaged
    from vmm.lab.search import git, trees

    good, bad = (git.tag(args.tree, e) if packaged.is_packaged(e) else e for e in between)
    ends = git.Ends(git.commit(args.tree, good), git.commit(args.tree, bad))
    build = [f"--build={args.build}"] if args.build else []
    command = git.step_command(question, place, args.repeat, *build)
    repeat = [f"git bisect start {bad} {good}", f"git bisect run {shlex.join(command)}"]
    about = (place, question)
    if not args.jobs or args.jobs == 1:
        return git.search(args.tree, ends, about, command, say), repeat
    found = trees.search(args.tree, ends, about, command, say, jobs=args.jobs)
    _say_saving("commits", found, len(git.parents(args.tree, ends)) + 1)
    return found, repeat
