"""The initramfs of a lab guest that plays a tape: the player as its first process, and modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmm.conformance.judge.both import PLAYER, found_player
from vmm.lab.errors import LabError
from vmm.lab.initramfs import cpio
from vmm.lab.initramfs.archive import module_archive
from vmm.lab.kernels.kernels import Kernel


@dataclass(frozen=True, slots=True)
class Playing:
    """What the player is to do: the bytes of a tape, and how many cases at once."""

    tape: bytes
    jobs: int = 1


def is_there() -> bool:
    """Say whether a player came with msrward."""
    return found_player() is not None


def player() -> Path:
    """Return the player that came with msrward; LabError if none did."""
    if found := found_player():
        return found
    raise LabError(
        f"no {PLAYER} came with this msrward: install a static libc (libc6-dev has one) and build"
        " again, or give --executor python"
    )


def build(kernel: Kernel, vendor: str, playing: Playing, line: str = "") -> bytes:
    """Return the initramfs that boots `kernel`, loads the vendor's KVM and plays the tape.

    The modules get what the command line `line` has for them.
    """
    own = [
        cpio.file("init", player().read_bytes(), executable=True),
        *(cpio.directory(name) for name in ("dev", "proc", "sys", "modules")),
        # The kernel opens it for init before anything can mount a file system on /dev.
        cpio.character_device("dev/console", 5, 1),
        cpio.file("suite.tape", playing.tape),
        cpio.file("jobs", str(playing.jobs).encode()),
    ]
    return cpio.pack(own) + module_archive(kernel, vendor, line)
