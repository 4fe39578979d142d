"""One worker process: it owns a backend and judges the cases it is sent, one at a time.

A worker is forked after all imports. It reads case numbers from one pipe and writes each outcome
to another as a line of JSON. It never outlives its master, not even a master killed by SIGKILL:
it has the kernel send it SIGKILL when the last write end of the ``lifeline`` pipe closes.
"""

from __future__ import annotations

import fcntl
import gc
import itertools
import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from vmm.conformance.host.containers import pidfd_of
from vmm.conformance.host.parameters import ignores_msrs
from vmm.conformance.judge.judging import Backend, BackendFactory, failed, judge
from vmm.conformance.language.case import Case
from vmm.conformance.records.schema import CaseOutcome
from vmm.conformance.records.verdict import Verdict

O_ASYNC = 0o20000  # fcntl.h; Python's os module does not name it


@dataclass(slots=True)
class Worker:
    """The master's handle of one worker: its process, its pipes, and the case it is at.

    ``deadline`` is in seconds of the monotonic clock; ``ended`` says that it closed its pipe.
    """

    pid: int
    pidfd: int
    commands: int
    outcomes: int
    case: Case | None = None
    deadline: float = 0.0
    limit: float = 0.0
    killed: bool = False
    ended: bool = False
    splats: list[list[str]] = field(default_factory=list)
    _began: float = 0.0
    _partial: bytes = b""

    def begin(self, number: int, case: Case, timeout: float) -> None:
        """Let the worker judge ``case``, which is ``number`` of the cases it was forked with."""
        self.case, self._began, self.limit = case, time.monotonic(), timeout
        self.deadline = self._began + timeout
        with suppress(BrokenPipeError):  # it is dead: its pidfd says so
            os.write(self.commands, b"%d\n" % number)

    def receive(self) -> CaseOutcome | None:
        """Take what the worker has written; return an outcome once it is whole."""
        try:
            chunk = os.read(self.outcomes, 1 << 16)
        except BlockingIOError:
            return None
        self.ended = not chunk
        line, end, rest = (self._partial + chunk).partition(b"\n")
        self._partial = rest if end else line
        if not end:
            return None
        outcome: CaseOutcome = json.loads(line)
        outcome["verdict"] = Verdict(outcome["verdict"])
        return outcome

    def elapsed_ms(self) -> float:
        """Return the milliseconds since the case began."""
        return round((time.monotonic() - self._began) * 1e3, 3)

    def kill(self) -> None:
        """Send SIGKILL; a worker stuck in the kernel dies only when the kernel lets it."""
        self.killed = True
        with suppress(ProcessLookupError):  # dead already
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def dismiss(self) -> None:
        """Let an idle worker end by itself, and kill one that is at a case."""
        if self.case:
            self.kill()
            self.case = None
        os.close(self.commands)
        self.commands = -1

    def close(self) -> None:
        """Close the master's descriptors."""
        for fd in (self.pidfd, self.commands, self.outcomes):
            if fd >= 0:
                os.close(fd)


def spawn(cases: Sequence[Case], factory: BackendFactory, lifeline: tuple[int, int]) -> Worker:
    """Return a new worker for ``cases``; only the master holds the write end of ``lifeline``."""
    commands, to_worker = os.pipe()
    from_worker, outcomes = os.pipe()
    master = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _become_worker(master, lifeline, keep={commands, outcomes})
            _serve(cases, factory, commands, outcomes)
            status = 0
        except BaseException as error:  # a bug of this module: a case's own errors are outcomes
            os.write(2, f"msrward: worker {os.getpid()}: {error!r}\n".encode())
        finally:
            os._exit(status)
    os.close(commands)
    os.close(outcomes)
    os.set_blocking(from_worker, False)
    return Worker(pid, pidfd_of(pid), to_worker, from_worker)


def _become_worker(master: int, lifeline: tuple[int, int], keep: set[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the master acts
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A description of its own: owner and signal of a pipe end belong to its open description.
    life = os.open(f"/proc/self/fd/{lifeline[0]}", os.O_RDONLY | os.O_CLOEXEC)
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, O_ASYNC)
    _close_all_but({0, 1, 2, life, *keep})
    if os.getppid() != master:  # it died before the line was live
        os._exit(1)
    gc.freeze()


def _close_all_but(keep: set[int]) -> None:
    edges = [-1, *sorted(keep), os.sysconf("SC_OPEN_MAX")]
    for below, above in itertools.pairwise(edges):
        if below + 1 < above:  # os.closerange(0, 0) closes everything (Python 3.11)
            os.closerange(below + 1, above)


def _serve(cases: Sequence[Case], factory: BackendFactory, commands: int, outcomes: int) -> None:
    backend: Backend | None = None
    ignoring = ignores_msrs()
    for line in os.fdopen(commands, "rb"):
        try:
            backend = backend or factory()
            outcome = judge(cases[int(line)], backend, ignoring=ignoring)
            if outcome["verdict"] != Verdict.PASS and ignores_msrs() is not ignoring:
                ignoring = not ignoring  # somebody has set it meanwhile
                outcome = judge(cases[int(line)], backend, ignoring=ignoring)
        except Exception as error:  # no backend
            outcome = failed(error) | {"ms": 0.0}
        _write_all(outcomes, json.dumps(outcome).encode() + b"\n")
        if outcome["verdict"] == Verdict.ERROR:  # nothing is known about its state
            _discard(backend)
            backend = None
    _discard(backend)


def _discard(backend: Backend | None) -> None:
    with suppress(Exception):  # the process ends or a new backend takes over; ERRORs are on record
        if backend:
            backend.close()


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
