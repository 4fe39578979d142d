"""Run cases on worker processes, each case with a deadline, and watch the kernel log meanwhile.

The master never waits for one worker: it polls the workers' pipes and pidfds, and a worker that
SIGKILL cannot end (stuck in the kernel) is recorded and left behind.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vmm.conformance.host.klog import KernelLog
from vmm.conformance.host.splats import Splat
from vmm.conformance.judge.judging import BackendFactory
from vmm.conformance.judge.owners import owners, why_not_ours
from vmm.conformance.judge.recording import Options, case_record
from vmm.conformance.judge.worker import Worker, spawn
from vmm.conformance.kernel import waits
from vmm.conformance.language.case import Case
from vmm.conformance.records.schema import CaseOutcome, CaseRecord
from vmm.conformance.records.verdict import Verdict

DEATH_SECONDS = 1.0
"""How long a SIGKILLed worker may take to die before it counts as stuck in the kernel."""


LOOK = 0.25
"""Seconds between two looks at whether a worker is stopped."""

LATE = 0.5
"""Seconds by which a wait may be late before it says that we were stopped ourselves."""


class Watcher(Protocol):
    """Who is told of a run as it goes on."""

    @property
    def interval(self) -> float:
        """How many seconds may pass between two calls of ``tick``."""

    def case(self, record: CaseRecord) -> None:
        """Take the record of one case that has ended."""

    def tick(self, running: Sequence[str]) -> None:
        """Take note of the cases that run now."""


def run(
    cases: Sequence[Case],
    factory: BackendFactory,
    options: Options,
    watcher: Watcher,
    log: KernelLog | None = None,
) -> list[Splat]:
    """Judge all cases; each leaves one record with ``watcher``, in the order they end.

    Returns the splats that fell in no case, and those that are ``foreign`` to all of them.
    Whatever ends the run (KeyboardInterrupt, or an error of the watcher, which propagates), no
    worker outlives it but one that the kernel holds.
    """
    master = _Master(cases, factory, options, watcher, log)
    try:
        master.run()
    finally:
        master.stop()
    return master.stray


class _Master:
    """The state of one run: what is to do, who does it, who handles which descriptor."""

    def __init__(
        self,
        cases: Sequence[Case],
        factory: BackendFactory,
        options: Options,
        watcher: Watcher,
        log: KernelLog | None,
    ) -> None:
        self.cases, self.factory, self.options = cases, factory, options
        self.watcher, self.log = watcher, log
        self.todo = deque(range(len(cases)))
        self.workers: list[Worker] = []
        self.stray: list[Splat] = []
        self.poller = select.poll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.lifeline = os.pipe()
        self._looked = time.monotonic()

    def run(self) -> None:
        """Work until every case has its record."""
        while self.todo or self._busy():
            self._dispatch()
            self.watcher.tick([worker.case.id for worker in self._busy() if worker.case])
            self._wait()

    def stop(self) -> None:
        """End all workers: idle ones by end of file, busy ones and what is left by SIGKILL."""
        for worker in self.workers:
            worker.dismiss()
        self._see_them_end()
        for worker in self.workers:
            worker.kill()
        self._see_them_end()
        for worker in list(self.workers):
            self._forget(worker)
        for fd in self.lifeline:
            os.close(fd)
        self._collect_splats()

    def _see_them_end(self) -> None:
        """Bury workers until none is left, or none has died for ``DEATH_SECONDS``."""
        deadline = time.monotonic() + DEATH_SECONDS
        while self.workers and (left := deadline - time.monotonic()) > 0:
            count = len(self.workers)
            self._poll(left)
            if len(self.workers) < count:
                deadline = time.monotonic() + DEATH_SECONDS

    def _busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.case]

    def _dispatch(self) -> None:
        while self.todo and (worker := self._idle()):
            number = self.todo.popleft()
            case = self.cases[number]
            worker.begin(number, case, self.options.timeout + waits.seconds(case.actions))

    def _idle(self) -> Worker | None:
        live = [worker for worker in self.workers if not worker.killed]
        for worker in live:
            if not worker.case:
                return worker
        return self._hire() if len(live) < self.options.jobs else None

    def _hire(self) -> Worker:
        worker = spawn(self.cases, self.factory, self.lifeline)
        self.workers.append(worker)
        self._watch(worker.outcomes, lambda: self._receive(worker))
        self._watch(worker.pidfd, lambda: self._bury(worker))
        return worker

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler
        self.poller.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self.handlers.pop(fd, None):
            self.poller.unregister(fd)

    def _wait(self) -> None:
        nearest = min((worker.deadline for worker in self._busy()), default=0.0)
        planned = max(0.0, min(self.watcher.interval, nearest - time.monotonic(), LOOK))
        self._poll(planned)
        now = time.monotonic()
        if now < nearest and now - self._looked < LOOK / 2:
            return  # so that many workers do not cost a look at each whenever one has ended
        passed, self._looked = now - self._looked, now
        for worker in self._busy():
            worker.deadline += _stopped(worker, passed, planned)
            if now >= worker.deadline:
                self._overdue(worker)

    def _poll(self, seconds: float) -> None:
        for fd, _ in self.poller.poll(seconds * 1e3 + 1):
            if fd in self.handlers:
                self.handlers[fd]()

    def _receive(self, worker: Worker) -> None:
        outcome = worker.receive()
        if worker.ended:  # it is on its way out; its pidfd tells when, and this end must not spin
            self._unwatch(worker.outcomes)
        if outcome and worker.case and not worker.killed:
            self._finish(worker, outcome)

    def _overdue(self, worker: Worker) -> None:
        if worker.killed:
            self._finish(
                worker, self._timed_out(worker, f"; worker {worker.pid} is stuck in the kernel")
            )
            self._forget(worker)
        else:
            worker.kill()
            worker.deadline = time.monotonic() + DEATH_SECONDS

    def _bury(self, worker: Worker) -> None:
        self._receive(worker)
        _, status = os.waitpid(worker.pid, os.WNOHANG)
        if worker.case:
            self._finish(worker, self._timed_out(worker) if worker.killed else _died(status))
        self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        for fd in (worker.outcomes, worker.pidfd):
            self._unwatch(fd)
        self.workers.remove(worker)
        worker.close()

    def _timed_out(self, worker: Worker, note: str = "") -> CaseOutcome:
        limit = f"killed at its deadline of {worker.limit:g} s"
        return {"verdict": Verdict.TIMEOUT, "error": limit + note}

    def _finish(self, worker: Worker, outcome: CaseOutcome) -> None:
        self._collect_splats()  # while the worker still counts as at its case
        case, splats = worker.case, worker.splats
        assert case is not None
        record = case_record(case, outcome, worker.elapsed_ms(), splats, self.options)
        worker.case, worker.splats = None, []
        self.watcher.case(record)

    def _collect_splats(self) -> None:
        for splat in self.log.poll() if self.log else ():
            busy = self._busy()
            why = why_not_ours(splat, busy)
            those = () if why else owners(splat, busy)
            for worker in those:
                worker.splats.append(list(splat.lines))
            if not those:
                self.stray.append(replace(splat, foreign=why))


def _stopped(worker: Worker, passed: float, planned: float) -> float:
    """Return how many of the seconds that ``passed`` the worker, or all of us, stood still.

    A stopped master does not look: it finds its wait of ``planned`` seconds to have been long.
    """
    if passed > planned + LATE:
        return passed - planned
    try:
        stat = Path(f"/proc/{worker.pid}/stat").read_text()
    except OSError:
        return 0.0
    return passed if stat.rpartition(")")[2].split()[0] in ("T", "t") else 0.0


def _died(status: int) -> CaseOutcome:
    code = os.waitstatus_to_exitcode(status)
    how = f"exited with status {code}" if code >= 0 else f"died: {signal.strsignal(-code)}"
    return {"verdict": Verdict.ERROR, "error": f"the worker {how}"}
