"""Run one emulator until its guest has said all that matters, and leave nothing running."""

from __future__ import annotations

import os
import pty
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vmm.conformance.host.containers import pidfd_of
from vmm.conformance.kernel.patience import Patience
from vmm.lab.errors import LabError
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines.console import FLOOD, Console, Records
from vmm.lab.machines.pulse import Pulse

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Boot:
    """What an emulator is to boot: a kernel, its initramfs, its command line, its CPUs.

    ``cpu`` is the emulator's CPU model, "" for the vendor's own.
    """

    kernel: Kernel
    vendor: str
    initramfs: bytes
    cmdline: str
    smp: int
    cpu: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """An emulator's command line, the variables to add to its environment, the signals to block."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    blocked: frozenset[signal.Signals] = frozenset()


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told of a boot as it goes on.

    `line` gets each line of the payload's output, `start` the seconds to the payload's start,
    `tick` is called several times a second.
    """

    line: Callable[[str], None] = lambda _: None
    start: Callable[[float], None] = lambda _: None
    tick: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Run:
    """How a run went: seconds to the payload's start (None if it never started) and to the end.

    `said` is what the emulator itself printed; `expired` that the deadline ended the run, `frozen`
    that it was ended since the emulator did nothing any more (`Pulse`).
    """

    boot_seconds: float | None
    total_seconds: float
    expired: bool
    said: str
    frozen: bool = False


def run(
    command: Command,
    work: Path,
    console: Console,
    records: Records,
    timeout: float,
    *,
    listener: Listener | None = None,
) -> Run:
    """Run the emulator, whose serial ports are the files ttyS0 and ttyS1 in `work`.

    Returns when the records are finished, the kernel has panicked, the emulator has exited or is
    frozen, or `timeout` seconds have passed in which we were not stopped. Whatever happens, the
    emulator is gone afterwards.
    """
    with ExitStack() as stack:
        serial = [stack.enter_context(_fifo(work / name)) for name in ("ttyS0", "ttyS1")]
        terminal, process = stack.enter_context(_emulator(command, work))
        exited = pidfd_of(process.pid)
        stack.callback(os.close, exited)
        watch = stack.enter_context(selectors.DefaultSelector())
        for descriptor in (*serial, terminal, exited):
            watch.register(descriptor, selectors.EVENT_READ)
        descriptors = (serial[0], serial[1], terminal, exited)
        told, pulse = listener or Listener(), Pulse(process.pid)
        return _Running(*descriptors, watch, console, records, told, pulse).go(timeout)


@dataclass
class _Running:
    console_fd: int
    records_fd: int
    terminal_fd: int
    exited_fd: int
    selector: selectors.BaseSelector
    console: Console
    records: Records
    listener: Listener
    pulse: Pulse
    said: bytes = b""
    gone: bool = False
    frozen: bool = False
    boot_seconds: float | None = None

    def go(self, timeout: float) -> Run:
        begin = time.monotonic()
        self.records.on_kvm = lambda: self._start(time.monotonic() - begin)
        patience = Patience(timeout)
        while (is_left := bool(patience)) and not self._over():
            for key, _ in (ready := self.selector.select(patience.slice())):
                self._take(key.fd)
            self.frozen = not ready and self.pulse.is_frozen()
            self.listener.tick()
        self._drain()
        text = self.said.decode(errors="replace")
        seconds = time.monotonic() - begin
        return Run(self.boot_seconds, seconds, not is_left, text, self.frozen)

    def _start(self, seconds: float) -> None:
        self.boot_seconds = seconds
        self.listener.start(seconds)

    def _over(self) -> bool:
        console = self.console
        over = self.gone or self.frozen or self.records.finished
        return over or console.panicked or console.flooded

    def _take(self, descriptor: int) -> None:
        if descriptor == self.exited_fd:
            self.gone = True
        else:
            self._read(descriptor)

    def _drain(self) -> None:
        """Read what was said before the end and is not read yet: `select` need not tell of it.

        A terminal gives at most 4 KiB a read, and `select` may miss what its kernel worker has not
        moved yet; a read never does. Bounded, for an emulator that has not ended may go on.
        """
        for descriptor in (self.console_fd, self.records_fd, self.terminal_fd):
            for _ in range(_CHUNK // 1024):
                if not self._read(descriptor):
                    break

    def _read(self, descriptor: int) -> bool:
        """Take what there is; return whether there was anything."""
        try:
            data = os.read(descriptor, _CHUNK)
        except OSError:  # nothing there, or no one who could write more
            return False
        if descriptor == self.console_fd:
            self.console.feed(data)
        elif descriptor == self.records_fd:
            self.records.feed(data)
        else:
            self.said = (self.said + data)[-_CHUNK:]
        return bool(data)


@contextmanager
def _fifo(path: Path) -> Iterator[int]:
    """Open both ends of a FIFO, so that no missing reader or writer blocks or ends it."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _emulator(command: Command, work: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start the emulator in its own session, on its own terminal (Bochs insists on one)."""
    try:
        terminal, inner = pty.openpty()
    except OSError as error:
        why = f"no pseudo-terminal for the emulator: {error.strerror}"
        raise LabError(f"{why}; mount one: mount -t devpts devpts /dev/pts") from None
    os.set_blocking(terminal, False)
    ours = signal.pthread_sigmask(signal.SIG_BLOCK, command.blocked)  # a mask outlives an exec
    try:
        process = subprocess.Popen(
            (*_ends_with_us(), *command.argv),
            cwd=work,
            env={**os.environ, **command.environment},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, ours)
        os.close(inner)
    with suppress(ProcessLookupError):  # what it writes itself, a log say, is bounded as well
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FLOOD, FLOOD))
    try:
        yield terminal, process
    finally:
        _end(process)
        os.close(terminal)


def _ends_with_us() -> tuple[str, ...]:
    """Even a killed msrward leaves no emulator behind, where util-linux is there to see to it."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()


def _end(process: subprocess.Popen[bytes]) -> None:
    # The group exists until its leader is waited for, so this reaches no one else.
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
