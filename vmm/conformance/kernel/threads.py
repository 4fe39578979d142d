"""Threads that a script's race is made of: one that does one thing, and one that spins."""

from __future__ import annotations

import _thread
import errno
import os
import select
import signal
import threading
from collections.abc import Callable

from vmm._native import ffi, lib
from vmm.conformance.host.limits import exhausted, raise_if_exhausted
from vmm.conformance.kernel.patience import Patience
from vmm.conformance.language.script import Event, Lost, Rejected, stopped
from vmm.errors import KvmError
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.kicks import KICK, allow_kicks
from vmm.msr import MsrExitReason
from vmm.vcpu import Vcpu

IOCTL_CALLS = (b"16", b"54")
"""The numbers of ioctl(2), native and ia32, as /proc/PID/syscall shows them."""

BEGINS_WITHIN = 5.0
"""Seconds within which a thread that was made must get as far as its first line."""

GLANCE = 0.0005
"""Seconds between two looks at a state of the kernel that has no descriptor to wait on."""


def rejected(error: KvmError) -> Event:
    """Return the event of an ioctl that failed; ``ExhaustedError`` if the host's limits did it."""
    raise_if_exhausted(error)
    return Rejected(error.errno or 0)


class Task:
    """A thread that does ``work`` and keeps its event; a ``KvmError`` is ``rejected``.

    Any other error is raised where the event is asked for: it is the host's or ours, and says
    nothing of the kernel.
    """

    def __init__(self, work: Callable[[], Event]) -> None:
        """Start the thread; ``ExhaustedError`` if it has not the memory to begin.

        ``threading.Thread.start`` would wait for ever for such a one.
        """
        self._event: Event | Exception | None = None
        self.ended = os.eventfd(0, os.EFD_CLOEXEC)
        self._work, self.ident, self.native_id = work, 0, 0
        self._began = _thread.allocate_lock()
        self._began.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # no thread, and nobody else who would close it
            os.close(self.ended)
            raise
        patience = Patience(BEGINS_WITHIN)
        while not self._began.acquire(timeout=patience.slice()):
            if not patience:
                raise exhausted(errno.ENOMEM, "a new thread") or AssertionError

    @property
    def event(self) -> Event | None:
        """The event, or None while the thread is at work; raises what ended the work instead."""
        if isinstance(self._event, Exception):
            raise self._event
        return self._event

    @property
    def failure(self) -> Exception | None:
        """What ended the work instead of an event, if anything did."""
        return self._event if isinstance(self._event, Exception) else None

    def wait(self, seconds: float) -> bool:
        """Say whether the thread has ended, after at most ``seconds``."""
        poll = select.poll()  # select() refuses descriptors from 1024 on
        poll.register(self.ended, select.POLLIN)
        patience = Patience(seconds)
        while not (ended := bool(poll.poll(patience.slice() * 1000))) and patience:
            pass
        return ended

    def is_asleep_in_an_ioctl(self) -> bool:
        """Say whether the kernel shows the thread asleep inside an ioctl; OSError if not to us."""
        try:  # "running", or the number of the call it sleeps in
            fd = os.open(f"/proc/self/task/{self.native_id}/syscall", os.O_RDONLY)
        except FileNotFoundError:  # it has ended
            return False
        try:
            return os.read(fd, 256).split(maxsplit=1)[0] in IOCTL_CALLS
        except (OSError, IndexError):
            return False
        finally:
            os.close(fd)

    def close(self, seconds: float) -> bool:
        """Wait for the end; False if the thread is stuck in the kernel."""
        if not self.wait(seconds):
            return False
        os.close(self.ended)
        return True

    def _run(self) -> None:
        self.ident, self.native_id = threading.get_ident(), threading.get_native_id()
        self._began.release()
        try:
            self._event = self._outcome()
        except Exception as error:
            self._event = error
        os.eventfd_write(self.ended, 1)

    def _outcome(self) -> Event:
        try:
            return self._work()
        except KvmError as error:
            return rejected(error)


class Spinner:
    """A thread that runs a vCPU's guest loop and counts the exits it answers."""

    def __init__(self, vcpu: Vcpu, rounds: Callable[[], int], reply: int) -> None:
        """Start it; ``rounds`` reads how often the guest's loop went round."""
        allow_kicks()
        self._vcpu, self.rounds = vcpu, rounds
        self._spin = ffi.new("struct mw_spin *", {"fd": vcpu.fd, "run": vcpu.kvm_run})
        self._spin.reply = reply
        vcpu.kvm_run.kvm_valid_regs = 0
        self.task = Task(self._run)

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until ``condition`` holds; False after ``seconds`` or when the guest has died.

        Raises what ended the thread, if that was not the guest.
        """
        patience = Patience(seconds)
        while not condition():
            if self.task.wait(GLANCE):
                return self.task.event is None
            if not patience:
                return False
        return True

    def exits(self) -> int:
        """Return how many exits were answered."""
        return int(self._spin.exits)

    def last_exit(self) -> RdmsrExit | WrmsrExit:
        """Return the last exit."""
        spin, reason = self._spin, MsrExitReason(self._spin.reason)
        if spin.kind == lib.KVM_EXIT_X86_RDMSR:
            return RdmsrExit(spin.index, reason, spin.data)
        return WrmsrExit(spin.index, reason, spin.data)

    def stop(self, seconds: float) -> bool:
        """End the loop; False if the thread is stuck in the kernel."""
        self._spin.stop = 1
        patience = Patience(seconds)
        while not self.task.wait(GLANCE) and patience:
            self._vcpu.kvm_run.immediate_exit = 1
            signal.pthread_kill(self.task.ident, KICK)
        self._vcpu.kvm_run.immediate_exit = 0
        return self.task.close(0)

    def _run(self) -> Event:
        with self._vcpu.entered():
            result = lib.mw_spin(self._spin)
        if limit := exhausted(-result, "KVM_RUN"):
            raise limit
        return Lost(f"the spinning vCPU ended with {result}") if result else stopped
