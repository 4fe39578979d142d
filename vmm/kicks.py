"""The signal that makes a thread leave ``KVM_RUN``."""

from __future__ import annotations

import errno
import signal
import threading

from vmm._native import lib
from vmm.errors import KvmError

KICK = signal.SIGUSR1


def allow_kicks() -> None:
    """Let ``KICK`` interrupt a run; a handler that the process has already stays."""
    result = lib.mw_kick_handler(KICK)
    if result < 0:
        raise KvmError(-result, "sigaction")


def send_kick(tid: int) -> None:
    """Send it to a thread, by the kernel's number; one that has ended needs none."""
    result = lib.mw_kick(tid, KICK)
    if result < 0 and -result != errno.ESRCH:
        raise KvmError(-result, "tgkill")


def tid_of(thread: int) -> int:
    """Return the kernel's number of a thread; ``ValueError`` if it is none of ``threading``'s."""
    alive = {each.ident: each.native_id for each in threading.enumerate()}
    if not alive.get(thread):
        raise ValueError(f"kick: no thread {thread!r} runs: give its threading.get_ident()")
    return alive[thread] or 0
