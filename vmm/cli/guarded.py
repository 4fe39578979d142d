"""How commands end that do not get to their end: in one line, with all that they started."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps

from vmm.cli.output import complain
from vmm.conformance.host.interrupts import take_signals, terminable
from vmm.conformance.records.status import Status

Call = Callable[[argparse.Namespace], int]


def in_one_line(call: Call) -> Call:
    """Let what the lab cannot do end like any other trouble."""

    @wraps(call)
    def guarded(args: argparse.Namespace) -> int:
        from vmm.conformance.judge.check import Trouble
        from vmm.lab.errors import LabError

        try:
            return call(args)
        except LabError as error:
            raise Trouble(str(error)) from None

    return guarded


def ended(
    call: Callable[[], int], *troubles: type[Exception], interrupted: str = "interrupted"
) -> int:
    """Return how a script ends that does ``call``; trouble and Ctrl-C are one line each."""
    try:
        take_signals()
        with terminable():
            return call()
    except troubles as error:
        return complain(str(error))
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return Status.INTERRUPTED
