"""How commands end that do not get to their end: in one line, with all that they started."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import NoReturn

from vmm.cli.output import complain
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
        with terminable():
            return call()
    except troubles as error:
        return complain(str(error))
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return Status.INTERRUPTED


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def terminable() -> Iterator[None]:
    """Within: SIGTERM ends a command as Ctrl-C does, and so what it has started.

    It counts once: timeout(1) sends it to a process and to its group, and the second must not stop
    us from taking things away. Where somebody ignores or handles it already, that stays so.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
