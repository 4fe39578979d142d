"""How the commands are parsed: errors are one line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, NoReturn

from vmm.cli.output import say
from vmm.conformance.records.plain import plain
from vmm.conformance.records.status import Status, epilog, statuses


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and end with the status of trouble."""
        self.exit(Status.TROUBLE, f"msrward: {plain(message)}; see '{self.prog} --help'\n")

    def print_help(self, file: Any = None) -> None:
        """Print the help to stdout."""
        say(self.format_help().rstrip())  # argparse would keep silent when stdout fails


def script(name: str, description: str, meanings: Mapping[int, str]) -> Parser:
    """Return the parser of ``scripts/NAME``; its help ends with what its exit statuses mean."""
    return Parser(
        prog=f"scripts/{name}",
        description=description,
        epilog=epilog(meanings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_command(commands: Any, name: str, call: Any, text: str) -> Any:
    """Return the parser of a new command that ``call`` does; ``text`` is its one line of help.

    Its help ends with its exit statuses; ``call`` is None for one that only has commands.
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if call:
        parser.epilog = epilog(statuses(parser.prog.partition(" ")[2]))
    parser.set_defaults(call=call)
    return parser
