"""Splats in what the kernel says: WARN, BUG, KASAN, lockdep, RCU stalls and their kin."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

MAX_LINES = 256  # of one splat; what follows is dropped
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
