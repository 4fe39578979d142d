"""The manual page ``msrward.1``, made of the parsers of the commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator


def manual(parser: argparse.ArgumentParser) -> str:
    """Return the page in roff: every command and option that ``parser`` knows."""
    lines = [
        r".\" written by `msrward docs` from the parser of the commands",
        '.TH MSRWARD 1 "" msrward "User Commands"',
        ".SH NAME",
        r"msrward \- judge whether a kernel keeps the promises of its KVM MSR filter",
        *(".SH SYNOPSIS", ".B msrward", r"\fICOMMAND\fR [\fIOPTION\fR]... [\fIARGUMENT\fR]..."),
        *(".SH DESCRIPTION", _roff(parser.description or "")),
        *(".SH OPTIONS", *_arguments(parser)),
        *(".SH COMMANDS", *_commands(parser)),
        *(".SH EXIT STATUS", "Of a command that judges a kernel:", *_statuses(parser)),
        *(".SH SEE ALSO", r"docs/environment.md has the environment variables."),
    ]
    return "\n".join(lines) + "\n"


def _commands(parser: argparse.ArgumentParser, above: str = "") -> Iterator[str]:
    """Yield a section for each command below ``parser``, and for each below that."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from (f'.SS "{_roff(above + name)}"', _roff(inner.description or ""))
                yield from _arguments(inner)
                if inner.epilog:
                    yield from (".PP", "Exit status:", *_statuses(inner))
                yield from _commands(inner, f"{above}{name} ")


def _statuses(parser: argparse.ArgumentParser) -> list[str]:
    """Return the table at the end of a command's help, without its title."""
    return [".nf", *map(_roff, (parser.epilog or "").split("\n")[1:]), ".fi"]


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        hidden = action.help == argparse.SUPPRESS
        if not hidden and not isinstance(action, argparse._SubParsersAction):
            yield from (".TP", rf"\fB{_roff(_shape(action))}\fR", _roff(_help(parser, action)))


def _shape(action: argparse.Action) -> str:
    """Return an argument as it is typed: ``-o DIR, --output DIR`` or ``GLOB``."""
    shown = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    value = " ".join(shown) if isinstance(shown, tuple) else str(shown or action.dest.upper())
    if not action.option_strings:
        return value
    return ", ".join(
        f"{each} {value}" if action.nargs != 0 else each for each in action.option_strings
    )


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return str((action.help or "") % {**vars(action), "prog": parser.prog})


def _roff(text: str) -> str:
    """Return ``text`` as roff prints it: nothing in it is a request or an escape."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(
        rf"\&{line}" if line[:1] in (".", "'") else line for line in escaped.split("\n")
    )
