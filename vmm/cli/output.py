"""What the commands print: reports on stdout, one-line complaints on stderr."""

from __future__ import annotations

import sys
from contextlib import suppress

from vmm.conformance.records.plain import plain, plain_lines
from vmm.conformance.records.status import Status


class StdoutFailed(Exception):
    """What is printed cannot be; the text is one line."""


def complain(line: str) -> int:
    """Print the line to stderr and return the exit status of trouble."""
    with suppress(OSError):  # stderr is closed: the status must do
        print(f"msrward: {plain(line)}", file=sys.stderr, flush=True)
    return Status.TROUBLE


def say(text: str) -> None:
    """Print the text, made plain, to stdout; StdoutFailed says why that cannot be."""
    if sys.stdout is None:  # it was closed before we began
        raise StdoutFailed("cannot write to stdout: it is closed")
    try:
        print(plain_lines(text), flush=True)
    except BrokenPipeError:
        raise StdoutFailed("stdout was closed early") from None
    except OSError as error:
        raise StdoutFailed(f"cannot write to stdout: {error.strerror}") from None
