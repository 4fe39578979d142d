"""What the lab cannot do ends a command like any other trouble: one line, status 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import wraps

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
