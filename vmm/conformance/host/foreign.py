"""Whose splat is it? What surely comes of another process's doing is foreign to a run.

A splat that may be ours stays ours: foreign is only what names tasks that live, all of them
outside of our process tree, or an MSR that no running script used.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vmm.conformance.host.splats import MSR_ACCESS, Splat

INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of include/linux/proc_ns.h
KERNEL_THREAD = 0x00200000  # PF_KTHREAD of include/linux/sched.h
OUR_TAINTS = "WDBLM"
"""What a broken KVM can set: a WARN, an Oops, a bad page, a soft lockup, a machine check."""

_MSR = re.compile(r"(?:RDMSR from|WRMSR to) 0x([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Ours:
    """What belongs to a run: the process at its root, and the MSRs of the scripts that run now.

    ``indices`` None: which MSRs are used is not known, so any may be.
    """

    root: int
    indices: Collection[int] | None = None
    proc: Path = Path("/proc")


def why_foreign(splat: Splat, ours: Ours) -> str | None:
    """Return in a few words why ``splat`` is another's, or None where it may be ours.

    The kernel prints thread ids of the initial PID namespace: in another one they say nothing.
    A kernel thread works for whoever asked it to, and the dead cannot be asked: both may be ours.
    """
    if splat.kind == MSR_ACCESS and (found := _MSR.search(splat.first)):
        return _why_foreign_msr(int(found[1], 16), ours)
    if not _in_initial_namespace(ours.proc):
        return None
    tasks = {pid: _Task.read(ours.proc, pid) for pid in splat.pids if pid}
    if not tasks or any(_may_be_ours(task, ours) for task in tasks.values()):
        return None
    return "it names " + ", ".join(f"{task.comm} ({pid})" for pid, task in tasks.items() if task)


def _why_foreign_msr(index: int, ours: Ours) -> str | None:
    used = ours.indices is None or index in ours.indices
    return None if used else f"MSR {index:#x} is in no script that runs"


def foreign_taint(letters: str) -> str:
    """Return those of the new taint ``letters`` that no KVM sets: of a module, a live patch."""
    return "".join(letter for letter in letters if letter not in OUR_TAINTS)


@dataclass(frozen=True, slots=True)
class _Task:
    """A thread as ``/proc/TID/stat`` tells: of the process ``parent`` began, in ``group``."""

    comm: str
    parent: int
    group: int
    flags: int

    @classmethod
    def read(cls, proc: Path, pid: int) -> _Task | None:
        """Return the thread, or None when it is gone; /proc hides threads but opens them."""
        try:
            text = (proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return None
        name, _, rest = text.partition("(")[2].rpartition(")")
        values = rest.split()
        return cls(name, int(values[1]), int(values[2]), int(values[6]))


def _may_be_ours(task: _Task | None, ours: Ours) -> bool:
    if task is None or task.flags & KERNEL_THREAD:
        return True
    root = _Task.read(ours.proc, ours.root)
    # Orphans of a worker that was killed have another parent, but stay in the process group.
    return root is None or task == root or task.group == root.group or _descends(task, ours)


def _descends(task: _Task, ours: Ours) -> bool:
    above: _Task | None = task
    for _ in range(64):
        if above is None or above.parent <= 1:
            return False
        if above.parent == ours.root:
            return True
        above = _Task.read(ours.proc, above.parent)
    return True


def _in_initial_namespace(proc: Path) -> bool:
    try:
        return (proc / "self/ns/pid").stat().st_ino == INITIAL_PID_NAMESPACE
    except OSError:
        return False
