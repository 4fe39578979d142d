"""Small work for the workers of a cluster, by name; imported there, so it imports little."""

import os
import signal
import time
from pathlib import Path

from vmm.lab.errors import LabError
from vmm.lab.mutants.findings import Fate, MutantRecord


def by_whom(number, place):
    """Note who does it, wait until somebody says go on, and say who did it."""
    Path(place, f"{number}.{os.getppid()}.{time.monotonic_ns()}").touch()
    while not Path(place, "go").exists():
        time.sleep(0.05)
    return number, os.getpid()


def forever(path):
    """Write who does it, and do nothing for good."""
    Path(path).write_text(f"{os.getpid()}\n")
    while True:
        signal.pause()


def judge(mutant, image, options):
    """Stand for the boot of a mutant: note who does it, wait as it says, and tell its image."""
    number, _ = by_whom(mutant.name, mutant.summary)
    return MutantRecord(number, mutant.digest, mutant.vendor, Fate.KILLED, (image.decode(),))


def judge_nowhere(mutant, image, options):
    """Be asked for a mutant where no lab is."""
    refuse()


def refuse():
    """Do what a lab without an emulator does."""
    raise LabError("no qemu here")


def vanish():
    """End as something that the kernel ends for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
