"""What a lab guest says: the kernel's console, and the payload's framed output (see init.sh)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

from vmm.conformance.records.plain import plain

_TAIL = 60
_WIDTH = 1000
"""Characters of a console line that are kept."""
LINE = 4 << 20
"""Bytes of a line, at most: of what is longer, the console drops the rest."""
FLOOD = 64 << 20
"""Bytes that a guest may say on either port: no run of ours comes near."""
_FRAME = re.compile(rb"(\d+) (\d+) (\d+) (.*)", re.DOTALL)


class LineReader:
    """Cuts a byte stream into lines without their ends; ``long`` says that one had no end."""

    def __init__(self) -> None:
        self.long = False
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE:
            self.long, self._rest = True, b""
        return [line.rstrip(b"\r") for line in lines]


class Console:
    """The kernel's console: its last lines, and whether the kernel panicked.

    `flooded` says that it wrote more than any kernel does.
    """

    def __init__(self) -> None:
        self.panicked = False
        self._said = 0
        self._lines: deque[str] = deque(maxlen=_TAIL)
        self._reader = LineReader()

    @property
    def flooded(self) -> bool:
        """Whether it wrote more than any kernel does."""
        return self._said > FLOOD

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines, oldest first."""
        return tuple(self._lines)

    def feed(self, data: bytes) -> None:
        """Take what came from the console."""
        self._said += len(data)
        for raw in self._reader.feed(data):
            line = plain(raw[:_WIDTH].decode(errors="replace"))
            self._lines.append(line)
            self.panicked = self.panicked or "end Kernel panic" in line


class Records:
    """The payload's output: every line in order, how far the guest came, its exit status.

    `damaged` says what is wrong with the stream once a line is missing or has the wrong length, or
    there is more than any run of ours has to say;
    `refused` is the first module that the kernel did not take, and why, in words;
    `on_kvm` is called before the payload starts.
    """

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self.on_kvm: Callable[[], None] = lambda: None
        self.lines: list[str] = []
        self.kvm_ready = False
        self.no_kvm = False
        self.refused: tuple[str, str] | None = None
        self.status: int | None = None
        self.damaged: str | None = None
        self._on_line = on_line
        self._said = 0
        self._previous = b""
        self._reader = LineReader()

    @property
    def finished(self) -> bool:
        """Whether nothing more will come that matters."""
        return self.no_kvm or self.status is not None or self.damaged is not None

    def feed(self, data: bytes) -> None:
        """Take what came from the second serial port."""
        for line in self._reader.feed(data):
            if not self.finished:
                self._take(line)
        if self._reader.long and not self.finished:
            self.damaged = f"a line of the output has more than {LINE >> 20} MiB"

    def _take(self, line: bytes) -> None:
        match line.split(b" "):
            case [b"start", _]:
                pass
            case [b"kvm", _]:
                self.kvm_ready = True
                self.on_kvm()
            case [b"refused", module, *words] if not self.kvm_ready:
                # What needs a module that was refused is refused as well: the first is the cause.
                self.refused = self.refused or (_text(module), _text(b" ".join(words)))
            case [b"nokvm"]:
                self.no_kvm = True
            case [b"end", status, count, _] if _is_number(status) and _is_number(count):
                self._end(int(status), int(count))
            case _:
                self._payload_line(line)

    def _payload_line(self, line: bytes) -> None:
        expected = len(self.lines) + 1
        whole = self._unframed(line, expected)
        if whole is None:
            self.damaged = f"line {expected} of the output arrived as {line[:80]!r}"
            return
        self._said += len(whole)  # a short frame may repeat a long line
        if self._said > FLOOD:
            self.damaged = f"the output is more than {FLOOD >> 20} MiB"
            return
        self._previous = whole
        self.lines.append(text := whole.decode(errors="replace"))
        if self._on_line:
            self._on_line(text)

    def _unframed(self, line: bytes, expected: int) -> bytes | None:
        """Return the line as it was written, with what it repeats; None if it is damaged."""
        if not (frame := _FRAME.fullmatch(line)):
            return None
        if any(len(number) > 9 for number in frame.groups()[:3]):
            return None
        sequence, length, repeated = map(int, frame.groups()[:3])
        whole = frame[4] + self._previous[len(self._previous) - repeated :]
        return whole if (sequence, length) == (expected, len(whole)) else None

    def _end(self, status: int, count: int) -> None:
        if count == len(self.lines):
            self.status = status
        else:
            self.damaged = f"{len(self.lines)} of {count} lines of output arrived"


def _text(said: bytes) -> str:
    return plain(said[:_WIDTH].decode(errors="replace"))


def _is_number(text: bytes) -> bool:
    return text.isdigit() and len(text) < 10
