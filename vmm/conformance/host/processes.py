"""What else goes on here: free memory, load, and who else uses /dev/kvm. By psutil.

Nothing that runs in a guest of the lab imports this: psutil is not there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import psutil

KVM = "/dev/kvm"
_VM = "anon_inode:kvm-vm"


class User(NamedTuple):
    """A process that has /dev/kvm or a VM open; ``vms`` counts its VMs' descriptors."""

    pid: int
    name: str
    vms: int


def kvm_users() -> tuple[list[User], int]:
    """Return the other processes that use KVM, and how many would not let us look.

    OSError where there is no /proc: psutil finds that out by an IndexError.
    """
    Path("/proc/self").stat()
    found, hidden = [], 0
    ours = {os.getpid(), os.getppid()}
    for process in psutil.process_iter(["name"]):
        targets = _descriptors(process.pid)
        hidden += targets is None
        if targets and process.pid not in ours and {KVM, _VM} & set(targets):
            found.append(User(process.pid, process.info["name"], targets.count(_VM)))
    return found, hidden


def memory_available() -> int:
    """Return the bytes that a new process can have without swapping.

    Where /proc does not tell (``subset=pid``), these are the free ones alone.
    """
    try:
        return int(psutil.virtual_memory().available)
    except OSError:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def load() -> float:
    """Return the load average of the last minute."""
    return float(psutil.getloadavg()[0])


def is_alive(pid: int) -> bool:
    """Say whether there is a process ``pid``."""
    return bool(psutil.pid_exists(pid))


def _descriptors(pid: int) -> list[str] | None:
    """Return what the descriptors of a process are: psutil names regular files only."""
    try:
        return [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except PermissionError:
        return None
    except OSError:  # it ended meanwhile
        return []
