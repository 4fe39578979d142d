"""The ``msrward`` command: parses, calls, prints.

What ends badly leaves one line on stderr that says what failed, why, and what to do. The exit
statuses of all commands stand in docs/environment.md.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from vmm.cli import listing, options, reports
from vmm.cli.output import StdoutFailed, complain, say
from vmm.cli.parser import Parser, add_command
from vmm.conformance.host.interrupts import take_signals, terminable
from vmm.conformance.host.limits import limit_of
from vmm.conformance.records.status import DONE, Status, epilog
from vmm.errors import KvmError


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> NoReturn:
        from vmm.conformance.host.facts import facts

        say(f"msrward {facts()['msrward']}")
        sys.exit(DONE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; nothing but a bug leaves a traceback."""
    words = sys.argv[1:] if argv is None else list(argv)
    status: int = Status.TROUBLE
    try:
        take_signals()
        with terminable():
            is_open = _has_stdout()
            status = _guarded(words) if is_open else complain("stdout is closed: give it one")
        if sys.stdout:
            sys.stdout.flush()
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    except OSError:  # the failure has been reported; Python must not find it again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from vmm.cli import bisect

    return bisect.status(words, status)


def _has_stdout() -> bool:
    """Say whether stdout is open; stdin and stderr are, after this.

    A file that is opened later must not become one of the three, and what is printed to a
    ``sys.stderr`` that is None lands on stdout.
    """
    import fcntl

    for fd in (0, 1, 2):
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError:
            if fd == 1:
                return False
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
            if fd == 2:
                sys.stderr = os.fdopen(2, "w")
    return True


def _guarded(argv: list[str]) -> int:
    try:
        return _command(argv)
    except SystemExit as end:  # argparse: --help, --version, usage
        return end.code if isinstance(end.code, int) else DONE
    except Exception as error:
        if limit := limit_of(error):
            return complain(limit)
        if not _is_expected(error):
            import traceback

            traceback.print_exc()
        return complain(_line(error))


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, KvmError):
        place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{place}{error.strerror}"
    return str(error) or type(error).__name__


def _is_expected(error: Exception) -> bool:
    from vmm.conformance.judge.check import Trouble
    from vmm.conformance.judge.selection import UnknownCase
    from vmm.conformance.records.results import ResultsError

    return isinstance(error, StdoutFailed | UnknownCase | Trouble | ResultsError | OSError)


def _command(argv: list[str]) -> int:
    if argv[:1] in (["check"], ["judge"]) or argv[:2] == ["lab", "run"]:
        # A bare --json is stdout; argparse takes a GLOB for FILE.
        argv = ["--json=-" if word == "--json" else word for word in argv]
    if odd := [word for word in argv if word.startswith("--") and word.endswith("=--")]:
        return complain(f"{odd[0]} names nothing; a file of that name is ./--")
    args = command_line().parse_args(argv)
    status: int = args.call(args)
    return status


def command_line() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="msrward",
        description="Decide whether this kernel keeps the contract of KVM's MSR filter.",
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    judged = add_command(commands, "check", _check, "judge the kernel of this host")
    text = "under both executors, Python and the player's words in C: what differs is ERROR"
    judged.add_argument("--both", action="store_true", help=text)
    options.repeat(judged)
    options.judging(judged, jobs="one a core of the cgroup's quota, at most 16", timeout=10.0)
    reports.requests(judged)
    lists = add_command(commands, "list", listing.listed, "list the cases")
    options.choice(lists)
    lists.add_argument(
        "--by-requirement", action="store_true", help="show which cases check which requirement"
    )
    show = add_command(commands, "show", _show, "show a case: promise, script, expected trace")
    show.add_argument("case", metavar="CASE", help="a case id, wildcards allowed, or FILE.json")
    from vmm.cli import bisect, churn, diff, docs, fuzz, lab, merge, player, scripts, stress

    bisect.add(commands)
    diff.add(commands)
    docs.add(commands, parser)
    fuzz.add(commands)
    lab.add(commands)
    merge.add(commands)
    player.add(commands)
    stress.add(commands)
    churn.add(commands)
    reports.add(commands)
    scripts.add(commands)
    doctor = add_command(commands, "doctor", _doctor, "find out what this host allows to test")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _check(args: argparse.Namespace) -> int:
    if args.list:
        return listing.listed(args)
    if why := options.clash(args):
        return complain(why)
    gc.disable()  # the catalogue stays: to look through it for garbage is a fifth of its time
    try:
        chosen = options.chosen(args)
    finally:
        gc.freeze()
        gc.enable()
    from vmm.conformance.host.cpus import default_jobs
    from vmm.conformance.judge.check import check
    from vmm.conformance.judge.recording import Options

    jobs = min(args.jobs or default_jobs(), len(chosen.cases) * args.repeat)
    part = str(args.shard or "")
    how = Options(jobs, args.timeout, tuple(args.xfail), args.known, shard=part, repeat=args.repeat)
    view = options.view(args, chosen, reports.then(args.report))
    where = {"directory": args.output, "resume": args.resume}
    if not args.both:
        return check(chosen.cases, chosen.of, how, view, **where)
    from vmm.conformance.judge.both import both, played

    seen = played(chosen.cases, how)
    return check(chosen.cases, chosen.of, how, view, wrap=lambda each: both(each, seen), **where)


def _show(args: argparse.Namespace) -> int:
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.selection import choose
    from vmm.conformance.report.listing import card

    say("\n\n".join("\n".join(card(case)) for case in choose(CASES, [args.case]).cases))
    return DONE


def _doctor(args: argparse.Namespace) -> int:
    from vmm.conformance.host.diagnosis import Health
    from vmm.conformance.host.doctor import examine, render
    from vmm.lab import doctor as lab

    findings = {**examine(), **lab.examine()}
    say(render(findings, as_json=args.json))
    return Status.of(any(found.verdict is Health.FAIL for found in findings.values()))
