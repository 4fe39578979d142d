"""Watch the kernel log for splats: WARN, BUG, KASAN, lockdep, RCU stalls and their kin."""

import errno
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from vmm.closing import Closing
from vmm.conformance.host import containers

MAX_LINES = 256  # of one splat; what follows is dropped
SETTLE_SECONDS = 0.05  # the kernel prints a splat line by line: time for the rest of it
_CHUNK = 16384  # one read of /dev/kmsg is one whole record of at most 8 KiB, else EINVAL
_MAX_READS = 100_000  # of one poll: a log that floods must not hold the run
_CUT = "cut here"
MSR_ACCESS = "MSR access"

# What the first line of a splat begins with, and the source file that prints it (a test looks it up
# there). Always anchored: a healthy boot log says "bugs :", "[Firmware Bug]:" and "Speculative
# Return Stack Overflow: WARNING: See ...". No groups in here.
_HEADERS = (
    (_CUT, r"-+\[ cut here \]-+$", "include/asm-generic/bug.h"),
    ("KASAN", r"BUG: KASAN: ", "mm/kasan/report.c"),
    ("KMSAN", r"BUG: KMSAN: ", "mm/kmsan/report.c"),
    ("KCSAN", r"BUG: KCSAN: ", "kernel/kcsan/report.c"),
    ("KFENCE", r"BUG: KFENCE: ", "mm/kfence/report.c"),
    ("UBSAN", r"UBSAN: ", "lib/ubsan.c"),
    ("RCU usage", r"WARNING: suspicious RCU usage", "kernel/locking/lockdep.c"),
    ("RCU usage", r"(?:rcu: )?cleanup_srcu_struct: Active srcu_struct", "kernel/rcu/srcutree.c"),
    ("RCU stall", r"(?:rcu: )?INFO: rcu_\w+ .*\bstall", "kernel/rcu/tree_stall.h"),
    ("RCU stall", r"(?:rcu: )?rcu_\w+ kthread starved", "kernel/rcu/tree_stall.h"),
    ("RCU stall", r"(?:rcu: )?rcu_\w+ kthread timer wakeup", "kernel/rcu/tree_stall.h"),
    (
        "lockdep",
        r"WARNING: .*\b(?:un)?lock(?:ing)?\b.* (?:detected|state|freed|taken|space)",
        "kernel/locking/lockdep.c",
    ),
    ("lockdep", r"WARNING: .* still has locks held", "kernel/locking/lockdep.c"),
    ("lockdep", r"WARNING: chain_key collision", "kernel/locking/lockdep.c"),
    ("lockdep", r"WARNING: bad contention", "kernel/locking/lockdep.c"),
    ("lockdep", r"\[ BUG: ", "kernel/locking/lockdep.c"),
    ("lockdep", r"INFO: trying to register non-static key", "kernel/locking/lockdep.c"),
    ("WARN", r"WARNING: (?:CPU: \d+ PID: \d+ |at |.* CPU#\d+: )", "kernel/panic.c"),
    ("scheduling while atomic", r"BUG: scheduling while atomic", "kernel/sched/core.c"),
    ("soft lockup", r"(?:watchdog: )?BUG: soft lockup", "kernel/watchdog.c"),
    (
        "hard lockup",
        r"(?:NMI )?[Ww]atchdog: (?:CPU\d+: )?Watchdog detected hard LOCKUP",
        "kernel/watchdog_hld.c",
    ),
    ("hung task", r"INFO: task .+:\d+ .*blocked .*for more than", "kernel/hung_task.c"),
    ("list corruption", r"list_(?:add|del)\w* (?:corruption|double add)", "lib/list_debug.c"),
    ("refcount_t", r"refcount_t: ", "lib/refcount.c"),
    ("kmemleak", r"kmemleak: \d+ new suspected memory leaks", "mm/kmemleak.c"),
    (
        "general protection fault",
        r"(?:Oops: )?general protection (?:fault|error)\b",
        "arch/x86/kernel/traps.c",
    ),
    ("Oops", r"(?:traps: )?PANIC: ", "arch/x86/kernel/traps.c"),
    ("Oops", r"Oops: |BUG: unable to handle |BUG: kernel NULL pointer ", "arch/x86/mm/fault.c"),
    ("Oops", r"[a-z][\w -]*: [0-9a-f]{4} \[#\d+\]", "arch/x86/kernel/dumpstack.c"),
    ("panic", r"Kernel panic - not syncing", "kernel/panic.c"),
    (MSR_ACCESS, r"unchecked MSR access error: ", "arch/x86/mm/extable.c"),
    ("BUG", r"kernel BUG at ", "lib/bug.c"),
    # Tables of lockdep that are full begin with MAX_: they are no splat.
    ("BUG", r"BUG: (?!MAX_)", "kernel/locking/spinlock_debug.c"),
    ("BUG", r"BUG \S.* \(.*\): ", "mm/slub.c"),
)
# These go on after their first stack trace, to "---[ end trace" or to a bar of "=".
_LONG = {_CUT, "KASAN", "KMSAN", "KCSAN", "KFENCE", "UBSAN", "general protection fault", "Oops"}
# The last line of a splat, or the only one.
_END = r"---\[ end |={20,}$|kmemleak: |(?:rcu: )?cleanup_srcu_struct: |BUG: (?:Bad rss|non-zero )"
_IN_TRACE = r"\s|$|Call Trace|Modules linked|RIP|R[A-Z0-9]{2}:|Code:|CS:|FS:|CR2:|DR\d:|PKRU:"
_TIMESTAMP = r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? |\r$"  # serial consoles have them
_TASKS = (
    r"\bPID: (?P<pid>\d+)(?: Comm: (?P<comm>.+?) (?:Not tainted|Tainted:|Kdump:))?",
    r"\bCPU#\d+: (?P<comm>.+)/(?P<pid>\d+)$",
    r"\bby task (?:(?P<comm>\S.*)/)?(?P<pid>\d+)\b",
    r"stuck for .*\[(?P<comm>[^\[\]]+):(?P<pid>\d+)\]",
    r"INFO: task (?P<comm>.+):(?P<pid>\d+) .*blocked",
    r"while atomic: (?P<comm>.+)/(?P<pid>\d+)/0x",
    r"\bpid: (?P<pid>\d+), name: (?P<comm>.+)",
    r"^(?:WARNING: )?(?P<comm>\S.*)/(?P<pid>\d+) (?:is |just changed|\[HC|still has)",
    r"\bheld by (?P<comm>.+)/(?P<pid>\d+)[:.]",
    r"\bcode: (?P<comm>.+)/(?P<pid>\d+)$",
    r"^task:(?P<comm>\S+) .*\bpid:\s*(?P<pid>\d+)",
    r"\sP(?P<pid>\d+)/\d+:(?P<comm>)",
)


