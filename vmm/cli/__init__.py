"""The ``msrward`` command: parses, calls, prints.

Exit status of ``check``: 0 the kernel conforms, 1 it does not, 2 usage or harness trouble, 4
nothing could be tested (every case was skipped), 130 interrupted by Ctrl-C after a summary.
``doctor``: 0, or 1 when a check is FAIL. ``list`` and ``show``: 0. All of them: 2 with one line on
stderr that says what failed, why, and what to do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

STATUSES = """exit status:
  0    the kernel conforms (as far as the cases that ran tell)
  1    it does not: a case failed or timed out, or the kernel log has a splat
  2    usage or harness trouble: no verdict
  4    nothing could be tested: every case was skipped
  130  interrupted by Ctrl-C, after a summary of what ran"""
TROUBLE, INTERRUPTED = 2, 130
GLOB_HELP = "a case id or requirement, wildcards allowed: 'match.*', R14 (default: every case)"


class _StdoutFailed(Exception):
    """What is printed cannot be; the text is one line."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(TROUBLE, f"msrward: {message}; see '{self.prog} --help'\n")

    def print_help(self, file: Any = None) -> None:
        _say(self.format_help().rstrip())  # argparse would keep silent when stdout fails


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> NoReturn:
        from vmm.conformance.host import facts

        _say(f"msrward {facts()['msrward']}")
        sys.exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; nothing but a bug leaves a traceback."""
    try:
        status = _guarded(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except OSError:  # the failure has been reported; Python must not find it again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def _guarded(argv: list[str]) -> int:
    try:
        return _command(argv)
    except SystemExit as end:  # argparse: --help, --version, usage
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        if not _is_expected(error):
            import traceback

            traceback.print_exc()
        return _complain(str(error) or type(error).__name__)


def _is_expected(error: Exception) -> bool:
    from vmm.conformance.catalogue import UnknownCase
    from vmm.conformance.check import Trouble
    from vmm.conformance.results import ResultsError

    return isinstance(error, _StdoutFailed | UnknownCase | Trouble | ResultsError | OSError)


def _complain(line: str) -> int:
    with suppress(OSError):  # stderr is closed: the status must do
        print(f"msrward: {line}", file=sys.stderr, flush=True)
    return TROUBLE


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise _StdoutFailed("stdout was closed early") from None
    except OSError as error:
        raise _StdoutFailed(f"cannot write to stdout: {error.strerror}") from None


def _command(argv: list[str]) -> int:
    if argv[:1] == ["check"]:  # a bare --json is stdout; argparse would take a GLOB for its FILE
        argv = ["--json=-" if word == "--json" else word for word in argv]
    args = command_line().parse_args(argv)
    status: int = args.call(args)
    return status


def command_line() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="msrward",
        description="Decide whether this kernel keeps the contract of KVM's MSR filter.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    _check_parser(_add(commands, "check", _check, "judge the kernel of this host", STATUSES))
    listing = _add(commands, "list", _list, "list the cases")
    _choice(listing)
    listing.add_argument(
        "--by-requirement", action="store_true", help="show which cases check which requirement"
    )
    show = _add(commands, "show", _show, "show a case: promise, script, expected trace")
    show.add_argument("case", metavar="CASE", help="a case id, wildcards allowed")
    doctor = _add(commands, "doctor", _doctor, "find out what this host allows to test")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add(commands: Any, name: str, call: Any, text: str, epilog: str = "") -> Any:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(call=call)
    return parser


def _choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("globs", nargs="*", metavar="GLOB", help=GLOB_HELP)
    parser.add_argument(
        "-x",
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave out what GLOB matches",
    )


def _check_parser(parser: argparse.ArgumentParser) -> None:
    _choice(parser)
    add = parser.add_argument
    add("-l", "--list", action="store_true", help="list the chosen cases and run nothing")
    add("-j", "--jobs", type=_jobs, metavar="N", help="worker processes (default: one a core)")
    add("--timeout", type=_seconds, default=10.0, metavar="S", help="seconds a case may take (10)")
    add("--xfail", action="append", default=[], metavar="GLOB", help="known failures: no status 1")
    add("-o", "--output", type=Path, metavar="DIR", help="keep results.jsonl in DIR")
    add("--resume", action="store_true", help="go on with the results in DIR")
    add("--json", metavar="FILE", help="JSON lines to FILE; bare --json: to stdout, as only output")
    add("--tap", action="store_true", help="TAP 13 on stdout, as its only output")
    add("-v", "--verbose", action="count", default=0, help="show every case; -vv traces as well")
    add("-q", "--quiet", action="store_true", help="show only failures' names and the verdict")


def _jobs(text: str) -> int:
    return int(_positive(text, int, "a whole number from 1 up"))


def _seconds(text: str) -> float:
    return float(_positive(text, float, "a number of seconds above 0"))


def _positive(text: str, kind: type[int] | type[float], what: str) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = 0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def _check(args: argparse.Namespace) -> int:
    if args.list:
        return _list(args)
    if args.tap and args.json == "-":
        return _complain("--tap and --json both want stdout: give --json=FILE")
    from vmm.conformance.cases import CASES
    from vmm.conformance.catalogue import check_globs, select
    from vmm.conformance.check import check
    from vmm.conformance.report.desk import View
    from vmm.conformance.runner import Options

    check_globs(CASES, args.xfail)
    chosen = select(CASES, args.globs, args.exclude)
    jobs = min(args.jobs or len(os.sched_getaffinity(0)), len(chosen))
    options = Options(jobs, args.timeout, tuple(args.xfail))
    view = View(args.json, args.tap, args.verbose, args.quiet)
    return check(chosen, len(CASES), options, view, directory=args.output, resume=args.resume)


def _list(args: argparse.Namespace) -> int:
    from vmm.conformance.cases import CASES
    from vmm.conformance.catalogue import select
    from vmm.conformance.report.listing import by_requirement, listing

    chosen = select(CASES, args.globs, args.exclude)
    if getattr(args, "by_requirement", False):
        lines = by_requirement(chosen, whole=len(chosen) == len(CASES))
    else:
        lines = listing(chosen)
    _say("\n".join(lines))
    return 0


def _show(args: argparse.Namespace) -> int:
    from vmm.conformance.cases import CASES
    from vmm.conformance.catalogue import select
    from vmm.conformance.report.listing import card

    _say("\n\n".join("\n".join(card(case)) for case in select(CASES, [args.case])))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from vmm.conformance.doctor import examine, render

    findings = examine()
    _say(render(findings, as_json=args.json))
    return int(any(found.verdict == "FAIL" for found in findings.values()))