@dataclass(frozen=True, slots=True)
class Splat:
    """One complaint of the kernel: its kind, the line that names it, and all its lines.

    `pids` are the thread ids it names, as the initial PID namespace numbers them, and `comms`
    their names; both in order of appearance, without repeats, and empty when it names none.
    """

    kind: str
    first: str
    lines: tuple[str, ...]
    pids: tuple[int, ...]
    comms: tuple[str, ...]
    foreign: str = ""
    """Why it surely comes of another process's doing (``host.foreign``), once that is known."""


def find_splats(messages: Iterable[str]) -> list[Splat]:
    """Find the splats in kernel messages, one a string, with or without console timestamps."""
    scan = _Scan()
    for message in messages:
        for line in message.split("\n"):
            scan.feed(_pattern(_TIMESTAMP).sub("", line))
    scan.close()
    return scan.splats


def kernel_message(record: str) -> tuple[int, str] | None:
    """Parse one /dev/kmsg record "prio,seq,usec,flags[,..];text" to sequence number and text.

    None for a continuation line " KEY=value" and for what is not a record. The text is "" unless
    the kernel itself wrote it (facility 0), which nobody who writes to /dev/kmsg can claim.
    """
    header, separator, text = record.partition(";")
    match header.split(","):
        case [prio, seq, *_] if separator and prio.isdecimal() and seq.isdecimal():
            return int(seq), _unescape(text) if int(prio) >> 3 == 0 else ""
    return None


class KernelLog(Closing):
    """The kernel log from the moment of opening on; a context manager.

    `lost` counts the records that the kernel overwrote before they were read: at least that many.
    """

    def __init__(self, path: str = "/dev/kmsg", *, from_start: bool = False) -> None:
        """Open `path`, or raise OSError; what was logged before counts with `from_start` only."""
        self.lost = 0
        self._next_seq: int | None = None
        self._partial = b""
        self._messages: list[str] = []
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.lseek(self._fd, 0, os.SEEK_SET if from_start else os.SEEK_END)
        except OSError as error:
            if error.errno != errno.ESPIPE:  # a pipe has no position: it begins here
                self.close()
                raise

    @classmethod
    def open_or_reason(cls, path: str = "/dev/kmsg") -> "KernelLog | str":
        """Return the open log, or a short reason why this process cannot watch it."""
        log = None
        try:
            log = cls(path)
            _refuse_other_files(log._fd)
            log._fill()
        except OSError as error:
            if log is not None:
                log.close()
            return f"{path}: {error.strerror}{_HINTS.get(error.errno or 0, '')}"
        return log

    def close(self) -> None:
        """Close the log; harmless when closed already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def poll(self) -> list[Splat]:
        """Return the splats since the last call or since opening; takes 50 ms if there is one."""
        self._fill()
        if find_splats(self._messages):
            time.sleep(SETTLE_SECONDS)
            self._fill()
        messages, self._messages = self._messages, []
        return find_splats(messages)

    def _fill(self) -> None:
        for chunk in self._chunks():
            *records, self._partial = (self._partial + chunk).split(b"\n")
            for record in records:
                self._take(record.decode(errors="replace"))

    def _chunks(self) -> Iterator[bytes]:
        for _ in range(_MAX_READS):
            try:
                chunk = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                # EPIPE: overwritten; EINVAL: longer than the buffer. Both skip the record, and
                # the gap in the sequence numbers tells how many, once there is a number.
                if error.errno not in (errno.EPIPE, errno.EINVAL):
                    raise
                self.lost += self._next_seq is None
                continue
            if not chunk:
                return
            yield chunk

    def _take(self, record: str) -> None:
        message = kernel_message(record)
        if message is None:
            return
        seq, text = message
        if self._next_seq is not None:
            self.lost += max(0, seq - self._next_seq)
        self._next_seq = seq + 1
        self._messages.append(text)


class _Scan:
    """Reads lines, knows which belong to the splat at hand, and collects the splats."""

    def __init__(self) -> None:
        self.splats: list[Splat] = []
        self._lines: list[str] = []
        self._long = self._traced = False

    def feed(self, line: str) -> None:
        kind = _kind(line)
        if self._lines and not self._owns(line, kind):
            self.close()
        if not self._lines and not kind:
            return
        if not self._lines:
            self._long, self._traced = kind in _LONG, False
        self._lines.append(line)
        self._traced |= line.startswith("Call Trace")
        if _pattern(_END).match(line):
            self.close()

    def close(self) -> None:
        """Put the splat at hand, if any, with the others."""
        if self._lines:
            self.splats.append(_splat(self._lines))
        self._lines = []

    def _owns(self, line: str, kind: str) -> bool:
        if kind == _CUT or len(self._lines) >= MAX_LINES:
            return False
        if self._long:
            return True
        return not kind and (not self._traced or bool(_pattern(_IN_TRACE).match(line)))


def _splat(lines: list[str]) -> Splat:
    named = (line for line in lines if _kind(line) not in ("", _CUT))
    first = next(named, lines[min(1, len(lines) - 1)])
    kind = "WARN" if _kind(first) in ("", _CUT) else _kind(first)
    found = [m for line in lines for text in _TASKS for m in _pattern(text).finditer(line)]
    pids = dict.fromkeys(int(m["pid"]) for m in found)
    comms = dict.fromkeys(m["comm"] for m in found if m["comm"])
    return Splat(kind, first, tuple(lines), tuple(pids), tuple(comms))


def _kind(line: str) -> str:
    found = _pattern("|".join(f"({text})" for _, text, _ in _HEADERS)).match(line)
    return _HEADERS[found.lastindex - 1][0] if found and found.lastindex else ""


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def _unescape(text: str) -> str:
    """Undo what /dev/kmsg does to control characters, backslashes and non-ASCII bytes."""
    return _pattern(r"\\x([0-9a-f]{2})").sub(lambda m: chr(int(m[1], 16)), text)


_CONTAINER = f" ({containers.KMSG})"
_HINTS = {
    errno.EPERM: " (kernel.dmesg_restrict: needs root)",
    errno.ENOENT: _CONTAINER,
    errno.ENODEV: _CONTAINER,
}


def _refuse_other_files(fd: int) -> None:
    """Raise OSError where a container has put /dev/null or a console in the place of kmsg."""
    status = os.fstat(fd)
    kmsg = stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 11)
    if not (kmsg or stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
        raise OSError(errno.ENODEV, "not the kernel log")
